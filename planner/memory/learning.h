// How many bytes training a predictor needs at most (worker/train/tokens/predictor/training), as
// memory.h has it for a run of a tuner: passes of all rows through the frozen model, in which every
// head learns at its layer, and nothing outlives a layer but what joint heads wait for.
//
// Pure.
#pragma once

#include <cstdint>

#include "planner/memory/lesson.h"
#include "planner/memory/memory.h"

namespace lemo::planner {

struct LearningOptions {
  ModelShape shape;
  int64_t element_bytes = 4;  // of weights and activations
  LearningHeads heads;
  // The largest micro-batch; how many of them a step has, whose rows are held together.
  int64_t rows = 0;
  int64_t longest = 0;
  int64_t documents = 1;
  int64_t micro_batches = 1;
  EvaluationRows measured;  // the largest micro-batch on which heads are measured
  // In the end leaving rows out is tried layer by layer, on what they are measured on.
  bool allocates = false;
  int64_t loss_segment_rows = 0;  // of the loss that is looked at then; 0: as the trainer chooses
  int64_t threads = 1;
  bool packs_keys = false;  // as MemoryOptions has it
};

// `trainable` are the heads with their optimizer. Bytes of one rank: a predictor has no more.
MemoryForecast ForecastLearning(const LearningOptions& options);

}  // namespace lemo::planner
