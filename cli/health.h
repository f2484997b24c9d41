// The standard health service, grpc.health.v1.
#pragma once

#include <memory>

#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"

namespace lemo::cli {

enum class Health { kServing, kNotServing };

// Asks for the health of the whole server; OK with `*health`, else the status of the call.
grpc::Status CheckHealth(const std::shared_ptr<grpc::Channel>& channel, absl::Duration timeout,
                         Health* health);

}  // namespace lemo::cli
