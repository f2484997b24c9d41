#include "worker/train/objective/objective.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "kernels/cross_entropy/cross_entropy.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {
namespace {

constexpr int64_t kSegmentBytes = int64_t{512} << 20;
// A CPU gains no speed from more; the logits would be the largest tensor of a step that keeps few
// rows.
constexpr int64_t kSegmentRows = 2048, kCpuSegmentRows = 1024;

int64_t ChooseSegmentRows(int64_t wanted, int64_t vocabulary, bool cpu) {
  if (wanted > 0) return wanted;
  return std::clamp<int64_t>(kSegmentBytes / (6 * vocabulary), 1,
                             cpu ? kCpuSegmentRows : kSegmentRows);
}

// sum += a b. In place where the types allow it: the head is the largest matrix of many models.
void AddProduct(const at::Tensor& a, const at::Tensor& b, const at::Tensor& sum) {
  if (sum.scalar_type() == a.scalar_type()) {
    sum.addmm_(a, b);
  } else {
    sum.add_(a.matmul(b));
  }
}

}  // namespace

CrossEntropyObjective::CrossEntropyObjective(const Decoder& decoder, Trainables& trainables,
                                             int64_t segment_rows)
    : decoder_(decoder),
      segment_rows_(
          ChooseSegmentRows(segment_rows, decoder.config.vocabulary, decoder.device.is_cpu())) {
  for (Trainable& trainable : trainables) {
    if (trainable.value.is_same(decoder.head)) {
      head_ = &trainable;
    } else if (trainable.stage == Stage::kHead) {
      final_.push_back(&trainable);
    }
  }
}

LossSums CrossEntropyObjective::LossAndGradient(const at::Tensor& stream, const at::Tensor& labels,
                                                double scale) {
  const at::NoGradGuard no_grad;
  const ScopedMemoryCategory category(MemoryCategory::kLoss);
  const at::Tensor is_labelled = labels.ne(kernels::kIgnoreLabel);
  const at::Tensor rows = is_labelled.nonzero().view(-1);
  // Rows without a label get no gradient from the loss; labelled rows are replaced segment by
  // segment.
  stream.masked_fill_(is_labelled.logical_not().unsqueeze(1), 0);
  at::Tensor loss = at::zeros({}, at::TensorOptions().dtype(at::kDouble).device(stream.device()));
  at::Tensor correct = at::zeros({}, labels.options());
  for (int64_t first = 0; first < rows.size(0); first += segment_rows_) {
    const at::Tensor segment = rows.narrow(0, first, std::min(segment_rows_, rows.size(0) - first));
    const at::Tensor x = stream.index_select(0, segment).requires_grad_(true);
    at::Tensor normed;
    {
      const at::AutoGradMode grad_mode(true);
      normed = FinalNorm(decoder_, x);
    }
    const at::Tensor logits = at::linear(normed, decoder_.head);
    const auto [losses, hits] = kernels::CrossEntropyInPlace(
        logits, labels.index_select(0, segment), {.scale = scale, .want_gradient = true});
    loss += losses.sum(at::kDouble);
    correct += hits.sum();
    const at::Tensor& dlogits = logits;
    if (head_ != nullptr) AddProduct(dlogits.t(), normed, head_->grad);
    std::vector<at::Tensor> inputs = {x};
    for (const Trainable* trainable : final_) inputs.push_back(trainable->value);
    const std::vector<at::Tensor> grads =
        torch::autograd::grad({normed}, inputs, {dlogits.matmul(decoder_.head)});
    for (size_t i = 0; i < final_.size(); ++i) final_[i]->grad.add_(grads[i + 1]);
    stream.index_copy_(0, segment, grads[0]);
  }
  return {loss.item<double>(), rows.size(0), correct.item<int64_t>()};
}

LossSums CrossEntropyObjective::Loss(const at::Tensor& stream, const at::Tensor& labels,
                                     RowLosses* row_losses) {
  const at::NoGradGuard no_grad;
  const ScopedMemoryCategory category(MemoryCategory::kLoss);
  const at::Tensor rows = labels.ne(kernels::kIgnoreLabel).nonzero().view(-1);
  at::Tensor loss = at::zeros({}, at::TensorOptions().dtype(at::kDouble).device(stream.device()));
  at::Tensor correct = at::zeros({}, labels.options());
  std::vector<at::Tensor> all_losses, all_hits;
  for (int64_t first = 0; first < rows.size(0); first += segment_rows_) {
    const at::Tensor segment = rows.narrow(0, first, std::min(segment_rows_, rows.size(0) - first));
    const at::Tensor logits =
        at::linear(FinalNorm(decoder_, stream.index_select(0, segment)), decoder_.head);
    const auto [losses, hits] = kernels::CrossEntropyInPlace(
        logits, labels.index_select(0, segment), {.scale = 1.0, .want_gradient = false});
    loss += losses.sum(at::kDouble);
    correct += hits.sum();
    if (row_losses != nullptr) {
      all_losses.push_back(losses);
      all_hits.push_back(hits);
    }
  }
  if (!all_losses.empty()) *row_losses = {at::cat(all_losses), at::cat(all_hits)};
  return {loss.item<double>(), rows.size(0), correct.item<int64_t>()};
}

at::Tensor CrossEntropyObjective::Logits(const at::Tensor& stream) {
  const at::NoGradGuard no_grad;
  const auto type = decoder_.type == at::kDouble ? at::kDouble : at::kFloat;
  return at::linear(FinalNorm(decoder_, stream), decoder_.head).to(type);
}

}  // namespace lemo::train
