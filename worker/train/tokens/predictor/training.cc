#include "worker/train/tokens/predictor/training.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/tokens/scoring/host_scores.h"
#include "worker/train/tokens/scoring/mlp_scores.h"
#include "worker/train/tokens/scoring/score_pass.h"

namespace lemo::train {
namespace {

constexpr int64_t kPruneEvery = 100;

}  // namespace

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

// One dense forward pass, in which every head learns or is measured.
class PredictorTraining::Pass final : public HeadPass {
 public:
  // `weight` 0: measure. Otherwise of this micro-batch in the gradient.
  Pass(PredictorTraining& training, const Sequences& sequences, double weight)
      : HeadPass(training.decoder_, *sequences.space, training.options_.scores, HeadsOf(training),
                 [this](AttentionHead& head, const at::Tensor& x,
                        const std::vector<at::Tensor>& actual) { Visit(head, x, actual); }),
        training_(training),
        sequences_(sequences),
        blocks_(sequences.space->blocks()),
        weight_(weight) {}

  void Run() {
    const Decoder& decoder = training_.decoder_;
    ScorePassOf(decoder, sequences_.tokens, *sequences_.space,
                {.end_layer = decoder.config.layers, .finish_last_layer = training_.options_.mlp},
                *this);
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
  static std::vector<AttentionHead*> HeadsOf(const PredictorTraining& training) {
    std::vector<AttentionHead*> heads;
    for (const auto& head : training.heads_) heads.push_back(head.get());
    return heads;
  }

  void Visit(AttentionHead& head, const at::Tensor& x, const std::vector<at::Tensor>& actual) {
    if (weight_ == 0) {
      head.Measure(training_.decoder_, training_.head_options_, x, blocks_, actual);
    } else {
      head.Learn(training_.decoder_, training_.head_options_, x, blocks_, actual, weight_);
    }
  }

  PredictorTraining& training_;
  const Sequences& sequences_;
  const BlockLayout& blocks_;
  const double weight_;
  at::Tensor mlp_input_;
  std::vector<at::Tensor> updates_;  // of the layer's tiles so far
};

PredictorTraining::PredictorTraining(const Decoder& decoder, PredictorTrainingOptions options)
    : decoder_(decoder),
      options_(std::move(options)),
      head_options_{options_.shape, options_.scores, options_.elastic} {
  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  const int64_t layers = decoder.config.layers;
  const auto add = [this](const std::string& name, int64_t first, int64_t end) {
    heads_.push_back(std::make_unique<AttentionHead>(
        name, first, end, DrawAttentionPredictor(options_.shape, options_.seed, name),
        /*settled=*/false, decoder_.device, options_.adamw));
  };
  for (int64_t i = 0; i < layers; ++i) {
    add(LayerHead(i), i, i + 1);
    if (!options_.mlp) continue;
    const std::string name = absl::StrCat("mlp.", i);
    mlp_.push_back(std::make_unique<MlpState>(
        name, DrawMlpPredictor(decoder.config.hidden, options_.seed, name), decoder_.device,
        options_.adamw));
  }
  if (options_.stack) add(kStackHead, 0, layers);
  for (const int64_t layer : options_.above) add(AboveHead(layer), layer, layers);
}

PredictorTraining::~PredictorTraining() = default;

absl::StatusOr<PredictorTraining::StepResult> PredictorTraining::Step(
    const std::vector<Sequences>& batch, double learning_rate) {
  for (auto& head : heads_) head->loss = 0;
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
  for (auto& head : heads_) {
    if (absl::Status status = update(*head); !status.ok()) return status;
  }
  for (auto& state : mlp_) {
    if (absl::Status status = update(*state); !status.ok()) return status;
  }
  result.grad_norm = std::sqrt(squares);
  if (options_.elastic && steps_ % kPruneEvery == 0) {
    const double share = DeadShare(steps_ / kPruneEvery);
    for (auto& head : heads_) {
      const bool pooled = !options_.shape.flat_slice;
      result.pruned += head->learner.Prune(0, pooled, head->dead_q, share);
      result.pruned += head->learner.Prune(3, pooled, head->dead_k, share);
      head->dead_q = head->dead_k = {};
    }
  }
  return result;
}

void PredictorTraining::BeginMeasuring() {
  for (auto& head : heads_) head->BeginMeasuring(decoder_, head_options_);
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
  for (auto& head : heads_) quality[head->name] = head->meter.Mean();
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
  for (const auto& head : heads_) predictor.heads[head->name] = head->Copy();
  for (size_t i = 0; i < mlp_.size(); ++i) {
    const MlpPredictor& live = mlp_[i]->predictor;
    const auto copy = [](const at::Tensor& t) { return t.detach().to(at::kCPU).clone(); };
    predictor.mlp[static_cast<int64_t>(i)] = {copy(live.w1), copy(live.w2), copy(live.bias)};
  }
  return predictor;
}

int64_t PredictorTraining::heads() const {
  return static_cast<int64_t>(heads_.size() + mlp_.size());
}

int64_t PredictorTraining::parameters() const {
  int64_t count = 0;
  for (const auto& head : heads_) count += CountParameters(head->learner.trainables());
  for (const auto& state : mlp_) count += CountParameters(state->learner.trainables());
  return count;
}

}  // namespace lemo::train
