#include "worker/train/loop/engine.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/train/data/random.h"
#include "worker/train/loop/spec_options.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {
namespace {

// Every step draws other dropout masks; within a step, every row does by its place.
int64_t DropoutSeed(uint32_t seed, int64_t step) {
  return static_cast<int64_t>(seed) + (step << 32);
}

// What buffers are made for before the first step: all rows of the stream, which evaluation needs,
// and what a pass of all rows keeps if the run has one. Passes that keep fewer rows say so
// themselves.
RowBounds FirstBounds(const TokenSettings& tokens, int64_t layers, int64_t max_rows,
                      bool governed) {
  // The governor decides batch by batch what there is room for.
  if (governed) return {0, std::vector<LayerRowCounts>(layers)};
  // The first step of an annealing run is one of all rows.
  const bool dense_steps =
      tokens.warmup_steps > 0 || tokens.anneal_steps > 0 || tokens.cooldown_steps > 0 ||
      std::all_of(tokens.keep.begin(), tokens.keep.end(), [](double keep) { return keep >= 1; });
  if (dense_steps) return RowBounds::Dense(layers, max_rows);
  return {max_rows, std::vector<LayerRowCounts>(layers)};
}

// `rows` are the labelled rows of `batch`, in order.
void AppendRows(const MicroBatch& batch, const RowLosses& rows, int32_t first_document,
                EvalRows* result) {
  const at::Tensor losses = rows.loss.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor hits = rows.hit.to(at::kCPU, at::kLong).contiguous();
  const float* loss = losses.const_data_ptr<float>();
  const int64_t* hit = hits.const_data_ptr<int64_t>();
  for (size_t d = 0; d + 1 < batch.document_starts.size(); ++d) {
    for (int32_t i = batch.document_starts[d]; i < batch.document_starts[d + 1]; ++i) {
      if (batch.labels[i] == kIgnoreLabel) continue;
      result->loss.push_back(*loss++);
      result->hit.push_back(*hit++ != 0);
      result->position.push_back(batch.positions[i]);
      result->document.push_back(first_document + static_cast<int32_t>(d));
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<StoragePolicy>> PoliciesOf(const lemo::v1::MemorySpec& spec,
                                                      int64_t layers) {
  LEMO_ASSIGN_OR_RETURN(const StoragePolicy policy, ParseStoragePolicy(spec.policy()));
  std::vector<StoragePolicy> policies(layers, policy);
  for (const lemo::v1::LayerPolicy& run : spec.layers()) {
    LEMO_ASSIGN_OR_RETURN(const StoragePolicy other, ParseStoragePolicy(run.policy()));
    for (int64_t i = run.first(); i <= std::min<int64_t>(run.last(), layers - 1); ++i) {
      policies[i] = other;
    }
  }
  return policies;
}

Engine::Engine(const lemo::v1::RunSpec& spec, const DecoderConfig& config, ModelWeights weights,
               const ModelSplit* split, Communicator* tensor)
    : spec_(spec),
      weights_(std::move(weights)),
      decoder_(split != nullptr ? Decoder(*split, weights_, *tensor) : Decoder(config, weights_)) {}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const lemo::v1::RunSpec& spec,
                                                       const DecoderConfig& config,
                                                       const Compute& compute, int64_t max_rows,
                                                       Gang* gang) {
  std::unique_ptr<Gang> own_gang;
  if (gang == nullptr) {
    own_gang = Gang::Alone();
    gang = own_gang.get();
  }
  std::optional<ModelSplit> split;
  if (gang->tensor().size() > 1) {
    LEMO_ASSIGN_OR_RETURN(split,
                          ModelSplit::Make(config, gang->tensor().rank(), gang->tensor().size()));
    split->shares_rows = spec.parallel().sequence();
  }
  const ModelSplit* part = split ? &*split : nullptr;
  LEMO_ASSIGN_OR_RETURN(
      ModelWeights weights,
      WeightsOf(spec.model(), config, compute,
                spec.tuner().has_full() ? WeightUse::kTrained : WeightUse::kFrozen, part));
  std::unique_ptr<Engine> engine(
      new Engine(spec, config, std::move(weights), part, &gang->tensor()));
  engine->own_gang_ = std::move(own_gang);
  engine->gang_ = gang;
  LEMO_ASSIGN_OR_RETURN(engine->tuner_, MakeTuner(spec.tuner()));
  LEMO_ASSIGN_OR_RETURN(engine->trainables_,
                        engine->tuner_->Attach(engine->decoder_, spec.train().seed()));
  TapeOptions options;
  LEMO_ASSIGN_OR_RETURN(options.policies, PoliciesOf(spec.memory(), config.layers));
  options.mlp_tile_rows = spec.memory().mlp_tile_rows();
  Violations violations;
  engine->tokens_ = MakeTokenSettings(spec.tokens(), config.layers, &violations);
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  if (engine->tokens_.policy == "table") {
    // Shares the loaded weights, which no tuner writes to.
    auto table = std::make_unique<TablePolicy>(engine->tokens_, Decoder(config, engine->weights_),
                                               spec.memory().loss_segment_rows());
    engine->table_ = table.get();
    engine->policy_ = std::move(table);
  } else if (engine->tokens_.spec.has_online()) {
    std::optional<ScopedMemoryCategory> category(MemoryCategory::kWeights);
    LEMO_ASSIGN_OR_RETURN(Predictor start, ReadFitting(engine->tokens_, engine->decoder_));
    category.reset();
    auto online =
        std::make_unique<OnlinePolicy>(engine->tokens_, engine->decoder_, std::move(start));
    engine->online_ = online.get();
    engine->policy_ = std::move(online);
  } else if (!engine->tokens_.dense()) {
    LEMO_ASSIGN_OR_RETURN(engine->policy_, MakeTokenPolicy(engine->tokens_, engine->decoder_));
  }
  engine->tape_ = std::make_unique<Tape>(
      engine->decoder_, engine->trainables_, std::move(options),
      FirstBounds(engine->tokens_, config.layers, max_rows, spec.memory().has_budget_bytes()));
  engine->objective_ = std::make_unique<CrossEntropyObjective>(
      engine->decoder_, engine->trainables_, spec.memory().loss_segment_rows());
  engine->sharded_ = std::make_unique<ShardedTrainables>(
      engine->trainables_, gang->tensor(), gang->data(),
      ShardedTrainables::Options{.sharding = ParseSharding(spec.parallel().shard()),
                                 .bucket_bytes = spec.parallel().bucket_bytes(),
                                 .layers = config.layers});
  if (!gang->alone()) engine->tape_->SetObserver(engine->sharded_.get());
  engine->optimizer_ =
      std::make_unique<AdamW>(engine->sharded_->pieces(), AdamWOptionsOf(spec.train()));
  return engine;
}

TokenPlan Engine::MakePlan(const DeviceBatch& device, const MicroBatch& batch,
                           std::vector<double> keep, uint64_t draw, TokenPlan::Looks looks) {
  std::vector<uint8_t> labelled(batch.labels.size());
  std::transform(batch.labels.begin(), batch.labels.end(), labelled.begin(),
                 [](int32_t label) { return label != kIgnoreLabel; });
  return TokenPlan(tokens_, *policy_, decoder_, *device.space,
                   {.keep = std::move(keep),
                    .labelled = std::move(labelled),
                    .document_rows = batch.document_rows,
                    .document_places = batch.document_places,
                    .tokens = device.tokens,
                    .labels = device.labels,
                    .draw = draw,
                    .looks = std::move(looks)});
}

bool Engine::CanMeasure() const {
  const bool values_come_and_go =
      gang_->data().size() > 1 && ParseSharding(spec_.parallel().shard()) == Sharding::kParameters;
  return decoder_.tensor == nullptr && !values_come_and_go && !spec_.memory().has_budget_bytes();
}

Engine::Pass Engine::Forward(const DeviceBatch& device, TokenPlan* plan, Tape::Options options,
                             bool for_backward) {
  if (plan == nullptr) {
    const int64_t layers = decoder_.config.layers, rows = device.space->rows();
    tape_->Reserve(for_backward ? RowBounds::Dense(layers, rows)
                                : RowBounds{rows, std::vector<LayerRowCounts>(layers)});
    const at::Tensor stream =
        tape_->Forward(device.tokens, device.space, nullptr, options, for_backward);
    return {stream, InOrder(device.labels)};
  }
  std::shared_ptr<const RowSpace> space = device.space;
  at::Tensor tokens = device.tokens, labels = device.labels;
  if (const BlocksKept entering = plan->Enter(*space)) {
    const at::Tensor rows = space->Indices(*entering);
    tokens = tokens.index_select(0, rows);
    labels = labels.index_select(0, rows);
    space = space->Shrunk(*entering);
  }
  RowBounds bounds = plan->Bounds();
  if (!for_backward) bounds.layers.assign(bounds.layers.size(), {});
  tape_->Reserve(bounds);
  options.keep_left_rows = !tokens_.loss_through;
  options.kv_all = tokens_.kv_all;
  Pass pass;
  pass.stream = tape_->Forward(tokens, space, plan, options, for_backward);
  if (tokens_.loss_through && tokens_.RowsComeBack()) {
    const std::vector<uint8_t> through = plan->ThroughRows();
    const at::Tensor mask =
        at::tensor(at::ArrayRef<uint8_t>(through), at::kByte).to(labels.device());
    labels = labels.masked_fill(mask.eq(0), kIgnoreLabel);
  }
  pass.labels = InOrder(labels);
  return pass;
}

at::Tensor Engine::InOrder(const at::Tensor& labels) const {
  return tape_->order() ? labels.index_select(0, *tape_->order()) : labels;
}

void Engine::AddUp(std::vector<double>* numbers) {
  if (gang_->data().size() == 1) return;
  const at::Tensor sums =
      at::tensor(at::ArrayRef<double>(*numbers), at::kDouble).to(decoder_.device);
  gang_->data().AllReduce(sums, ReduceOp::kSum).Wait();
  gang_->data().Settle();
  const at::Tensor here = sums.to(at::kCPU);
  std::copy_n(here.const_data_ptr<double>(), numbers->size(), numbers->begin());
}

void Engine::AddUp(LossSums* sums) {
  std::vector<double> numbers = {sums->loss, static_cast<double>(sums->labelled),
                                 static_cast<double>(sums->correct)};
  AddUp(&numbers);
  *sums = {numbers[0], static_cast<int64_t>(numbers[1]), static_cast<int64_t>(numbers[2])};
}

std::string Engine::FromAllRanks(const std::string& own) {
  if (alone()) return own;
  std::string all;
  const std::vector<std::string> texts = AllGatherText(gang_->world(), own);
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    if (texts[rank].empty()) continue;
    absl::StrAppend(&all, all.empty() ? "" : "; ", "rank ", rank, ": ", texts[rank]);
  }
  return all;
}

absl::StatusOr<StepResult> Engine::Step(const Batch& batch, const StepRequest& request) {
  updated_ = false;
  sharded_->ZeroGradients();
  const int64_t step = request.step;
  const std::vector<double> keep = tokens_.Capped(
      tokens_.Raised(tokens_.KeepAt(step, request.steps), request.keep_least), request.keep_most);
  const bool sparse = std::any_of(keep.begin(), keep.end(), [](double share) { return share < 1; });
  // The divisor counts the labels of all micro-batches, so that the split changes nothing. Which of
  // them rows carry is known at the end only; the gradients are then scaled once.
  const double scale = 1.0 / static_cast<double>(batch.labelled_tokens);
  LossSums sums;
  StepResult result;
  SparsityCounts counts;
  TokenPlan::Looks looks;
  if (sparse && CanMeasure()) looks.measured = tokens_.MeasuredAt(step);
  if (online_ != nullptr && !request.rehearsal)
    looks.lessons = online_->LessonsAt(step, /*dense=*/!sparse);
  // One micro-batch is enough to look at, and short documents leave little to choose.
  const auto largest = std::max_element(
      batch.micro_batches.begin(), batch.micro_batches.end(),
      [](const MicroBatch& a, const MicroBatch& b) { return a.rows() < b.rows(); });
  const auto looked_at = static_cast<size_t>(largest - batch.micro_batches.begin());
  std::string bad;
  const size_t rounds = std::max(static_cast<size_t>(batch.rounds), batch.micro_batches.size());
  for (size_t i = 0; i < rounds; ++i) {
    const bool last = i + 1 == rounds;
    if (i >= batch.micro_batches.size()) {
      sharded_->PassBy(/*backward=*/true, last, tape_->horizon());
      continue;
    }
    const MicroBatch& micro_batch = batch.micro_batches[i];
    const DeviceBatch device = ToDevice(micro_batch, decoder_, tokens_.block);
    const Tape::Options options{.dropout_seed = DropoutSeed(spec_.train().seed(), step)};
    sharded_->BeginPass(/*backward=*/true, last);
    std::optional<TokenPlan> plan;
    const TokenPlan::Looks look = i == looked_at ? looks : TokenPlan::Looks();
    if (sparse || !look.lessons.empty()) {
      plan.emplace(MakePlan(device, micro_batch, keep,
                            MixKeys(spec_.train().seed(), static_cast<uint64_t>(step), 0), look));
    }
    const Pass pass = Forward(device, plan ? &*plan : nullptr, options, /*for_backward=*/true);
    const LossSums part = objective_->LossAndGradient(pass.stream, pass.labels, scale);
    const bool was_finite = std::isfinite(sums.loss);
    sums.Add(part);
    if (was_finite && !std::isfinite(sums.loss)) {
      bad =
          absl::StrCat("the loss of micro-batch ", i + 1, " of ", batch.micro_batches.size(), " (",
                       micro_batch.rows(),
                       " rows) is not finite; first bad tensor: ", NameBadTensor(device, options));
      if (alone()) break;
      // The others count on this rank's part of every sum: it goes on.
    }
    tape_->Backward(pass.stream);
    sharded_->EndPass();
    if (!sparse) continue;
    plan->AddTo(&counts);
    if (request.want_selections) {
      result.selections.push_back(plan->Selection());
      result.selections.back().set_step(static_cast<int32_t>(step + 1));
      result.selections.back().set_micro_batch(static_cast<int32_t>(i));
    }
  }
  sharded_->FinishGradients();
  if (request.rehearsal) {
    Synchronize(decoder_.device);
    return result;
  }
  AddUp(&sums);
  const auto refuse = [&](const std::string& reason) {
    return absl::InternalError(
        absl::StrCat("step ", step + 1, ": ", reason, ". Parameters were not updated."));
  };
  if (!std::isfinite(sums.loss)) return refuse(FromAllRanks(bad));
  if (sums.labelled == 0) {
    return refuse(absl::StrCat("none of the ", batch.labelled_tokens,
                               " labelled rows was kept; raise tokens.keep or set "
                               "tokens.keep_labels"));
  }
  if (sparse) {
    std::vector<double> numbers = counts.Numbers(std::ssize(decoder_.layers));
    AddUp(&numbers);
    counts.SetNumbers(numbers);
    result.sparsity = counts.Shares(batch.labelled_tokens, sums.labelled, looks.measured);
  }
  if (sums.labelled != batch.labelled_tokens) {
    sharded_->ScaleGradients(static_cast<double>(batch.labelled_tokens) /
                             static_cast<double>(sums.labelled));
  }
  result.loss = sums.Mean();
  result.grad_norm = sharded_->GradientNorm();
  if (!std::isfinite(result.grad_norm)) {
    return refuse(absl::StrCat("a gradient over ", batch.tokens, " rows is not finite; first bad ",
                               "tensor: ", FromAllRanks(sharded_->FirstBadGradient())));
  }
  const double limit = spec_.train().max_grad_norm();
  // torch.nn.utils.clip_grad_norm_'s formula.
  const double clip = limit > 0 ? std::min(1.0, limit / (result.grad_norm + 1e-6)) : 1.0;
  updated_ = true;
  optimizer_->Step(request.learning_rate, clip);
  sharded_->SpreadValues();
  if (online_ != nullptr) online_->Update();
  Synchronize(decoder_.device);
  return result;
}

// Looked for in a pass of all rows: what is bad there is bad in a pass of some of them.
std::string Engine::NameBadTensor(const DeviceBatch& device, const Tape::Options& options) {
  for (const Trainable& trainable : trainables_) {
    if (!trainable.value.isfinite().all().item<bool>()) return trainable.name;
  }
  for (const auto& [name, tensor] : weights_.tensors()) {
    if (!tensor.isfinite().all().item<bool>()) return name;
  }
  // In a gang the pass would have to be everybody's.
  if (!alone()) return "none of this rank's weights";
  Tape::Options checked = options;
  checked.check_finite = true;
  tape_->Forward(device.tokens, device.space, nullptr, checked, /*for_backward=*/false);
  return tape_->first_bad().empty() ? "logits" : absl::StrCat("output of ", tape_->first_bad());
}

void Engine::Share(const std::function<std::optional<MicroBatch>()>& next, bool divide, int passes,
                   const std::function<void(const MicroBatch& batch, uint64_t number)>& pass) {
  // Each takes one of as many micro-batches as there are ranks.
  const auto ranks = static_cast<uint64_t>(divide ? gang_->data().size() : 1);
  const auto own = static_cast<uint64_t>(divide ? gang_->data().rank() : 0);
  for (uint64_t first = 0;; first += ranks) {
    std::optional<MicroBatch> mine;
    uint64_t given = 0;
    for (; given < ranks; ++given) {
      std::optional<MicroBatch> batch = next();
      if (!batch) break;
      if (given == own) mine = std::move(batch);
    }
    if (mine) {
      pass(*mine, first + own);
    } else if (given > 0) {
      for (int i = 0; i < passes; ++i) {
        sharded_->PassBy(/*backward=*/false, /*last=*/false, /*horizon=*/0);
      }
    }
    if (given < ranks) return;
  }
}

ShadowResult Engine::Shadow(const std::function<std::optional<MicroBatch>()>& next,
                            const std::vector<double>& keep) {
  const auto start = std::chrono::steady_clock::now();
  ShadowResult result;
  // Rows that are not embedded, or may carry loss only if every sub-block computed them, have none
  // in the sparse pass. Else all rows have.
  const bool through = tokens_.loss_through || tokens_.scope == Scope::kStack;
  Share(next, /*divide=*/true, /*passes=*/2, [&](const MicroBatch& batch, uint64_t number) {
    const DeviceBatch device = ToDevice(batch, decoder_, tokens_.block);
    sharded_->BeginPass(/*backward=*/false, /*last=*/false);
    TokenPlan plan = MakePlan(device, batch, keep, MixKeys(spec_.train().seed(), number, 2));
    {
      const Pass kept = Forward(device, &plan, {}, /*for_backward=*/false);
      result.sparse.Add(objective_->Loss(kept.stream, kept.labels));
    }
    sharded_->EndPass();
    at::Tensor labels = device.labels;
    if (through) {
      const std::vector<uint8_t> rows = plan.ThroughRows();
      labels = labels.masked_fill(
          at::tensor(at::ArrayRef<uint8_t>(rows), at::kByte).to(labels.device()).eq(0),
          kIgnoreLabel);
    }
    sharded_->BeginPass(/*backward=*/false, /*last=*/false);
    const at::Tensor stream = Forward(device, nullptr, {}, /*for_backward=*/false).stream;
    result.dense.Add(objective_->Loss(stream, InOrder(labels)));
    sharded_->EndPass();
  });
  AddUp(&result.sparse);
  AddUp(&result.dense);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

EvalResult Engine::Evaluate(const std::function<std::optional<MicroBatch>()>& next,
                            const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  EvalResult result;
  if (options.sparse) result.sparse.emplace();
  int32_t documents = 0;
  const auto pass = [&](const MicroBatch& batch, uint64_t number) {
    const DeviceBatch device = ToDevice(batch, decoder_, tokens_.block);
    sharded_->BeginPass(/*backward=*/false, /*last=*/false);
    const Pass all = Forward(device, nullptr, {}, /*for_backward=*/false);
    RowLosses rows;
    result.sums.Add(objective_->Loss(all.stream, all.labels, options.rows ? &rows : nullptr));
    if (options.rows) AppendRows(batch, rows, documents, &result.rows);
    documents += static_cast<int32_t>(batch.document_starts.size()) - 1;
    sharded_->EndPass();
    if (!options.sparse) return;
    sharded_->BeginPass(/*backward=*/false, /*last=*/false);
    TokenPlan plan =
        MakePlan(device, batch, tokens_.keep, MixKeys(spec_.train().seed(), number, 1));
    const Pass kept = Forward(device, &plan, {}, /*for_backward=*/false);
    result.sparse->Add(objective_->Loss(kept.stream, kept.labels));
    sharded_->EndPass();
  };
  Share(next, /*divide=*/!options.rows, options.sparse ? 2 : 1, pass);
  if (!options.rows) {
    AddUp(&result.sums);
    if (result.sparse) AddUp(&*result.sparse);
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

at::Tensor Engine::Logits(const MicroBatch& batch) {
  const DeviceBatch device = ToDevice(batch, decoder_, tokens_.block);
  sharded_->BeginPass(/*backward=*/false, /*last=*/false);
  at::Tensor logits =
      objective_->Logits(Forward(device, nullptr, {}, /*for_backward=*/false).stream);
  sharded_->EndPass();
  return logits;
}

at::Tensor Engine::Whole(size_t i, const std::vector<at::Tensor>& pieces) {
  const at::Tensor part = sharded_->Whole(i, pieces);
  return decoder_.tensor != nullptr ? GatherWhole(part, trainables_[i].shard, *decoder_.tensor)
                                    : part;
}

void Engine::TakePart(size_t i, const at::Tensor& whole, const std::vector<at::Tensor>& pieces) {
  sharded_->Part(i, NarrowToShard(whole, trainables_[i].shard), pieces);
}

std::vector<at::Tensor> Engine::WholeMasters() {
  std::vector<at::Tensor> pieces, whole;
  for (const OptimizerPiece& piece : sharded_->pieces()) pieces.push_back(piece.master);
  for (size_t i = 0; i < trainables_.size(); ++i) whole.push_back(Whole(i, pieces));
  return whole;
}

void Engine::SetMasters(const std::vector<at::Tensor>& whole) {
  std::vector<at::Tensor> pieces;
  for (const OptimizerPiece& piece : sharded_->pieces()) pieces.push_back(piece.master);
  for (size_t i = 0; i < trainables_.size(); ++i) TakePart(i, whole[i], pieces);
  sharded_->SpreadValues();
}

int64_t Engine::parameters() const {
  int64_t count = 0;
  for (const auto& [name, tensor] : weights_.tensors()) {
    count += c10::multiply_integers(WholeShape(tensor.sizes().vec(), decoder_.ShardOf(name)));
  }
  return count;
}

}  // namespace lemo::train
