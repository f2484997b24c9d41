// Up to which length a model computes what it was made for.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "worker/train/model/family/decoder_config.h"

namespace lemo::train {

// The longest document for the position embedding: max_position_embeddings; times the factor for
// linear and dynamic scaling, whose configs keep the length before scaling there; and for yarn at
// least the original length times the factor.
int64_t MaxPositions(const DecoderConfig& config);

// InvalidArgument with every reason when documents of `max_length` tokens cannot be run exactly:
// max_length below 1 or above MaxPositions, or longer than the sliding window of a layer (a window
// that no document exceeds hides nothing, so full attention is exact for it).
absl::Status CheckRunLength(const DecoderConfig& config, int64_t max_length);

}  // namespace lemo::train
