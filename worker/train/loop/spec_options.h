// What a run spec says, as the parts of a run take it. The spec has its defaults and is valid.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/data/batches.h"
#include "worker/train/loop/device.h"
#include "worker/train/model/weights.h"
#include "worker/train/optim/adamw.h"
#include "worker/train/optim/schedule.h"

namespace lemo::train {

BatchOptions BatchOptionsOf(const lemo::v1::RunSpec& spec);
Schedule ScheduleOf(const lemo::v1::TrainSpec& train, int64_t total_steps);
AdamWOptions AdamWOptionsOf(const lemo::v1::TrainSpec& train);

// The weights that the spec names, read or drawn, counted as weights.
absl::StatusOr<ModelWeights> WeightsOf(const lemo::v1::ModelSpec& model,
                                       const DecoderConfig& config, const Compute& compute);

}  // namespace lemo::train
