// What a step needs before it is begun: bytes by the planner's forecast for the very documents of
// its micro-batches, and the work that it is.
//
// The forecast is that of `--plan` (planner/memory), asked for one micro-batch instead of a run.
// Where rows are chosen while a pass goes on, the most that a choice can be counts, as it does for
// the tape's buffers.
//
// Pure; not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "lemo/v1/run_spec.pb.h"
#include "planner/cost_model.h"
#include "planner/memory/memory.h"
#include "worker/train/data/batch.h"
#include "worker/train/data/split.h"
#include "worker/train/governor/ladder.h"
#include "worker/train/model/family/decoder_config.h"
#include "worker/train/plan/row_chooser.h"
#include "worker/train/tokens/settings.h"

namespace lemo::train {

// What all steps of a run have in common.
struct StepModel {
  planner::MemoryOptions memory;  // without layers and rows
  TokenSettings tokens;
  planner::Tuning tuning;
};

// What a rank computes with, as far as bytes depend on it (planner::MemoryOptions).
struct RankCompute {
  int64_t element_bytes = 4;  // of the compute type
  int64_t threads = 1;
  bool own_memory = false;
  bool packs_keys = false;
};

// `spec` is effective, its parallel part that of the gang. InvalidArgument as PlanRequestOf (the
// choices of rows excepted: ValidateRunSpec has refused those that are not known here).
absl::StatusOr<StepModel> StepModelOf(const lemo::v1::RunSpec& spec, const DecoderConfig& config,
                                      const RankCompute& compute,
                                      const std::optional<PredictorFacts>& predictor = {});

// Bytes of one rank, at most.
struct StepNeed {
  int64_t buffers = 0;  // streams and what layers keep
  int64_t passing = 0;  // temporaries, loss segments and the batch itself
  int64_t total() const { return buffers + passing; }
};

// Of one micro-batch of these documents; `labelled` has one entry a row. `keep` is the share of
// each layer, `storage` what it keeps.
StepNeed NeedOf(const StepModel& model, std::span<const int32_t> document_starts,
                std::span<const uint8_t> labelled, const std::vector<double>& keep,
                const std::vector<planner::LayerStorage>& storage);
planner::Work WorkOf(const StepModel& model, std::span<const int32_t> document_starts,
                     std::span<const uint8_t> labelled, const std::vector<double>& keep,
                     const std::vector<planner::LayerStorage>& storage);

// Of an evaluation's micro-batch of `rows` rows, the longest document having `longest`.
StepNeed EvaluationNeed(const StepModel& model, int64_t rows, int64_t longest);
// Of the pass that a table of the blocks is made in, of `rows` rows; nothing for other policies.
StepNeed ScoresNeed(const StepModel& model, int64_t rows, int64_t longest);
// Of publishing, with `rows` rows to compare by; a predictor that learnt is measured on documents
// of up to `measured` rows, one by one.
StepNeed PublishNeed(const StepModel& model, int64_t rows, int64_t measured, bool merge);
// Of the copy that one of so many ranks writes its part of a checkpoint from, at most.
int64_t SnapshotBytes(const StepModel& model, int parts);
// What is there throughout, on one rank: frozen weights, and what trains with its gradients and
// moments.
int64_t WeightBytes(const StepModel& model);
int64_t TrainableBytes(const StepModel& model);

// What a ladder chooses among, for micro-batches like one document of `rows` rows.
LadderOptions LadderOptionsOf(const StepModel& model,
                              const std::vector<planner::LayerStorage>& storage, int64_t rows,
                              double min_keep, const planner::Rates& rates);

// One step's batch of this rank, on any rung.
class StepBatch {
 public:
  // `batch` outlives it. `shares`: of the layers in this step, before any cap.
  StepBatch(const StepModel& model, const Ladder& ladder, const Batch& batch,
            std::vector<double> shares);

  // The most that any of its micro-batches needs.
  StepNeed Need(int64_t rung);
  planner::Work Work(int64_t rung);
  // The micro-batches that the rung makes of it, and how many they are.
  std::vector<MicroBatch> Parts(int64_t rung) const;
  int64_t rounds(int64_t rung) const;

 private:
  struct Piece {
    size_t micro_batch;
    DocumentRange documents;
  };
  std::vector<Piece> PiecesOf(int64_t micro_rows) const;
  template <typename Visit>
  void ForPieces(int64_t rung, Visit visit);

  const StepModel& model_;
  const Ladder& ladder_;
  const Batch& batch_;
  std::vector<double> shares_;
  std::vector<std::vector<uint8_t>> labelled_;    // of each micro-batch
  std::map<int64_t, std::vector<Piece>> pieces_;  // by the ladder's micro
  std::map<int64_t, StepNeed> needs_;             // by rung
};

}  // namespace lemo::train
