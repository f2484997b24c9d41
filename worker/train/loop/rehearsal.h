// What a run with a tight budget runs before its first step.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/train/data/batch.h"
#include "worker/train/data/batches.h"
#include "worker/train/tokens/settings.h"

namespace lemo::train {

struct Rehearsal {
  int64_t step = 0;  // from 0
  // This rank's share of the step, of whose micro-batches only that of most rows is left and, if it
  // is another, that of the longest document.
  Batch batch;
};

// Of the steps from `step` up to `steps` those with the passes that can need most: as they are, and
// cut into documents. One or two, the same on all ranks. `stream` stands before `step`; shares of
// kept rows are at least `keep_least`.
std::vector<Rehearsal> RehearsalsOf(const BatchStream& stream, const TokenSettings& tokens,
                                    int64_t step, int64_t steps, double keep_least);

// Rows of the longest document.
int64_t LongestDocument(const MicroBatch& batch);

}  // namespace lemo::train
