#include "worker/train/tokens/predictor/training.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/train/tokens/scoring/host_scores.h"
#include "worker/train/tokens/scoring/mlp_scores.h"
#include "worker/train/tokens/scoring/score_pass.h"

namespace lemo::train {
namespace {

// Steps over which a head's scale is averaged before it is fixed.
constexpr int64_t kScaleSteps = 20;
constexpr int64_t kPruneEvery = 100;
constexpr double kInformativenessWeight = 0.1;
constexpr double kLeastScale = 1e-12;

at::Tensor Combined(const std::vector<at::Tensor>& scores, kernels::Combine combine) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& part : scores) {
    parts.push_back(kernels::CombineBlockScores(part, combine));
  }
  return at::cat(parts);
}

AttentionPredictor OnCpu(const AttentionPredictor& predictor) {
  const auto path = [](const PredictorPath& p) {
    const auto copy = [](const at::Tensor& t) { return t.detach().to(at::kCPU).clone(); };
    return PredictorPath{copy(p.w1), copy(p.w2), copy(p.w3)};
  };
  return {path(predictor.q), path(predictor.k), predictor.scale};
}

double AtLeast(double scale) { return std::max(scale, kLeastScale); }

}  // namespace

struct PredictorTraining::AttentionState {
  AttentionState(std::string head, int64_t layer, AttentionPredictor drawn, at::Device device,
                 const AdamWOptions& adamw)
      : name(std::move(head)),
        first_layer(layer),
        predictor(std::move(drawn)),
        learner(name, predictor.Matrices(), device, adamw) {}

  std::string name;
  int64_t first_layer;  // whose input the head reads
  AttentionPredictor predictor;
  Learner learner;
  double sum = 0;  // of the means of M that made the scale
  int64_t sums = 0;
  DeadCounts dead_q, dead_k;
  double loss = 0;  // of the step at hand
  std::optional<AttentionScorer> scorer;
  QualityMeter meter;
};

struct PredictorTraining::MlpState {
  MlpState(std::string head, MlpPredictor drawn, at::Device device, const AdamWOptions& adamw)
      : name(std::move(head)),
        predictor(std::move(drawn)),
        learner(name, predictor.Matrices(), device, adamw) {}

  std::string name;
  MlpPredictor predictor;
  Learner learner;
  double loss = 0;
  std::optional<MlpScorer> scorer;
  QualityMeter meter;
};

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

// One dense forward pass, in which every head learns or is measured.
class PredictorTraining::Pass final : public ScoreVisitor {
 public:
  // `weight` 0: measure. Otherwise of this micro-batch in the gradient.
  Pass(PredictorTraining& training, const Sequences& sequences, double weight)
      : training_(training),
        sequences_(sequences),
        blocks_(sequences.space->blocks()),
        weight_(weight),
        inputs_(training.joint_.size()),
        sums_(training.joint_.size()) {}

  void Run() {
    const at::NoGradGuard no_grad;
    const Decoder& decoder = training_.decoder_;
    const at::Tensor stream =
        at::empty({sequences_.space->rows(), decoder.config.hidden}, decoder.embedding.options());
    Embed(decoder, sequences_.tokens, sequences_.space->positions(), decoder.Rows(stream.size(0)),
          stream);
    ScorePass(decoder, *sequences_.space->all(),
              {.end_layer = decoder.config.layers, .finish_last_layer = training_.options_.mlp},
              stream, *this);
    for (size_t i = 0; i < training_.joint_.size(); ++i) {
      AttentionState& state = *training_.joint_[i];
      const auto layers = static_cast<double>(decoder.config.layers - state.first_layer);
      for (at::Tensor& sum : sums_[i]) sum.div_(layers);
      Visit(state, inputs_[i], sums_[i]);
    }
  }

  void Attention(int64_t layer, const at::Tensor& x, const at::Tensor& q,
                 const at::Tensor& k) override {
    const RopeTables& rope = sequences_.space->all()->rope;
    const bool rotated = training_.options_.scores.rotated;
    const std::vector<at::Tensor> scores =
        BlockPairScores(rotated ? Rotated(training_.decoder_, q, rope) : q,
                        rotated ? Rotated(training_.decoder_, k, rope) : k, blocks_);
    for (size_t i = 0; i < training_.joint_.size(); ++i) {
      const int64_t first = training_.joint_[i]->first_layer;
      if (layer == first) inputs_[i] = x.clone();
      if (layer < first) continue;
      for (size_t d = 0; d < scores.size(); ++d) {
        if (layer == first) {
          sums_[i].push_back(scores[d].clone());
        } else {
          sums_[i][d].add_(scores[d]);
        }
      }
    }
    Visit(*training_.layers_[layer], x, scores);
  }

  void Mlp(int64_t /*layer*/, const at::Tensor& x2) override {
    if (!training_.options_.mlp) return;
    mlp_input_ = x2.clone();
    updates_.clear();
  }

  void MlpTile(int64_t layer, int64_t first_row, const at::Tensor& x2,
               const at::Tensor& delta) override {
    if (!training_.options_.mlp) return;
    updates_.push_back(RelativeUpdates(x2, delta));
    if (first_row + x2.size(0) < blocks_.rows()) return;
    MlpState& state = *training_.mlp_[layer];
    const at::Tensor actual = (BlockMaxima(at::cat(updates_), blocks_) + kMlpScoreFloor).log();
    const InputNorm norm = MlpNormOf(training_.decoder_, layer);
    if (weight_ == 0) {
      const at::Tensor predicted = state.scorer->Scores(mlp_input_, blocks_);
      state.meter.Add(OnHost(predicted), OnHost(actual), blocks_);
      state.meter.AddLoss(
          at::smooth_l1_loss(predicted, actual.to(predicted.scalar_type())).item<double>());
      return;
    }
    const at::Tensor a = norm.Apply(mlp_input_).to(at::kFloat);
    const at::AutoGradMode grad(true);
    const at::Tensor loss =
        at::smooth_l1_loss(MlpLogScores(state.predictor, a, blocks_), actual.to(at::kFloat));
    state.learner.Backward(loss, weight_);
    state.loss += weight_ * loss.item<double>();
  }

 private:
  void Visit(AttentionState& state, const at::Tensor& x, const std::vector<at::Tensor>& scores) {
    const kernels::Combine combine = training_.options_.scores.combine;
    const PredictorShape& shape = training_.options_.shape;
    const at::Tensor a =
        AttentionNormOf(training_.decoder_, state.first_layer).Apply(x).to(at::kFloat);
    if (weight_ == 0) {
      const at::Tensor truth = Combined(scores, combine);
      state.meter.Add(OnHost(state.scorer->Scores(x, blocks_, combine)), OnHost(truth), blocks_);
      state.meter.AddLoss(
          AttentionLoss(state.predictor, shape, a, blocks_, scores, combine).loss.item<double>());
      return;
    }
    if (training_.steps_ < kScaleSteps) {
      // The mean over all pairs that a causal mask leaves.
      double sum = 0;
      int64_t pairs = 0;
      for (const at::Tensor& part : scores) {
        sum += part.sum().item<double>();
        pairs += part.size(0) * (part.size(0) + 1) / 2;
      }
      state.sum += sum / static_cast<double>(pairs);
      state.predictor.scale = AtLeast(state.sum / static_cast<double>(++state.sums));
    }
    const bool count = training_.options_.elastic;
    PathActivations q, k;
    const at::AutoGradMode grad(true);
    const at::Tensor loss = AttentionLoss(state.predictor, shape, a, blocks_, scores, combine,
                                          count ? &q : nullptr, count ? &k : nullptr)
                                .loss;
    state.learner.Backward(loss, weight_);
    state.loss += weight_ * loss.item<double>();
    if (!count) return;
    state.dead_q.Add(q);
    state.dead_k.Add(k);
  }

  PredictorTraining& training_;
  const Sequences& sequences_;
  const BlockLayout& blocks_;
  const double weight_;
  std::vector<at::Tensor> inputs_;             // of the joint heads
  std::vector<std::vector<at::Tensor>> sums_;  // of M over their layers, by document
  at::Tensor mlp_input_;
  std::vector<at::Tensor> updates_;  // of the layer's tiles so far
};

PredictorTraining::PredictorTraining(const Decoder& decoder, PredictorTrainingOptions options)
    : decoder_(decoder), options_(std::move(options)) {
  const auto make = [this](const std::string& name, int64_t layer) {
    return std::make_unique<AttentionState>(
        name, layer, DrawAttentionPredictor(options_.shape, options_.seed, name), decoder_.device,
        options_.adamw);
  };
  for (int64_t i = 0; i < decoder.config.layers; ++i) {
    layers_.push_back(make(LayerHead(i), i));
    if (!options_.mlp) continue;
    const std::string name = absl::StrCat("mlp.", i);
    mlp_.push_back(std::make_unique<MlpState>(
        name, DrawMlpPredictor(decoder.config.hidden, options_.seed, name), decoder_.device,
        options_.adamw));
  }
  if (options_.stack) joint_.push_back(make(kStackHead, 0));
  for (const int64_t layer : options_.above) joint_.push_back(make(AboveHead(layer), layer));
}

PredictorTraining::~PredictorTraining() = default;

absl::StatusOr<PredictorTraining::StepResult> PredictorTraining::Step(
    const std::vector<Sequences>& batch, double learning_rate) {
  std::vector<AttentionState*> all;
  for (auto* states : {&layers_, &joint_}) {
    for (auto& state : *states) all.push_back(state.get());
  }
  for (AttentionState* state : all) state->loss = 0;
  for (auto& state : mlp_) state->loss = 0;
  for (const Sequences& sequences : batch) {
    Pass(*this, sequences, 1.0 / static_cast<double>(batch.size())).Run();
  }
  ++steps_;
  StepResult result;
  double squares = 0;
  const auto update = [&](auto& state) -> absl::Status {
    const double norm = state.learner.Step(learning_rate);
    if (!std::isfinite(norm) || !std::isfinite(state.loss)) {
      return absl::InternalError(absl::StrCat("step ", steps_, ": the loss or a gradient of ",
                                              state.name, " is not finite"));
    }
    result.loss += state.loss / static_cast<double>(heads());
    squares += norm * norm;
    return absl::OkStatus();
  };
  for (AttentionState* state : all) {
    if (absl::Status status = update(*state); !status.ok()) return status;
  }
  for (auto& state : mlp_) {
    if (absl::Status status = update(*state); !status.ok()) return status;
  }
  result.grad_norm = std::sqrt(squares);
  if (options_.elastic && steps_ % kPruneEvery == 0) {
    const double share = DeadShare(steps_ / kPruneEvery);
    for (AttentionState* state : all) {
      const bool pooled = !options_.shape.flat_slice;
      result.pruned += state->learner.Prune(0, pooled, state->dead_q, share);
      result.pruned += state->learner.Prune(3, pooled, state->dead_k, share);
      state->dead_q = state->dead_k = {};
    }
  }
  return result;
}

void PredictorTraining::BeginMeasuring() {
  for (auto* states : {&layers_, &joint_}) {
    for (auto& state : *states) {
      state->meter = {};
      state->scorer.emplace(OnCpu(state->predictor), options_.shape,
                            AttentionNormOf(decoder_, state->first_layer), decoder_.type,
                            decoder_.device);
    }
  }
  for (size_t i = 0; i < mlp_.size(); ++i) {
    const MlpPredictor& live = mlp_[i]->predictor;
    mlp_[i]->meter = {};
    mlp_[i]->scorer.emplace(MlpPredictor{live.w1.detach(), live.w2.detach(), live.bias.detach()},
                            MlpNormOf(decoder_, static_cast<int64_t>(i)), decoder_.type,
                            decoder_.device);
  }
}

void PredictorTraining::Measure(const Sequences& sequences) { Pass(*this, sequences, 0).Run(); }

std::map<std::string, HeadQuality> PredictorTraining::FinishMeasuring() {
  std::map<std::string, HeadQuality> quality;
  for (auto* states : {&layers_, &joint_}) {
    for (auto& state : *states) quality[state->name] = state->meter.Mean();
  }
  for (auto& state : mlp_) quality[state->name] = state->meter.Mean();
  return quality;
}

Predictor PredictorTraining::Make() const {
  Predictor predictor;
  predictor.card.base = MakePredictorBase(decoder_.config, "");
  predictor.card.shape = options_.shape;
  predictor.card.score_rope = options_.scores.rotated;
  predictor.card.elastic = options_.elastic;
  predictor.card.steps = steps_;
  for (auto* states : {&layers_, &joint_}) {
    for (auto& state : *states) predictor.heads[state->name] = OnCpu(state->predictor);
  }
  for (size_t i = 0; i < mlp_.size(); ++i) {
    const MlpPredictor& live = mlp_[i]->predictor;
    const auto copy = [](const at::Tensor& t) { return t.detach().to(at::kCPU).clone(); };
    predictor.mlp[static_cast<int64_t>(i)] = {copy(live.w1), copy(live.w2), copy(live.bias)};
  }
  return predictor;
}

int64_t PredictorTraining::heads() const {
  return static_cast<int64_t>(layers_.size() + joint_.size() + mlp_.size());
}

int64_t PredictorTraining::parameters() const {
  int64_t count = 0;
  for (auto* states : {&layers_, &joint_}) {
    for (auto& state : *states) count += CountParameters(state->learner.trainables());
  }
  for (auto& state : mlp_) count += CountParameters(state->learner.trainables());
  return count;
}

}  // namespace lemo::train
