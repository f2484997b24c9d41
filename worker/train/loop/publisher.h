// Publishing: write the result, load what was written, compare it with the live model, only then
// succeed.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/train/data/batch.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/parallel/gang.h"

namespace lemo::train {

inline constexpr const char* kLemoVersion = "0.1.0";
inline constexpr const char* kAdapterDirectory = "adapter";
inline constexpr const char* kModelDirectory = "model";

struct Published {
  std::filesystem::path adapter_dir;  // empty for a full model
  std::filesystem::path model_dir;    // full or merged; empty without one
  // Largest difference of any logit between the live model and each thing that was loaded again,
  // over the rows of `held_out`.
  double max_logit_difference = 0;
};

// Writes <output.dir>/adapter or <output.dir>/model (both with output.merge). `summary` goes into
// the model card. Internal when what was written does not compute what the live model does: an
// adapter or full model must give the same logits, a merged one within rounding of the compute
// type. All ranks of `gang` call; the lead writes and reads.
absl::StatusOr<Published> Publish(Engine& engine, Gang& gang, const Inputs& inputs,
                                  const MicroBatch& held_out,
                                  std::vector<std::pair<std::string, std::string>> summary);

}  // namespace lemo::train
