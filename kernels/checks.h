// Checks of arguments that every version of an op makes. Inline, because the CUDA versions are a
// library of their own. A failed check throws c10::Error that names the op, the argument and both
// sides.
#pragma once

#include <ATen/core/Tensor.h>

namespace lemo::kernels {

inline void CheckFloatType(const char* op, const char* name, const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  if (tensor.is_cuda()) {
    TORCH_CHECK_VALUE(
        type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op,
        ": CUDA version supports Double, Float, BFloat16, Half; ", name, " is ", type);
  } else {
    TORCH_CHECK_VALUE(type == at::kDouble || type == at::kFloat || type == at::kBFloat16, op,
                      ": CPU version supports Double, Float, BFloat16; ", name, " is ", type);
  }
}

inline void CheckSameKind(const char* op, const char* name, const at::Tensor& tensor,
                          const char* like_name, const at::Tensor& like) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == like.scalar_type() && tensor.device() == like.device(),
                    op, ": ", name, " is ", tensor.scalar_type(), " on ", tensor.device(), ", ",
                    like_name, " is ", like.scalar_type(), " on ", like.device());
}

inline void CheckIndexList(const char* op, const char* name, const at::Tensor& tensor, int64_t size,
                           at::Device device) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kInt || tensor.scalar_type() == at::kLong, op, ": ",
                    name, " must be Int or Long; it is ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && (size < 0 || tensor.size(0) == size), op, ": ", name,
                    " must have one dimension",
                    size < 0 ? std::string() : " of " + std::to_string(size), "; its shape is ",
                    tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == device, op, ": ", name, " is on ", tensor.device(),
                    ", the data on ", device);
}

// The type of statistics and tables beside elements of `type`.
inline at::ScalarType WideType(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace lemo::kernels
