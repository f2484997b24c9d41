#include "worker/train/loop/trainer.h"

#include <ATen/Version.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/train/data/batches.h"
#include "worker/train/data/content_hash.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/eval_rows.h"
#include "worker/train/loop/peak_bytes.h"
#include "worker/train/loop/predictor_run.h"
#include "worker/train/loop/publisher.h"
#include "worker/train/loop/run_state.h"
#include "worker/train/loop/signals.h"
#include "worker/train/loop/spec_options.h"
#include "worker/train/publish/output_dir.h"
#include "worker/train/report/report.h"
#include "worker/train/spec/spec.h"
#include "worker/train/state/checkpoint.h"
#include "worker/train/tokens/predictor/artifact.h"

namespace lemo::train {
namespace {

using lemo::v1::RunEvent;
using Clock = std::chrono::steady_clock;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kCheckpoints = "checkpoints";
constexpr const char* kEvalRows = "eval-rows.safetensors";
constexpr const char* kBlockScores = "block-scores.safetensors";
constexpr const char* kChosenPredictor = "chosen-predictor";
// Steps of a run whose kept blocks are told.
constexpr int64_t kSelectionsShown = 8;
// Rows of a held-out document on which a published result is compared with the live model.
constexpr int64_t kComparedRows = 256;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Events to the sink and the report alike.
class Reporter {
 public:
  explicit Reporter(EventSink& sink) : sink_(sink) {}

  void Emit(RunEvent event) { report_.Add(sink_.Emit(std::move(event))); }

  void Phase(const std::string& name, const std::string& detail = "") {
    RunEvent event;
    event.mutable_phase()->set_name(name);
    event.mutable_phase()->set_detail(detail);
    Emit(std::move(event));
  }

  void Warning(const std::string& message, const std::string& field = "") {
    RunEvent event;
    event.mutable_warning()->set_message(message);
    event.mutable_warning()->set_field(field);
    Emit(std::move(event));
  }

  void Eval(int64_t step, const EvalResult& result, bool best) {
    RunEvent event;
    lemo::v1::EvalEvent* eval = event.mutable_eval();
    eval->set_step(static_cast<int32_t>(step));
    eval->set_loss(result.Loss());
    eval->set_perplexity(std::exp(result.Loss()));
    eval->set_token_accuracy(static_cast<double>(result.sums.correct) /
                             static_cast<double>(result.sums.labelled));
    eval->set_labelled_tokens(result.sums.labelled);
    eval->set_seconds(result.seconds);
    eval->set_best(best);
    if (result.sparse && result.sparse->labelled > 0) {
      eval->set_sparse_loss(result.sparse->Mean());
      eval->set_sparse_perplexity(std::exp(result.sparse->Mean()));
    }
    Emit(std::move(event));
  }

  void Checkpoint(int64_t step, const std::filesystem::path& path, double seconds,
                  const std::string& reason) {
    RunEvent event;
    lemo::v1::CheckpointEvent* checkpoint = event.mutable_checkpoint();
    checkpoint->set_step(static_cast<int32_t>(step));
    checkpoint->set_path(path.string());
    int64_t bytes = 0;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(path, ignored)) {
      if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size(ignored));
    }
    checkpoint->set_bytes(bytes);
    checkpoint->set_seconds(seconds);
    checkpoint->set_reason(reason);
    Emit(std::move(event));
  }

  RunReport& report() { return report_; }

 private:
  EventSink& sink_;
  RunReport report_;
};

lemo::v1::PeakBytes PeakByCategory(const Engine& engine, at::Device device) {
  lemo::v1::PeakBytes peak = PeakBytesOf(device);
  if (!device.is_cpu()) {
    // What was sized beforehand is known without the allocator.
    peak.set_weights(engine.weights().OwnedBytes());
    peak.set_saved_activations(engine.tape().arena_bytes());
  }
  return peak;
}

// An error with the field of the spec that it comes from.
absl::Status InField(const std::string& field, const absl::Status& status) {
  if (status.ok() || absl::StartsWith(status.message(), field)) return status;
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

// Where a command that makes no result keeps tokenised data: it uses a cache that is there, and
// makes none.
std::string ExistingCache(const lemo::v1::RunSpec& spec) {
  std::error_code ignored;
  return std::filesystem::is_directory(spec.data().cache_dir(), ignored) ? spec.data().cache_dir()
                                                                         : "";
}

// The spec without what may change between two attempts of one run, and the content that it names:
// a run goes on wherever the same files lie, on another machine too.
absl::StatusOr<std::string> RunIdentity(const Inputs& inputs) {
  lemo::v1::RunSpec spec = inputs.spec;
  spec.clear_output();
  spec.clear_device();
  spec.clear_checkpoint();
  spec.mutable_data()->clear_cache_dir();
  spec.mutable_model()->clear_path();
  for (auto* files : {spec.mutable_data()->mutable_train(), spec.mutable_data()->mutable_eval()}) {
    for (lemo::v1::DataFile& file : *files) file.clear_path();
  }
  if (spec.tuner().has_lora()) spec.mutable_tuner()->mutable_lora()->clear_init_from();
  const std::string predictor = spec.tokens().predictor();
  if (!predictor.empty() && predictor != "auto") spec.mutable_tokens()->clear_predictor();
  if (spec.has_tokens()) spec.mutable_tokens()->clear_predictors_dir();
  nlohmann::json identity = nlohmann::json::parse(RunSpecToJson(spec));
  const std::filesystem::path model = inputs.spec.model().path();
  if (inputs.spec.model().has_random_init()) {
    LEMO_ASSIGN_OR_RETURN(identity["content"]["config.json"], HashFile(model / "config.json"));
  } else {
    LEMO_ASSIGN_OR_RETURN(identity["model_fingerprint"], WeightsFingerprint(model));
  }
  if (!inputs.spec.tuner().lora().init_from().empty()) {
    const std::filesystem::path adapter = inputs.spec.tuner().lora().init_from();
    const absl::StatusOr<std::string> hash = HashFile(adapter / "adapter_model.safetensors");
    if (!hash.ok()) return InField("tuner.lora.init_from", hash.status());
    identity["content"]["init_from"] = *hash;
  }
  if (!predictor.empty() && predictor != "auto") {
    const absl::StatusOr<std::string> hash =
        HashFile(std::filesystem::path(predictor) / "predictor.safetensors");
    if (!hash.ok()) return InField("tokens.predictor", hash.status());
    identity["content"]["predictor"] = *hash;
  }
  identity["tokenizer_sha256"] = inputs.text->tokenizer_hash();
  if (inputs.text->chat_template()) {
    identity["template_sha256"] = inputs.text->chat_template()->hash();
  }
  for (const auto& [name, files] : {std::pair{"data.train", &inputs.spec.data().train()},
                                    std::pair{"data.eval", &inputs.spec.data().eval()}}) {
    for (int i = 0; i < files->size(); ++i) {
      const std::string field = absl::StrCat(name, "[", i, "]");
      const absl::StatusOr<std::string> hash = HashFile(files->Get(i).path());
      if (!hash.ok()) return InField(field, hash.status());
      identity["content"][field] = *hash;
    }
  }
  return identity.dump();
}

// The first rows of a held-out document (of the training data when nothing is held out).
MicroBatch HeldOutRows(const Inputs& inputs, int64_t max_rows) {
  const Dataset& data = inputs.eval ? *inputs.eval : *inputs.train;
  const Document document = data.row(0);
  const auto rows = static_cast<size_t>(
      std::min({static_cast<int64_t>(document.tokens.size()), kComparedRows, max_rows}));
  MicroBatch batch;
  batch.tokens.assign(document.tokens.begin(), document.tokens.begin() + rows);
  batch.labels.assign(rows, kIgnoreLabel);
  for (size_t i = 0; i < rows; ++i) batch.positions.push_back(static_cast<int32_t>(i));
  batch.document_starts = {0, static_cast<int32_t>(rows)};
  return batch;
}

void AddDataFacts(const Dataset& data, const std::string& role, ReportFacts* facts) {
  // Counts are kept for the whole list of files.
  const DataCounts& counts = data.counts();
  ReportDataFile file;
  file.role = role;
  for (int64_t i = 0; i < counts.files; ++i) {
    absl::StrAppend(&file.path, i == 0 ? "" : ", ", data.path(i));
  }
  file.rows = counts.rows;
  file.sequences = counts.documents;
  file.tokens = counts.tokens;
  file.labelled_tokens = counts.labels;
  file.truncated_rows = counts.rows_truncated;
  file.split_rows = counts.rows_split;
  file.dropped_rows = counts.rows_dropped;
  facts->data.push_back(std::move(file));
}

ReportFacts MakeFacts(const Inputs& inputs, Engine& engine, const Compute& compute) {
  ReportFacts facts;
  facts.spec = inputs.spec;
  facts.family = inputs.config.family;
  facts.architecture = inputs.config.architecture;
  facts.parameters = engine.parameters();
  facts.trainable_parameters = CountParameters(engine.trainables());
  for (const Trainable& trainable : engine.trainables()) {
    facts.trainable_tensors.push_back(trainable.name);
  }
  facts.device = compute.device.str();
  facts.compute_type = TypeName(compute.type);
  AddDataFacts(*inputs.train, "train", &facts);
  if (inputs.eval) AddDataFacts(*inputs.eval, "eval", &facts);
  facts.tokenizer_sha256 = inputs.text->tokenizer_hash();
  if (inputs.text->chat_template()) facts.template_sha256 = inputs.text->chat_template()->hash();
  facts.versions = {{"lemo", kLemoVersion}, {"torch", TORCH_VERSION}, {"compiler", __VERSION__}};
  return facts;
}

// Everything of one training run; the functions are its phases, in order.
class Run {
 public:
  Run(const RunOptions& options, EventSink& sink, Violations* violations)
      : options_(options), violations_(violations), reporter_(sink) {}

  absl::Status Go(const lemo::v1::RunSpec& spec) {
    absl::Status ready = Open(spec);
    if (ready.ok() && spec.has_predictor()) return Predict();
    if (ready.ok()) ready = Resolve();
    if (ready.ok()) ready = Load();
    if (ready.ok()) ready = Resume();
    if (!ready.ok()) {
      Withdraw();
      return ready;
    }
    LEMO_RETURN_IF_ERROR(ScoreBlocks());
    LEMO_RETURN_IF_ERROR(Steps());
    return Finish();
  }

 private:
  const lemo::v1::RunSpec& spec() const { return inputs_.spec; }

  absl::Status Open(const lemo::v1::RunSpec& spec) {
    reporter_.Phase("validate");
    LEMO_ASSIGN_OR_RETURN(compute_, ChooseCompute(spec.device(), spec.model().compute_type()));
    inputs_.spec = spec;
    OpenModel(&inputs_, violations_);
    LEMO_RETURN_IF_ERROR(violations_->ToStatus());
    cache_is_new_ = ExistingCache(spec).empty();
    LEMO_RETURN_IF_ERROR(Claim());
    reporter_.Phase("tokenize");
    LEMO_RETURN_IF_ERROR(
        OpenData(&inputs_, spec.data().cache_dir(), /*want_train=*/true, violations_));
    LEMO_RETURN_IF_ERROR(violations_->ToStatus());
    reporter_.Phase("tokenize", inputs_.train->counts().ToString());
    return absl::OkStatus();
  }

  EmitEvent Emitter() {
    return [this](RunEvent event) { reporter_.Emit(std::move(event)); };
  }

  // Policy predictor: finds the predictor, or trains it. What `auto` came to stays in the output
  // directory, so that a resumed run ranks by it whatever was trained since.
  absl::Status Resolve() {
    lemo::v1::TokensSpec* tokens = inputs_.spec.mutable_tokens();
    const bool chooses = tokens->policy() == "predictor" && tokens->predictor() == "auto";
    const std::filesystem::path chosen = output_->path() / kChosenPredictor;
    const bool has_chosen = chooses && std::filesystem::exists(chosen);
    if (has_chosen) tokens->set_predictor(chosen.string());
    LEMO_RETURN_IF_ERROR(ResolvePredictor(compute_, /*may_train=*/true, Emitter(), &inputs_));
    if (!chooses || has_chosen) return absl::OkStatus();
    LEMO_ASSIGN_OR_RETURN(const Predictor predictor, ReadPredictor(tokens->predictor()));
    return WritePredictor(predictor, chosen);
  }

  // A run whose result is a predictor, in place of Load, Steps and Finish.
  absl::Status Predict() {
    const absl::StatusOr<TrainedPredictor> trained =
        TrainPredictor(spec(), inputs_, compute_, output_->path() / kPredictorDirectory, Emitter());
    RunEvent event;
    lemo::v1::ResultEvent* result = event.mutable_result();
    for (const auto set :
         {&lemo::v1::ResultEvent::set_eval_loss_before, &lemo::v1::ResultEvent::set_eval_loss,
          &lemo::v1::ResultEvent::set_perplexity_before, &lemo::v1::ResultEvent::set_perplexity,
          &lemo::v1::ResultEvent::set_publish_max_logit_difference,
          &lemo::v1::ResultEvent::set_train_loss, &lemo::v1::ResultEvent::set_tokens_per_second}) {
      (result->*set)(kNan);
    }
    *result->mutable_peak_bytes() = PeakBytesOf(compute_.device);
    if (trained.ok()) {
      result->set_predictor_dir(trained->dir.string());
      result->set_train_loss(trained->loss);
      result->set_steps(static_cast<int32_t>(trained->steps));
      result->set_tokens(trained->tokens);
      result->set_seconds(trained->seconds);
      result->set_tokens_per_second(static_cast<double>(trained->tokens) / trained->seconds);
    } else if (!absl::IsCancelled(trained.status())) {
      Withdraw();
      return trained.status();
    }
    result->set_interrupted(!trained.ok());
    reporter_.Emit(std::move(event));
    return trained.status();
  }

  // A run that cannot begin leaves nothing behind.
  void Withdraw() {
    if (!output_ || output_->had_run()) return;
    std::error_code ignored;
    if (cache_is_new_) std::filesystem::remove_all(spec().data().cache_dir(), ignored);
    std::filesystem::remove_all(output_->path() / kChosenPredictor, ignored);
    output_->Withdraw();
  }

  absl::Status Claim() {
    LEMO_ASSIGN_OR_RETURN(const std::string identity, RunIdentity(inputs_));
    const std::filesystem::path dir = spec().output().dir();
    absl::StatusOr<OutputDirectory> claimed = OutputDirectory::Claim(
        dir, {.identity_json = identity,
              .names_written = {kAdapterDirectory, kModelDirectory, kCheckpoints, kEvalRows,
                                kBlockScores, kChosenPredictor, kPredictorDirectory, "report.json",
                                "report.html", "trainer_state.json"}});
    if (!claimed.ok()) return InField("output.dir", claimed.status());
    output_ = *std::move(claimed);
    if (!output_->locked()) {
      reporter_.Warning("this file system has no locks: nothing keeps a second process away",
                        "output.dir");
    }
    store_.emplace(dir / kCheckpoints,
                   RetentionOptions{.keep_last = spec().checkpoint().keep_last(),
                                    .keep_best = spec().checkpoint().keep_best()});
    if (!output_->had_run() || !options_.resume.empty()) return absl::OkStatus();
    if (std::filesystem::exists(dir / kAdapterDirectory) ||
        std::filesystem::exists(dir / kPredictorDirectory) ||
        std::filesystem::exists(dir / kModelDirectory)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "output.dir: ", dir.string(),
          " holds the finished result of this run; choose another directory or remove it"));
    }
    LEMO_ASSIGN_OR_RETURN(const std::optional<LoadedCheckpoint> newest,
                          store_->LoadNewest(nullptr));
    if (newest) {
      return absl::FailedPreconditionError(
          absl::StrCat("output.dir: ", dir.string(), " holds this run up to step ", newest->step,
                       "; go on with --resume auto, or choose another directory to start anew"));
    }
    return store_->Clear();
  }

  absl::Status Load() {
    LEMO_ASSIGN_OR_RETURN(BatchStream stream,
                          BatchStream::Create(&*inputs_.train, BatchOptionsOf(spec())));
    stream_.emplace(std::move(stream));
    total_steps_ = spec().train().has_steps() ? spec().train().steps()
                                              : stream_->StepsForEpochs(spec().train().epochs());
    schedule_ = ScheduleOf(spec().train(), total_steps_);

    int64_t max_rows = std::max(stream_->MaxMicroBatchRows(), int64_t{1});
    if (inputs_.eval) max_rows = std::max(max_rows, MakeEvalBatches().MaxMicroBatchRows());
    max_rows_ = max_rows;
    reporter_.Phase("load", absl::StrCat(spec().model().path(), ", computing in ", compute_.reason,
                                         " on ", compute_.device.str()));
    LEMO_ASSIGN_OR_RETURN(engine_, Engine::Create(spec(), inputs_.config, compute_, max_rows));
    for (const std::string& warning : engine_->weights().warnings()) reporter_.Warning(warning);
    const ReportFacts facts = MakeFacts(inputs_, *engine_, compute_);
    reporter_.report().SetFacts(facts);
    state_.fingerprint = output_->fingerprint();
    state_.eval_before = state_.best_eval = state_.train_loss = kNan;
    return absl::OkStatus();
  }

  EvalBatches MakeEvalBatches() const {
    return EvalBatches(&*inputs_.eval, spec().train().micro_batch_tokens(),
                       spec().eval().max_sequences());
  }

  absl::Status Resume() {
    if (options_.resume.empty()) return absl::OkStatus();
    std::optional<LoadedCheckpoint> checkpoint;
    if (options_.resume == "auto") {
      std::vector<std::string> skipped;
      LEMO_ASSIGN_OR_RETURN(checkpoint, store_->LoadNewest(&skipped));
      for (const std::string& reason : skipped)
        reporter_.Warning("checkpoint passed over: " + reason);
    } else {
      LEMO_ASSIGN_OR_RETURN(checkpoint, CheckpointStore::Load(options_.resume));
    }
    if (!checkpoint) return absl::OkStatus();
    LEMO_ASSIGN_OR_RETURN(state_, RestoreCheckpoint(*checkpoint, output_->fingerprint(), *engine_));
    LEMO_RETURN_IF_ERROR(stream_->Seek(state_.cursor));
    RunReport earlier;
    LEMO_RETURN_IF_ERROR(earlier.RestoreState(state_.report));
    earlier.SetFacts(reporter_.report().facts());
    reporter_.report() = std::move(earlier);
    reporter_.Checkpoint(state_.step, checkpoint->path, 0, "resumed");
    return absl::OkStatus();
  }

  // Policy table: scores the documents that the steps to come will see. The table stays in the
  // output directory, so that a resumed run ranks by the very same numbers on any number of
  // threads.
  absl::Status ScoreBlocks() {
    TablePolicy* table = engine_->table();
    if (table == nullptr) return absl::OkStatus();
    const std::filesystem::path path = output_->path() / kBlockScores;
    const absl::Status loaded = table->Load(path, output_->fingerprint());
    if (loaded.ok()) return loaded;
    if (!absl::IsNotFound(loaded)) {
      reporter_.Warning(absl::StrCat("block scores are made anew: ", loaded.message()));
    }
    reporter_.Phase(
        "score", absl::StrCat("blocks of the training data, by ", spec().tokens().table_score()));
    BatchStream ahead = *stream_;
    for (int64_t step = state_.step;
         step < total_steps_ && table->documents() < inputs_.train->rows(); ++step) {
      for (const MicroBatch& micro_batch : ahead.Next().micro_batches) {
        if (StopSignal() != 0) return Interrupted();
        table->Add(micro_batch);
      }
    }
    return table->Save(path, output_->fingerprint());
  }

  // Before a step: the report draws the blocks of some steps, and the last one is for checks.
  bool WantsSelections() const {
    const int64_t apart = std::max<int64_t>(1, total_steps_ / kSelectionsShown);
    return state_.step % apart == 0 || state_.step + 1 == total_steps_;
  }

  // Evaluates after `state_.step` steps.
  absl::Status Evaluate() {
    EvalBatches batches = MakeEvalBatches();
    const bool rows = spec().eval().write_rows() && state_.step == total_steps_;
    const EvalResult result = engine_->Evaluate([&batches] { return batches.Next(); },
                                                {.sparse = spec().eval().sparse(), .rows = rows});
    if (rows) LEMO_RETURN_IF_ERROR(WriteEvalRows(result.rows, output_->path() / kEvalRows));
    last_eval_ = result.Loss();
    last_eval_step_ = state_.step;
    const bool best = !(last_eval_ >= state_.best_eval);
    if (best) state_.best_eval = last_eval_;
    if (state_.step == 0) state_.eval_before = last_eval_;
    reporter_.Eval(state_.step, result, best);
    return absl::OkStatus();
  }

  absl::Status Save(const std::string& reason) {
    const auto start = Clock::now();
    state_.report = reporter_.report().SaveState();
    std::vector<at::Tensor> tensors;
    CheckpointContents contents = MakeCheckpoint(*engine_, state_, &tensors);
    if (last_eval_step_ == state_.step) contents.eval_loss = last_eval_;
    LEMO_ASSIGN_OR_RETURN(const std::filesystem::path path, store_->Save(contents));
    reporter_.Checkpoint(state_.step, path, SecondsSince(start), reason);
    saved_step_ = state_.step;
    return absl::OkStatus();
  }

  absl::Status Steps() {
    reporter_.Phase(
        "train", absl::StrCat(CountParameters(engine_->trainables()), " of ", engine_->parameters(),
                              " parameters train (", engine_->tuner().kind(), ", ",
                              engine_->trainables().size(), " tensors), ", total_steps_, " steps"));
    if (inputs_.eval && state_.step == 0) LEMO_RETURN_IF_ERROR(Evaluate());
    const int32_t eval_every = spec().eval().every_steps();
    const int32_t save_every = spec().checkpoint().every_steps();
    while (state_.step < total_steps_) {
      if (StopSignal() != 0) return Interrupted();
      const auto start = Clock::now();
      const Batch batch = stream_->Next();
      const double rate = schedule_.At(state_.step);
      LEMO_ASSIGN_OR_RETURN(const StepResult result,
                            engine_->Step(batch, {.step = state_.step,
                                                  .steps = total_steps_,
                                                  .learning_rate = rate,
                                                  .want_selections = WantsSelections()}));
      const double seconds = SecondsSince(start);
      ++state_.step;
      state_.cursor = stream_->cursor();
      state_.tokens += batch.tokens;
      state_.labelled_tokens += batch.labelled_tokens;
      state_.train_seconds += seconds;
      state_.train_loss = result.loss;
      EmitStep(batch, result, rate, seconds);
      if (inputs_.eval && eval_every > 0 && state_.step % eval_every == 0 &&
          state_.step < total_steps_) {
        LEMO_RETURN_IF_ERROR(Evaluate());
      }
      if (save_every > 0 && (state_.step % save_every == 0 || state_.step == total_steps_)) {
        if (inputs_.eval && state_.step == total_steps_) LEMO_RETURN_IF_ERROR(Evaluate());
        LEMO_RETURN_IF_ERROR(Save("interval"));
      }
    }
    if (inputs_.eval && last_eval_step_ != state_.step) LEMO_RETURN_IF_ERROR(Evaluate());
    return absl::OkStatus();
  }

  void EmitStep(const Batch& batch, const StepResult& result, double rate, double seconds) {
    RunEvent event;
    lemo::v1::StepEvent* step = event.mutable_step();
    step->set_step(static_cast<int32_t>(state_.step));
    step->set_steps(static_cast<int32_t>(total_steps_));
    step->set_loss(result.loss);
    step->set_learning_rate(rate);
    step->set_grad_norm(result.grad_norm);
    step->set_tokens(batch.tokens);
    step->set_labelled_tokens(batch.labelled_tokens);
    step->set_seconds(seconds);
    step->set_tokens_per_second(static_cast<double>(batch.tokens) / seconds);
    *step->mutable_peak() = PeakByCategory(*engine_, compute_.device);
    step->set_peak_bytes(step->peak().total());
    step->set_eta_seconds(state_.train_seconds / static_cast<double>(state_.step) *
                          static_cast<double>(total_steps_ - state_.step));
    step->set_epoch(static_cast<double>(state_.cursor.epoch) +
                    static_cast<double>(state_.cursor.sequence) /
                        static_cast<double>(stream_->SequencesPerEpoch()));
    if (result.sparsity) *step->mutable_sparsity() = *result.sparsity;
    reporter_.Emit(std::move(event));
    for (const lemo::v1::SelectionEvent& selection : result.selections) {
      RunEvent chosen;
      *chosen.mutable_selection() = selection;
      reporter_.Emit(std::move(chosen));
    }
  }

  lemo::v1::ResultEvent MakeResult() const {
    lemo::v1::ResultEvent result;
    const double after = last_eval_step_ == state_.step ? last_eval_ : kNan;
    result.set_train_loss(state_.train_loss);
    result.set_eval_loss_before(state_.eval_before);
    result.set_eval_loss(after);
    result.set_perplexity_before(std::exp(state_.eval_before));
    result.set_perplexity(std::exp(after));
    result.set_steps(static_cast<int32_t>(state_.step));
    result.set_tokens(state_.tokens);
    result.set_labelled_tokens(state_.labelled_tokens);
    result.set_seconds(state_.train_seconds);
    result.set_tokens_per_second(state_.train_seconds > 0
                                     ? static_cast<double>(state_.tokens) / state_.train_seconds
                                     : kNan);
    *result.mutable_peak_bytes() = PeakByCategory(*engine_, compute_.device);
    result.set_publish_max_logit_difference(kNan);
    result.set_report((output_->path() / "report.html").string());
    return result;
  }

  absl::Status Interrupted() {
    if (state_.step > 0 && saved_step_ != state_.step) LEMO_RETURN_IF_ERROR(Save("signal"));
    RunEvent event;
    *event.mutable_result() = MakeResult();
    event.mutable_result()->set_interrupted(true);
    reporter_.Emit(std::move(event));
    LEMO_RETURN_IF_ERROR(reporter_.report().Write(output_->path()));
    return absl::CancelledError(absl::StrCat("stopped by signal ", StopSignal(), " after step ",
                                             state_.step, "; continue with --resume auto"));
  }

  absl::Status Finish() {
    reporter_.Phase("publish");
    lemo::v1::ResultEvent result = MakeResult();
    LEMO_ASSIGN_OR_RETURN(
        const Published published,
        Publish(*engine_, inputs_, HeldOutRows(inputs_, max_rows_),
                {{"Steps", absl::StrCat(state_.step)},
                 {"Labelled tokens", absl::StrCat(state_.labelled_tokens)},
                 {"Evaluation loss before", absl::StrCat(result.eval_loss_before())},
                 {"Evaluation loss", absl::StrCat(result.eval_loss())}}));
    result.set_adapter_dir(published.adapter_dir.string());
    result.set_model_dir(published.model_dir.string());
    result.set_publish_max_logit_difference(published.max_logit_difference);
    RunEvent event;
    *event.mutable_result() = std::move(result);
    reporter_.Emit(std::move(event));
    return reporter_.report().Write(output_->path());
  }

  const RunOptions& options_;
  Violations* violations_;
  Reporter reporter_;
  Compute compute_;
  Inputs inputs_;
  std::optional<OutputDirectory> output_;
  bool cache_is_new_ = false;
  std::optional<CheckpointStore> store_;
  std::optional<BatchStream> stream_;
  Schedule schedule_;
  int64_t total_steps_ = 0;
  int64_t max_rows_ = 0;
  std::unique_ptr<Engine> engine_;
  RunState state_;
  double last_eval_ = kNan;
  int64_t last_eval_step_ = -1;
  int64_t saved_step_ = -1;
};

}  // namespace

absl::Status Train(const RunOptions& options, const lemo::v1::RunSpec& spec, EventSink& sink,
                   Violations* violations) {
  return Run(options, sink, violations).Go(spec);
}

absl::Status Validate(const lemo::v1::RunSpec& spec, Inputs* inputs, Violations* violations) {
  inputs->spec = spec;
  OpenModel(inputs, violations);
  if (!inputs->text) return violations->ToStatus();
  LEMO_RETURN_IF_ERROR(OpenData(inputs, ExistingCache(spec), /*want_train=*/true, violations));
  return violations->ToStatus();
}

absl::Status EvaluateOnly(const lemo::v1::RunSpec& spec, EventSink& sink, Violations* violations) {
  Reporter reporter(sink);
  reporter.Phase("validate");
  LEMO_ASSIGN_OR_RETURN(const Compute compute,
                        ChooseCompute(spec.device(), spec.model().compute_type()));
  Inputs inputs;
  inputs.spec = spec;
  OpenModel(&inputs, violations);
  LEMO_RETURN_IF_ERROR(violations->ToStatus());
  reporter.Phase("tokenize");
  LEMO_RETURN_IF_ERROR(OpenData(&inputs, ExistingCache(spec), /*want_train=*/false, violations));
  LEMO_RETURN_IF_ERROR(violations->ToStatus());
  EvalBatches batches(&*inputs.eval, inputs.spec.train().micro_batch_tokens(),
                      inputs.spec.eval().max_sequences());
  if (spec.eval().sparse()) {
    const EmitEvent emit = [&reporter](RunEvent event) { reporter.Emit(std::move(event)); };
    LEMO_RETURN_IF_ERROR(ResolvePredictor(compute, /*may_train=*/false, emit, &inputs));
  } else {
    inputs.spec.clear_tokens();  // all rows: nothing ranks blocks
  }
  reporter.Phase("load", absl::StrCat(spec.model().path(), ", computing in ", compute.reason,
                                      " on ", compute.device.str()));
  LEMO_ASSIGN_OR_RETURN(
      const std::unique_ptr<Engine> engine,
      Engine::Create(inputs.spec, inputs.config, compute, batches.MaxMicroBatchRows()));
  reporter.Phase("evaluate");
  const bool rows = spec.eval().write_rows();
  const EvalResult eval = engine->Evaluate([&batches] { return batches.Next(); },
                                           {.sparse = spec.eval().sparse(), .rows = rows});
  if (rows) {
    const std::filesystem::path dir = spec.output().dir();
    std::error_code ignored;  // writing says what is wrong
    std::filesystem::create_directories(dir, ignored);
    LEMO_RETURN_IF_ERROR(InField("output.dir", WriteEvalRows(eval.rows, dir / kEvalRows)));
  }
  reporter.Eval(0, eval, false);
  RunEvent event;
  lemo::v1::ResultEvent* result = event.mutable_result();
  result->set_train_loss(kNan);
  result->set_eval_loss_before(eval.Loss());
  result->set_eval_loss(eval.Loss());
  result->set_perplexity_before(std::exp(eval.Loss()));
  result->set_perplexity(std::exp(eval.Loss()));
  result->set_labelled_tokens(eval.sums.labelled);
  result->set_seconds(eval.seconds);
  result->set_tokens_per_second(static_cast<double>(eval.sums.labelled) / eval.seconds);
  *result->mutable_peak_bytes() = PeakByCategory(*engine, compute.device);
  result->set_publish_max_logit_difference(kNan);
  reporter.Emit(std::move(event));
  return absl::OkStatus();
}

}  // namespace lemo::train
