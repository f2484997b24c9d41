#include "worker/train/tokens/predictor/head.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "worker/train/tokens/scoring/host_scores.h"

namespace lemo::train {
namespace {

constexpr double kInformativenessWeight = 0.1;
constexpr double kLeastScale = 1e-12;

at::Tensor Combined(const std::vector<at::Tensor>& scores, kernels::Combine combine) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& part : scores) {
    parts.push_back(kernels::CombineBlockScores(part, combine));
  }
  return at::cat(parts);
}

double AtLeast(double scale) { return std::max(scale, kLeastScale); }

// Over all pairs that a causal mask leaves.
double MeanOf(const std::vector<at::Tensor>& scores) {
  double sum = 0;
  int64_t pairs = 0;
  for (const at::Tensor& part : scores) {
    sum += part.sum().item<double>();
    pairs += part.size(0) * (part.size(0) + 1) / 2;
  }
  return sum / static_cast<double>(pairs);
}

}  // namespace

PredictionLoss AttentionLoss(const AttentionPredictor& predictor, const PredictorShape& shape,
                             const at::Tensor& a, const BlockLayout& blocks,
                             const std::vector<at::Tensor>& actual, kernels::Combine combine,
                             PathActivations* q_activations, PathActivations* k_activations) {
  const double scale = AtLeast(predictor.scale);
  const at::Tensor q = PathVectors(predictor.q, shape, a, blocks, q_activations);
  const at::Tensor k = PathVectors(predictor.k, shape, a, blocks, k_activations);
  at::Tensor sum;
  int64_t pairs = 0;
  for (size_t d = 0; d < actual.size(); ++d) {
    const int64_t first = blocks.documents[d], count = blocks.documents[d + 1] - first;
    const at::Tensor predicted = q.narrow(0, first, count).matmul(k.narrow(0, first, count).t());
    // Above the diagonal both are 0.
    const at::Tensor part =
        at::smooth_l1_loss(predicted.tril(), (actual[d] / scale).to(predicted.scalar_type()).tril(),
                           at::Reduction::Sum);
    sum = sum.defined() ? sum + part : part;
    pairs += count * (count + 1) / 2;
  }
  const at::Tensor predicted =
      kernels::BlockInformativeness(q, k, DocumentsOf(blocks, a.device()), combine);
  const at::Tensor truth = (Combined(actual, combine) / scale).to(predicted.scalar_type());
  return {sum / static_cast<double>(pairs) +
              kInformativenessWeight * at::smooth_l1_loss(predicted, truth),
          predicted};
}

AttentionHead::AttentionHead(std::string head, int64_t first, int64_t end, AttentionPredictor start,
                             bool settled, at::Device device, const AdamWOptions& adamw)
    : name(std::move(head)),
      first_layer(first),
      end_layer(end),
      predictor(std::move(start)),
      learner(name, predictor.Matrices(), device, adamw),
      scale_steps(settled ? 0 : kScaleSteps) {}

void AttentionHead::Learn(const Decoder& decoder, const HeadOptions& options, const at::Tensor& x,
                          const BlockLayout& blocks, const std::vector<at::Tensor>& actual,
                          double weight) {
  if (learner.optimizer().steps() < scale_steps) {
    sum += MeanOf(actual);
    predictor.scale = AtLeast(sum / static_cast<double>(++sums));
  }
  const at::Tensor a = AttentionNormOf(decoder, first_layer).Apply(x).to(at::kFloat);
  PathActivations q, k;
  const at::AutoGradMode grad(true);
  const at::Tensor of_part =
      AttentionLoss(predictor, options.shape, a, blocks, actual, options.scores.combine,
                    options.elastic ? &q : nullptr, options.elastic ? &k : nullptr)
          .loss;
  learner.Backward(of_part, weight);
  loss += weight * of_part.item<double>();
  if (!options.elastic) return;
  dead_q.Add(q);
  dead_k.Add(k);
}

void AttentionHead::BeginMeasuring(const Decoder& decoder, const HeadOptions& options) {
  meter = {};
  scorer.emplace(Copy(), options.shape, AttentionNormOf(decoder, first_layer), decoder.type,
                 decoder.device);
}

void AttentionHead::Measure(const Decoder& decoder, const HeadOptions& options, const at::Tensor& x,
                            const BlockLayout& blocks, const std::vector<at::Tensor>& actual) {
  const kernels::Combine combine = options.scores.combine;
  meter.Add(OnHost(scorer->Scores(x, blocks, combine)), OnHost(Combined(actual, combine)), blocks);
  const at::Tensor a = AttentionNormOf(decoder, first_layer).Apply(x).to(at::kFloat);
  meter.AddLoss(
      AttentionLoss(predictor, options.shape, a, blocks, actual, combine).loss.item<double>());
}

AttentionPredictor AttentionHead::Copy() const {
  const auto path = [](const PredictorPath& p) {
    const auto copy = [](const at::Tensor& t) { return t.detach().to(at::kCPU).clone(); };
    return PredictorPath{copy(p.w1), copy(p.w2), copy(p.w3)};
  };
  return {path(predictor.q), path(predictor.k), predictor.scale};
}

HeadPass::HeadPass(const Decoder& decoder, const RowSpace& space,
                   const AttentionScoreOptions& scores, std::vector<AttentionHead*> heads,
                   Visit visit)
    : decoder_(decoder),
      space_(space),
      scores_(scores),
      heads_(std::move(heads)),
      visit_(std::move(visit)),
      joint_(heads_.size()) {}

void HeadPass::Attention(int64_t layer, const at::Tensor& x, const at::Tensor& q,
                         const at::Tensor& k) {
  const RopeTables& rope = space_.all()->rope;
  const std::vector<at::Tensor> scores =
      BlockPairScores(scores_.rotated ? Rotated(decoder_, q, rope) : q,
                      scores_.rotated ? Rotated(decoder_, k, rope) : k, space_.blocks());
  for (size_t i = 0; i < heads_.size(); ++i) {
    AttentionHead& head = *heads_[i];
    if (layer < head.first_layer || layer >= head.end_layer) continue;
    const bool first = layer == head.first_layer, last = layer + 1 == head.end_layer;
    if (first && last) {
      visit_(head, x, scores);
      continue;
    }
    Joint& joint = joint_[i];
    if (first) joint.input = x.clone();
    for (size_t d = 0; d < scores.size(); ++d) {
      if (first) {
        joint.sums.push_back(scores[d].clone());
      } else {
        joint.sums[d].add_(scores[d]);
      }
    }
    if (!last) continue;
    const auto layers = static_cast<double>(head.end_layer - head.first_layer);
    for (at::Tensor& sum : joint.sums) sum.div_(layers);
    visit_(head, joint.input, joint.sums);
    joint = {};
  }
}

}  // namespace lemo::train
