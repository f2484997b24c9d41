// Communicators of CUDA tensors over NCCL, which is loaded when the first is made.
#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "absl/status/statusor.h"
#include "worker/train/parallel/communicator.h"

namespace lemo::train {

// The same ranks as `control`, a communicator of CPU tensors that carries NCCL's unique id now and
// tells who is late when an operation does not end. Operations run on a stream of their own, after
// what the current stream holds when they are called. All ranks of `control` call.
// FailedPrecondition where NCCL cannot be loaded, Internal for its own errors.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> control, c10::Device device);

}  // namespace lemo::train
