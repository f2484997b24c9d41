#include "planner/memory/lesson.h"

#include <algorithm>

#include "planner/memory/choice_bytes.h"
#include "planner/memory/meter.h"

namespace lemo::planner {
namespace {

constexpr int64_t kWide = 4;  // fp32, in which heads learn

}  // namespace

int64_t LearningHeads::ParametersOfOne(const ModelShape& shape) const {
  const int64_t first = flat_slice ? block * shape.head_dim : shape.hidden;
  const int64_t second = flat_slice ? r1 : 2 * r1;
  return 2 * (r1 * first + r2 * second + p * r2);
}

int64_t LearningHeads::Parameters(const ModelShape& shape) const {
  const int64_t of_mlp = kMlpHeadNeurons * shape.hidden + kMlpHeadNeurons + 1;
  return (shape.layers + joint) * ParametersOfOne(shape) + (mlp ? shape.layers * of_mlp : 0);
}

int64_t PairBytes(const LearningHeads& heads, const LessonRows& of) {
  const int64_t blocks = (of.longest + heads.block - 1) / heads.block;
  return (of.rows + of.longest - 1) / of.longest * blocks * blocks * kWide;
}

NormedBytes NormedRows(const ModelShape& shape, int64_t element_bytes, int64_t rows) {
  const int64_t bytes = rows * shape.hidden * kWide;
  const int64_t widened = element_bytes < kWide ? bytes : 0;
  if (shape.post_norm) return {widened, widened};  // nothing is normed before it
  // Factors one after the other; each product is a tensor of its own.
  return {widened + 2 * bytes + rows * kWide + (shape.layer_norm ? widened : 0), bytes};
}

int64_t AttentionHeadBytes(const ModelShape& shape, int64_t element_bytes,
                           const LearningHeads& heads, const LessonRows& of) {
  Meter meter;
  if (!of.learns) {
    // The copy that policies run, first.
    meter.Touch(ChoiceBytes(shape, element_bytes,
                            {.by = RowChooser::By::kPredictor,
                             .first_width = 2 * heads.r1,
                             .flat_slice = heads.flat_slice},
                            of.rows));
  }
  const NormedBytes normed = NormedRows(shape, element_bytes, of.rows);
  meter.Touch(normed.highest);
  meter.Take(normed.left);
  const int64_t blocks = (of.rows + heads.block - 1) / heads.block + of.documents;
  const int64_t slices = heads.flat_slice ? blocks * shape.hidden / shape.head_dim : 0;
  const int64_t input = heads.flat_slice ? blocks * heads.block * shape.hidden * kWide : 0;
  const int64_t first = (heads.flat_slice ? slices : of.rows) * heads.r1 * kWide;
  const int64_t pooled = heads.flat_slice ? first + slices * (heads.r2 + heads.p) * kWide
                                          : blocks * (2 * heads.r1 + 2 * heads.r2) * kWide;
  if (!of.learns) {
    meter.Touch(2 * input + first + pooled);
    return meter.peak();
  }
  // Both paths, then the gradients of one of them.
  for (int path = 0; path < 2; ++path) {
    meter.Touch(2 * input);
    meter.Take(input + first + pooled);
  }
  meter.Take(2 * PairBytes(heads, of));
  meter.Touch(first + pooled + heads.ParametersOfOne(shape) / 2 * kWide);
  return meter.peak();
}

}  // namespace lemo::planner
