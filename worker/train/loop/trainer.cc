#include "worker/train/loop/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/train/data/batches.h"
#include "worker/train/loop/background_save.h"
#include "worker/train/loop/checkpoint_parts.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/eval_rows.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/loop/memory_governor.h"
#include "worker/train/loop/peak_bytes.h"
#include "worker/train/loop/plan_run.h"
#include "worker/train/loop/predictor_run.h"
#include "worker/train/loop/publisher.h"
#include "worker/train/loop/rehearsal.h"
#include "worker/train/loop/reporter.h"
#include "worker/train/loop/run_facts.h"
#include "worker/train/loop/run_identity.h"
#include "worker/train/loop/run_predictor.h"
#include "worker/train/loop/run_state.h"
#include "worker/train/loop/signals.h"
#include "worker/train/loop/spec_options.h"
#include "worker/train/loop/stragglers.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/plan/forecast.h"
#include "worker/train/plan/rates.h"
#include "worker/train/publish/output_dir.h"
#include "worker/train/report/report.h"
#include "worker/train/spec/spec.h"
#include "worker/train/state/checkpoint.h"

namespace lemo::train {
namespace {

using lemo::v1::RunEvent;
using Clock = std::chrono::steady_clock;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kCheckpoints = "checkpoints";
constexpr const char* kBlockScores = "block-scores.safetensors";
// Steps of a run whose kept blocks are told.
constexpr int64_t kSelectionsShown = 8;
// Rows of a held-out document on which a published result is compared with the live model.
constexpr int64_t kComparedRows = 256;
// A share of kept blocks that is as good as all of them.
constexpr double kNearlyAll = 0.95;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The first rows of a held-out document (of the training data when nothing is held out).
MicroBatch HeldOutRows(const Inputs& inputs, int64_t max_rows) {
  const Dataset& data = inputs.eval ? *inputs.eval : *inputs.train;
  const Document document = data.row(0);
  const int64_t rows = std::min(std::ssize(document.tokens), max_rows);
  MicroBatch batch;
  batch.tokens.assign(document.tokens.begin(), document.tokens.begin() + rows);
  batch.labels.assign(static_cast<size_t>(rows), kIgnoreLabel);
  for (int64_t i = 0; i < rows; ++i) batch.positions.push_back(static_cast<int32_t>(i));
  batch.document_starts = {0, static_cast<int32_t>(rows)};
  return batch;
}

using NextBatch = std::function<std::optional<MicroBatch>()>;

// Everything of one training run; the functions are its phases, in order.
class Run {
 public:
  Run(const RunOptions& options, Gang& gang, EventSink& sink, Violations* violations)
      : options_(options), gang_(gang), violations_(violations), reporter_(sink) {}

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
    if (absl::Status rehearsed = Rehearse(); !rehearsed.ok()) {
      Withdraw();
      return rehearsed;
    }
    const absl::Status trained = Steps();
    // What was being written is whole and told, whatever became of the steps.
    if (!trained.ok() && saves_) saves_->Hurry();
    const absl::Status saved = EndSave(/*wait=*/true);
    LEMO_RETURN_IF_ERROR(trained);
    LEMO_RETURN_IF_ERROR(saved);
    return Finish();
  }

 private:
  const lemo::v1::RunSpec& spec() const { return inputs_.spec; }

  absl::Status Open(const lemo::v1::RunSpec& spec) {
    Phase("validate");
    inputs_.spec = spec;
    LEMO_RETURN_IF_ERROR(Agree(gang_.world(), Check()));
    cache_is_new_ = ExistingCache(this->spec()).empty();
    LEMO_RETURN_IF_ERROR(Claim());
    Phase("tokenize");
    LEMO_RETURN_IF_ERROR(InTurn([&]() -> absl::Status {
      LEMO_RETURN_IF_ERROR(
          OpenData(&inputs_, this->spec().data().cache_dir(), /*want_train=*/true, violations_));
      return violations_->ToStatus();
    }));
    Phase("tokenize", inputs_.train->counts().ToString());
    return absl::OkStatus();
  }

  // What can be told without the other ranks.
  absl::Status Check() {
    ShareCores(gang_.node().size());
    LEMO_ASSIGN_OR_RETURN(compute_, ChooseCompute(spec().device(), spec().model().compute_type(),
                                                  gang_.node().rank()));
    if (spec().tokens().has_online() && !gang_.alone()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens.online: is for one rank, since each would teach its own predictor; ",
                       gang_.size(), " were started"));
    }
    if (spec().has_predictor() && !gang_.alone()) {
      return absl::InvalidArgumentError(
          absl::StrCat("predictor: is trained by one rank, and ", gang_.size(), " were started"));
    }
    OpenModel(&inputs_, violations_);
    return violations_->ToStatus();
  }

  // That all ranks run the same thing, and the groups they run it in.
  absl::Status Assemble(const std::string& identity) {
    if (!gang_.alone()) {
      LEMO_RETURN_IF_ERROR(CompareFacts(gang_.world(), RankFacts(identity, spec(), compute_)));
    }
    return gang_.Arrange(inputs_.spec.mutable_parallel(), compute_.device);
  }

  // For what is kept in files that ranks share: the lead first, then the first rank of each other
  // machine (whose files may be the same ones), then the rest.
  absl::Status InTurn(const std::function<absl::Status()>& work) {
    const int turn = gang_.leads() ? 0 : gang_.node().rank() == 0 ? 1 : 2;
    for (int now = 0; now < (gang_.alone() ? 1 : 3); ++now) {
      LEMO_RETURN_IF_ERROR(Agree(gang_.world(), turn == now ? work() : absl::OkStatus()));
    }
    return absl::OkStatus();
  }

  void Phase(const std::string& name, const std::string& detail = "") {
    gang_.Tell(name);
    reporter_.Phase(name, detail);
  }

  EmitEvent Emitter() {
    return [this](RunEvent event) { reporter_.Emit(std::move(event)); };
  }

  absl::Status Resolve() {
    return InTurn([this] { return ChoosePredictor(compute_, gang_.leads(), Emitter(), &inputs_); });
  }

  // A run whose result is a predictor, in place of Load, Steps and Finish.
  absl::Status Predict() {
    Foretell();
    absl::Status trained = RunPredictor(inputs_, compute_, forecast_,
                                        output_->path() / kPredictorDirectory, Emitter());
    if (!trained.ok() && !absl::IsCancelled(trained)) Withdraw();
    return trained;
  }

  // A run that cannot begin leaves nothing behind.
  void Withdraw() {
    if (!output_ || output_->had_run()) return;
    std::error_code ignored;
    if (cache_is_new_) std::filesystem::remove_all(spec().data().cache_dir(), ignored);
    std::filesystem::remove_all(output_->path() / kChosenPredictor, ignored);
    std::filesystem::remove(output_->path() / kBlockScores, ignored);
    output_->Withdraw();
  }

  std::filesystem::path OutputPath() const { return spec().output().dir(); }

  absl::Status Claim() {
    // One rank of each machine reads the data for it.
    std::string identity;
    absl::Status known;
    if (gang_.node().rank() == 0) {
      absl::StatusOr<std::string> made = RunIdentity(inputs_);
      known = made.status();
      if (made.ok()) identity = *std::move(made);
    }
    LEMO_RETURN_IF_ERROR(Agree(gang_.world(), known));
    identity = BroadcastText(gang_.node(), identity, 0);
    LEMO_RETURN_IF_ERROR(Assemble(identity));
    LEMO_RETURN_IF_ERROR(
        Agree(gang_.world(), gang_.leads() ? ClaimOutput(identity) : absl::OkStatus()));
    fingerprint_ = BroadcastText(gang_.world(), gang_.leads() ? output_->fingerprint() : "", 0);
    LEMO_ASSIGN_OR_RETURN(parts_, DivideCheckpoints(gang_, OutputPath()));
    if (parts_.writes() && !gang_.leads()) OpenStore();
    return absl::OkStatus();
  }

  void OpenStore() {
    store_.emplace(OutputPath() / kCheckpoints,
                   RetentionOptions{.keep_last = spec().checkpoint().keep_last(),
                                    .keep_best = spec().checkpoint().keep_best()});
    saves_.emplace(&*store_, [this] { return gang_.broken(); });
  }

  absl::Status ClaimOutput(const std::string& identity) {
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
    OpenStore();
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
    BatchOptions batches = BatchOptionsOf(spec(), inputs_.config);
    batches.share = gang_.data().rank();
    batches.shares = gang_.data().size();
    LEMO_ASSIGN_OR_RETURN(BatchStream stream, BatchStream::Create(&*inputs_.train, batches));
    stream_.emplace(std::move(stream));
    total_steps_ = spec().train().has_steps() ? spec().train().steps()
                                              : stream_->StepsForEpochs(spec().train().epochs());
    schedule_ = ScheduleOf(spec().train(), total_steps_);
    LEMO_RETURN_IF_ERROR(FillWarmup(total_steps_, &inputs_.spec));

    const int64_t max_rows = std::max(stream_->MaxMicroBatchRows(), int64_t{1});
    if (spec().memory().has_budget_bytes()) {
      LEMO_ASSIGN_OR_RETURN(
          governor_,
          MemoryGovernor::Create(
              inputs_, compute_,
              {.train_rows = inputs_.train->longest(),
               .micro_rows = max_rows,
               .eval_rows = inputs_.eval ? MakeEvalBatches(/*rows=*/1).MaxMicroBatchRows() : 0,
               .checkpoints = parts_},
              gang_, reporter_));
    }
    Phase("load", absl::StrCat(spec().model().path(), ", computing in ", compute_.reason, " on ",
                               compute_.device.str(), GangInWords()));
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        Engine::Create(spec(), inputs_.config, compute_, max_rows, &gang_);
    LEMO_RETURN_IF_ERROR(Agree(gang_.world(), engine.status()));
    engine_ = *std::move(engine);
    if (governor_) {
      governor_->Attach(*engine_, [this] { return EndSave(/*wait=*/true); });
    }
    for (const std::string& warning : engine_->weights().warnings()) reporter_.Warning(warning);
    const ReportFacts facts = MakeFacts(inputs_, *engine_, compute_);
    reporter_.report().SetFacts(facts);
    Foretell();
    state_.fingerprint = fingerprint_;
    state_.eval_before = state_.best_eval = state_.train_loss = kNan;
    return absl::OkStatus();
  }

  // What the result will tell beside what came of it. Of a device that nobody calibrated the time
  // is not foretold; nothing is measured for it here.
  void Foretell() {
    if (!gang_.leads()) return;
    lemo::v1::DeviceRates rates = DeviceOf(compute_);
    // Ranks of one machine have its memory together.
    if (gang_.node().size() > 1) rates.set_ranks(gang_.node().size());
    if (const std::filesystem::path file = DefaultRatesFile(); !file.empty()) {
      const absl::StatusOr<RatesList> kept = ReadRatesFile(file);
      const auto* found = kept.ok() ? FindRates(*kept, rates, kLemoVersion) : nullptr;
      if (found != nullptr) rates = *found;
    }
    const bool own_memory = !compute_.device.is_cpu();
    forecast_ = ForecastOfRun(spec(), inputs_.config,
                              FactsOf(inputs_, compute_, PlannerRates(rates, own_memory)), rates);
  }

  std::string GangInWords() const {
    if (gang_.alone()) return "";
    return absl::StrCat(", ", gang_.size(), " ranks: ", gang_.data().size(), " data parallel, ",
                        gang_.tensor().size(), " tensor parallel");
  }

  // In micro-batches of at most `rows` rows, or of one document.
  EvalBatches MakeEvalBatches(int64_t rows) const {
    return EvalBatches(&*inputs_.eval, rows, spec().eval().max_sequences());
  }

  absl::StatusOr<std::optional<LoadedCheckpoint>> FindCheckpoint() {
    if (options_.resume != "auto") return CheckpointStore::Load(options_.resume);
    std::vector<std::string> skipped;
    LEMO_ASSIGN_OR_RETURN(std::optional<LoadedCheckpoint> newest, store_->LoadNewest(&skipped));
    for (const std::string& reason : skipped) {
      reporter_.Warning("checkpoint passed over: " + reason);
    }
    return newest;
  }

  absl::Status Resume() {
    if (options_.resume.empty()) return absl::OkStatus();
    absl::StatusOr<std::optional<LoadedCheckpoint>> found = std::optional<LoadedCheckpoint>();
    if (gang_.leads()) found = FindCheckpoint();
    LEMO_RETURN_IF_ERROR(Agree(gang_.world(), found.status()));
    // The lead's machine has the checkpoints.
    if (gang_.Everyones({found->has_value() ? 1.0 : 0.0}).front()[0] == 0) return absl::OkStatus();
    LEMO_ASSIGN_OR_RETURN(state_, RestoreCheckpoint(found->has_value() ? &**found : nullptr,
                                                    fingerprint_, *engine_, gang_));
    LEMO_RETURN_IF_ERROR(stream_->Seek(state_.cursor));
    RunReport earlier;
    LEMO_RETURN_IF_ERROR(earlier.RestoreState(state_.report));
    earlier.SetFacts(reporter_.report().facts());
    reporter_.report() = std::move(earlier);
    if (gang_.leads()) reporter_.Checkpoint(state_.step, (*found)->path, 0, "resumed");
    return absl::OkStatus();
  }

  // Policy table: scores the documents that the steps to come will see. The table stays in the
  // output directory, so that a resumed run ranks by the very same numbers on any number of
  // threads.
  absl::Status ScoreBlocks() {
    TablePolicy* table = engine_->table();
    if (table == nullptr) return absl::OkStatus();
    const std::filesystem::path path = OutputPath() / kBlockScores;
    const absl::Status loaded = table->Load(path, fingerprint_);
    // Others would wait for a rank that does not find what they found.
    const auto have = gang_.Everyones({loaded.ok() ? 1.0 : 0.0});
    if (std::all_of(have.begin(), have.end(), [](const auto& has) { return has[0] > 0; })) {
      return absl::OkStatus();
    }
    if (!loaded.ok() && !absl::IsNotFound(loaded)) {
      reporter_.Warning(absl::StrCat("block scores are made anew: ", loaded.message()));
    }
    Phase("score", absl::StrCat("blocks of the training data, by ", spec().tokens().table_score()));
    // Every rank scores all: which documents will be its own is not known for the steps to come.
    BatchOptions batches = BatchOptionsOf(spec(), inputs_.config);
    // A document has one score for all steps, each of which skips other positions.
    batches.skip = {};
    LEMO_ASSIGN_OR_RETURN(BatchStream ahead, BatchStream::Create(&*inputs_.train, batches));
    LEMO_RETURN_IF_ERROR(ahead.Seek(stream_->cursor()));
    for (int64_t step = state_.step;
         step < total_steps_ && table->documents() < inputs_.train->rows(); ++step) {
      for (const MicroBatch& micro_batch : ahead.Next().micro_batches) {
        if (Stopping()) return Interrupted();
        table->Add(micro_batch);
      }
    }
    return InTurn([&] {
      return gang_.node().rank() == 0 ? table->Save(path, fingerprint_) : absl::OkStatus();
    });
  }

  // Whether the run was asked to stop, all ranks alike. Between steps; also learns what the ranks
  // took for the last one and have held at most.
  bool Stopping() {
    if (gang_.alone()) return StopSignal() != 0;
    double signal = 0;
    busy_.clear();
    peaks_.clear();
    const auto peak = static_cast<double>(PeakByCategory(*engine_, compute_.device).total());
    for (const std::vector<double>& rank :
         gang_.Everyones({static_cast<double>(StopSignal()), last_busy_, peak})) {
      signal = std::max(signal, rank[0]);
      busy_.push_back(rank[1]);
      peaks_.push_back(static_cast<int64_t>(rank[2]));
    }
    if (signal != 0 && StopSignal() == 0) SetStopSignal(static_cast<int>(signal));
    if (last_busy_ > 0) NameStraggler();
    return signal != 0;
  }

  void NameStraggler() {
    const std::optional<Straggler> slow = stragglers_.Add(busy_);
    if (!slow) return;
    reporter_.Warning(absl::StrFormat(
        "rank %d holds the others up: its own work took %.3g s in each of the last %d steps, %.1f "
        "times the median of %.3g s",
        slow->rank, slow->seconds, StragglerWatch::kSteps, slow->seconds / slow->median,
        slow->median));
  }

  // Before a step: the report draws the blocks of some steps, and the last one is for checks.
  bool WantsSelections() const {
    const int64_t apart = std::max<int64_t>(1, total_steps_ / kSelectionsShown);
    return state_.step % apart == 0 || state_.step + 1 == total_steps_;
  }

  // What `pass` makes of the first `sequences` of the evaluation (0: all), in micro-batches of as
  // many rows as there is room for, which changes nothing but the order of sums.
  template <typename Result>
  absl::StatusOr<Result> EvaluateWithin(int64_t sequences,
                                        const std::function<Result(const NextBatch&)>& pass) {
    for (;;) {
      int64_t rows = spec().train().micro_batch_tokens();
      if (governor_) {
        LEMO_ASSIGN_OR_RETURN(rows, governor_->PrepareEvaluation(*inputs_.eval, sequences, rows));
      }
      EvalBatches batches(&*inputs_.eval, rows, sequences);
      try {
        const Gang::Timed timed(gang_);
        Result result = pass([&batches] { return batches.Next(); });
        if (governor_) governor_->EvaluationDone(state_.step, result.seconds);
        return result;
      } catch (const MemoryLimitError& error) {
        if (!governor_ || !governor_->Refused(error)) throw;
      }
    }
  }

  // A sample with all rows beside the same with those that the last step kept; more of them are
  // kept from now on where the losses are too far apart.
  absl::Status Shadow() {
    const TokenSettings& tokens = engine_->tokens();
    const std::vector<double> shares = tokens.Capped(
        tokens.Raised(tokens.KeepAt(state_.step - 1, total_steps_), state_.keep_least), keep_most_);
    const double least = *std::min_element(shares.begin(), shares.end());
    if (least >= 1) return absl::OkStatus();  // there is nothing to compare
    gang_.Tell(absl::StrCat("shadow of step ", state_.step));
    LEMO_ASSIGN_OR_RETURN(
        const ShadowResult result,
        EvaluateWithin<ShadowResult>(ShadowSequences(spec().eval()), [&](const NextBatch& next) {
          return engine_->Shadow(next, shares);
        }));
    if (result.sparse.labelled == 0) return absl::OkStatus();
    RunEvent event;
    lemo::v1::ShadowEvent* shadow = event.mutable_shadow();
    shadow->set_step(static_cast<int32_t>(state_.step));
    shadow->set_dense_loss(result.dense.Mean());
    shadow->set_sparse_loss(result.sparse.Mean());
    shadow->set_gap(result.sparse.Mean() - result.dense.Mean());
    shadow->set_labelled_tokens(result.sparse.labelled);
    shadow->set_seconds(result.seconds);
    shadow->set_verdict("within");
    shadow->set_bound(spec().eval().max_quality_gap());
    double raised = 0;
    if (spec().eval().has_max_quality_gap() && !(shadow->gap() <= shadow->bound())) {
      // A last step to all rows rather than many to nearly all.
      raised = (1 + least) / 2;
      if (raised > kNearlyAll) raised = 1;
      const bool can = !governor_ || governor_->CanKeep(raised, state_.step, total_steps_);
      shadow->set_verdict(can ? "raised" : "cannot");
      if (can) state_.keep_least = raised;
    }
    shadow->set_keep_least(state_.keep_least);
    const bool tell = shadow->verdict() == "raised";
    reporter_.Emit(std::move(event));
    if (tell) TellRaised(least, raised);
    return absl::OkStatus();
  }

  void TellRaised(double from, double to) {
    RunEvent event;
    lemo::v1::AmendmentEvent* amendment = event.mutable_amendment();
    amendment->set_step(static_cast<int32_t>(state_.step + 1));
    amendment->set_action("keep");
    amendment->set_from(absl::StrFormat("at least %.3g of the blocks", from));
    amendment->set_to(absl::StrFormat("at least %.3g of the blocks", to));
    amendment->set_reason("quality");
    if (governor_) amendment->set_budget_bytes(governor_->budget());
    reporter_.Emit(std::move(event));
  }

  // Where there is room for the copy.
  absl::Status SaveWithin(const std::string& reason) {
    if (governor_)
      LEMO_RETURN_IF_ERROR(governor_->PrepareCheckpoint(
          state_.step, CheckpointBytes(*engine_, parts_.own, parts_.count)));
    return Save(reason);
  }

  // One step of `batch`; with a budget, in a way that keeps it.
  absl::StatusOr<StepResult> StepWithin(const Batch& batch, const StepRequest& request) {
    if (!governor_) {
      const Gang::Timed timed(gang_);
      return engine_->Step(batch, request);
    }
    for (;;) {
      LEMO_ASSIGN_OR_RETURN(
          const MemoryGovernor::Plan plan,
          governor_->Prepare(batch, request.step, request.steps, request.keep_least));
      StepRequest amended = request;
      amended.keep_least = state_.keep_least = plan.keep_least;
      amended.keep_most = keep_most_ = plan.keep_most;
      try {
        const Gang::Timed timed(gang_);
        return engine_->Step(plan.batch, amended);
      } catch (const MemoryLimitError& error) {
        if (engine_->updated() || !governor_->Refused(error)) throw;
      }
    }
  }

  // Where the budget is tight: the passes that need most, before a step is trained on that they
  // could cost.
  absl::Status Rehearse() {
    if (!governor_ || state_.step == total_steps_) return absl::OkStatus();
    bool told = false;
    for (const Rehearsal& rehearsal :
         RehearsalsOf(*stream_, engine_->tokens(), state_.step, total_steps_, state_.keep_least)) {
      const double keep_least = state_.keep_least;
      if (!governor_->IsTight(rehearsal.batch, rehearsal.step, total_steps_, keep_least)) continue;
      if (Stopping()) return absl::OkStatus();
      if (!std::exchange(told, true)) Phase("rehearse", "the largest passes, in a tight budget");
      const auto start = Clock::now();
      LEMO_RETURN_IF_ERROR(StepWithin(rehearsal.batch, {.step = rehearsal.step,
                                                        .steps = total_steps_,
                                                        .keep_least = keep_least,
                                                        .rehearsal = true})
                               .status());
      state_.keep_least = keep_least;
      RunEvent event;
      *event.mutable_rehearsal() = governor_->Rehearsed(SecondsSince(start));
      event.mutable_rehearsal()->set_step(static_cast<int32_t>(rehearsal.step + 1));
      for (const MicroBatch& part : rehearsal.batch.micro_batches) {
        event.mutable_rehearsal()->set_rows(std::max(event.rehearsal().rows(), part.rows()));
        event.mutable_rehearsal()->set_longest(
            std::max(event.rehearsal().longest(), LongestDocument(part)));
      }
      reporter_.Emit(std::move(event));
    }
    return absl::OkStatus();
  }

  // Evaluates after `state_.step` steps.
  absl::Status Evaluate() {
    gang_.Tell(absl::StrCat("evaluation after step ", state_.step));
    const bool rows = spec().eval().write_rows() && state_.step == total_steps_;
    LEMO_ASSIGN_OR_RETURN(
        const EvalResult result,
        EvaluateWithin<EvalResult>(spec().eval().max_sequences(), [&](const NextBatch& next) {
          return engine_->Evaluate(next, {.sparse = spec().eval().sparse(), .rows = rows});
        }));
    if (rows && gang_.leads()) {
      LEMO_RETURN_IF_ERROR(WriteEvalRows(result.rows, OutputPath() / kEvalRows));
    }
    last_eval_ = result.Loss();
    eval_seconds_ += result.seconds;
    ++evals_;
    last_eval_step_ = state_.step;
    const bool best = !(last_eval_ >= state_.best_eval);
    if (best) state_.best_eval = last_eval_;
    if (state_.step == 0) state_.eval_before = last_eval_;
    reporter_.Eval(state_.step, result, best);
    return absl::OkStatus();
  }

  // Copies the state and leaves writing it to another thread.
  absl::Status Save(const std::string& reason) {
    gang_.Tell(absl::StrCat("checkpoint of step ", state_.step));
    LEMO_RETURN_IF_ERROR(EndSave(/*wait=*/true));
    state_.report = reporter_.report().SaveState();
    std::optional<AtomicDirectory> directory;
    const auto begin = [&]() -> absl::Status {
      LEMO_ASSIGN_OR_RETURN(AtomicDirectory begun, store_->Begin(state_.step));
      directory.emplace(std::move(begun));
      return absl::OkStatus();
    };
    LEMO_RETURN_IF_ERROR(Agree(gang_.world(), gang_.leads() ? begin() : absl::OkStatus()));
    std::vector<at::Tensor> tensors;
    CheckpointContents contents =
        MakeCheckpoint(*engine_, state_, parts_.own, parts_.count, &tensors);
    if (last_eval_step_ == state_.step) contents.eval_loss = last_eval_;
    saved_step_ = state_.step;
    if (parts_.writes()) {
      saves_->Begin(std::move(directory), std::move(contents), std::move(tensors), reason);
    }
    return absl::OkStatus();
  }

  // Reports the checkpoint that was being written, if it is now; with `wait`, when it is.
  absl::Status EndSave(bool wait) {
    if (!saves_) return absl::OkStatus();
    const std::optional<BackgroundSave::Done> done = saves_->Take(wait);
    if (!done) return absl::OkStatus();
    LEMO_RETURN_IF_ERROR(done->path.status());
    if (gang_.leads()) {
      reporter_.Checkpoint(done->step, *done->path, done->seconds, done->reason);
    }
    return absl::OkStatus();
  }

  absl::Status Steps() {
    Phase("train",
          absl::StrCat(CountParameters(engine_->trainables()), " of ", engine_->parameters(),
                       " parameters train (", engine_->tuner().kind(), ", ",
                       engine_->trainables().size(), " tensors), ", total_steps_, " steps"));
    if (inputs_.eval && state_.step == 0) {
      if (Stopping()) return Interrupted();
      LEMO_RETURN_IF_ERROR(Evaluate());
    }
    const int32_t eval_every = spec().eval().every_steps();
    const int32_t save_every = spec().checkpoint().every_steps();
    while (state_.step < total_steps_) {
      if (Stopping()) return Interrupted();
      LEMO_RETURN_IF_ERROR(EndSave(/*wait=*/false));
      gang_.Tell(absl::StrCat("step ", state_.step + 1));
      const auto start = Clock::now();
      const double waited = gang_.waited_seconds();
      const int64_t sent = gang_.sent_bytes();
      const Batch batch = stream_->Next();
      const double rate = schedule_.At(state_.step);
      LEMO_ASSIGN_OR_RETURN(const StepResult result,
                            StepWithin(batch, {.step = state_.step,
                                               .steps = total_steps_,
                                               .learning_rate = rate,
                                               .want_selections = WantsSelections(),
                                               .keep_least = state_.keep_least}));
      const double seconds = SecondsSince(start);
      const double waiting = gang_.waited_seconds() - waited;
      last_busy_ = seconds - waiting;
      if (warmed_up_) {
        warm_seconds_ += seconds;
        ++warm_steps_;
      }
      warmed_up_ = true;
      ++state_.step;
      state_.cursor = stream_->cursor();
      state_.tokens += batch.tokens;
      state_.labelled_tokens += batch.labelled_tokens;
      state_.train_seconds += seconds;
      state_.train_loss = result.loss;
      lemo::v1::GangStep ranks;
      ranks.mutable_busy_seconds()->Add(busy_.begin(), busy_.end());
      ranks.mutable_peak_bytes()->Add(peaks_.begin(), peaks_.end());
      ranks.set_waited_seconds(waiting);
      ranks.set_sent_bytes(gang_.sent_bytes() - sent);
      EmitStep(batch, result, rate, seconds, ranks);
      if (inputs_.eval && eval_every > 0 && state_.step % eval_every == 0 &&
          state_.step < total_steps_) {
        LEMO_RETURN_IF_ERROR(Evaluate());
      }
      const int32_t shadow_every = spec().eval().shadow_every_steps();
      if (shadow_every > 0 && state_.step % shadow_every == 0) LEMO_RETURN_IF_ERROR(Shadow());
      if (save_every > 0 && (state_.step % save_every == 0 || state_.step == total_steps_)) {
        if (inputs_.eval && state_.step == total_steps_) LEMO_RETURN_IF_ERROR(Evaluate());
        LEMO_RETURN_IF_ERROR(SaveWithin("interval"));
      }
    }
    if (inputs_.eval && last_eval_step_ != state_.step) LEMO_RETURN_IF_ERROR(Evaluate());
    return absl::OkStatus();
  }

  // 0 before the first.
  double MeanEvalSeconds() const {
    return evals_ > 0 ? eval_seconds_ / static_cast<double>(evals_) : 0;
  }

  // After a step: that behind it, if it has one, those to come, and the last.
  int64_t EvaluationsToCome() const {
    if (!inputs_.eval) return 0;
    const int64_t every = spec().eval().every_steps();
    return every > 0 ? 1 + (total_steps_ - 1) / every - (state_.step - 1) / every : 1;
  }

  void EmitStep(const Batch& batch, const StepResult& result, double rate, double seconds,
                const lemo::v1::GangStep& ranks) {
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
                              static_cast<double>(total_steps_ - state_.step) +
                          MeanEvalSeconds() * static_cast<double>(EvaluationsToCome()));
    step->set_epoch(static_cast<double>(state_.cursor.epoch) +
                    static_cast<double>(state_.cursor.sequence) /
                        static_cast<double>(stream_->SequencesPerEpoch()));
    if (result.sparsity) *step->mutable_sparsity() = *result.sparsity;
    if (!gang_.alone()) *step->mutable_gang() = ranks;
    // Tells of amendments, which thus come before the step that they were made for.
    if (governor_) governor_->Done(state_.step, seconds - ranks.waited_seconds(), step);
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
    *result.mutable_forecast() = forecast_;
    result.mutable_forecast()->set_measured_peak_bytes(result.peak_bytes().total());
    result.mutable_forecast()->set_measured_evaluation_seconds(MeanEvalSeconds());
    if (warm_steps_ > 0) {
      result.mutable_forecast()->set_measured_step_seconds(warm_seconds_ /
                                                           static_cast<double>(warm_steps_));
    }
    result.set_publish_max_logit_difference(kNan);
    result.set_report((OutputPath() / "report.html").string());
    return result;
  }

  absl::Status Interrupted() {
    if (state_.step > 0 && saved_step_ != state_.step) LEMO_RETURN_IF_ERROR(SaveWithin("signal"));
    LEMO_RETURN_IF_ERROR(EndSave(/*wait=*/true));
    RunEvent event;
    *event.mutable_result() = MakeResult();
    event.mutable_result()->set_interrupted(true);
    reporter_.Emit(std::move(event));
    LEMO_RETURN_IF_ERROR(WriteReport());
    return absl::CancelledError(absl::StrCat("stopped by signal ", StopSignal(), " after step ",
                                             state_.step, "; continue with --resume auto"));
  }

  absl::Status Finish() {
    Phase("publish");
    lemo::v1::ResultEvent result = MakeResult();
    int64_t compared = kComparedRows;
    if (governor_) {
      LEMO_ASSIGN_OR_RETURN(compared, governor_->PreparePublishing(compared));
    }
    LEMO_ASSIGN_OR_RETURN(
        const Published published,
        Publish(*engine_, gang_, inputs_, HeldOutRows(inputs_, compared),
                {{"Steps", absl::StrCat(state_.step)},
                 {"Labelled tokens", absl::StrCat(state_.labelled_tokens)},
                 {"Evaluation loss before", absl::StrCat(result.eval_loss_before())},
                 {"Evaluation loss", absl::StrCat(result.eval_loss())}}));
    result.set_adapter_dir(published.adapter_dir.string());
    result.set_model_dir(published.model_dir.string());
    result.set_publish_max_logit_difference(published.max_logit_difference);
    if (engine_->online() != nullptr) {
      LEMO_ASSIGN_OR_RETURN(const std::filesystem::path predictor,
                            PublishPredictor(*engine_, inputs_, published));
      result.set_predictor_dir(predictor.string());
    }
    RunEvent event;
    *event.mutable_result() = std::move(result);
    reporter_.Emit(std::move(event));
    return WriteReport();
  }

  absl::Status WriteReport() {
    return gang_.leads() ? reporter_.report().Write(OutputPath()) : absl::OkStatus();
  }

  const RunOptions& options_;
  Gang& gang_;
  Violations* violations_;
  Reporter reporter_;
  Compute compute_;
  Inputs inputs_;
  std::optional<OutputDirectory> output_;
  bool cache_is_new_ = false;
  std::optional<CheckpointStore> store_;
  std::optional<BackgroundSave> saves_;
  CheckpointParts parts_;
  std::string fingerprint_;   // of the run
  std::vector<double> busy_;  // of all ranks, in the step before
  std::vector<int64_t> peaks_;
  double last_busy_ = 0;  // of this one
  StragglerWatch stragglers_;
  std::optional<BatchStream> stream_;
  Schedule schedule_;
  int64_t total_steps_ = 0;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<MemoryGovernor> governor_;  // null without a budget
  double keep_most_ = 1;                      // of the last step
  lemo::v1::RunForecast forecast_;            // without what was measured
  // Of this process's steps behind the first one, which has what later ones do not: libraries that
  // warm up, memory that is new.
  bool warmed_up_ = false;
  double warm_seconds_ = 0;
  int64_t warm_steps_ = 0;
  RunState state_;
  double last_eval_ = kNan;
  double eval_seconds_ = 0;  // of this process's evaluations
  int64_t evals_ = 0;
  int64_t last_eval_step_ = -1;
  int64_t saved_step_ = -1;
};

}  // namespace

absl::Status Train(const RunOptions& options, const lemo::v1::RunSpec& spec, Gang& gang,
                   EventSink& sink, Violations* violations) {
  return Run(options, gang, sink, violations).Go(spec);
}

}  // namespace lemo::train
