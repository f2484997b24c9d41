// What a run is and what it has taken, as events and the report tell it.
#pragma once

#include <ATen/core/Tensor.h>

#include "lemo/v1/run_event.pb.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/report/report.h"

namespace lemo::train {

// Peaks of this process by category, also on devices whose allocator knows the total alone.
lemo::v1::PeakBytes PeakByCategory(const Engine& engine, at::Device device);

ReportFacts MakeFacts(const Inputs& inputs, Engine& engine, const Compute& compute);

}  // namespace lemo::train
