// Keeps a run within memory.budget_bytes: before anything is computed it looks at what will be
// needed and what is held, and changes how it is computed, or stops the run with the numbers.
//
// What is held is measured, not forecast: weights, what trains, a checkpoint that is being written.
// What a pass will need is forecast (governor/step_bytes.h). Where the forecast is wrong, the
// allocator refuses and the step is begun anew on a smaller rung, with the miss added to every
// forecast after it; so a mistake costs a part of a step, never the run. (In a gang the others are
// waiting in the midst of the step then: it ends.)
//
// A step's order of calls: Prepare, Engine::Step, then Done; Refused before another Prepare of the
// same batch where the step threw MemoryLimitError. All ranks of a gang make the same calls and
// decide alike: they exchange what they need before a step, in the order of the calls here.
//
// On a device other than a CPU nothing refuses allocations: the forecast alone keeps the budget.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lemo/v1/run_event.pb.h"
#include "planner/cost_model.h"
#include "worker/train/data/batch.h"
#include "worker/train/data/dataset.h"
#include "worker/train/governor/governor.h"
#include "worker/train/governor/ladder.h"
#include "worker/train/governor/step_bytes.h"
#include "worker/train/loop/checkpoint_parts.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/loop/reporter.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/parallel/gang.h"

namespace lemo::train {

class MemoryGovernor {
 public:
  // What must fit whatever the rung.
  struct Least {
    int64_t train_rows = 0;  // of the longest document
    int64_t micro_rows = 0;  // of the largest micro-batch
    int64_t eval_rows = 0;   // 0: no evaluation
    CheckpointParts checkpoints;
  };

  // For a spec with a budget. Everything given outlives it. From here on the allocator has the
  // budget as its limit. ResourceExhausted, with the numbers and what would do, where no rung can
  // hold the run to it.
  static absl::StatusOr<std::unique_ptr<MemoryGovernor>> Create(const Inputs& inputs,
                                                                const Compute& compute,
                                                                const Least& least, Gang& gang,
                                                                Reporter& reporter);
  ~MemoryGovernor();  // takes the limit away

  // Before the first call of those below. `end_save` waits until no checkpoint is being written.
  void Attach(Engine& engine, std::function<absl::Status()> end_save);

  // How to compute a step: `batch` as the stream gave it, in the micro-batches of its rung.
  struct Plan {
    Batch batch;
    double keep_least = 0;
    double keep_most = 1;
  };
  // `keep_least` as in StepRequest; given up where nothing fits with it.
  absl::StatusOr<Plan> Prepare(const Batch& batch, int64_t step, int64_t steps,
                               double keep_least = 0);
  // Whether `batch`, as the spec says to compute it, would leave little of the budget on a rank.
  bool IsTight(const Batch& batch, int64_t step, int64_t steps, double keep_least);
  // In place of Done where a prepared pass was a rehearsal: what follows is done as if it had not
  // been, but for what a refusal taught.
  lemo::v1::RehearsalEvent Rehearsed(double seconds);
  // Whether a step on the longest document would fit on all ranks with this `keep_least`, its other
  // shares as in `step`, and nothing else left out.
  bool CanKeep(double keep_least, int64_t step, int64_t steps);
  int64_t budget() const { return budget_; }
  // That a step, or an evaluation, threw. Whether it may be prepared again, which is for the caller
  // to do only if it changed nothing (Engine::updated): not in a gang.
  bool Refused(const MemoryLimitError& error);
  // After the step: tells of amendments, and puts what it took into `event`.
  void Done(int64_t step, double seconds, lemo::v1::StepEvent* event);

  // Rows of a micro-batch of an evaluation of the first `documents` documents (0: all): `wanted`,
  // or as many as there is room for. EvaluationDone tells of a change.
  absl::StatusOr<int64_t> PrepareEvaluation(const Dataset& data, int64_t documents, int64_t wanted);
  void EvaluationDone(int64_t step, double seconds);
  // Room for the copy that this rank writes its part of a checkpoint from (CheckpointBytes).
  absl::Status PrepareCheckpoint(int64_t step, int64_t bytes);
  // Rows on which a result is compared: `wanted` at most.
  absl::StatusOr<int64_t> PreparePublishing(int64_t wanted);

 private:
  MemoryGovernor(const Inputs& inputs, const Compute& compute, Gang& gang, Reporter& reporter,
                 const Least& least, StepModel model, const LadderOptions& ladder);

  // What must fit beside what is held throughout, whatever the rung.
  struct Needed {
    std::string what;
    int64_t bytes = 0;
  };
  // `any_checkpoint`: one may be wanted at any time, not only by the spec's intervals.
  std::vector<Needed> LeastNeeds(bool any_checkpoint) const;
  absl::Status CheckPossible() const;
  // The budget as it is now, the same on all ranks. The allocator's limit is lifted: what ranks say
  // to one another while they decide is small tensors too, and must get through however low it is.
  void ReadBudget();
  // The allocator's limit from here on.
  void Enforce() const;
  // What a checkpoint needs beside its copy: ranks gather tensors one at a time.
  int64_t GatheringBytes() const;
  // Bytes beside the buffers of passes.
  int64_t Held() const;
  int64_t Buffers() const;
  int64_t Room() const { return budget_ - Held() - unforeseen_; }
  // Of all bytes, since this was last asked or something prepared (on a GPU: of the run so far).
  int64_t PassingPeak() const;
  // Lets the buffers go if they are larger than what is left beside `need`.
  void MakeRoom(const StepNeed& need);
  // Waits for a checkpoint that is being written, whose copy takes room. Whether that gave any
  // back.
  absl::StatusOr<bool> WaitForSave();
  // The rung that all ranks can take for their part of the step, or the ladder's size.
  int64_t Agreed(StepBatch& batch, int64_t* rounds);
  absl::Status Impossible(StepBatch& batch, const Batch& given, int64_t step) const;
  // Of a shared base on a device, which its allocator does not count.
  int64_t BaseBytes() const;
  StepNeed NeedOfEvaluation(int64_t rows, int64_t longest) const;
  int64_t NeedOfPublishing(int64_t rows) const;
  std::string HeldInWords() const;
  void Tell(int64_t step, const Change& change);
  // The first rank's failure, on all of them.
  absl::Status Agree(const absl::Status& own) const;

  const Inputs& inputs_;
  const at::Device device_;
  Gang& gang_;
  Reporter& reporter_;
  const Least least_;
  const StepModel model_;
  const Ladder ladder_;
  Governor governor_;
  Engine* engine_ = nullptr;
  std::function<absl::Status()> end_save_;

  int64_t budget_ = 0;
  std::string bad_file_;         // what was last said of it
  int64_t unforeseen_ = 0;       // bytes by which the forecast was too low, at most
  bool refused_ = false;         // the step at hand, before
  std::vector<Change> changes_;  // of the step at hand
  // What an AmendmentEvent says of the step at hand, whatever the change.
  lemo::v1::AmendmentEvent amendment_;
  int64_t predicted_bytes_ = 0;
  int64_t least_need_ = 0;  // the largest of LeastNeeds
  planner::Work work_;
  std::deque<planner::MeasuredStep> measured_;
  bool warmed_up_ = false;
  int64_t eval_rows_ = 0;  // of the last evaluation; 0 before the first
  std::optional<Change> eval_change_;
};

}  // namespace lemo::train
