// What the networks of a predictor take while they learn (worker/train/tokens/predictor/head): the
// same for a run that trains a predictor (learning.h) and for one whose predictor learns on the way
// (memory.h).
//
// Pure.
#pragma once

#include <cstdint>

#include "planner/cost_model.h"

namespace lemo::planner {

inline constexpr int64_t kMlpHeadNeurons = 64;  // of a network for the MLP

// The networks that learn.
struct LearningHeads {
  int64_t block = 64;                  // rows
  int64_t r1 = 128, r2 = 128, p = 64;  // widths
  bool flat_slice = false;
  bool mlp = true;       // one a layer also for the MLP
  int64_t joint = 1;     // that guess the mean of several layers, beside one a layer
  bool rotated = false;  // scores are of rotated queries and keys

  // Of all of them, and of one that guesses attention's scores.
  int64_t Parameters(const ModelShape& shape) const;
  int64_t ParametersOfOne(const ModelShape& shape) const;
};

// A micro-batch that heads look at: they learn from it, or are measured on it.
struct LessonRows {
  int64_t rows = 0;
  int64_t longest = 0;  // rows of the longest document
  int64_t documents = 1;
  bool learns = true;
};

// fp32 scores of all pairs of blocks of every document.
int64_t PairBytes(const LearningHeads& heads, const LessonRows& of);

// Highest bytes of what one head makes of the rows that its layer reads, beside these and the
// scores.
int64_t AttentionHeadBytes(const ModelShape& shape, int64_t element_bytes,
                           const LearningHeads& heads, const LessonRows& of);

// The rows in fp32 behind the layer's norm, on the way there and when they are made.
struct NormedBytes {
  int64_t highest = 0;
  int64_t left = 0;
};
NormedBytes NormedRows(const ModelShape& shape, int64_t element_bytes, int64_t rows);

}  // namespace lemo::planner
