// The cross-entropy of a segment whose vocabulary a tensor group shares.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "kernels/cross_entropy/cross_entropy.h"
#include "worker/train/model/decoder.h"

namespace lemo::train {

// (loss, correct) as kernels::CrossEntropyInPlace gives them for the logits of the whole
// vocabulary, the same on every rank; with want_gradient `logits` [c, words of this rank] become
// their part of the gradient. `labels` int64 [c], none ignored. One all-gather of four numbers a
// row; all ranks of the group call.
std::tuple<at::Tensor, at::Tensor> SharedCrossEntropyInPlace(
    const Decoder& decoder, const at::Tensor& logits, const at::Tensor& labels,
    const kernels::CrossEntropyOptions& options);

}  // namespace lemo::train
