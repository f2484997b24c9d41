#include "worker/train/loop/predictor_run.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/files.h"
#include "common/format.h"
#include "common/status_macros.h"
#include "worker/train/data/batches.h"
#include "worker/train/data/content_hash.h"
#include "worker/train/loop/allocation.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/loop/peak_bytes.h"
#include "worker/train/loop/publisher.h"
#include "worker/train/loop/signals.h"
#include "worker/train/loop/spec_options.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/spec/spec.h"
#include "worker/train/tokens/policy/online.h"
#include "worker/train/tokens/policy/predictor.h"
#include "worker/train/tokens/predictor/training.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kReportedShare = 0.4;
// Of a predictor that a run trains first: what its scale and its learning need at the least.
constexpr int64_t kLeastPredictorSteps = 50;
// Where a run is long, its predictor sees a quarter of its sequences: the study found that it wants
// some thousands (bench/quality).
constexpr int64_t kMostPredictorSteps = 2400, kRunOverPredictor = 4;
constexpr int kTold = 10;  // parts of its training that are told
// Of the sample on which rows are left out of layers, unless eval.max_sequences says otherwise.
constexpr int64_t kSequencesAllocated = 32;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void EmitPhase(const EmitEvent& emit, const std::string& name, const std::string& detail) {
  lemo::v1::RunEvent event;
  event.mutable_phase()->set_name(name);
  event.mutable_phase()->set_detail(detail);
  emit(std::move(event));
}

void EmitWarning(const EmitEvent& emit, const std::string& message, const std::string& field) {
  lemo::v1::RunEvent event;
  event.mutable_warning()->set_message(message);
  event.mutable_warning()->set_field(field);
  emit(std::move(event));
}

PredictorTrainingOptions TrainingOptions(const lemo::v1::RunSpec& spec,
                                         const DecoderConfig& config) {
  const lemo::v1::PredictorSpec& predictor = spec.predictor();
  PredictorTrainingOptions options;
  options.shape = {.flat_slice = predictor.kind() == "flat_slice",
                   .hidden = config.hidden,
                   .block = predictor.block(),
                   .slice = config.head_dim,
                   .r1 = predictor.r1(),
                   .r2 = predictor.r2(),
                   .p = predictor.p()};
  options.scores = {CombineFromName(predictor.combine()), predictor.score_rope()};
  options.elastic = predictor.elastic();
  options.mlp = predictor.mlp();
  options.above = {predictor.nested_from().begin(), predictor.nested_from().end()};
  options.seed = spec.train().seed();
  options.adamw = AdamWOptionsOf(spec.train());
  return options;
}

int64_t ElementsOf(const AttentionPredictor& head) {
  int64_t elements = 0;
  for (const PredictorPath* path : {&head.q, &head.k}) {
    elements += path->w1.numel() + path->w2.numel() + path->w3.numel();
  }
  return elements;
}

class PredictorRun {
 public:
  PredictorRun(const lemo::v1::RunSpec& spec, const Inputs& inputs, const Decoder& decoder,
               const Compute& compute, const EmitEvent& emit)
      : spec_(spec),
        inputs_(inputs),
        decoder_(decoder),
        compute_(compute),
        emit_(emit),
        training_(decoder, TrainingOptions(spec, inputs.config)) {}

  absl::StatusOr<TrainedPredictor> Go(const fs::path& dir) {
    LEMO_ASSIGN_OR_RETURN(
        BatchStream stream,
        BatchStream::Create(&*inputs_.train, BatchOptionsOf(spec_, inputs_.config)));
    const int64_t steps = spec_.train().has_steps() ? spec_.train().steps()
                                                    : stream.StepsForEpochs(spec_.train().epochs());
    const Schedule schedule = ScheduleOf(spec_.train(), steps);
    EmitPhase(emit_, "train",
              absl::StrCat("a predictor of ", training_.heads(), " heads, ", training_.parameters(),
                           " parameters, ", steps, " steps"));
    if (!inputs_.eval) {
      EmitWarning(emit_, "no held-out data: recall is measured on training data", "data.eval");
    }
    std::vector<double> losses;
    const int64_t eval_every = spec_.eval().every_steps();
    while (done_.steps < steps) {
      if (StopSignal() != 0) return Stopped();
      const auto start = Clock::now();
      const Batch batch = stream.Next();
      const double rate = schedule.At(done_.steps);
      std::vector<PredictorTraining::Sequences> parts;
      for (const MicroBatch& part : batch.micro_batches) parts.push_back(OnDevice(part));
      LEMO_ASSIGN_OR_RETURN(const PredictorTraining::StepResult result,
                            training_.Step(parts, rate));
      Synchronize(compute_.device);
      ++done_.steps;
      done_.tokens += batch.tokens;
      done_.loss = result.loss;
      losses.push_back(result.loss);
      const double seconds = SecondsSince(start);
      done_.seconds += seconds;
      EmitStep(batch, result, rate, seconds, steps);
      if (eval_every > 0 && done_.steps % eval_every == 0 && done_.steps < steps) {
        if (!Measure()) return Stopped();
      }
    }
    if (!Measure()) return Stopped();
    Predictor predictor = training_.Make();
    predictor.card.combine = spec_.predictor().combine();
    if (spec_.predictor().allocate() > 0) {
      std::optional<AllocatedShares> allocated = MeasureAllocation(
          spec_, decoder_, predictor, AllocationSample(),
          [this](const std::string& what) { EmitPhase(emit_, "allocate", what); });
      if (!allocated) return Stopped();
      predictor.card.allocated = *std::move(allocated);
      WarnOfMissedMean(predictor.card.allocated);
    }
    LEMO_RETURN_IF_ERROR(Write(dir, losses, &predictor));
    done_.dir = dir;
    return done_;
  }

 private:
  PredictorTraining::Sequences OnDevice(const MicroBatch& batch) const {
    DeviceBatch device = ToDevice(batch, decoder_, spec_.predictor().block());
    return {std::move(device.tokens), std::move(device.space)};
  }

  absl::Status Stopped() const {
    return absl::CancelledError(absl::StrCat("stopped by signal ", StopSignal(), " after step ",
                                             done_.steps, "; no predictor was written"));
  }

  const Dataset& Measured() const { return inputs_.eval ? *inputs_.eval : *inputs_.train; }

  std::vector<MicroBatch> AllocationSample() const {
    const int64_t most = spec_.eval().max_sequences();
    EvalBatches batches(&Measured(), spec_.train().micro_batch_tokens(),
                        most > 0 ? most : kSequencesAllocated);
    std::vector<MicroBatch> sample;
    while (std::optional<MicroBatch> batch = batches.Next()) sample.push_back(*std::move(batch));
    return sample;
  }

  // Thresholds only come near the mean.
  void WarnOfMissedMean(const AllocatedShares& allocated) const {
    const double kept = std::accumulate(allocated.keep.begin(), allocated.keep.end(), 0.0) /
                        static_cast<double>(allocated.keep.size());
    if (std::abs(kept - allocated.mean) <= 0.05) return;
    EmitWarning(
        emit_,
        absl::StrFormat("the thresholds keep %.2f of the rows, not %.2f: they move by a few "
                        "percent of the scores only",
                        kept, allocated.mean),
        "predictor.allocate");
  }

  // False when a signal came.
  bool Measure() {
    const auto start = Clock::now();
    const Dataset& data = Measured();
    EvalBatches batches(&data, spec_.train().micro_batch_tokens(),
                        inputs_.eval ? spec_.eval().max_sequences() : kSequencesMeasured);
    training_.BeginMeasuring();
    while (const std::optional<MicroBatch> batch = batches.Next()) {
      if (StopSignal() != 0) return false;
      training_.Measure(OnDevice(*batch));
    }
    quality_ = training_.FinishMeasuring();
    lemo::v1::RunEvent event;
    lemo::v1::EvalEvent* eval = event.mutable_eval();
    eval->set_step(static_cast<int32_t>(done_.steps));
    double loss = 0;
    for (const auto& [name, quality] : quality_) {
      loss += quality.loss / static_cast<double>(quality_.size());
    }
    eval->set_loss(loss);
    eval->set_perplexity(kNan);
    eval->set_token_accuracy(kNan);
    eval->set_seconds(SecondsSince(start));
    for (int64_t i = 0; i < decoder_.config.layers; ++i) {
      eval->add_recall(quality_.at(LayerHead(i)).RecallAt(kReportedShare));
    }
    emit_(std::move(event));
    return true;
  }

  void EmitStep(const Batch& batch, const PredictorTraining::StepResult& result, double rate,
                double seconds, int64_t steps) {
    lemo::v1::RunEvent event;
    lemo::v1::StepEvent* step = event.mutable_step();
    step->set_step(static_cast<int32_t>(done_.steps));
    step->set_steps(static_cast<int32_t>(steps));
    step->set_loss(result.loss);
    step->set_learning_rate(rate);
    step->set_grad_norm(result.grad_norm);
    step->set_tokens(batch.tokens);
    step->set_seconds(seconds);
    step->set_tokens_per_second(static_cast<double>(batch.tokens) / seconds);
    *step->mutable_peak() = PeakBytesOf(compute_.device);
    step->set_peak_bytes(step->peak().total());
    step->set_eta_seconds(done_.seconds / static_cast<double>(done_.steps) *
                          static_cast<double>(steps - done_.steps));
    emit_(std::move(event));
  }

  absl::Status Write(const fs::path& dir, const std::vector<double>& losses,
                     Predictor* predictor) const {
    EmitPhase(emit_, "publish", dir.string());
    PredictorCard& card = predictor->card;
    LEMO_ASSIGN_OR_RETURN(card.base.fingerprint, BaseFingerprint(spec_.model()));
    LEMO_ASSIGN_OR_RETURN(card.data_fingerprint, DataFingerprint(spec_.data()));
    card.sequence_length = spec_.data().max_length();
    card.held_out = inputs_.eval.has_value();
    card.quality = quality_;
    card.loss_curve = ThinnedCurve(losses);
    card.created = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
    card.lemo_version = kLemoVersion;
    LEMO_RETURN_IF_ERROR(WritePredictor(*predictor, dir));
    // What was written is what will be read, or it is no result.
    return ReadPredictor(dir).status();
  }

  const lemo::v1::RunSpec& spec_;
  const Inputs& inputs_;
  const Decoder& decoder_;
  const Compute& compute_;
  const EmitEvent& emit_;
  PredictorTraining training_;
  TrainedPredictor done_;
  std::map<std::string, HeadQuality> quality_;
};

// Puts what the card has measured in the place of `layers` allocated.
void TakeAllocation(const PredictorCard& card, lemo::v1::TokensSpec* tokens) {
  if (tokens->layers() != kAllocated) return;
  if (tokens->mode() == "threshold") {
    tokens->set_layers("all");
    tokens->mutable_threshold()->Add(card.allocated.threshold.begin(),
                                     card.allocated.threshold.end());
    return;
  }
  const std::vector<double> keep = AllocateShares(card.allocated.rises, tokens->keep(0));
  tokens->set_layers("auto");
  tokens->clear_keep();
  tokens->mutable_keep()->Add(keep.begin(), keep.end());
}

// The run that would train a predictor for `spec`'s choices.
lemo::v1::RunSpec TrainingSpecFor(const lemo::v1::RunSpec& spec, const TokenSettings& settings) {
  lemo::v1::RunSpec result = spec;
  result.clear_tuner();
  result.clear_tokens();
  result.clear_train();
  lemo::v1::PredictorSpec* predictor = result.mutable_predictor();
  predictor->set_block(spec.tokens().block());
  if (spec.tokens().has_combine()) predictor->set_combine(spec.tokens().combine());
  if (spec.tokens().has_score_rope()) predictor->set_score_rope(spec.tokens().score_rope());
  for (const int64_t layer : NestedChoices(settings)) {
    predictor->add_nested_from(static_cast<int32_t>(layer));
  }
  if (spec.tokens().layers() == kAllocated) {
    predictor->set_allocate(spec.tokens().keep(0));
    predictor->set_allocate_mlp(spec.tokens().mlp());
    if (spec.tokens().mode() == "threshold") predictor->set_allocate_by("fd");
  }
  FillDefaults(&result);
  lemo::v1::TrainSpec* train = result.mutable_train();
  if (spec.train().has_steps()) {
    // A short run is not kept waiting for longer than it takes itself.
    const int64_t sequences =
        int64_t{spec.train().steps()} * std::max(1, spec.train().batch_sequences());
    const int64_t most =
        std::clamp<int64_t>(sequences / kRunOverPredictor, train->steps(), kMostPredictorSteps);
    train->set_steps(
        static_cast<int32_t>(std::clamp<int64_t>(sequences, kLeastPredictorSteps, most)));
  }
  train->set_micro_batch_tokens(result.data().max_length());
  return result;
}

}  // namespace

absl::StatusOr<std::string> BaseFingerprint(const lemo::v1::ModelSpec& model) {
  const fs::path path = model.path();
  if (!model.has_random_init()) return WeightsFingerprint(path);
  LEMO_ASSIGN_OR_RETURN(const std::string config, HashFile(path / "config.json"));
  return absl::StrCat("random-", model.random_init().seed(), "-", config);
}

absl::StatusOr<std::string> DataFingerprint(const lemo::v1::DataSpec& data) {
  std::string hashes;
  for (const lemo::v1::DataFile& file : data.train()) {
    LEMO_ASSIGN_OR_RETURN(const std::string hash, HashFile(file.path()));
    absl::StrAppend(&hashes, hash, "\n");
  }
  return Sha256Hex(hashes);
}

absl::StatusOr<TrainedPredictor> TrainPredictor(const lemo::v1::RunSpec& spec, const Inputs& inputs,
                                                const Compute& compute, const fs::path& dir,
                                                const EmitEvent& emit) {
  const int64_t layers = inputs.config.layers;
  for (int i = 0; i < spec.predictor().nested_from_size(); ++i) {
    if (spec.predictor().nested_from(i) < layers) continue;
    return absl::InvalidArgumentError(absl::StrCat("predictor.nested_from[", i,
                                                   "]: ", spec.predictor().nested_from(i),
                                                   " is beyond the last layer, ", layers - 1));
  }
  if (spec.predictor().kind() == "flat_slice" &&
      inputs.config.hidden % inputs.config.head_dim != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("predictor.kind: flat_slice cuts rows in slices of a head's width, ",
                     inputs.config.head_dim, ", and this model's rows have ", inputs.config.hidden,
                     " columns; use token_pool"));
  }
  EmitPhase(emit, "load",
            absl::StrCat(spec.model().path(), ", computing in ", compute.reason, " on ",
                         compute.device.str()));
  LEMO_ASSIGN_OR_RETURN(const ModelWeights weights,
                        WeightsOf(spec.model(), inputs.config, compute, WeightUse::kFrozen));
  const Decoder decoder(inputs.config, weights);
  absl::StatusOr<TrainedPredictor> trained =
      PredictorRun(spec, inputs, decoder, compute, emit).Go(dir);
  // A run that goes on has the weights mapped anew, and counts them.
  if (compute.device.is_cpu()) {
    CountExternalMemory(MemoryCategory::kWeights, -weights.MappedBytes());
  }
  return trained;
}

absl::Status RunPredictor(const Inputs& inputs, const Compute& compute,
                          lemo::v1::RunForecast forecast, const fs::path& dir,
                          const EmitEvent& emit) {
  const int64_t budget = inputs.spec.memory().budget_bytes();
  if (budget > 0 && forecast.high_peak_bytes() > budget) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "memory.budget_bytes: ", HumanBytes(budget), " (", budget,
        ") cannot be kept: training this predictor takes up to ", forecast.high_peak_bytes(),
        ". A budget of that would do, or fewer rows at a time (train.micro_batch_tokens, "
        "data.max_length)"));
  }
  if (compute.device.is_cpu()) SetMemoryLimit(budget);
  const absl::Cleanup unlimited = [] { SetMemoryLimit(0); };
  const absl::StatusOr<TrainedPredictor> trained =
      TrainPredictor(inputs.spec, inputs, compute, dir, emit);
  if (!trained.ok() && !absl::IsCancelled(trained.status())) return trained.status();
  lemo::v1::RunEvent event;
  lemo::v1::ResultEvent* result = event.mutable_result();
  for (const auto set :
       {&lemo::v1::ResultEvent::set_eval_loss_before, &lemo::v1::ResultEvent::set_eval_loss,
        &lemo::v1::ResultEvent::set_perplexity_before, &lemo::v1::ResultEvent::set_perplexity,
        &lemo::v1::ResultEvent::set_publish_max_logit_difference,
        &lemo::v1::ResultEvent::set_train_loss, &lemo::v1::ResultEvent::set_tokens_per_second}) {
    (result->*set)(kNan);
  }
  *result->mutable_peak_bytes() = PeakBytesOf(compute.device);
  if (trained.ok()) {
    result->set_predictor_dir(trained->dir.string());
    result->set_train_loss(trained->loss);
    result->set_steps(static_cast<int32_t>(trained->steps));
    result->set_tokens(trained->tokens);
    result->set_seconds(trained->seconds);
    result->set_tokens_per_second(static_cast<double>(trained->tokens) / trained->seconds);
    forecast.set_measured_step_seconds(trained->seconds / static_cast<double>(trained->steps));
    forecast.set_measured_peak_bytes(result->peak_bytes().total());
    *result->mutable_forecast() = std::move(forecast);
  }
  result->set_interrupted(!trained.ok());
  emit(std::move(event));
  return trained.status();
}

absl::StatusOr<Predictor> NamedPredictor(const lemo::v1::RunSpec& spec,
                                         const DecoderConfig& config) {
  Violations violations;
  const TokenSettings settings = MakeTokenSettings(spec.tokens(), config.layers, &violations);
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  PredictorUse use = PredictorUseOf(settings, config);
  LEMO_ASSIGN_OR_RETURN(use.base.fingerprint, BaseFingerprint(spec.model()));
  absl::StatusOr<Predictor> predictor = ReadPredictor(spec.tokens().predictor());
  const absl::Status status = predictor.ok() ? CheckFits(*predictor, use) : predictor.status();
  if (status.ok()) return predictor;
  return absl::Status(status.code(), absl::StrCat("tokens.predictor: ", status.message()));
}

absl::Status ResolvePredictor(const Compute& compute, bool may_train, const EmitEvent& emit,
                              Inputs* inputs) {
  lemo::v1::TokensSpec* tokens = inputs->spec.mutable_tokens();
  if (tokens->policy() != "predictor") return absl::OkStatus();
  if (tokens->predictor() != "auto") {
    LEMO_ASSIGN_OR_RETURN(const Predictor predictor, NamedPredictor(inputs->spec, inputs->config));
    TakeAllocation(predictor.card, tokens);
    return absl::OkStatus();
  }
  Violations violations;
  const TokenSettings settings = MakeTokenSettings(*tokens, inputs->config.layers, &violations);
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  PredictorUse use = PredictorUseOf(settings, inputs->config);
  LEMO_ASSIGN_OR_RETURN(use.base.fingerprint, BaseFingerprint(inputs->spec.model()));
  const std::string& dir = tokens->predictors_dir();
  std::vector<std::string> reasons;
  fs::path found;
  if (!dir.empty()) {
    LEMO_ASSIGN_OR_RETURN(found, FindPredictor(dir, use, &reasons));
    for (const std::string& reason : reasons) {
      EmitWarning(emit, "predictor passed over: " + reason, "tokens.predictors_dir");
    }
  }
  if (found.empty() && (dir.empty() || !may_train)) {
    return absl::NotFoundError(absl::StrCat(
        "tokens.predictor: auto, and ",
        dir.empty() ? std::string("tokens.predictors_dir is not set")
                    : absl::StrCat("none under ", dir, " fits this model"),
        "; train one: the same spec with \"predictor\": {} in place of tuner and tokens, then name "
        "<output.dir>/",
        kPredictorDirectory));
  }
  if (found.empty()) {
    EmitPhase(emit, "predictor", absl::StrCat("none fits under ", dir, "; training one first"));
    const std::string name =
        absl::StrCat("predictor-", use.base.fingerprint.substr(0, 12), "-",
                     absl::FormatTime("%Y%m%dT%H%M%SZ", absl::Now(), absl::UTCTimeZone()));
    // Its steps are none of this run's: they are told as parts of a phase.
    const EmitEvent quiet = [&emit](lemo::v1::RunEvent event) {
      const lemo::v1::StepEvent& step = event.step();
      if (event.has_step() && step.step() % std::max(1, step.steps() / kTold) == 0) {
        EmitPhase(emit, "predictor",
                  absl::StrFormat("step %d of %d, %.0f s to go", step.step(), step.steps(),
                                  step.eta_seconds()));
      }
      if (event.has_phase() || event.has_warning()) emit(std::move(event));
    };
    LEMO_ASSIGN_OR_RETURN(const TrainedPredictor trained,
                          TrainPredictor(TrainingSpecFor(inputs->spec, settings), *inputs, compute,
                                         fs::path(dir) / name, quiet));
    found = trained.dir;
    // Nor is what it took of the run's memory.
    ResetPeakBytes(compute.device);
  }
  EmitPhase(emit, "predictor", found.string());
  tokens->set_predictor(found.string());
  LEMO_ASSIGN_OR_RETURN(const Predictor predictor, ReadPredictor(found));
  TakeAllocation(predictor.card, tokens);
  return absl::OkStatus();
}

// Shares by layer are what a card has measured; a new one has none.
bool BeginsAnew(const lemo::v1::TokensSpec& tokens) {
  return tokens.predictor() == "auto" && tokens.has_online() && tokens.layers() != kAllocated;
}

std::optional<PredictorFacts> PredictorFactsOf(const Inputs& inputs, at::ScalarType type) {
  const lemo::v1::TokensSpec& tokens = inputs.spec.tokens();
  if (tokens.policy() != "predictor") return std::nullopt;
  Violations violations;
  const TokenSettings settings = MakeTokenSettings(tokens, inputs.config.layers, &violations);
  if (!violations.ToStatus().ok()) return std::nullopt;
  absl::StatusOr<Predictor> predictor = absl::NotFoundError("");
  if (tokens.predictor() != "auto") {
    predictor = ReadPredictor(tokens.predictor());
  } else if (BeginsAnew(tokens)) {
    predictor = FreshPredictor(settings, inputs.config, inputs.spec.train().seed());
  }
  if (!predictor.ok()) return std::nullopt;
  const PredictorUse use = PredictorUseOf(settings, inputs.config);
  const auto element = static_cast<int64_t>(c10::elementSize(type));
  const int64_t wide = std::max<int64_t>(element, 4);
  PredictorFacts facts;
  facts.flat_slice = predictor->card.shape.flat_slice;
  facts.steps = predictor->card.steps;
  facts.allocated = predictor->card.allocated;
  double recall = 0;
  int64_t known = 0;
  const double keep = *std::min_element(settings.keep.begin(), settings.keep.end());
  const double share = *std::min_element(
      kRecallShares.begin(), kRecallShares.end(),
      [keep](double a, double b) { return std::abs(a - keep) < std::abs(b - keep); });
  for (const auto& [name, head] : predictor->heads) facts.file_bytes += 4 * ElementsOf(head);
  for (const auto& [layer, mlp] : predictor->mlp) {
    facts.file_bytes += 4 * (mlp.w1.numel() + mlp.w2.numel() + mlp.bias.numel());
  }
  std::vector<std::string> heads = use.heads;
  // Taken before the layer's own where it is there; both are held.
  for (const int64_t layer : NestedChoices(settings)) {
    heads.push_back(AboveHead(layer));
    const auto own = predictor->heads.find(LayerHead(layer));
    if (!tokens.has_online() || own == predictor->heads.end()) continue;
    predictor->heads.try_emplace(AboveHead(layer), own->second);  // where it learns, in any case
  }
  const PredictorShape& shape = predictor->card.shape;
  facts.heads = {.block = shape.block,
                 .r1 = shape.r1,
                 .r2 = shape.r2,
                 .p = shape.p,
                 .flat_slice = shape.flat_slice,
                 .mlp = false,
                 .joint = 0,
                 .rotated = predictor->card.score_rope};
  for (const std::string& name : heads) {
    const auto head = predictor->heads.find(name);
    if (head == predictor->heads.end()) continue;
    int64_t width = 0;
    for (const PredictorPath* path : {&head->second.q, &head->second.k}) {
      width += path->w1.size(0);
      facts.held_bytes += path->w1.numel() * (facts.flat_slice ? wide : element) +
                          (path->w2.numel() + path->w3.numel()) * wide;
    }
    facts.parameters += ElementsOf(head->second);
    facts.first_width = std::max(facts.first_width, width);
    const auto quality = predictor->card.quality.find(name);
    if (quality == predictor->card.quality.end()) continue;
    recall += quality->second.RecallAt(share);
    ++known;
  }
  for (const int64_t layer : use.mlp) {
    const auto mlp = predictor->mlp.find(layer);
    if (mlp == predictor->mlp.end()) continue;
    facts.held_bytes += mlp->second.w1.numel() * element + (mlp->second.w2.numel() + 1) * wide;
  }
  if (known > 0) facts.recall = recall / static_cast<double>(known);
  return facts;
}

}  // namespace lemo::train
