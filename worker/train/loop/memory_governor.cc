#include "worker/train/loop/memory_governor.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/format.h"
#include "common/status_macros.h"
#include "worker/train/loop/budget_file.h"
#include "worker/train/loop/predictor_run.h"
#include "worker/train/tape/storage_policy.h"

namespace lemo::train {
namespace {

using planner::LayerStorage;
using planner::Stored;

// Steps that tell how fast the device is; older ones may be of another time.
constexpr size_t kMeasuredSteps = 32;
// Rows on which a published result is still compared where more do not fit.
constexpr int64_t kLeastComparedRows = 8;
// A budget is tight where a forecast leaves less than this part of it: more than a forecast is
// wrong by, and what a contract leaves above what it expects.
constexpr int64_t kTightPart = 16;
// Only the proportion counts: it orders what layers store. Nothing is timed for it, so that two
// runs of one spec take the same rungs.
constexpr planner::Rates kTypicalRates = {.products = 2, .attention = 1};

Stored StoredOf(StoragePolicy::Keep keep) {
  switch (keep) {
    case StoragePolicy::Keep::kInput:
      return Stored::kInput;
    case StoragePolicy::Keep::kAttentionOut:
      return Stored::kAttentionOut;
    case StoragePolicy::Keep::kMlp:
      return Stored::kMlp;
    case StoragePolicy::Keep::kAll:
      return Stored::kAll;
  }
  return Stored::kAll;
}

StoragePolicy::Keep KeepOf(Stored stored) {
  switch (stored) {
    case Stored::kInput:
      return StoragePolicy::Keep::kInput;
    case Stored::kAttentionOut:
      return StoragePolicy::Keep::kAttentionOut;
    case Stored::kMlp:
      return StoragePolicy::Keep::kMlp;
    case Stored::kAll:
      return StoragePolicy::Keep::kAll;
  }
  return StoragePolicy::Keep::kAll;
}

std::vector<StoragePolicy> PoliciesOf(const std::vector<LayerStorage>& storage) {
  std::vector<StoragePolicy> policies;
  policies.reserve(storage.size());
  for (const LayerStorage& layer : storage) {
    policies.push_back({.keep = KeepOf(layer.stored), .offload = layer.offload});
  }
  return policies;
}

std::string Bytes(int64_t bytes) { return absl::StrCat(bytes, " bytes (", HumanBytes(bytes), ")"); }

// What steps on single documents of these lengths need at least, with these shares. Buffers stay as
// large as one document wanted them while another one passes.
int64_t LeastOf(const StepModel& model, const Ladder& ladder, const std::vector<int64_t>& lengths,
                const std::vector<double>& keep) {
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t i = 0; i < ladder.storages(); ++i) {
    StepNeed most;
    for (const int64_t length : lengths) {
      const std::vector<int32_t> starts = {0, static_cast<int32_t>(length)};
      const std::vector<uint8_t> labelled(length, 1);
      const StepNeed need = NeedOf(model, starts, labelled, keep, ladder.storage(i));
      most.buffers = std::max(most.buffers, need.buffers);
      most.passing = std::max(most.passing, need.passing);
    }
    least = std::min(least, most.total());
  }
  return least;
}

// Of documents up to `rows` rows those that can need most. That is not the longest alone: short
// ones are kept whole, and may be more than what is kept of a longer one; and of one that ends with
// a whole block more is kept than of one that goes on for a few rows.
std::vector<int64_t> LengthsUpTo(const StepModel& model, int64_t rows) {
  const int64_t block = model.tokens.block;
  std::vector<int64_t> lengths = {rows};
  for (const int64_t other : {rows - rows % block, (kLeastBlocks - 1) * block}) {
    if (other > 0 && other < rows) lengths.push_back(other);
  }
  return lengths;
}

// Of documents up to `rows` rows, with the fewest kept rows that the job allows in any step. Those
// are not always the steps of all rows: between them and the others an MLP reads nearly all rows,
// and others than attention does.
int64_t LeastOf(const StepModel& model, const Ladder& ladder, int64_t rows) {
  constexpr double kNearlyAll = 0.9999;
  const TokenSettings& tokens = model.tokens;
  const std::vector<double> all(tokens.keep.size(), 1.0);
  std::vector<std::vector<double>> steps = {tokens.keep};
  if (tokens.warmup_steps > 0 || tokens.anneal_steps > 0 || tokens.cooldown_steps > 0) {
    steps = {all};
  }
  if (tokens.anneal_steps > 0) {
    steps.push_back(all);
    for (size_t l = 0; l < all.size(); ++l) {
      if (tokens.keep[l] < 1) steps.back()[l] = kNearlyAll;
    }
  }
  const double most = ladder.keep_most(ladder.keeps() - 1);
  int64_t least = 0;
  for (const std::vector<double>& shares : steps) {
    least = std::max(least,
                     LeastOf(model, ladder, LengthsUpTo(model, rows), tokens.Capped(shares, most)));
  }
  return least;
}

// The most rows, below `rows`, of a document that `room` is enough for; 0 for none.
int64_t RowsWithin(const StepModel& model, const Ladder& ladder, int64_t rows, int64_t room) {
  int64_t low = 0, high = rows;  // enough for `low`, not for `high`
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (LeastOf(model, ladder, middle) <= room ? low : high) = middle;
  }
  return low;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryGovernor>> MemoryGovernor::Create(const Inputs& inputs,
                                                                       const Compute& compute,
                                                                       const Least& least,
                                                                       Gang& gang,
                                                                       Reporter& reporter) {
  const lemo::v1::MemorySpec& memory = inputs.spec.memory();
  const int64_t layers = inputs.config.layers;
  LEMO_ASSIGN_OR_RETURN(
      StepModel model,
      StepModelOf(inputs.spec, inputs.config,
                  {.element_bytes = static_cast<int64_t>(c10::elementSize(compute.type)),
                   .threads = at::get_num_threads(),
                   .own_memory = !compute.device.is_cpu(),
                   .packs_keys = PacksKeys(compute)},
                  PredictorFactsOf(inputs, compute.type)));
  LEMO_ASSIGN_OR_RETURN(const std::vector<StoragePolicy> policies,
                        lemo::train::PoliciesOf(memory, layers));
  std::vector<LayerStorage> storage;
  storage.reserve(policies.size());
  for (const StoragePolicy& policy : policies) {
    storage.push_back({StoredOf(policy.keep), policy.offload});
  }
  const LadderOptions ladder = LadderOptionsOf(
      model, storage, least.micro_rows, memory.elastic() ? memory.min_keep() : 1, kTypicalRates);
  std::unique_ptr<MemoryGovernor> governor(
      new MemoryGovernor(inputs, compute, gang, reporter, least, std::move(model), ladder));
  for (const Needed& needed : governor->LeastNeeds(/*any_checkpoint=*/true)) {
    governor->least_need_ = std::max(governor->least_need_, needed.bytes);
  }
  governor->ReadBudget();
  LEMO_RETURN_IF_ERROR(governor->Agree(governor->CheckPossible()));
  governor->Enforce();
  if (!compute.device.is_cpu()) {
    reporter.Warning(absl::StrCat("on ", compute.device.str(),
                                  " no allocation is refused: the forecast alone keeps the budget"),
                     "memory.budget_bytes");
  }
  return governor;
}

MemoryGovernor::MemoryGovernor(const Inputs& inputs, const Compute& compute, Gang& gang,
                               Reporter& reporter, const Least& least, StepModel model,
                               const LadderOptions& ladder)
    : inputs_(inputs),
      device_(compute.device),
      gang_(gang),
      reporter_(reporter),
      least_(least),
      model_(std::move(model)),
      ladder_(ladder),
      governor_(ladder_) {}

MemoryGovernor::~MemoryGovernor() { SetMemoryLimit(0); }

void MemoryGovernor::Attach(Engine& engine, std::function<absl::Status()> end_save) {
  engine_ = &engine;
  end_save_ = std::move(end_save);
}

void MemoryGovernor::Enforce() const {
  if (device_.is_cpu()) SetMemoryLimit(budget_);
}

void MemoryGovernor::ReadBudget() {
  SetMemoryLimit(0);
  int64_t budget = inputs_.spec.memory().budget_bytes();
  const absl::StatusOr<std::optional<int64_t>> file =
      ReadBudgetFile(std::filesystem::path(inputs_.spec.output().dir()) / kBudgetFile);
  if (!file.ok()) {
    // As it was, until somebody writes something better.
    if (budget_ > 0) budget = budget_;
    const std::string fault(file.status().message());
    if (fault != bad_file_) reporter_.Warning(fault, "memory.budget_bytes");
    bad_file_ = fault;
  } else {
    bad_file_.clear();
    if (file->has_value()) budget = **file;
  }
  if (!gang_.alone()) {
    // The file lies on the lead's machine, and perhaps on others'.
    const bool knows = gang_.leads() || (file.ok() && file->has_value());
    double least = knows ? static_cast<double>(budget) : std::numeric_limits<double>::infinity();
    for (const std::vector<double>& rank : gang_.Everyones({least})) {
      least = std::min(least, rank[0]);
    }
    budget = static_cast<int64_t>(least);
  }
  budget_ = budget;
}

int64_t MemoryGovernor::Buffers() const {
  const Tape& tape = engine_->tape();
  return tape.arena_bytes() + (device_.is_cpu() ? tape.host_bytes() : 0);
}

int64_t MemoryGovernor::GatheringBytes() const {
  // A quarter of what trains (gradients and two moments are the rest) is all masters, and so no
  // less than the largest of them.
  return gang_.alone() ? 0 : TrainableBytes(model_) / 4;
}

int64_t MemoryGovernor::BaseBytes() const {
  return device_.is_cpu() ? 0 : engine_->weights().MappedBytes();
}

int64_t MemoryGovernor::Held() const {
  const int64_t all =
      device_.is_cpu() ? CurrentMemory().total : DeviceCurrentBytes(device_) + BaseBytes();
  int64_t held = all - Buffers();
  if (!gang_.alone()) {
    // What trains comes and goes where ranks divide it.
    const int64_t trainable =
        device_.is_cpu() ? CurrentMemory()[MemoryCategory::kTrainable] : TrainableBytes(model_);
    held += std::max<int64_t>(0, TrainableBytes(model_) - trainable);
  }
  return held;
}

int64_t MemoryGovernor::PassingPeak() const {
  return device_.is_cpu() ? TakeWindowPeak() : DevicePeakBytes(device_) + BaseBytes();
}

void MemoryGovernor::MakeRoom(const StepNeed& need) {
  if (Buffers() + need.passing > Room()) engine_->Release(/*buffers=*/true);
}

absl::StatusOr<bool> MemoryGovernor::WaitForSave() {
  const int64_t held = Held();
  LEMO_RETURN_IF_ERROR(end_save_());
  return Held() < held;
}

int64_t MemoryGovernor::Agreed(StepBatch& batch, int64_t* rounds) {
  const int64_t room = Room();
  const auto need = [&batch](int64_t rung) { return batch.Need(rung).total(); };
  // The highest of all ranks; `rounds` the most micro-batches.
  const auto everyones = [&](int64_t rung) {
    *rounds = rung < ladder_.size() ? batch.rounds(rung) : 0;
    if (gang_.alone()) return rung;
    for (const std::vector<double>& rank :
         gang_.Everyones({static_cast<double>(rung), static_cast<double>(*rounds)})) {
      rung = std::max(rung, static_cast<int64_t>(rank[0]));
      *rounds = std::max(*rounds, static_cast<int64_t>(rank[1]));
    }
    return rung;
  };
  int64_t rung = everyones(governor_.FirstFit(0, room, need));
  if (rung == ladder_.size()) return rung;
  rung = governor_.Propose(rung, budget_);
  // Until what is proposed fits every rank: each time at least one of them goes on.
  for (;;) {
    const int64_t own = governor_.FirstFit(rung, room, need);
    const int64_t all = everyones(own);
    if (all == rung || all == ladder_.size()) return all;
    rung = all;
  }
}

absl::StatusOr<MemoryGovernor::Plan> MemoryGovernor::Prepare(const Batch& batch, int64_t step,
                                                             int64_t steps, double keep_least) {
  const int64_t budget_before = governor_.budget();
  ReadBudget();
  engine_->Release(/*buffers=*/false);
  const std::vector<double> shares = model_.tokens.KeepAt(step, steps);
  StepBatch own(model_, ladder_, batch, model_.tokens.Raised(shares, keep_least));
  const auto need_of = [&own](int64_t rung) { return own.Need(rung).total(); };
  if (governor_.FirstFit(0, Room(), need_of) > governor_.rung()) {
    // A copy that is being written is gone soon: no reason to compute in another way.
    LEMO_RETURN_IF_ERROR(WaitForSave().status());
  }
  int64_t rounds = 0;
  const int64_t rung = Agreed(own, &rounds);
  if (rung == ladder_.size() && keep_least > 0) return Prepare(batch, step, steps);
  if (rung == ladder_.size()) {
    const bool fits = governor_.FirstFit(0, Room(), need_of) < ladder_.size();
    LEMO_RETURN_IF_ERROR(Agree(fits ? absl::OkStatus() : Impossible(own, batch, step)));
    return absl::ResourceExhaustedError("memory.budget_bytes: no way of computing fits all ranks");
  }

  const int64_t before = governor_.rung();
  governor_.Take(rung, budget_);
  const Rung now = ladder_.At(rung);
  const StepNeed need = own.Need(rung), need_before = own.Need(before);
  MakeRoom(need);
  engine_->SetStorage(PoliciesOf(now.storage));
  predicted_bytes_ = Held() + std::max(Buffers(), need.buffers) + need.passing + unforeseen_;
  work_ = own.Work(rung);
  if (!std::exchange(refused_, false)) {
    changes_.clear();
    amendment_.Clear();
    amendment_.set_predicted_bytes_before(Held() + need_before.total() + unforeseen_);
    amendment_.set_reason(budget_ != budget_before && budget_before > 0 ? "budget" : "batch");
    if (const std::optional<planner::Rates> rates = planner::CalibrateRates(
            std::vector<planner::MeasuredStep>(measured_.begin(), measured_.end()))) {
      amendment_.set_predicted_seconds_before(planner::Seconds(own.Work(before), *rates));
      amendment_.set_predicted_seconds_after(planner::Seconds(work_, *rates));
    }
  } else {
    amendment_.set_reason("allocator");
  }
  if (before != rung) {
    for (Change& change : ChangesOf(ladder_.At(before), now)) changes_.push_back(std::move(change));
  }
  amendment_.set_back(rung < before);
  amendment_.set_predicted_bytes_after(predicted_bytes_);
  if (device_.is_cpu()) TakeWindowPeak();
  Plan plan{.keep_least = keep_least, .keep_most = now.keep_most};
  plan.batch.micro_batches = own.Parts(rung);
  plan.batch.rounds = rounds;
  plan.batch.sequences = batch.sequences;
  plan.batch.tokens = batch.tokens;
  plan.batch.labelled_tokens = batch.labelled_tokens;
  Enforce();
  return plan;
}

bool MemoryGovernor::IsTight(const Batch& batch, int64_t step, int64_t steps, double keep_least) {
  ReadBudget();
  engine_->Release(/*buffers=*/false);
  StepBatch own(model_, ladder_, batch,
                model_.tokens.Raised(model_.tokens.KeepAt(step, steps), keep_least));
  const bool tight = own.Need(/*rung=*/0).total() > Room() - budget_ / kTightPart;
  const auto all = gang_.Everyones({tight ? 1.0 : 0.0});
  Enforce();
  return std::any_of(all.begin(), all.end(), [](const auto& rank) { return rank[0] > 0; });
}

lemo::v1::RehearsalEvent MemoryGovernor::Rehearsed(double seconds) {
  lemo::v1::RehearsalEvent event;
  event.set_budget_bytes(budget_);
  event.set_predicted_bytes(predicted_bytes_);
  event.set_peak_bytes(PassingPeak());
  event.set_seconds(seconds);
  event.set_refused(amendment_.reason() == "allocator");
  for (const Change& change : changes_) {
    event.add_changes(
        absl::StrCat(change.layers.empty() ? "" : absl::StrCat("layers ", change.layers, ": "),
                     change.from, " -> ", change.to));
  }
  changes_.clear();
  governor_.Take(/*rung=*/0, /*budget=*/0);
  engine_->Release(/*buffers=*/true);
  return event;
}

bool MemoryGovernor::CanKeep(double keep_least, int64_t step, int64_t steps) {
  const std::vector<double> shares =
      model_.tokens.Raised(model_.tokens.KeepAt(step, steps), keep_least);
  double fits =
      LeastOf(model_, ladder_, LengthsUpTo(model_, least_.train_rows), shares) <= Room() ? 1 : 0;
  if (gang_.alone()) return fits > 0;
  for (const std::vector<double>& rank : gang_.Everyones({fits})) fits = std::min(fits, rank[0]);
  return fits > 0;
}

bool MemoryGovernor::Refused(const MemoryLimitError& error) {
  if (!gang_.alone()) return false;
  // What was asked for and what was foreseen: the difference counts from now on.
  const int64_t missed = error.held_bytes() + error.asked_bytes() - predicted_bytes_;
  unforeseen_ += std::max<int64_t>(missed, 1);
  engine_->Release(/*buffers=*/true);
  refused_ = true;
  return true;
}

void MemoryGovernor::Tell(int64_t step, const Change& change) {
  lemo::v1::RunEvent event;
  lemo::v1::AmendmentEvent* amendment = event.mutable_amendment();
  *amendment = amendment_;
  amendment->set_step(static_cast<int32_t>(step));
  amendment->set_action(change.action);
  amendment->set_layers(change.layers);
  amendment->set_from(change.from);
  amendment->set_to(change.to);
  // A predictor learns from the largest micro-batch, and chooses by what it has learnt.
  const bool unlearnt = change.action == "micro_batch" && inputs_.spec.tokens().has_online();
  amendment->set_exact(change.action != "keep" && !unlearnt);
  amendment->set_budget_bytes(budget_);
  reporter_.Emit(std::move(event));
}

void MemoryGovernor::Done(int64_t step, double seconds, lemo::v1::StepEvent* event) {
  const int64_t peak = PassingPeak();
  // Of the rank that has most: all are held to one budget.
  int64_t told[] = {predicted_bytes_, peak, Held() + least_need_ + unforeseen_};
  if (!gang_.alone()) {
    const std::vector<double> own(std::begin(told), std::end(told));
    for (const std::vector<double>& rank : gang_.Everyones(own)) {
      for (size_t i = 0; i < rank.size(); ++i) {
        told[i] = std::max(told[i], static_cast<int64_t>(rank[i]));
      }
    }
  }
  lemo::v1::StepMemory* memory = event->mutable_memory();
  memory->set_budget_bytes(budget_);
  memory->set_predicted_bytes(told[0]);
  memory->set_peak_bytes(told[1]);
  memory->set_least_bytes(told[2]);
  // The first step has what later ones do not: libraries that warm up, memory that is new.
  if (std::exchange(warmed_up_, true)) {
    measured_.push_back({work_, seconds});
    if (measured_.size() > kMeasuredSteps) measured_.pop_front();
  }
  amendment_.set_measured_peak_bytes(peak);
  amendment_.set_measured_seconds(seconds);
  for (const Change& change : changes_) Tell(step, change);
  changes_.clear();
}

absl::StatusOr<int64_t> MemoryGovernor::PrepareEvaluation(const Dataset& data, int64_t documents,
                                                          int64_t wanted) {
  ReadBudget();
  engine_->Release(/*buffers=*/false);
  const int64_t count = documents > 0 ? std::min(documents, data.rows()) : data.rows();
  int64_t longest = 1, all = 0;
  for (int64_t i = 0; i < count; ++i) {
    longest = std::max(longest, data.length(i));
    all += data.length(i);
  }
  const auto need_of = [&](int64_t limit) {
    return NeedOfEvaluation(std::max(longest, std::min(limit, all)), longest);
  };
  const auto fitting = [&] {
    int64_t limit = wanted;
    while (limit > longest && need_of(limit).total() > Room()) limit = std::max(longest, limit / 2);
    return limit;
  };
  int64_t rows = fitting();
  if (rows < wanted || need_of(rows).total() > Room()) {
    LEMO_ASSIGN_OR_RETURN(const bool waited, WaitForSave());
    if (waited) rows = fitting();
  }
  const StepNeed need = need_of(rows);
  absl::Status possible;
  if (need.total() > Room()) {
    possible = absl::ResourceExhaustedError(absl::StrCat(
        "memory.budget_bytes: an evaluation needs ", Bytes(Held() + need.total() + unforeseen_),
        " for its longest document, ", longest, " rows, and the budget is ", Bytes(budget_), ". ",
        HeldInWords(), ". A budget of that size would do, or shorter rows in data.eval"));
  }
  LEMO_RETURN_IF_ERROR(Agree(possible));
  if (!gang_.alone()) {
    for (const std::vector<double>& rank : gang_.Everyones({static_cast<double>(rows)})) {
      rows = std::min(rows, static_cast<int64_t>(rank[0]));
    }
  }
  MakeRoom(need);
  const int64_t before = eval_rows_ > 0 ? eval_rows_ : wanted;
  eval_change_.reset();
  if (rows != before) {
    eval_change_ = Change{"evaluation", "", absl::StrCat("passes of ", before, " rows"),
                          absl::StrCat("passes of ", rows, " rows")};
  }
  amendment_.Clear();
  amendment_.set_back(rows > before);
  amendment_.set_reason(std::exchange(refused_, false) ? "allocator" : "batch");
  amendment_.set_predicted_bytes_before(Held() + need_of(before).total() + unforeseen_);
  predicted_bytes_ = Held() + std::max(Buffers(), need.buffers) + need.passing + unforeseen_;
  amendment_.set_predicted_bytes_after(predicted_bytes_);
  eval_rows_ = rows;
  if (device_.is_cpu()) TakeWindowPeak();
  Enforce();
  return rows;
}

void MemoryGovernor::EvaluationDone(int64_t step, double seconds) {
  if (!eval_change_) return;
  amendment_.set_measured_peak_bytes(PassingPeak());
  amendment_.set_measured_seconds(seconds);
  Tell(step, *eval_change_);
  eval_change_.reset();
}

absl::Status MemoryGovernor::PrepareCheckpoint(int64_t step, int64_t bytes) {
  ReadBudget();
  engine_->Release(/*buffers=*/false);
  LEMO_RETURN_IF_ERROR(WaitForSave().status());
  const StepNeed need{.passing = bytes + GatheringBytes()};
  MakeRoom(need);
  if (need.total() <= Room() - Buffers()) {
    LEMO_RETURN_IF_ERROR(Agree(absl::OkStatus()));
    Enforce();
    return absl::OkStatus();
  }
  return Agree(absl::ResourceExhaustedError(absl::StrCat(
      "memory.budget_bytes: the checkpoint of step ", step, " needs ",
      Bytes(Held() + need.total() + unforeseen_), " while it is copied, and the budget is ",
      Bytes(budget_), ". ", HeldInWords(), ". A budget of that size would do")));
}

absl::StatusOr<int64_t> MemoryGovernor::PreparePublishing(int64_t wanted) {
  ReadBudget();
  engine_->Release(/*buffers=*/true);
  LEMO_RETURN_IF_ERROR(WaitForSave().status());
  int64_t rows = wanted;
  while (rows > kLeastComparedRows && NeedOfPublishing(rows) > Room()) {
    rows = std::max(kLeastComparedRows, rows / 2);
  }
  const int64_t need = NeedOfPublishing(rows);
  absl::Status possible;
  if (need > Room()) {
    possible = absl::ResourceExhaustedError(absl::StrCat(
        "memory.budget_bytes: publishing needs ", Bytes(Held() + need + unforeseen_),
        ", and the budget is ", Bytes(budget_), ". ", HeldInWords(),
        ". A budget of that size would do; what was trained is in the last checkpoint"));
  }
  LEMO_RETURN_IF_ERROR(Agree(possible));
  if (!gang_.alone()) {
    for (const std::vector<double>& rank : gang_.Everyones({static_cast<double>(rows)})) {
      rows = std::min(rows, static_cast<int64_t>(rank[0]));
    }
  }
  Enforce();
  return rows;
}

int64_t MemoryGovernor::NeedOfPublishing(int64_t rows) const {
  const int64_t measured = least_.eval_rows > 0 ? least_.eval_rows : least_.train_rows;
  return PublishNeed(model_, rows, measured, inputs_.spec.output().merge()).total();
}

StepNeed MemoryGovernor::NeedOfEvaluation(int64_t rows, int64_t longest) const {
  StepNeed need = EvaluationNeed(model_, rows, longest);
  // Held-out documents are in no table, and are scored when a sparse pass first meets them.
  const lemo::v1::EvalSpec& eval = inputs_.spec.eval();
  if (eval.sparse() || eval.shadow_every_steps() > 0) {
    need.passing = std::max(need.passing, ScoresNeed(model_, rows, longest).passing);
  }
  return need;
}

std::string MemoryGovernor::HeldInWords() const {
  if (!device_.is_cpu()) return absl::StrCat("Held beside it are ", Bytes(Held()));
  const MemoryUsage usage = CurrentMemory();
  const int64_t weights = usage[MemoryCategory::kWeights];
  const int64_t trainable = usage[MemoryCategory::kTrainable];
  std::string text = absl::StrCat("Held are ", HumanBytes(weights), " of weights, ",
                                  HumanBytes(trainable), " of what trains");
  const int64_t rest = usage.total - Buffers() - weights - trainable;
  absl::StrAppend(&text, " and ", HumanBytes(rest), " beside them");
  return text;
}

absl::Status MemoryGovernor::Impossible(StepBatch& batch, const Batch& given, int64_t step) const {
  int64_t least = std::numeric_limits<int64_t>::max(), longest = 0;
  for (int64_t rung = 0; rung < ladder_.size(); ++rung) {
    least = std::min(least, batch.Need(rung).total());
  }
  for (const MicroBatch& micro_batch : given.micro_batches) {
    for (size_t d = 0; d + 1 < micro_batch.document_starts.size(); ++d) {
      longest = std::max<int64_t>(
          longest, micro_batch.document_starts[d + 1] - micro_batch.document_starts[d]);
    }
  }
  const int64_t needed = Held() + least + unforeseen_;
  std::string message =
      absl::StrCat("memory.budget_bytes: step ", step + 1, " needs ", Bytes(needed),
                   " in the smallest way that the job allows, for a document of ", longest,
                   " rows by itself, and the budget is ", Bytes(budget_), ". ", HeldInWords(),
                   ". A budget of ", needed, " would do");
  const int64_t rows = RowsWithin(model_, ladder_, longest, Room());
  if (rows > 1) absl::StrAppend(&message, "; or documents of ", rows, " rows (data.max_length)");
  if (!inputs_.spec.memory().elastic() && !model_.tokens.dense()) {
    absl::StrAppend(&message, "; or fewer kept rows (memory.elastic)");
  }
  return absl::ResourceExhaustedError(message);
}

std::vector<MemoryGovernor::Needed> MemoryGovernor::LeastNeeds(bool any_checkpoint) const {
  const lemo::v1::RunSpec& spec = inputs_.spec;
  std::vector<Needed> needs;
  const auto add = [&needs](std::string what, int64_t bytes) {
    Needed& needed = needs.emplace_back();
    needed.what = std::move(what);
    needed.bytes = bytes;
  };
  add(absl::StrCat("a step on the longest document, ", least_.train_rows, " rows"),
      LeastOf(model_, ladder_, least_.train_rows));
  if (const StepNeed scores = ScoresNeed(model_, least_.micro_rows, least_.train_rows);
      scores.total() > 0) {
    add("scoring the blocks of a micro-batch", scores.total());
  }
  if (least_.eval_rows > 0) {
    add(absl::StrCat("an evaluation of its longest document, ", least_.eval_rows, " rows"),
        NeedOfEvaluation(least_.eval_rows, least_.eval_rows).total());
  }
  if ((any_checkpoint || spec.checkpoint().every_steps() > 0) && least_.checkpoints.writes()) {
    add("the copy that a checkpoint is written from",
        SnapshotBytes(model_, least_.checkpoints.count) + GatheringBytes());
  }
  add("publishing", NeedOfPublishing(kLeastComparedRows));
  return needs;
}

absl::Status MemoryGovernor::CheckPossible() const {
  const lemo::v1::RunSpec& spec = inputs_.spec;
  const int64_t weights = WeightBytes(model_), trainable = TrainableBytes(model_);
  const std::vector<Needed> needs = LeastNeeds(/*any_checkpoint=*/false);
  const Needed& most =
      *std::max_element(needs.begin(), needs.end(),
                        [](const Needed& a, const Needed& b) { return a.bytes < b.bytes; });
  const int64_t needed = weights + trainable + most.bytes;
  if (needed <= budget_) return absl::OkStatus();
  std::string message =
      absl::StrCat("memory.budget_bytes: ", Bytes(budget_), " cannot be kept: weights take ",
                   HumanBytes(weights), ", what trains ", HumanBytes(trainable), ", and ",
                   most.what, ", in the smallest way that the job allows, ", HumanBytes(most.bytes),
                   ". A budget of ", needed, " would do");
  const int64_t room = budget_ - weights - trainable;
  const bool rows_matter = &most == &needs.front();
  if (const int64_t rows =
          rows_matter ? RowsWithin(model_, ladder_, least_.train_rows, room) : int64_t{0};
      rows > 1) {
    absl::StrAppend(&message, "; or documents of ", rows, " rows at most (data.max_length)");
  }
  if (rows_matter && !spec.memory().elastic() && !model_.tokens.dense()) {
    absl::StrAppend(&message, "; or fewer kept rows (memory.elastic)");
  }
  return absl::ResourceExhaustedError(message);
}

absl::Status MemoryGovernor::Agree(const absl::Status& own) const {
  return gang_.alone() ? own : lemo::train::Agree(gang_.world(), own);
}

}  // namespace lemo::train
