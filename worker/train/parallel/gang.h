// The ranks of this run and their groups.
//
// Ranks are numbered so that those of one tensor group are neighbours, which mpirun puts on one
// node: rank = data * T + tensor, with T the size of a tensor group.
//
//   rank 0  1  2  3  4  5  6  7      T = 2: tensor groups {0 1} {2 3} {4 5} {6 7},
//                                    data groups {0 2 4 6} {1 3 5 7}
//
// Operations between groups are called in the same order by all ranks: what belongs to a layer in
// the order of the tape, each gradient bucket when its last layer is through, sums of a step last
// (docs/design/0005-parallel.md).
#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/parallel/communicator.h"

namespace lemo::train {

class MpiWorld;

class Gang {
 public:
  // Joins the ranks that this process was started with; alone without any. FailedPrecondition when
  // this build has no MPI.
  static absl::StatusOr<std::unique_ptr<Gang>> Join();
  // A gang of this process alone, whatever it was started with.
  static std::unique_ptr<Gang> Alone();
  ~Gang();
  Gang(const Gang&) = delete;
  Gang& operator=(const Gang&) = delete;

  // Forms the groups; fills in `parallel`'s tensor and data. All ranks call. InvalidArgument with
  // the field when the numbers do not multiply to the ranks that were started.
  absl::Status Arrange(lemo::v1::ParallelSpec* parallel, c10::Device device);

  // `world` and `node` carry CPU tensors on any device; the groups those of the run's device.
  Communicator& world() { return *world_; }
  Communicator& node() { return *node_; }
  Communicator& tensor() { return *tensor_; }
  Communicator& data() { return *data_; }

  int rank() const { return world_->rank(); }
  int size() const { return world_->size(); }
  bool alone() const { return size() == 1; }
  // Rank 0 speaks for the run: events, report, files.
  bool leads() const { return rank() == 0; }

  // Numbers of all ranks, as many from each, by rank. Waits.
  std::vector<std::vector<double>> Everyones(const std::vector<double>& own);
  // Whether some rank has said that it failed. Any thread.
  bool broken() const;
  // Of this rank: how long it waited for others, and the bytes it gave to operations
  // (Communicator), so far.
  double waited_seconds() const;
  int64_t sent_bytes() const;

  // While one lives, a rank that takes longer than the timeout is late, whatever it does: for what
  // all do at once. At other times one that answers is waited for (MpiWorld::SetPatient).
  class Timed {
   public:
    explicit Timed(Gang& gang);
    ~Timed();
    Timed(const Timed&) = delete;
    Timed& operator=(const Timed&) = delete;

   private:
    Gang& gang_;
  };

  // See MpiWorld.
  void Tell(const std::string& activity);
  void Leave(const absl::Status& status);

 private:
  Gang();

  std::unique_ptr<MpiWorld> mpi_;  // null when alone
  std::unique_ptr<Communicator> own_world_, own_node_, tensor_, data_;
  Communicator* world_ = nullptr;
  Communicator* node_ = nullptr;
};

// That `facts` (a JSON object, nested as you like) are the same on all ranks. FailedPrecondition,
// on all ranks alike, with every field that differs, its value here and on rank 0. All ranks call.
absl::Status CompareFacts(Communicator& world, const std::string& facts);

// Rank 0's status first, then, when that is OK, the others' after it: for work that one does and
// the others build on, such as filling a cache. The first failure is everybody's.
absl::Status Agree(Communicator& world, const absl::Status& status);

}  // namespace lemo::train
