#include "worker/train/parallel/mpi_world.h"

#include <chrono>
#include <cstdlib>
#include <utility>

#include "absl/strings/numbers.h"
#include "worker/train/parallel/mpi_communicator.h"
#include "worker/train/parallel/mpi_thread.h"

namespace lemo::train {
namespace {

// In which all leave a gang that succeeded (the slowest may still be publishing) or failed.
constexpr std::chrono::seconds kFarewell{600}, kFailedFarewell{5};

}  // namespace

int MpiWorld::RanksStarted() {
  // Open MPI's mpirun, and srun --mpi=pmix.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS"}) {
    const char* value = std::getenv(name);
    int ranks = 0;
    if (value == nullptr || !absl::SimpleAtoi(value, &ranks) || ranks < 1) continue;
    // Slurm sets its own for programs that never asked for MPI.
    if (name == std::string("SLURM_STEP_NUM_TASKS") && std::getenv("PMIX_RANK") == nullptr)
      continue;
    return ranks;
  }
  return 1;
}

MpiWorld::MpiWorld(std::unique_ptr<MpiThread> thread) : thread_(std::move(thread)) {}

absl::StatusOr<std::unique_ptr<MpiWorld>> MpiWorld::Start() {
  std::unique_ptr<MpiWorld> made(new MpiWorld(std::make_unique<MpiThread>()));
  made->world_ = MakeWorldCommunicator(made->thread_.get());
  try {
    made->node_ = MakeNodeCommunicator(made->thread_.get());
  } catch (const GangError& error) {
    return error.status();
  }
  return made;
}

MpiWorld::~MpiWorld() {
  if (!left_) Leave(absl::InternalError("ended without saying why"));
}

void MpiWorld::SetTimeout(double seconds) { thread_->SetTimeout(seconds); }

void MpiWorld::SetPatient(bool patient) { thread_->SetPatient(patient); }

bool MpiWorld::broken() const { return thread_->heard_failure(); }

double MpiWorld::waited_seconds() const { return thread_->waited_seconds(); }

void MpiWorld::Tell(const std::string& activity) { thread_->Tell(activity); }

void MpiWorld::Leave(const absl::Status& status) {
  left_ = true;
  using End = MpiThread::End;
  if (!status.ok() && !thread_->heard_failure()) thread_->TellFailure(status);
  const bool met = thread_->MeetAll(status.ok() ? kFarewell : kFailedFarewell);
  // Operations that a failure has cut off would hang in MPI_Finalize.
  thread_->SetEnd(!met ? End::kAbort : status.ok() ? End::kFinalize : End::kLeave, 4);
  thread_.reset();
}

}  // namespace lemo::train
