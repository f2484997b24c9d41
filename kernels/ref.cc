#include "kernels/ref.h"

#include <ATen/ATen.h>

namespace lemo::kernels::reference {

std::vector<double> Values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().to(at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

std::vector<int64_t> Indices(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kLong).contiguous();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

at::Tensor FromValues(const std::vector<double>& values, at::IntArrayRef shape,
                      at::ScalarType type) {
  at::Tensor out = at::empty(shape, at::kDouble);
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<double>());
  return out.to(type);
}

double RoundTo(at::ScalarType type, double value) {
  switch (type) {
    case at::kDouble:
      return value;
    case at::kBFloat16:
      return static_cast<float>(c10::BFloat16(static_cast<float>(value)));
    case at::kHalf:
      return static_cast<float>(c10::Half(static_cast<float>(value)));
    default:
      return static_cast<float>(value);
  }
}

}  // namespace lemo::kernels::reference
