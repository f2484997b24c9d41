// Softmax cross-entropy of one segment of the loss, whose gradient replaces the logits.
//
// The segmented loss never holds [rows, vocab] for all rows: it makes the logits of a segment,
// calls this, multiplies the gradient that is now in the logits' place with the head's weight, and
// goes on to the next segment in the same memory. So loss and gradient cost one head product and no
// second buffer.
//
//   loss[r]    = log(sum_j exp(z[r, j])) - z[r, label[r]]            unscaled
//   correct[r] = the lowest index with the largest z[r, :] is label[r]
//   z[r, j]    = (softmax(z[r, :])[j] - (j == label[r])) * scale     only with want_gradient
//
// Shapes: logits [c, V] contiguous, V > 0; labels int64 or int32 [c] on the same device; c may be
// 0. A label of -100 means ignore: loss 0, correct false, gradient row 0. Any other label outside
// [0, V) is the caller's mistake: the CPU version throws c10::Error and leaves the logits
// untouched; the CUDA version, which cannot look without a wait, makes that row's loss and gradient
// NaN.
//
// Types: float64, float32, bfloat16; float16 too on CUDA. All arithmetic in fp32 (fp64 for fp64)
// around the row's maximum, the gradient rounded once to the logits' type. loss is float32
// (float64), correct is bool. -Inf logits are fine beside a finite one; a row with NaN, +Inf or
// only -Inf gives NaN loss and a NaN gradient row, and is not correct. Results do not depend on the
// number of threads.
//
// Arithmetic per row of V entries of b bytes: 3bV bytes with the gradient (2 reads, 1 write; the
// second read comes from cache while a row fits there), ~35V FLOP of which exp takes most.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace lemo::kernels {

inline constexpr int64_t kIgnoreLabel = -100;

struct CrossEntropyOptions {
  // Multiplies the gradient, not the loss: 1 / (labelled tokens of the whole effective batch),
  // times the loss scale if there is one.
  double scale = 1.0;
  // false leaves the logits as they are (evaluation).
  bool want_gradient = true;
};

// (loss, correct). Not differentiable: the gradient is what it leaves in `logits`.
std::tuple<at::Tensor, at::Tensor> CrossEntropyInPlace(const at::Tensor& logits,
                                                       const at::Tensor& labels,
                                                       const CrossEntropyOptions& options);

// The same where the columns are some of a vocabulary's words, the others elsewhere: what is known
// of the columns at hand, and, once the parts are put together, their gradient. V may be 0 here. A
// label outside [0, V) is a word that is elsewhere.

// float64 [4, c]:
//   0  the largest logit (NaN ignored; -Inf where there is none)
//   1  sum_j exp(z[r, j] - largest), NaN with a NaN or +Inf among them, 0 where all are -Inf
//   2  the label's logit, 0 where it is elsewhere
//   3  the lowest column with the largest logit, 0 where there is none
at::Tensor CrossEntropyStatistics(const at::Tensor& logits, const at::Tensor& labels);

// z[r, j] = (exp(z[r, j] - largest[r]) / total[r] - (j == label[r])) * scale, with the largest
// logit and the sum of all parts, float64 [c].
void CrossEntropyGradientInPlace(const at::Tensor& logits, const at::Tensor& labels,
                                 const at::Tensor& largest, const at::Tensor& total, double scale);

}  // namespace lemo::kernels
