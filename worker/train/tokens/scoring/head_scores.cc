#include "worker/train/tokens/scoring/head_scores.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "worker/train/data/batch.h"
#include "worker/train/objective/objective.h"

namespace lemo::train {
namespace {

// The mean of each block's values, of the rows that are `counted`; -1 where none is.
at::Tensor Means(const at::Tensor& values, const at::Tensor& counted, const BlockLayout& blocks) {
  const at::Tensor host = values.to(at::kCPU, at::kDouble).contiguous();
  const at::Tensor host_counted = counted.to(at::kCPU, at::kBool).contiguous();
  const double* value = host.const_data_ptr<double>();
  const bool* counts = host_counted.const_data_ptr<bool>();
  at::Tensor means = at::empty({blocks.blocks()}, at::kDouble);
  double* out = means.mutable_data_ptr<double>();
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    double sum = 0, rows = 0;
    for (int64_t row = blocks.starts[n]; row < blocks.starts[n + 1]; ++row) {
      if (!counts[row]) continue;
      sum += value[row];
      rows += 1;
    }
    out[n] = rows > 0 ? sum / rows : -1;
  }
  return means.to(values.scalar_type());
}

}  // namespace

at::Tensor LossScores(const Decoder& decoder, const at::Tensor& stream, const at::Tensor& labels,
                      const BlockLayout& blocks, int64_t segment_rows) {
  Trainables none;
  RowLosses rows;
  CrossEntropyObjective(decoder, none, segment_rows).Loss(stream, labels, &rows);
  const auto type = stream.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor losses = at::zeros({labels.size(0)}, stream.options().dtype(type));
  const at::Tensor labelled = labels.ne(kIgnoreLabel);
  if (rows.loss.defined()) losses.masked_scatter_(labelled, rows.loss.to(type));
  return Means(losses, labelled, blocks);
}

at::Tensor EntropyScores(const Decoder& decoder, const at::Tensor& stream,
                         const BlockLayout& blocks, int64_t segment_rows) {
  const at::NoGradGuard no_grad;
  Trainables none;
  CrossEntropyObjective objective(decoder, none, segment_rows);
  std::vector<at::Tensor> entropies;
  for (int64_t first = 0; first < stream.size(0); first += objective.segment_rows()) {
    const int64_t count = std::min(objective.segment_rows(), stream.size(0) - first);
    const at::Tensor log_p = objective.Logits(stream.narrow(0, first, count)).log_softmax(1);
    entropies.push_back(log_p.exp().mul_(log_p).sum(1).neg_());
  }
  const at::Tensor all = at::cat(entropies);
  return Means(all, at::ones_like(all, at::kBool), blocks);
}

}  // namespace lemo::train
