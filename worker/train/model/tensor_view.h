// Between libtorch's tensors and the views that files are read and written with.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/safetensors.h"

namespace lemo::train {

at::ScalarType ScalarTypeOf(TensorType type);
// Fails on types that safetensors has no name for in this project: a mistake of the caller.
TensorType TensorTypeOf(at::ScalarType type);

// A tensor over the view's bytes, without a copy: valid as long as they are, and not to be written.
at::Tensor AsTensor(const TensorView& view);

// `tensor` must be contiguous, on the CPU, and outlive the view.
TensorView AsView(const at::Tensor& tensor);

}  // namespace lemo::train
