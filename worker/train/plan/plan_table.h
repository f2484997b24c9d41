// Offers for a person to choose from.
#pragma once

#include <string>
#include <vector>

#include "planner/offers/offers.h"

namespace lemo::train {

// As in RunSpec.memory: `attn_out+offload`.
std::string PolicyName(const planner::LayerStorage& storage);
// As in RunSpec.parallel.
std::string ShardName(planner::Sharding sharding);

// First layer of every run of layers that store alike, and the number of layers.
std::vector<size_t> StorageRuns(const std::vector<planner::LayerStorage>& storage);

// What every layer stores, in runs: `all x8, attn_out x4+offload`.
std::string StorageInWords(const std::vector<planner::LayerStorage>& storage);

// The overrides (`--set` of lemo-train) that make a run of this offer: window, micro-batch,
// policies, and for an offer without a choice of rows, dense.
std::vector<std::string> OverridesOf(const planner::OfferRequest& request,
                                     const planner::Offer& offer);

// What is known of an offer's quality, in words: `not measured` where nothing is.
std::string QualityOf(const planner::OfferRequest& request, const planner::Offer& offer);

// A table of the front, the preferred offer marked and spelled out with its step by operator and
// `rates` in words; or the nearest offers and what to change where nothing is within the bounds.
// Ends with a newline.
std::string PlanTable(const planner::OfferRequest& request, const planner::Offers& offers,
                      const std::string& rates = "");

}  // namespace lemo::train
