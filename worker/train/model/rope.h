// The angles of rotary position embedding, as transformers' modeling_rope_utils.py computes them.
//
// Frequencies are rounded to fp32 at the same places as there: a frequency that is off by one fp32
// unit turns by 5e-4 rad at position 8192, which is visible in logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/train/model/family/decoder_config.h"

namespace lemo::train {

struct RopeFrequencies {
  std::vector<double> inv_freq;  // head_dim / 2 entries; every one is an fp32 value
  double scale = 1.0;            // multiplied into cos and sin (yarn's attention factor)
};

// `document_length` in tokens matters for dynamic scaling alone; up to
// config.original_max_positions it changes nothing there. `head_dim` is even, and above 2 for
// dynamic.
RopeFrequencies ComputeRopeFrequencies(const RopeConfig& config, int64_t head_dim,
                                       int64_t document_length);

// Fills row-major [positions.size(), head_dim / 2] tables; row n is for positions[n].
// document_starts bounds the documents as in MicroBatch: the first row of each, and the number of
// rows at the end. With dynamic scaling a document is as long as its largest position plus one, so
// that packing changes nothing; transformers, which looks at the longest in the batch and at
// earlier batches, agrees for one document.
//
// The float version rounds angles to fp32 as transformers does, in any model type. The double
// version takes the same frequencies and rounds nothing after that.
void FillRopeTables(const RopeConfig& config, int64_t head_dim, std::span<const int32_t> positions,
                    std::span<const int32_t> document_starts, float* cos, float* sin);
void FillRopeTables(const RopeConfig& config, int64_t head_dim, std::span<const int32_t> positions,
                    std::span<const int32_t> document_starts, double* cos, double* sin);

}  // namespace lemo::train
