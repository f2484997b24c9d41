// A run spec, its model and its data as the planner asks for them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/violations.h"
#include "lemo/v1/plan.pb.h"
#include "lemo/v1/run_spec.pb.h"
#include "planner/offers/offers.h"
#include "worker/train/model/family/decoder_config.h"
#include "worker/train/plan/row_chooser.h"

namespace lemo::train {

// The shape that bytes and seconds depend on.
planner::ModelShape ShapeOf(const DecoderConfig& config);

// What the data and the machine are.
struct PlanFacts {
  std::vector<planner::LengthCount> documents;  // of the training data, tokenised
  double labelled_share = 1;                    // of their rows
  int64_t element_bytes = 4;                    // of the compute type
  planner::DeviceRates device;
  planner::Evaluated evaluated;
  // Whether a document that is longer than a window is split; else no window is shorter than one.
  bool splits = true;
  std::optional<PredictorFacts> predictor;  // of policy `predictor`
  // The shares of the spec are those of the predictor's card for a mean (tokens.layers allocated).
  bool allocated = false;
};

// What is wished of the offers. Absent or empty: as the spec has it.
struct PlanWishes {
  planner::OfferBounds bounds;
  std::optional<planner::Preference> preference;
  std::vector<int64_t> world_sizes;
  std::vector<double> keep;  // shares of a sparse layer's blocks, beside the spec's
  std::string offer;         // only those whose ids begin so
};

// `spec` is effective (Inputs::spec). What it fixes stays: data, tuner, batch, choice of rows,
// ranks. Left to the planner are policies, micro-batches up to the batch, how many rows are left
// out where that is wished, and running dense or on windows of as few rows. InvalidArgument for
// what cannot be planned.
absl::StatusOr<planner::OfferRequest> PlanRequestOf(const lemo::v1::RunSpec& spec,
                                                    const DecoderConfig& config,
                                                    const PlanFacts& facts,
                                                    const PlanWishes& wishes = {});

// Faults of the spec, with paths below `path`, are added to `violations`. `finish_by` is one here:
// what else runs is not known.
PlanWishes WishesOf(const lemo::v1::PlanSpec& spec, const std::string& path,
                    Violations* violations);

}  // namespace lemo::train
