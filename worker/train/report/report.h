// What a run leaves for people and tools to read: `report.json`, the page `report.html`, and
// `trainer_state.json` in the form of Hugging Face's Trainer, so that plotting tools work.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "lemo/v1/run_event.pb.h"
#include "lemo/v1/run_spec.pb.h"
#include "nlohmann/json.hpp"
#include "worker/train/report/curve.h"

namespace lemo::train {

// One file of the data as it was used.
struct ReportDataFile {
  std::string role;  // `train` or `eval`
  std::string path;
  std::string format;  // as found out: `chat`, `completion`, `text`, `book`
  std::string sha256;  // of the bytes
  int64_t bytes = 0;
  int64_t rows = 0;       // lines, or 1 for a book
  int64_t sequences = 0;  // documents after splitting, before packing
  int64_t tokens = 0;
  int64_t labelled_tokens = 0;  // tokens that are predicted and carry loss
  int64_t truncated_rows = 0;
  int64_t split_rows = 0;
  int64_t dropped_rows = 0;
};

// What no event says. Fields may be left empty; the report leaves them out then.
struct ReportFacts {
  lemo::v1::RunSpec spec;    // effective
  std::string family;        // `llama`
  std::string architecture;  // `LlamaForCausalLM`
  int64_t parameters = 0;
  int64_t trainable_parameters = 0;
  std::vector<std::string> trainable_tensors;  // names, in the tuner's order
  std::string device;                          // `cpu`, `cuda:0 (NVIDIA H100)`
  std::string compute_type;                    // `float32`
  std::vector<ReportDataFile> data;
  std::string template_sha256;
  std::string tokenizer_sha256;
  std::map<std::string, std::string> versions;  // `lemo`, `torch`, `compiler` -> version
};

// A phase that has ended, or the current one up to the last event.
struct ReportPhase {
  std::string name;
  double seconds = 0;
};

// Gathers a run while it goes. Not thread-safe; memory is bounded by TrainingCurve, kMaxSelections,
// kMaxAmendments and the number of evaluations and checkpoints.
class RunReport {
 public:
  static constexpr size_t kMaxSelections = 4;
  // Of amendments the first half of these and the last half are kept.
  static constexpr size_t kMaxAmendments = 256;
  // Likewise of shadows.
  static constexpr size_t kMaxShadows = 256;
  // The last ones: every process of a run has a few.
  static constexpr size_t kMaxRehearsals = 16;

  void SetFacts(ReportFacts facts) { facts_ = std::move(facts); }

  // Every event, as EventSink::Emit stamped it.
  void Add(const lemo::v1::RunEvent& event);

  const ReportFacts& facts() const { return facts_; }
  const TrainingCurve& curve() const { return curve_; }
  // The last step that dropped rows, with what it says by layer; recall is the one measured last of
  // every layer that ever was.
  const std::optional<lemo::v1::StepEvent>& last_sparse_step() const { return last_sparse_step_; }
  // Blocks kept in the first micro-batch of steps that told of them, at most kMaxSelections: the
  // first such step and the last ones, in order. Whole (IsWhole), and of a MiB at most.
  const std::vector<lemo::v1::SelectionEvent>& selections() const { return selections_; }
  const std::vector<lemo::v1::EvalEvent>& evals() const { return evals_; }
  const std::vector<lemo::v1::CheckpointEvent>& checkpoints() const { return checkpoints_; }
  const std::vector<lemo::v1::WarningEvent>& warnings() const { return warnings_; }
  // What the governor changed, in order, and how many changes there were altogether.
  const std::vector<lemo::v1::AmendmentEvent>& amendments() const { return amendments_; }
  int64_t amendments_total() const { return amendments_total_; }
  const std::vector<lemo::v1::RehearsalEvent>& rehearsals() const { return rehearsals_; }
  const std::vector<lemo::v1::ShadowEvent>& shadows() const { return shadows_; }
  const std::vector<ReportPhase>& phases() const { return phases_; }
  const std::optional<lemo::v1::ResultEvent>& result() const { return result_; }
  const std::optional<lemo::v1::ErrorEvent>& error() const { return error_; }
  double started_unix_seconds() const { return started_; }  // of the first process of the run
  double finished_unix_seconds() const { return finished_; }

  // `running`, `succeeded`, `interrupted` or `failed`.
  std::string Status() const;

  // report.json; numbers that are not finite are null.
  nlohmann::ordered_json ToJson() const;

  // Hugging Face's trainer_state.json with its `log_history`; loads with
  // TrainerState.load_from_json.
  nlohmann::ordered_json TrainerState() const;

  // Writes report.json, report.html and trainer_state.json into `dir`, which must exist, each whole
  // or not at all.
  absl::Status Write(const std::filesystem::path& dir) const;

  // What a checkpoint must hold so that the report of a resumed run covers all of it (facts
  // excepted, which the new process sets), as JSON text; and back. RestoreState is for an empty
  // report; InvalidArgument leaves it empty.
  std::string SaveState() const;
  absl::Status RestoreState(const std::string& state);

 private:
  void AddSparsity(const lemo::v1::StepEvent& step);
  void AddSelection(const lemo::v1::SelectionEvent& selection);
  void AddAmendment(const lemo::v1::AmendmentEvent& amendment);

  ReportFacts facts_;
  TrainingCurve curve_;
  std::optional<lemo::v1::StepEvent> last_sparse_step_;
  std::vector<lemo::v1::SelectionEvent> selections_;
  std::vector<lemo::v1::EvalEvent> evals_;
  std::vector<lemo::v1::CheckpointEvent> checkpoints_;
  std::vector<lemo::v1::WarningEvent> warnings_;
  std::vector<lemo::v1::AmendmentEvent> amendments_;
  int64_t amendments_total_ = 0;
  std::vector<lemo::v1::RehearsalEvent> rehearsals_;
  std::vector<lemo::v1::ShadowEvent> shadows_;
  std::vector<ReportPhase> phases_;
  std::optional<lemo::v1::ResultEvent> result_;
  std::optional<lemo::v1::ErrorEvent> error_;
  double started_ = 0;
  double finished_ = 0;
  double phase_since_ = 0;  // 0: no phase of this process yet
};

// How each number of a report is made: name and formula, in the order shown.
const std::vector<std::pair<std::string, std::string>>& MetricDefinitions();
// Those of a run that dropped rows, which follow.
const std::vector<std::pair<std::string, std::string>>& SparsityDefinitions();

}  // namespace lemo::train
