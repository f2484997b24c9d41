// Online distillation (lemo-spec sections 5 and 18.5): policy `predictor` whose heads go on
// learning while the run trains, so that they follow what adapters make of queries and keys, and a
// run needs no predictor to begin with.
//
// A lesson is what training a predictor does with a head (predictor/head.h), on the largest
// micro-batch of a step and on a stream that its pass has there anyway:
//
//   scopes layer, group   before a layer's attention, whose head guesses that layer alone. Its
//                         stream has all rows, also where few of them are computed: every step
//                         teaches, at the price of one layer's queries, keys and scores.
//   scopes nested, stack  before the first layer of a choice, whose heads guess the mean of many.
//                         True scores then take a forward pass of all rows besides. That is a third
//                         of a step of all rows, so that each of those teaches; but most of what a
//                         sparse step costs, so that of those only the ones that measure recall do.
//
// Assumes one rank: others would teach their heads from other rows, and choose differently.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/train/tokens/policy/policy.h"
#include "worker/train/tokens/policy/predictor.h"
#include "worker/train/tokens/predictor/artifact.h"
#include "worker/train/tokens/predictor/head.h"

namespace lemo::train {

// Networks that have learnt nothing yet, for the choices of a run. Its card has no fingerprint.
Predictor FreshPredictor(const TokenSettings& settings, const DecoderConfig& config, uint64_t seed);

// Not thread-safe. No gradient of a lesson reaches anything but the head that it is for.
class OnlinePolicy final : public TokenPolicy {
 public:
  // `start` fits. Both references outlive the policy.
  OnlinePolicy(const TokenSettings& settings, const Decoder& decoder, Predictor start);

  std::vector<float> Scores(const ScoreRequest& request) override {
    return ranking_.Scores(request);
  }
  std::vector<float> TrueScores(const ScoreRequest& request) override {
    return ranking_.TrueScores(request);
  }
  bool ReadsStream() const override { return true; }
  void Learn(int64_t layer, const RowSpace& space, const at::Tensor& stream) override;

  // Layers before which heads learn in step `step` (from 0), which computes all rows or not: in
  // turn, and a function of the step, so that a resumed run goes on with it.
  std::vector<int64_t> LessonsAt(int64_t step, bool dense) const;
  // Ends a step: what had a lesson is updated, and ranks from now on.
  void Update();

  int64_t parameters() const;  // of the heads that learn

  // All that the next lessons and choices depend on, by name; copies on the CPU.
  std::map<std::string, at::Tensor> State() const;
  // InvalidArgument where it is not the state of such heads; nothing is then changed.
  absl::Status Restore(const std::map<std::string, at::Tensor>& state);

  // Measures the heads that learn, on what is given to Measure between Begin and Make.
  void BeginMeasuring();
  void Measure(const at::Tensor& tokens, const RowSpace& space);
  // The predictor as it is now. Its card says how long it has learnt, with which losses, and what
  // was measured.
  Predictor Make() const;

 private:
  std::vector<AttentionHead*> Heads() const;

  const TokenSettings& settings_;
  const Decoder& decoder_;
  const Predictor start_;
  const HeadOptions options_;
  PredictorPolicy ranking_;
  std::vector<std::unique_ptr<AttentionHead>> heads_;
  std::vector<int64_t> layers_;         // first ones of the heads, ascending
  std::vector<AttentionHead*> taught_;  // in the step at hand
  std::vector<double> losses_;          // mean of the heads taught, by step with a lesson
};

}  // namespace lemo::train
