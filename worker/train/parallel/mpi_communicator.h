// Communicators of CPU tensors over MPI.
#pragma once

#include <memory>

#include "worker/train/parallel/communicator.h"

namespace lemo::train {

class MpiThread;

// Of all ranks, and of those on this node. `thread` outlives them. Waits; throws GangError. All
// ranks call.
std::unique_ptr<Communicator> MakeWorldCommunicator(MpiThread* thread);
std::unique_ptr<Communicator> MakeNodeCommunicator(MpiThread* thread);

}  // namespace lemo::train
