// What leaving rows out of layers does to a frozen model's loss, measured, and the shares by layer
// that follow (lemo-spec section 9).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lemo/v1/run_spec.pb.h"
#include "worker/train/data/batch.h"
#include "worker/train/model/decoder.h"
#include "worker/train/tokens/predictor/artifact.h"

namespace lemo::train {

// Forward passes over `sample` (not empty, with labels) whose rows `predictor` chooses, as
// spec.predictor says (allocate, allocate_by, allocate_mlp). Its losses are those of all labelled
// rows. `tell` hears in words what comes next; absent when a signal stopped it.
std::optional<AllocatedShares> MeasureAllocation(
    const lemo::v1::RunSpec& spec, const Decoder& decoder, const Predictor& predictor,
    const std::vector<MicroBatch>& sample, const std::function<void(const std::string&)>& tell);

}  // namespace lemo::train
