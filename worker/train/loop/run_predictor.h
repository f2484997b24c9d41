// The predictor of a run that chooses rows by one: how the run comes by it, and, where it learns on
// the way (tokens.online), what it begins with and leaves.
#pragma once

#include <filesystem>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/loop/predictor_run.h"
#include "worker/train/loop/publisher.h"

namespace lemo::train {

inline constexpr const char* kChosenPredictor = "chosen-predictor";

// For policy `predictor`; nothing to do for any other: finds the predictor, trains it first, or
// begins with one that has learnt nothing, where it is to learn on the way. What `auto` came to
// stays in the output directory, so that a resumed run ranks by it whatever was trained since.
// `leads`: this rank writes. Makes tokens.predictor a directory; errors name the field.
absl::Status ChoosePredictor(const Compute& compute, bool leads, const EmitEvent& emit,
                             Inputs* inputs);

// Fills in the steps of all rows that a run of `steps` steps with tokens.online begins with, once
// tokens.predictor names a directory. Nothing for any other run.
absl::Status FillWarmup(int64_t steps, lemo::v1::RunSpec* spec);

// Measures the engine's predictor on data.eval, or on some of the training data, and writes it to
// `<output.dir>/predictor`. It belongs to the model that `published` is an adapter of, or is.
// Answers the directory.
absl::StatusOr<std::filesystem::path> PublishPredictor(Engine& engine, const Inputs& inputs,
                                                       const Published& published);

}  // namespace lemo::train
