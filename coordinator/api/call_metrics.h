// Counts every call of the API, whichever service it is of.
#pragma once

#include <grpcpp/server_builder.h>

#include "coordinator/runtime/metrics.h"

namespace lemo::coordinator {

// Before BuildAndStart. `metrics` outlives the server.
void CountCalls(Metrics* metrics, grpc::ServerBuilder* builder);

}  // namespace lemo::coordinator
