#include "planner/memory/choice_bytes.h"

#include <algorithm>

#include "planner/memory/layer_bytes.h"
#include "planner/memory/meter.h"

namespace lemo::planner {
namespace {

// AttentionScorer with the whole block in one vector: the normed rows in fp32, and for one path
// after the other the slices of their blocks, with what they are made by.
int64_t SliceBytes(int64_t rows, int64_t hidden) { return 3 * rows * hidden * kStatisticBytes; }

// AttentionScorer, a row at a time: one product for both paths, whose rows are scaled while they
// are pooled.
int64_t RowBytes(const ModelShape& shape, int64_t e, int64_t width, int64_t rows) {
  const int64_t first = rows * width * e, statistic = rows * kStatisticBytes;
  Meter meter;
  meter.Take(first);
  if (shape.post_norm) return meter.peak();  // nothing is normed before it
  if (!shape.layer_norm) {
    meter.Touch(4 * statistic);  // of the rows' lengths, on the way to a factor
    return meter.peak();
  }
  // Mean and variance are of a copy in fp32; then the offsets of the norm make four of the product.
  if (e < kStatisticBytes) meter.Touch(rows * shape.hidden * kStatisticBytes);
  meter.Take(4 * statistic);
  meter.Touch(4 * rows * width * kStatisticBytes);
  return meter.peak();
}

}  // namespace

int64_t ChoiceBytes(const ModelShape& shape, int64_t element_bytes, const RowChooser& chooser,
                    int64_t rows) {
  int64_t bytes = 0;
  switch (chooser.by) {
    case RowChooser::By::kPlace:
    case RowChooser::By::kScores:  // of whole layers: the forecast's
      return 0;
    case RowChooser::By::kNorm:
      bytes = rows * 2 * kStatisticBytes;  // fp32, and fp64 on the host
      break;
    case RowChooser::By::kPredictor:
      bytes = chooser.flat_slice ? SliceBytes(rows, shape.hidden)
                                 : RowBytes(shape, element_bytes, chooser.first_width, rows);
      break;
  }
  return bytes + (chooser.own_stream ? rows * shape.hidden * element_bytes : 0);
}

}  // namespace lemo::planner
