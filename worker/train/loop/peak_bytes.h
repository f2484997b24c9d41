// Peak memory of this process as events and results tell it.
#pragma once

#include <ATen/core/Tensor.h>

#include "lemo/v1/run_event.pb.h"

namespace lemo::train {

// On a CPU by category; elsewhere the total alone, since the device's allocator knows no
// categories.
lemo::v1::PeakBytes PeakBytesOf(at::Device device);

// From here on peaks are those of what comes; what is in use counts.
void ResetPeakBytes(at::Device device);

}  // namespace lemo::train
