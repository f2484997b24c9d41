#include "worker/train/objective/objective.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <tuple>

#include "kernels/cross_entropy/cross_entropy.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/objective/shared_cross_entropy.h"

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

// The logits of these rows, of this rank's words, become their gradient where it is wanted.
std::tuple<at::Tensor, at::Tensor> CrossEntropy(const Decoder& decoder, const at::Tensor& logits,
                                                const at::Tensor& labels,
                                                const kernels::CrossEntropyOptions& options) {
  return decoder.tensor != nullptr ? SharedCrossEntropyInPlace(decoder, logits, labels, options)
                                   : kernels::CrossEntropyInPlace(logits, labels, options);
}

// The labelled rows of a stream, in segments: those of all ranks where they share its rows.
class Labelled {
 public:
  Labelled(const Decoder& decoder, const at::Tensor& labels, const at::Tensor& rows)
      : labels_(labels), rows_(rows), parts_(decoder.RowsWith(rows.size(0))) {
    if (parts_.shared()) all_labels_ = parts_.Gather(labels.index_select(0, rows));
  }
  const RowParts& parts() const { return parts_; }
  std::vector<RowTile> Segments(int64_t rows) const { return parts_.Tiles(rows); }
  // Numbers of this rank's rows of a segment in its stream.
  at::Tensor Own(const RowTile& segment) const {
    return rows_.narrow(0, segment.own_first, segment.parts.count());
  }
  at::Tensor Labels(const RowTile& segment) const {
    return parts_.shared() ? segment.Of(all_labels_) : labels_.index_select(0, Own(segment));
  }

 private:
  const at::Tensor &labels_, &rows_;  // of this rank
  RowParts parts_;
  at::Tensor all_labels_;
};

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
  const Labelled labelled(decoder_, labels, rows);
  for (const RowTile& segment : labelled.Segments(segment_rows_)) {
    const at::Tensor own = labelled.Own(segment);
    const at::Tensor x = stream.index_select(0, own).requires_grad_(true);
    at::Tensor own_normed;
    {
      const at::AutoGradMode grad_mode(true);
      own_normed = FinalNorm(decoder_, x);
    }
    const at::Tensor normed = segment.parts.Gather(own_normed.detach());
    const at::Tensor logits = at::linear(normed, decoder_.head);
    const auto [losses, hits] = CrossEntropy(decoder_, logits, labelled.Labels(segment),
                                             {.scale = scale, .want_gradient = true});
    loss += losses.sum(at::kDouble);
    correct += hits.sum();
    const at::Tensor& dlogits = logits;
    if (head_ != nullptr) AddProduct(dlogits.t(), normed, head_->grad);
    std::vector<at::Tensor> inputs = {x};
    for (const Trainable* trainable : final_) inputs.push_back(trainable->value);
    // A part of a sum over the ranks, which is added up in front of the norm where each has the
    // rows to take it through, and else behind.
    const bool in_front = segment.parts.shared();
    at::Tensor gradient = dlogits.matmul(decoder_.head);
    if (in_front) gradient = segment.parts.Sum(gradient).Wait();
    const std::vector<at::Tensor> grads = torch::autograd::grad({own_normed}, inputs, {gradient});
    for (size_t i = 0; i < final_.size(); ++i) final_[i]->grad.add_(grads[i + 1]);
    stream.index_copy_(0, own, in_front ? grads[0] : segment.parts.Sum(grads[0]).Wait());
  }
  return {loss.item<double>(), labelled.parts().rows(), correct.item<int64_t>()};
}

LossSums CrossEntropyObjective::Loss(const at::Tensor& stream, const at::Tensor& labels,
                                     RowLosses* row_losses) {
  const at::NoGradGuard no_grad;
  const ScopedMemoryCategory category(MemoryCategory::kLoss);
  const at::Tensor rows = labels.ne(kernels::kIgnoreLabel).nonzero().view(-1);
  at::Tensor loss = at::zeros({}, at::TensorOptions().dtype(at::kDouble).device(stream.device()));
  at::Tensor correct = at::zeros({}, labels.options());
  const Labelled labelled(decoder_, labels, rows);
  const int64_t count = labelled.parts().rows();
  for (const RowTile& segment : labelled.Segments(segment_rows_)) {
    const at::Tensor logits = at::linear(
        segment.parts.Gather(FinalNorm(decoder_, stream.index_select(0, labelled.Own(segment)))),
        decoder_.head);
    const auto [losses, hits] = CrossEntropy(decoder_, logits, labelled.Labels(segment),
                                             {.scale = 1.0, .want_gradient = false});
    loss += losses.sum(at::kDouble);
    correct += hits.sum();
    if (row_losses != nullptr) {
      if (!row_losses->loss.defined()) {
        *row_losses = {at::empty({count}, losses.options()), at::empty({count}, hits.options())};
      }
      segment.Put(losses, row_losses->loss);
      segment.Put(hits, row_losses->hit);
    }
  }
  return {loss.item<double>(), count, correct.item<int64_t>()};
}

at::Tensor CrossEntropyObjective::Logits(const at::Tensor& stream) {
  const at::NoGradGuard no_grad;
  const auto type = decoder_.type == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor normed = decoder_.RowsWith(stream.size(0)).Gather(FinalNorm(decoder_, stream));
  const at::Tensor logits = at::linear(normed, decoder_.head).to(type);
  if (decoder_.tensor == nullptr) return logits;
  const Shard words{1, decoder_.split->vocabulary_first(), decoder_.config.vocabulary,
                    logits.size(1)};
  return GatherWhole(logits, words, *decoder_.tensor).to(decoder_.device);
}

}  // namespace lemo::train
