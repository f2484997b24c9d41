// What a plan is told of the devices that its run may come to.
//
// Pure.
#pragma once

#include <vector>

#include "lemo/v1/plan.pb.h"
#include "lemo/v1/worker_service.pb.h"

namespace lemo::coordinator {

// `rates` and `device` by what workers have said of their CPUs. Rates are of the slowest that is
// calibrated, so that what is promised holds on the others too; bytes are for the most threads.
// Empty where no worker says anything: then a plan is for the coordinator's own machine.
lemo::v1::PlanOptions PlannedDevices(const std::vector<const lemo::v1::Hello*>& workers);

}  // namespace lemo::coordinator
