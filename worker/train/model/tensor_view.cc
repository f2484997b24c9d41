#include "worker/train/model/tensor_view.h"

#include <ATen/ATen.h>

#include <utility>

namespace lemo::train {
namespace {

constexpr std::pair<TensorType, at::ScalarType> kTypes[] = {
    {TensorType::kF64, at::kDouble}, {TensorType::kF32, at::kFloat},
    {TensorType::kF16, at::kHalf},   {TensorType::kBF16, at::kBFloat16},
    {TensorType::kI64, at::kLong},   {TensorType::kI32, at::kInt},
    {TensorType::kI16, at::kShort},  {TensorType::kI8, at::kChar},
    {TensorType::kU8, at::kByte},    {TensorType::kBool, at::kBool},
};

}  // namespace

at::ScalarType ScalarTypeOf(TensorType type) {
  for (const auto& [ours, theirs] : kTypes) {
    if (ours == type) return theirs;
  }
  TORCH_CHECK(false, "tensor type without a libtorch type");
}

TensorType TensorTypeOf(at::ScalarType type) {
  for (const auto& [ours, theirs] : kTypes) {
    if (theirs == type) return ours;
  }
  TORCH_CHECK(false, "no safetensors type for ", c10::toString(type));
}

at::Tensor AsTensor(const TensorView& view) {
  // from_blob wants a pointer to non-const; callers may not write.
  return at::from_blob(const_cast<char*>(view.bytes.data()), view.shape, ScalarTypeOf(view.type));
}

TensorView AsView(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous() && tensor.is_cpu(), "AsView wants a contiguous CPU tensor");
  return {TensorTypeOf(tensor.scalar_type()),
          tensor.sizes().vec(),
          {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()}};
}

}  // namespace lemo::train
