#include "worker/train/loop/allocation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/loop/signals.h"
#include "worker/train/objective/objective.h"
#include "worker/train/tape/tape.h"
#include "worker/train/tokens/policy/plan.h"
#include "worker/train/tokens/policy/predictor.h"

namespace lemo::train {
namespace {

// At which each layer is tried alone.
const std::vector<double> kShares = {0.2, 0.4, 0.6, 0.8};

TokenSettings SettingsOf(const lemo::v1::PredictorSpec& predictor, int64_t layers) {
  lemo::v1::TokensSpec spec;
  spec.set_policy("predictor");
  spec.set_scope("layer");
  spec.set_layers("all");
  spec.set_mlp(predictor.allocate_mlp());
  spec.set_block(predictor.block());
  FillTokenDefaults(&spec);
  Violations none;
  return MakeTokenSettings(spec, layers, &none);
}

// What the predictor says of every block while all rows are computed.
class ScoreWatch final : public RowSource {
 public:
  ScoreWatch(TokenPolicy& policy, const at::Tensor& tokens, std::vector<std::vector<float>>* scores)
      : policy_(policy), tokens_(tokens), scores_(scores) {}

  BlocksKept Stay(int64_t, const RowSpace&, const at::Tensor&) override { return nullptr; }
  BlocksKept Attention(int64_t layer, const RowSpace& space, const at::Tensor& stream) override {
    const std::vector<float> scores = policy_.Scores({.space = space,
                                                      .stream = stream,
                                                      .tokens = tokens_,
                                                      .layer = layer,
                                                      .end_layer = layer + 1});
    std::vector<float>& all = (*scores_)[layer];
    all.insert(all.end(), scores.begin(), scores.end());
    return nullptr;
  }
  BlocksKept Mlp(int64_t, const RowSpace&, const at::Tensor&) override { return nullptr; }

 private:
  TokenPolicy& policy_;
  const at::Tensor& tokens_;
  std::vector<std::vector<float>>* scores_;  // by layer
};

class Trials {
 public:
  Trials(const lemo::v1::RunSpec& spec, const Decoder& decoder, const Predictor& predictor,
         const std::vector<MicroBatch>& sample)
      : decoder_(decoder),
        sample_(sample),
        seed_(spec.train().seed()),
        layers_(decoder.config.layers),
        settings_(SettingsOf(spec.predictor(), layers_)),
        policy_(MakePredictorPolicy(settings_, decoder, predictor)),
        tape_(decoder, nothing_, {std::vector<StoragePolicy>(layers_)}, Bounds(0)),
        objective_(decoder, nothing_, spec.memory().loss_segment_rows()) {}

  int64_t layers() const { return layers_; }

  // Shares by layer; absent when a signal came.
  std::optional<ThresholdTrial> Shares(const std::vector<double>& keep) {
    settings_.threshold.clear();
    return Pass(keep);
  }
  std::optional<ThresholdTrial> Thresholds(const std::vector<double>& thresholds) {
    settings_.threshold = thresholds;
    // How many blocks pass is the thresholds' to say; every layer is a sparse one.
    return Pass(std::vector<double>(layers_, 0.5));
  }

  // Predicted scores of all blocks, by layer, each list sorted.
  std::vector<std::vector<float>> Scores() {
    std::vector<std::vector<float>> scores(layers_);
    for (const MicroBatch& batch : sample_) {
      const DeviceBatch device = ToDevice(batch, decoder_, settings_.block);
      ScoreWatch watch(*policy_, device.tokens, &scores);
      tape_.Reserve(Bounds(batch.rows()));
      tape_.Forward(device.tokens, device.space, &watch, {}, /*for_backward=*/false);
    }
    for (std::vector<float>& of : scores) std::sort(of.begin(), of.end());
    return scores;
  }

 private:
  // Nothing is kept for a backward pass.
  RowBounds Bounds(int64_t rows) const { return {rows, std::vector<LayerRowCounts>(layers_)}; }

  std::optional<ThresholdTrial> Pass(const std::vector<double>& keep) {
    LossSums sums;
    SparsityCounts counts;
    for (size_t i = 0; i < sample_.size(); ++i) {
      if (StopSignal() != 0) return std::nullopt;
      const DeviceBatch device = ToDevice(sample_[i], decoder_, settings_.block);
      std::vector<uint8_t> labelled(sample_[i].labels.size());
      std::transform(sample_[i].labels.begin(), sample_[i].labels.end(), labelled.begin(),
                     [](int32_t label) { return label != kIgnoreLabel; });
      TokenPlan plan(settings_, *policy_, decoder_, *device.space,
                     {.keep = keep,
                      .labelled = std::move(labelled),
                      .document_rows = sample_[i].document_rows,
                      .document_places = sample_[i].document_places,
                      .tokens = device.tokens,
                      .labels = device.labels,
                      .draw = seed_ + i});
      tape_.Reserve(Bounds(sample_[i].rows()));
      const at::Tensor stream =
          tape_.Forward(device.tokens, device.space, &plan, {}, /*for_backward=*/false);
      sums.Add(objective_.Loss(stream, device.labels));
      plan.AddTo(&counts);
    }
    ThresholdTrial trial{.loss = sums.Mean(), .kept = {}};
    for (const int64_t rows : counts.attention) {
      trial.kept.push_back(static_cast<double>(rows) / static_cast<double>(counts.rows));
    }
    return trial;
  }

  const Decoder& decoder_;
  const std::vector<MicroBatch>& sample_;
  const uint64_t seed_;
  const int64_t layers_;
  Trainables nothing_;  // trains here
  TokenSettings settings_;
  std::unique_ptr<TokenPolicy> policy_;
  Tape tape_;
  CrossEntropyObjective objective_;
};

// The value below which a share of `sorted` lies.
double Quantile(const std::vector<float>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  return sorted[static_cast<size_t>(std::lround(place))];
}

std::optional<AllocatedShares> ByLayers(Trials& trials, double dense, double mean,
                                        const std::function<void(const std::string&)>& tell) {
  AllocatedShares result;
  result.rises.shares = kShares;
  for (int64_t l = 0; l < trials.layers(); ++l) {
    tell(absl::StrCat("layer ", l, " of ", trials.layers()));
    std::vector<double> of;
    for (const double share : kShares) {
      std::vector<double> keep(trials.layers(), 1.0);
      keep[l] = share;
      const std::optional<ThresholdTrial> trial = trials.Shares(keep);
      if (!trial) return std::nullopt;
      of.push_back(trial->loss - dense);
    }
    result.rises.rise.push_back(std::move(of));
  }
  result.keep = AllocateShares(result.rises, mean);
  const std::optional<ThresholdTrial> together = trials.Shares(result.keep);
  if (!together) return std::nullopt;
  result.loss_gap = together->loss - dense;
  return result;
}

std::optional<AllocatedShares> ByThresholds(Trials& trials, double dense, double mean,
                                            const std::function<void(const std::string&)>& tell) {
  std::vector<double> start, reach;
  for (const std::vector<float>& scores : trials.Scores()) {
    start.push_back(Quantile(scores, 1 - mean));
    reach.push_back((Quantile(scores, 0.55) - Quantile(scores, 0.45)) / 2);
  }
  int passes = 0;
  const std::optional<TunedThresholds> tuned =
      TuneThresholds(start, reach, mean, [&](const std::vector<double>& thresholds) {
        if (passes++ % 20 == 0) tell(absl::StrCat("pass ", passes));
        return trials.Thresholds(thresholds);
      });
  if (!tuned) return std::nullopt;
  return AllocatedShares{
      .keep = tuned->trial.kept, .loss_gap = tuned->trial.loss - dense, .threshold = tuned->values};
}

}  // namespace

std::optional<AllocatedShares> MeasureAllocation(
    const lemo::v1::RunSpec& spec, const Decoder& decoder, const Predictor& predictor,
    const std::vector<MicroBatch>& sample, const std::function<void(const std::string&)>& tell) {
  const double mean = spec.predictor().allocate();
  Trials trials(spec, decoder, predictor, sample);
  const std::optional<ThresholdTrial> dense =
      trials.Shares(std::vector<double>(trials.layers(), 1.0));
  if (!dense) return std::nullopt;
  std::optional<AllocatedShares> result = spec.predictor().allocate_by() == "fd"
                                              ? ByThresholds(trials, dense->loss, mean, tell)
                                              : ByLayers(trials, dense->loss, mean, tell);
  if (!result) return result;
  result->mean = mean;
  result->mlp = spec.predictor().allocate_mlp();
  for (const MicroBatch& batch : sample) {
    result->sequences += std::ssize(batch.document_starts) - 1;
  }
  tell(absl::StrFormat("the loss rises by %.4f", result->loss_gap));
  return result;
}

}  // namespace lemo::train
