// What a plan is told of the devices that its run may come to.
//
// Pure.
#pragma once

#include <string>
#include <vector>

#include "lemo/v1/cluster_service.pb.h"
#include "lemo/v1/plan.pb.h"
#include "lemo/v1/worker_service.pb.h"

namespace lemo::coordinator {

// What a device is, so that devices of one type may be taken to be equally fast: its model, and of
// a CPU the threads. Empty where the worker says nothing of it.
std::string DeviceTypeOf(const lemo::v1::Device& device);

// What workers have said of their CPUs, or of those of one type where `type` is given.
//
// Where two types or more are calibrated: `devices`, one a type, since each has times of its own.
// Else `rates` and `device`. Rates are of the slowest calibrated worker (of its type), so that what
// is promised holds on the others too; bytes are for the most threads. Empty where no worker says
// anything: then a plan is for the coordinator's own machine.
lemo::v1::PlanOptions PlannedDevices(const std::vector<const lemo::v1::Hello*>& workers,
                                     const std::string& type = "");

}  // namespace lemo::coordinator
