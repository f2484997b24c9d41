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

// All of every batch. `config` says from which length on attention costs most.
BatchOptions BatchOptionsOf(const lemo::v1::RunSpec& spec, const DecoderConfig& config);
Schedule ScheduleOf(const lemo::v1::TrainSpec& train, int64_t total_steps);
AdamWOptions AdamWOptionsOf(const lemo::v1::TrainSpec& train);

// Of the sample that a shadow takes.
int64_t ShadowSequences(const lemo::v1::EvalSpec& eval);

// Whether the loaded weights are what is computed with to the end, or what is trained begins as a
// copy of them.
enum class WeightUse { kFrozen, kTrained };

// The weights that the spec names, read or drawn, counted as weights; with `split` this rank's part
// of them. `config` is that of the whole model. Frozen ones lie in model.bases_dir where the spec
// has one, on a CPU.
absl::StatusOr<ModelWeights> WeightsOf(const lemo::v1::ModelSpec& model,
                                       const DecoderConfig& config, const Compute& compute,
                                       WeightUse use, const ModelSplit* split = nullptr);

}  // namespace lemo::train
