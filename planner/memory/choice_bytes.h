// What choosing rows takes while it goes on, as worker/train/tokens/policy does it.
#pragma once

#include <cstdint>

#include "planner/memory/memory.h"

namespace lemo::planner {

// Highest bytes of one choice among `rows` rows of the stream, the stream itself included where the
// chooser has its own. Nothing of a layer is alive then.
int64_t ChoiceBytes(const ModelShape& shape, int64_t element_bytes, const RowChooser& chooser,
                    int64_t rows);

}  // namespace lemo::planner
