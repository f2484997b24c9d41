#include "worker/train/report/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/message_json.h"
#include "common/status_macros.h"
#include "worker/train/report/event_sink.h"
#include "worker/train/report/report_html.h"
#include "worker/train/report/sparsity.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using nlohmann::ordered_json;

constexpr int kSchemaVersion = 1;

ordered_json Full(const google::protobuf::Message& message) {
  ordered_json out = MessageToJson(message, {.everything = true, .non_finite_as_null = true});
  EraseAbsent(message, &out);
  return out;
}

// Like Full, in a form that MessageReader takes back exactly.
ordered_json Exact(const google::protobuf::Message& message) {
  ordered_json out = MessageToJson(message, {.everything = true});
  EraseAbsent(message, &out);
  return out;
}

template <typename Messages>
ordered_json FullList(const Messages& messages) {
  auto out = ordered_json::array();
  for (const auto& message : messages) out.push_back(Full(message));
  return out;
}

template <typename Messages>
ordered_json ExactList(const Messages& messages) {
  auto out = ordered_json::array();
  for (const auto& message : messages) out.push_back(Exact(message));
  return out;
}

// Points of a curve without what they have by category: the result says that of the whole run.
ordered_json WithoutCategories(ordered_json points) {
  for (ordered_json& point : points) point.erase("peak");
  return points;
}

template <typename Message>
void ReadList(const LocatedJson& json, const std::string& path, Violations* violations,
              std::vector<Message>* out) {
  MessageReader reader("", Message::descriptor(), violations);
  if (json.kind != LocatedJson::Kind::kArray) return reader.Fault(path, 0, "expected a list");
  for (size_t i = 0; i < json.children.size(); ++i) {
    reader.ReadMessage(json.children[i], ElementPath(path, i), &out->emplace_back());
  }
}

ordered_json DataFileToJson(const ReportDataFile& file) {
  return {{"role", file.role},
          {"path", file.path},
          {"format", file.format},
          {"sha256", file.sha256},
          {"bytes", file.bytes},
          {"rows", file.rows},
          {"sequences", file.sequences},
          {"tokens", file.tokens},
          {"labelled_tokens", file.labelled_tokens},
          {"truncated_rows", file.truncated_rows},
          {"split_rows", file.split_rows},
          {"dropped_rows", file.dropped_rows}};
}

// One character a block: 1 for kept.
ordered_json MasksToJson(const google::protobuf::RepeatedPtrField<std::string>& masks) {
  auto out = ordered_json::array();
  for (const std::string& mask : masks) {
    std::string text;
    for (const char kept : mask) text += kept ? '1' : '0';
    out.push_back(text);
  }
  return out;
}

ordered_json SparsityToJson(const RunReport& report) {
  if (!report.last_sparse_step()) return nullptr;
  ordered_json out;
  out["last_step"] = report.last_sparse_step()->step();
  out.update(Full(report.last_sparse_step()->sparsity()));
  int64_t bad_blocks = 0;
  for (const auto& point : report.curve().points()) bad_blocks += point.sparsity().bad_blocks();
  out["bad_blocks_of_the_run"] = bad_blocks;
  out["selections"] = ordered_json::array();
  for (const lemo::v1::SelectionEvent& selection : report.selections()) {
    out["selections"].push_back({{"step", selection.step()},
                                 {"micro_batch", selection.micro_batch()},
                                 {"block_starts", selection.block_starts()},
                                 {"document_starts", selection.document_starts()},
                                 {"attention", MasksToJson(selection.attention())},
                                 {"mlp", MasksToJson(selection.mlp())}});
  }
  return out;
}

std::string Dump(const ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, ordered_json::error_handler_t::replace);
}

// Sets `key` unless the number would not be valid JSON.
void SetFinite(const char* key, double value, ordered_json* out) {
  if (std::isfinite(value)) (*out)[key] = value;
}

}  // namespace

const std::vector<std::pair<std::string, std::string>>& MetricDefinitions() {
  static const auto* definitions = new std::vector<std::pair<std::string, std::string>>{
      {"loss",
       "Sum of -ln p(next token) over the labelled tokens of one effective batch, divided by their "
       "number; over all micro-batches, in nats, before the step's update. Padding does not exist "
       "and "
       "prompts that carry no loss do not count."},
      {"eval loss",
       "The same sum over all labelled tokens of the evaluation data, divided by their number: "
       "every "
       "token weighs the same, long documents weigh more than short ones. No dropout."},
      {"perplexity", "exp(eval loss)."},
      {"token accuracy",
       "Share of the labelled tokens of the evaluation data for which the most probable token is "
       "the "
       "right one."},
      {"gradient norm",
       "Square root of the sum of squares over all trainable gradients, of the whole effective "
       "batch, "
       "before clipping. A point of the curve that stands for several steps shows the largest."},
      {"learning rate", "What the optimizer multiplied the step's update with."},
      {"tokens", "Tokens that went through the model, with and without loss, all epochs counted."},
      {"labelled tokens", "Of these, the tokens whose prediction carries loss."},
      {"tokens per second",
       "Tokens divided by the seconds of the training steps; evaluations, "
       "checkpoints and loading do not count."},
      {"peak memory",
       "Bytes that the allocator had given out at the worst moment of the run. The total is the "
       "peak of "
       "the sum; each category shows its own peak, so they may add up to more."},
      {"logit difference after reload",
       "Largest absolute difference between the logits of the live model and of the model made "
       "anew "
       "from the files written, on held-out rows."},
  };
  return *definitions;
}

const std::vector<std::pair<std::string, std::string>>& SparsityDefinitions() {
  static const auto* definitions = new std::vector<std::pair<std::string, std::string>>{
      {"rows computed",
       "Rows that a layer's attention (or MLP) computed, divided by the rows of the effective "
       "batch; "
       "over layers, the mean. The others keep the state they came with. Memory and time follow "
       "it, attention's with its square."},
      {"rows never computed",
       "Share of the rows that no attention and no MLP of a layer that drops rows computed."},
      {"labelled rows with loss",
       "Labelled rows that carried loss, divided by all of them; the loss and its gradient are "
       "means over those that did."},
      {"recall",
       "Of the blocks that true attention scores would have kept, as many as were kept, those that "
       "were; without blocks that are kept whatever their score. Measured in some steps and "
       "layers. "
       "Random choice has about the recall of its share."},
      {"time to choose",
       "Seconds that scores and choices of blocks took, divided by those of the step."},
      {"bad blocks", "Blocks whose score was not finite. They are kept."},
      {"loss with rows dropped",
       "Evaluation loss in a forward pass that drops rows as training does; all other evaluation "
       "numbers are of all rows."},
  };
  return *definitions;
}

void RunReport::Add(const lemo::v1::RunEvent& event) {
  using Event = lemo::v1::RunEvent;
  if (started_ == 0) started_ = event.unix_seconds();
  finished_ = event.unix_seconds();
  // Every event brings the current phase up to date, so that a report of a broken run has times
  // too.
  if (phase_since_ != 0 && !phases_.empty()) {
    phases_.back().seconds += std::max(0.0, event.unix_seconds() - phase_since_);
  }
  if (phase_since_ != 0) phase_since_ = event.unix_seconds();
  switch (event.event_case()) {
    case Event::kPhase:
      phases_.push_back({event.phase().name(), 0});
      phase_since_ = event.unix_seconds();
      break;
    case Event::kStep:
      curve_.Add(event.step());
      if (event.step().has_sparsity()) AddSparsity(event.step());
      break;
    case Event::kEval:
      evals_.push_back(event.eval());
      break;
    case Event::kCheckpoint:
      checkpoints_.push_back(event.checkpoint());
      break;
    case Event::kWarning:
      warnings_.push_back(event.warning());
      break;
    case Event::kResult:
      result_ = event.result();
      break;
    case Event::kError:
      error_ = event.error();
      break;
    case Event::kSelection:
      AddSelection(event.selection());
      break;
    case Event::kAmendment:
      AddAmendment(event.amendment());
      break;
    case Event::kShadow:
      if (shadows_.size() == kMaxShadows) shadows_.erase(shadows_.begin() + kMaxShadows / 2);
      shadows_.push_back(event.shadow());
      break;
    case Event::kRehearsal:
      if (rehearsals_.size() == kMaxRehearsals) rehearsals_.erase(rehearsals_.begin());
      rehearsals_.push_back(event.rehearsal());
      break;
    case Event::EVENT_NOT_SET:
      break;
  }
}

void RunReport::AddSparsity(const lemo::v1::StepEvent& step) {
  std::map<int32_t, double> recall;
  const auto measured = [&recall](const lemo::v1::TokenSparsity& sparsity) {
    const int count = std::min(sparsity.recall_size(), sparsity.recall_layers_size());
    for (int i = 0; i < count; ++i) recall[sparsity.recall_layers(i)] = sparsity.recall(i);
  };
  if (last_sparse_step_) measured(last_sparse_step_->sparsity());
  measured(step.sparsity());
  last_sparse_step_ = step;
  lemo::v1::TokenSparsity* sparsity = last_sparse_step_->mutable_sparsity();
  sparsity->clear_recall();
  sparsity->clear_recall_layers();
  for (const auto& [layer, share] : recall) {
    sparsity->add_recall_layers(layer);
    sparsity->add_recall(share);
  }
}

void RunReport::AddSelection(const lemo::v1::SelectionEvent& selection) {
  constexpr size_t kBytesMax = 1 << 20;
  if (selection.micro_batch() != 0 || !IsWhole(selection) || selection.ByteSizeLong() > kBytesMax) {
    return;
  }
  // The first one stays, to show what training has changed.
  if (selections_.size() == kMaxSelections) selections_.erase(selections_.begin() + 1);
  selections_.push_back(selection);
}

void RunReport::AddAmendment(const lemo::v1::AmendmentEvent& amendment) {
  ++amendments_total_;
  // How it began and how it stands now; what is dropped lies in between.
  if (amendments_.size() == kMaxAmendments) {
    amendments_.erase(amendments_.begin() + kMaxAmendments / 2);
  }
  amendments_.push_back(amendment);
}

std::string RunReport::Status() const {
  if (error_) return "failed";
  if (!result_) return "running";
  return result_->interrupted() ? "interrupted" : "succeeded";
}

ordered_json RunReport::ToJson() const {
  ordered_json out;
  out["schema"] = kSchemaVersion;
  out["status"] = Status();
  out["started_unix_seconds"] = started_;
  out["finished_unix_seconds"] = finished_;
  out["result"] = result_ ? Full(*result_) : ordered_json(nullptr);
  out["error"] = error_ ? Full(*error_) : ordered_json(nullptr);
  out["model"] = {{"path", facts_.spec.model().path()},
                  {"family", facts_.family},
                  {"architecture", facts_.architecture},
                  {"parameters", facts_.parameters},
                  {"trainable_parameters", facts_.trainable_parameters},
                  {"trainable_tensors", facts_.trainable_tensors},
                  {"tokenizer_sha256", facts_.tokenizer_sha256},
                  {"template_sha256", facts_.template_sha256}};
  out["device"] = facts_.device;
  out["compute_type"] = facts_.compute_type;
  out["data"] = ordered_json::array();
  for (const ReportDataFile& file : facts_.data) out["data"].push_back(DataFileToJson(file));
  out["curves"] = {{"steps_per_point", curve_.window()},
                   {"train", WithoutCategories(FullList(curve_.points()))},
                   {"eval", FullList(evals_)}};
  out["sparsity"] = SparsityToJson(*this);
  out["checkpoints"] = FullList(checkpoints_);
  out["phases"] = ordered_json::array();
  for (const ReportPhase& phase : phases_) {
    out["phases"].push_back({{"name", phase.name}, {"seconds", phase.seconds}});
  }
  out["warnings"] = FullList(warnings_);
  out["amendments"] = FullList(amendments_);
  if (amendments_total_ > std::ssize(amendments_)) out["amendments_total"] = amendments_total_;
  if (!rehearsals_.empty()) out["rehearsals"] = FullList(rehearsals_);
  if (!shadows_.empty()) out["shadows"] = FullList(shadows_);
  out["versions"] = facts_.versions;
  out["metrics"] = ordered_json::object();
  for (const auto& [name, formula] : MetricDefinitions()) out["metrics"][name] = formula;
  for (const auto& [name, formula] : SparsityDefinitions()) {
    if (last_sparse_step_) out["metrics"][name] = formula;
  }
  out["spec"] = MessageToJson(facts_.spec, {});
  return out;
}

ordered_json RunReport::TrainerState() const {
  const auto& train = facts_.spec.train();
  const auto& points = curve_.points();
  const int64_t global_step = points.empty() ? 0 : points.back().step();
  const double epoch = points.empty() ? 0 : points.back().epoch();

  // Training and evaluation entries in the order of their steps.
  std::vector<std::pair<int64_t, ordered_json>> entries;
  for (const auto& point : points) {
    ordered_json entry;
    SetFinite("epoch", point.epoch(), &entry);
    SetFinite("grad_norm", point.grad_norm(), &entry);
    SetFinite("learning_rate", point.learning_rate(), &entry);
    SetFinite("loss", point.loss(), &entry);
    if (point.has_sparsity()) {
      SetFinite("rows_computed", RowsComputed(point.sparsity()), &entry);
      SetFinite("rows_never_computed", point.sparsity().never_kept(), &entry);
    }
    entry["step"] = point.step();
    entries.emplace_back(point.step(), std::move(entry));
  }
  const lemo::v1::EvalEvent* best = nullptr;
  for (const auto& eval : evals_) {
    ordered_json entry;
    const auto at = std::lower_bound(
        points.begin(), points.end(), eval.step(),
        [](const lemo::v1::StepEvent& point, int32_t step) { return point.step() < step; });
    SetFinite("epoch", eval.step() == 0 ? 0 : at == points.end() ? epoch : at->epoch(), &entry);
    SetFinite("eval_loss", eval.loss(), &entry);
    SetFinite("eval_mean_token_accuracy", eval.token_accuracy(), &entry);
    SetFinite("eval_perplexity", eval.perplexity(), &entry);
    SetFinite("eval_runtime", eval.seconds(), &entry);
    if (HasSparseLoss(eval)) SetFinite("eval_sparse_loss", eval.sparse_loss(), &entry);
    entry["step"] = eval.step();
    entries.emplace_back(eval.step(), std::move(entry));
    if (std::isfinite(eval.loss()) && (!best || eval.loss() < best->loss())) best = &eval;
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  auto history = ordered_json::array();
  for (auto& [step, entry] : entries) history.push_back(std::move(entry));

  if (result_) {
    double loss = 0, tokens = 0, seconds = 0;
    for (const auto& point : points) {
      loss += point.loss() * static_cast<double>(point.labelled_tokens());
      tokens += static_cast<double>(point.labelled_tokens());
      seconds += point.seconds();
    }
    ordered_json summary;
    SetFinite("epoch", epoch, &summary);
    summary["step"] = global_step;
    summary["total_flos"] = 0.0;
    if (tokens > 0) SetFinite("train_loss", loss / tokens, &summary);
    SetFinite("train_runtime", seconds, &summary);
    if (seconds > 0) {
      SetFinite("train_steps_per_second", static_cast<double>(global_step) / seconds, &summary);
    }
    history.push_back(std::move(summary));
  }

  const int64_t max_steps = points.empty() ? train.steps() : points.back().steps();
  int64_t tokens_seen = 0;
  for (const auto& point : points) tokens_seen += point.tokens();
  ordered_json out;
  out["best_global_step"] = best ? ordered_json(best->step()) : ordered_json(nullptr);
  out["best_metric"] = best ? ordered_json(best->loss()) : ordered_json(nullptr);
  out["best_model_checkpoint"] = nullptr;
  out["epoch"] = std::isfinite(epoch) ? epoch : 0;
  out["eval_steps"] = facts_.spec.eval().every_steps();
  out["global_step"] = global_step;
  out["is_hyper_param_search"] = false;
  out["is_local_process_zero"] = true;
  out["is_world_process_zero"] = true;
  out["log_history"] = std::move(history);
  out["logging_steps"] = curve_.window();
  out["max_steps"] = max_steps;
  out["num_input_tokens_seen"] = tokens_seen;
  out["num_train_epochs"] =
      static_cast<int64_t>(std::ceil(train.has_epochs() ? train.epochs() : std::max(epoch, 1.0)));
  out["save_steps"] = facts_.spec.checkpoint().every_steps();
  out["stateful_callbacks"] = ordered_json::object();
  out["total_flos"] = 0.0;
  out["train_batch_size"] = train.batch_sequences();
  out["trial_name"] = nullptr;
  out["trial_params"] = nullptr;
  return out;
}

absl::Status RunReport::Write(const std::filesystem::path& dir) const {
  LEMO_RETURN_IF_ERROR(WriteFileAtomic(dir / "report.json", Dump(ToJson(), 1) + "\n"));
  LEMO_RETURN_IF_ERROR(WriteFileAtomic(dir / "report.html", RenderReportHtml(*this)));
  return WriteFileAtomic(dir / "trainer_state.json", Dump(TrainerState(), 2) + "\n");
}

std::string RunReport::SaveState() const {
  ordered_json out;
  out["started"] = started_;
  out["window"] = curve_.window();
  out["steps"] = WithoutCategories(ExactList(curve_.points()));
  if (last_sparse_step_) out["last_sparse_step"] = Exact(*last_sparse_step_);
  out["selections"] = ExactList(selections_);
  out["evals"] = ExactList(evals_);
  out["checkpoints"] = ExactList(checkpoints_);
  out["warnings"] = ExactList(warnings_);
  out["amendments"] = ExactList(amendments_);
  out["amendments_total"] = amendments_total_;
  out["rehearsals"] = ExactList(rehearsals_);
  out["shadows"] = ExactList(shadows_);
  out["phases"] = ordered_json::array();
  for (const ReportPhase& phase : phases_) {
    out["phases"].push_back({{"name", phase.name}, {"seconds", phase.seconds}});
  }
  return Dump(out, -1);
}

absl::Status RunReport::RestoreState(const std::string& state) {
  JsonFault fault;
  const std::optional<LocatedJson> root = ParseLocatedJson(state, &fault);
  if (!root) return absl::InvalidArgumentError(absl::StrCat("report state: ", fault.reason));
  RunReport restored;
  restored.facts_ = facts_;
  std::vector<lemo::v1::StepEvent> steps;
  int64_t window = 0;
  Violations violations;
  for (const LocatedJson& member : root->children) {
    if (member.key == "started" && member.scalar.is_number()) {
      restored.started_ = member.scalar.get<double>();
    } else if (member.key == "window" && member.scalar.is_number_integer()) {
      window = member.scalar.get<int64_t>();
    } else if (member.key == "steps") {
      ReadList(member, member.key, &violations, &steps);
    } else if (member.key == "last_sparse_step") {
      MessageReader("", lemo::v1::StepEvent::descriptor(), &violations)
          .ReadMessage(member, member.key, &restored.last_sparse_step_.emplace());
    } else if (member.key == "selections") {
      ReadList(member, member.key, &violations, &restored.selections_);
    } else if (member.key == "evals") {
      ReadList(member, member.key, &violations, &restored.evals_);
    } else if (member.key == "checkpoints") {
      ReadList(member, member.key, &violations, &restored.checkpoints_);
    } else if (member.key == "warnings") {
      ReadList(member, member.key, &violations, &restored.warnings_);
    } else if (member.key == "amendments") {
      ReadList(member, member.key, &violations, &restored.amendments_);
    } else if (member.key == "rehearsals") {
      ReadList(member, member.key, &violations, &restored.rehearsals_);
    } else if (member.key == "shadows") {
      ReadList(member, member.key, &violations, &restored.shadows_);
    } else if (member.key == "amendments_total" && member.scalar.is_number_integer()) {
      restored.amendments_total_ = member.scalar.get<int64_t>();
    } else if (member.key == "phases") {
      for (const LocatedJson& phase : member.children) {
        ReportPhase out;
        for (const LocatedJson& field : phase.children) {
          if (field.scalar.is_string()) out.name = field.scalar.get<std::string>();
          if (field.scalar.is_number()) out.seconds = field.scalar.get<double>();
        }
        restored.phases_.push_back(std::move(out));
      }
    }
  }
  if (window < 1) violations.Add("window", "missing");
  restored.amendments_total_ =
      std::max<int64_t>(restored.amendments_total_, std::ssize(restored.amendments_));
  for (size_t i = 1; i < steps.size(); ++i) {
    if (steps[i].step() <= steps[i - 1].step()) violations.Add("steps", "not in order");
  }
  for (const lemo::v1::SelectionEvent& selection : restored.selections_) {
    if (!IsWhole(selection)) violations.Add("selections", "masks that do not fit their blocks");
  }
  if (!violations.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("report state: ", std::string(violations.ToStatus().message())));
  }
  restored.curve_ = TrainingCurve::FromPoints(std::move(steps), window);
  *this = std::move(restored);
  return absl::OkStatus();
}

}  // namespace lemo::train
