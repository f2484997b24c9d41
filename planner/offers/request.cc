// What makes a request impossible to plan, whatever its bounds.
#include <algorithm>
#include <string>
#include <vector>

#include "planner/offers/offers.h"

namespace lemo::planner {
namespace {

void CheckTokens(const OfferRequest& request, std::vector<std::string>* faults) {
  for (size_t i = 0; i < request.tokens.size(); ++i) {
    const TokenChoice& choice = request.tokens[i];
    const auto fault = [&](const std::string& reason) {
      faults->push_back("tokens[" + std::to_string(i) + "]." + reason);
    };
    if (choice.scope == Scope::kDense) fault("scope: dense is a choice in any case");
    if (choice.block < 1) fault("block: must be above 0");
    if (std::ssize(choice.keep) != request.shape.layers) {
      fault("keep: must have one entry a layer");
      continue;
    }
    const auto out = [](double keep) { return !(keep > 0 && keep <= 1); };
    if (std::any_of(choice.keep.begin(), choice.keep.end(), out)) {
      fault("keep: must be above 0 and at most 1");
    }
    const bool falls = std::is_sorted(choice.keep.rbegin(), choice.keep.rend());
    if (choice.scope == Scope::kNested && !falls) fault("keep: must not rise with depth");
    if (choice.scope == Scope::kStack && choice.keep.front() != choice.keep.back()) {
      fault("keep: must be the same in all layers");
    }
    if (choice.scope != Scope::kLayer && choice.separate()) {
      fault(choice.mlp_off ? "mlp_off: is for scope layer" : "mlp_own: is for scope layer");
    }
    if (choice.scope != Scope::kLayer && choice.kv_all) fault("kv_all: is for scope layer");
    if (choice.scope != Scope::kLayer && choice.any_share) fault("any_share: is for scope layer");
    if (choice.mlp_off && choice.mlp_own) fault("mlp_own: excludes mlp_off");
    if (!(choice.dense_share >= 0 && choice.dense_share <= 1)) {
      fault("dense_share: must be in [0, 1]");
    }
    if (choice.chooser.by == RowChooser::By::kPredictor && choice.chooser.first_width < 1) {
      fault("chooser.first_width: must be above 0");
    }
    if (choice.lessons.parameters > 0 && choice.chooser.by != RowChooser::By::kPredictor) {
      fault("lessons: are a predictor's");
    }
  }
}

}  // namespace

std::vector<std::string> FaultsOf(const OfferRequest& request) {
  std::vector<std::string> faults;
  const auto require = [&faults](bool holds, const char* fault) {
    if (!holds) faults.emplace_back(fault);
  };
  const ModelShape& shape = request.shape;
  require(std::min({shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.intermediate,
                    shape.vocabulary, shape.layers}) > 0,
          "shape: every size must be above 0");
  require(request.element_bytes == 2 || request.element_bytes == 4,
          "element_bytes: must be 2 or 4");
  require(request.window > 0, "window: must be above 0");
  for (const int64_t window : request.short_windows) {
    require(window > 0 && window < request.window,
            "short_windows: must be above 0 and below the window");
  }
  const auto all_above = [](const std::vector<int64_t>& values, int64_t least) {
    return !values.empty() && std::all_of(values.begin(), values.end(),
                                          [least](int64_t value) { return value >= least; });
  };
  bool documents = !request.data.documents.empty();
  for (const LengthCount& of : request.data.documents) {
    documents = documents && of.length > 0 && of.count > 0;
  }
  require(documents, "data.documents: needs lengths and counts above 0");
  require(request.batch_sequences > 0, "batch_sequences: must be above 0");
  require(request.steps > 0, "steps: must be above 0");
  require(request.evaluated.rows >= request.evaluated.longest && request.evaluated.longest >= 0 &&
              (request.evaluated.rows > 0) == (request.evaluated.longest > 0),
          "evaluated: rows and the longest document's do not go together");
  require(request.labelled_share > 0 && request.labelled_share <= 1,
          "labelled_share: must be above 0 and at most 1");
  require(all_above(request.world_sizes, 1), "world_sizes: needs sizes above 0");
  require(!request.shardings.empty(), "shardings: needs at least one");
  require(all_above(request.loss_segments, 0), "loss_segments: needs sizes, 0 for the trainer's");
  require(all_above(request.micro_batch_sequences, 1),
          "micro_batch_sequences: needs numbers above 0");
  require(request.mix_points >= 2, "mix_points: must be at least 2");
  require(request.offers_max >= 0, "offers_max: must not be negative");
  require(request.device.threads > 0, "device.threads: must be above 0");
  require(request.device.compute.products > 0 && request.device.compute.attention > 0,
          "device.compute: needs rates above 0");
  for (const TimeRatio& of : request.time_ratios) {
    require(of.ratio > 0, "time_ratios: must be above 0");
  }
  const OfferBounds& bounds = request.bounds;
  require(bounds.memory_bytes_max >= 0 && bounds.finish_seconds_max >= 0 &&
              bounds.device_seconds_max >= 0 && bounds.keep_min >= 0 && bounds.keep_min <= 1,
          "bounds: must not be negative, and keep_min at most 1");
  CheckTokens(request, &faults);
  if (request.learning) {
    const LearningHeads& heads = request.learning->heads;
    require(std::min({heads.block, heads.r1, heads.r2, heads.p}) > 0 && heads.joint >= 0,
            "learning.heads: every size must be above 0");
    require(request.tokens.empty() && !request.tuning.full,
            "learning: excludes tuning and choices of rows");
    require(request.world_sizes == std::vector<int64_t>{1},
            "world_sizes: a predictor is trained "
            "by one rank");
  }
  // Otherwise there might be no candidate at all.
  bool fits = false;
  for (const int64_t world : request.world_sizes) {
    for (int64_t tensor = 1; tensor <= world && shape.kv_heads > 0; ++tensor) {
      fits = fits || (world % tensor == 0 && (tensor == 1 || request.may_split_tensors) &&
                      TensorRanksFit(shape, tensor) && world / tensor <= request.batch_sequences);
    }
  }
  require(fits, "world_sizes: none can share this model and these batches");
  return faults;
}

}  // namespace lemo::planner
