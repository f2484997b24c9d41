// The thread that MPI belongs to: it starts operations in the order they were called, moves them on
// while the main thread computes, and answers the other ranks. mpi_world.h says why.
#pragma once

#include <ATen/core/Tensor.h>
#define OMPI_SKIP_MPICXX 1  // the C++ bindings that MPI has dropped
#include <mpi.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"

namespace lemo::train {

// An operation between its call and its end.
struct MpiOperation {
  std::string name;
  std::function<void(std::vector<MPI_Request>*)> start;  // on the MPI thread
  std::vector<MPI_Request> requests;
  std::vector<at::Tensor> tensors;  // kept alive
  bool done = false;
};

// One a process. Public functions are the main thread's.
class MpiThread {
 public:
  // What the thread does at its end.
  enum class End { kFinalize, kLeave, kAbort };

  MpiThread();  // returns when MPI is up
  ~MpiThread();
  MpiThread(const MpiThread&) = delete;
  MpiThread& operator=(const MpiThread&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  MPI_Op sum(at::ScalarType type) const { return type == at::kBFloat16 ? sum_halves_ : MPI_SUM; }
  MPI_Op max(at::ScalarType type) const { return type == at::kBFloat16 ? max_halves_ : MPI_MAX; }

  std::shared_ptr<MpiOperation> Begin(std::string name, std::vector<at::Tensor> tensors,
                                      std::function<void(std::vector<MPI_Request>*)> start);
  // Throws GangError, as Communicator says.
  void Wait(MpiOperation& operation);
  double waited_seconds();

  void SetTimeout(double seconds);
  // See MpiWorld::SetPatient.
  void SetPatient(bool patient);
  void Tell(const std::string& activity);

  // Whether another rank has said that it failed.
  bool heard_failure();
  void TellFailure(const absl::Status& status);
  // Waits for all ranks to call it.
  bool MeetAll(std::chrono::seconds patience);
  void SetEnd(End end, int code);

 private:
  using Clock = std::chrono::steady_clock;
  enum Tag { kQuestion = 1, kAnswer, kFailure };
  struct Letter {
    std::string text;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  struct Late {
    absl::Status status;
    bool works = false;  // those that do not wait have all answered
    bool all_wait = false;
  };

  void Run();
  bool Turn();
  bool MoveOn();
  void SendText(int to, Tag tag, std::string text);
  void Correspond();
  void Take(int from, Tag tag, const std::string& text);
  std::string Doing();
  Late WhoIsLate(std::unique_lock<std::mutex>& lock, const MpiOperation& operation);

  int rank_ = 0, size_ = 1;
  MPI_Comm side_ = MPI_COMM_NULL;
  MPI_Op sum_halves_ = MPI_OP_NULL, max_halves_ = MPI_OP_NULL;
  // Of the MPI thread.
  std::list<std::shared_ptr<MpiOperation>> active_;
  std::list<Letter> sent_;
  Clock::time_point looked_{};
  // Under the lock.
  std::mutex mutex_;
  std::condition_variable wake_, changed_;
  std::deque<std::shared_ptr<MpiOperation>> begun_;
  bool up_ = false, ending_ = false;
  End end_ = End::kAbort;
  int abort_code_ = 1;
  Clock::duration timeout_;
  bool patient_ = true;
  std::string activity_, waits_for_, told_;
  Clock::time_point since_ = Clock::now(), waits_since_{};
  Clock::duration waited_{};
  std::set<int> asked_;
  std::map<int, std::string> answers_;
  std::optional<absl::Status> failure_;

  std::thread thread_;  // last: uses all of the above
};

}  // namespace lemo::train
