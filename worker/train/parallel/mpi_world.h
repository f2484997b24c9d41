// The gang of this process over MPI: who the ranks are, communicators of CPU tensors, and what is
// said when one of them fails or is late.
//
// MPI belongs to one thread of its own. It starts operations in the order they were called, moves
// them on while the main thread computes (Open MPI has no thread that would), and answers the
// others' questions even while the main thread is stuck:
//
//   * A rank that fails tells all others why (Leave); their waits end with that cause, not with a
//     broken connection.
//   * A wait that outlasts the timeout asks every rank what it is doing. Those that compute (unless
//     the wait is a patient one), or do not answer, are the late ones, and the error names them.
//
// One object a process. The main thread calls everything here.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/train/parallel/communicator.h"

namespace lemo::train {

class MpiThread;

class MpiWorld {
 public:
  // How many ranks mpirun, or srun with PMIx, has started this process among; 1 without them.
  static int RanksStarted();

  // Joins the other ranks. Internal when they do not appear.
  static absl::StatusOr<std::unique_ptr<MpiWorld>> Start();
  // Without Leave: the other ranks are ended.
  ~MpiWorld();
  MpiWorld(const MpiWorld&) = delete;
  MpiWorld& operator=(const MpiWorld&) = delete;

  Communicator& world() { return *world_; }
  Communicator& node() { return *node_; }  // the ranks on this node

  // After how long a wait the others are asked what they do. Default 300 s.
  void SetTimeout(double seconds);
  // Whether a wait goes on after that while those that do not wait answer that they work: for what
  // one rank does and the others need, such as tokenising, however long it takes. Else they are
  // late. At first: patient.
  void SetPatient(bool patient);
  // Whether some rank has said that it failed. Any thread.
  bool broken() const;
  // How long this rank has waited for the others so far.
  double waited_seconds() const;
  // What this rank does from now on, for the others to be told: `step 12`.
  void Tell(const std::string& activity);

  // Ends this rank's part, after everything was reported. OK: returns when all ranks have called
  // it. Else the others are told `status`, and those that do not leave within seconds are killed,
  // this process too. No communicator may be used afterwards.
  void Leave(const absl::Status& status);

 private:
  explicit MpiWorld(std::unique_ptr<MpiThread> thread);

  std::unique_ptr<MpiThread> thread_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Communicator> node_;
  bool left_ = false;
};

}  // namespace lemo::train
