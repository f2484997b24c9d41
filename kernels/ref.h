// What the reference versions share: tensors as plain arrays of double, and the rounding to an
// element type. The references compute in double and round only where the contract names a
// rounding, so they define the result; an optimised version differs by the error of its fp32
// arithmetic.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace lemo::kernels::reference {

std::vector<double> Values(const at::Tensor& tensor);
std::vector<int64_t> Indices(const at::Tensor& tensor);

// A tensor of `shape` and `type`, each value rounded once.
at::Tensor FromValues(const std::vector<double>& values, at::IntArrayRef shape,
                      at::ScalarType type);

// `value` rounded to `type`.
double RoundTo(at::ScalarType type, double value);

}  // namespace lemo::kernels::reference
