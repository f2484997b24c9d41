// Which entries of a tensor are positive, at one bit each: all that the backward pass of a ReLU
// reads (lemo-spec section 7).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lemo::train {

inline int64_t SignBytes(int64_t columns) { return (columns + 7) / 8; }

// x [N, C] of a float type, contiguous -> uint8 [N, SignBytes(C)]; bit i of byte b is column
// 8 b + i, bits beyond the last column are 0. NaN is not positive.
at::Tensor PackSigns(const at::Tensor& x);

// The inverse: [N, columns] of `type`, 1 where x was positive, else 0.
at::Tensor UnpackSigns(const at::Tensor& bits, int64_t columns, at::ScalarType type);

}  // namespace lemo::train
