// Runs under budgets: many random ones, and budgets that are cut and raised while a run goes on.
// What must hold of every one of them: measured peaks stay within the budget, the run ends, and as
// long as the kept rows are the same its losses are those of the run that nothing bounds.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "tests/support/tiny_model.h"
#include "worker/train/loop/budget_file.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/memory_governor.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/spec/spec.h"
#include "worker/train/tokens/policy/predictor.h"

namespace lemo::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::RandomBatch;

constexpr int64_t kSteps = 6;

// Before the first tensor of this program.
const bool kCounts = [] {
  InstallCountingAllocator();
  return true;
}();

// Wide and deep enough that what layers keep is more than everything else together.
DecoderConfig SmallConfig(const std::string& shape) {
  DecoderConfig config = testing::TinyConfig(shape);
  config.hidden = 32;
  config.head_dim = 8;
  config.intermediate = 64;
  config.layers = 6;
  config.vocabulary = 61;
  config.max_positions = 1024;
  config.rope.original_max_positions = 1024;
  config.sliding_window.assign(config.layers, 0);
  return config;
}

struct Trial {
  lemo::v1::RunSpec spec;
  DecoderConfig config;
  at::ScalarType type = at::kFloat;
  std::vector<Batch> batches;  // one a step
  int64_t micro_rows_max = 0;
  int64_t longest = 0;
};

// Micro-batches of a few documents each.
Batch RandomStep(const DecoderConfig& config, std::mt19937_64* random, int longest) {
  Batch batch;
  const int count = 1 + static_cast<int>((*random)() % 3);
  for (int m = 0; m < count; ++m) {
    std::vector<int> lengths(1 + (*random)() % 4);
    for (int& length : lengths) length = 2 + static_cast<int>((*random)() % (longest - 1));
    MicroBatch part = RandomBatch(config, lengths, (*random)());
    for (const int32_t start : part.document_starts) {
      if (start == part.rows()) break;
      part.document_places.push_back(batch.tokens + start);
      part.document_rows.push_back(0);
    }
    batch.sequences += std::ssize(lengths);
    batch.tokens += part.rows();
    batch.labelled_tokens += std::count_if(part.labels.begin(), part.labels.end(),
                                           [](int32_t label) { return label != kIgnoreLabel; });
    batch.micro_batches.push_back(std::move(part));
  }
  batch.rounds = count;
  return batch;
}

template <typename Value>
const Value& Pick(const std::vector<Value>& values, std::mt19937_64* random) {
  return values[(*random)() % values.size()];
}

Trial RandomTrial(uint64_t seed, bool may_drop_rows, int64_t steps = kSteps) {
  std::mt19937_64 random(seed);
  Trial trial;
  trial.config = SmallConfig(
      Pick<std::string>({"mha", "gqa", "qwen2", "qwen3", "opt", "opt_post_norm"}, &random));
  lemo::v1::RunSpec& spec = trial.spec;
  spec.mutable_data()->set_max_length(1024);
  spec.mutable_model()->mutable_random_init()->set_seed(static_cast<uint32_t>(seed));
  if (random() % 4 == 0) {
    *spec.mutable_tuner() = testing::FullSpec();
  } else {
    *spec.mutable_tuner() = testing::LoraSpec(2 + static_cast<int>(random() % 6));
    if (random() % 2) spec.mutable_tuner()->mutable_lora()->set_dropout(0.1);
  }
  spec.mutable_memory()->set_policy(
      Pick<std::string>({"all", "mlp", "attn_out", "input", "all+offload"}, &random));
  if (random() % 2) spec.mutable_memory()->set_mlp_tile_rows(100);
  if (random() % 2) spec.mutable_memory()->set_loss_segment_rows(64);
  spec.mutable_train()->set_steps(static_cast<int32_t>(steps));
  spec.mutable_train()->set_seed(static_cast<uint32_t>(seed));
  if (may_drop_rows && random() % 3) {
    lemo::v1::TokensSpec& tokens = *spec.mutable_tokens();
    tokens.set_policy(
        Pick<std::string>({"random", "recency", "norm", "oracle", "predictor"}, &random));
    tokens.set_scope(Pick<std::string>({"stack", "nested", "layer", "group"}, &random));
    tokens.add_keep(Pick<double>({0.3, 0.6, 1.0}, &random));
    tokens.set_block(16);
    tokens.set_keep_labels(random() % 2 == 0);
    if (tokens.scope() == "layer" || tokens.scope() == "group") {
      tokens.set_mlp(Pick<std::string>({"shared", "off", "own"}, &random));
      tokens.set_kv_all(random() % 3 == 0);
      // Of a row's length, or of a drawn predictor's scores, which are near 0.
      if (tokens.policy() == "norm" || tokens.policy() == "predictor") {
        if (random() % 3 == 0) tokens.set_mode("threshold");
      }
      if (tokens.mode() == "threshold") {
        tokens.add_threshold(Pick<double>({-1e9, 0, 0.5, 2, 1e9}, &random));
      }
    }
    if (random() % 3 == 0) tokens.set_anneal_steps(3);
    const bool learns = seed % 2 == 0 && tokens.policy() == "predictor" && tokens.keep(0) < 1 &&
                        tokens.mlp() != "own";
    if (learns) {
      tokens.mutable_online();
      tokens.set_recall_every_steps(1);
    }
  }
  FillDefaults(&spec);
  const int longest = 60 + static_cast<int>(random() % 120);
  for (int64_t step = 0; step < steps; ++step) {
    trial.batches.push_back(RandomStep(trial.config, &random, longest));
    for (const MicroBatch& part : trial.batches.back().micro_batches) {
      trial.micro_rows_max = std::max(trial.micro_rows_max, part.rows());
      for (size_t d = 0; d + 1 < part.document_starts.size(); ++d) {
        trial.longest =
            std::max<int64_t>(trial.longest, part.document_starts[d + 1] - part.document_starts[d]);
      }
    }
  }
  return trial;
}

// One that was never trained, of networks wide enough that what they take is seen.
absl::Status WriteDrawnPredictor(const lemo::v1::TokensSpec& spec, const DecoderConfig& config,
                                 const std::filesystem::path& dir) {
  Violations violations;
  const TokenSettings settings = MakeTokenSettings(spec, config.layers, &violations);
  const PredictorUse use = PredictorUseOf(settings, config);
  Predictor predictor;
  PredictorCard& card = predictor.card;
  card.base = use.base;
  card.shape = {.hidden = config.hidden, .block = use.block, .r1 = 64, .r2 = 16, .p = 8};
  std::vector<std::string> heads = use.heads;
  if (heads.empty()) heads = {kStackHead};  // a run that keeps all rows asks none
  for (const std::string& head : heads) {
    predictor.heads.emplace(head, DrawAttentionPredictor(card.shape, 1, head));
  }
  for (const int64_t layer : use.mlp) {
    predictor.mlp.emplace(layer, DrawMlpPredictor(config.hidden, 1, absl::StrCat("mlp.", layer)));
  }
  return WritePredictor(predictor, dir);
}

struct Outcome {
  absl::Status status;
  std::vector<double> losses;
  int64_t peak = 0;     // of all steps
  int64_t largest = 0;  // predicted for any of them
  std::optional<lemo::v1::RehearsalEvent> rehearsal;
  // Masters; no tensors, which would count as held in the next run.
  std::vector<std::vector<float>> trained;
  std::vector<lemo::v1::AmendmentEvent> amendments;
};

// The first that has the largest micro-batch.
int64_t LargestStep(const Trial& trial) {
  const auto rows = [](const Batch& batch) {
    int64_t most = 0;
    for (const MicroBatch& part : batch.micro_batches) most = std::max(most, part.rows());
    return most;
  };
  return std::max_element(trial.batches.begin(), trial.batches.end(),
                          [&](const Batch& a, const Batch& b) { return rows(a) < rows(b); }) -
         trial.batches.begin();
}

class Squeeze : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(kCounts);
    dir_ = std::filesystem::path(::testing::TempDir()) / absl::StrCat("lemo_squeeze_", ::getpid());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override {
    SetMemoryLimit(0);
    std::filesystem::remove_all(dir_);
  }

  // With `budget` bytes (0: none) in the spec. `before_step` may change the budget by SetBudget and
  // answers what it then is. While a rehearsal goes on, `unforeseen` bytes are held that no
  // forecast knows of.
  Outcome Run(const Trial& trial, int64_t budget,
              const std::function<int64_t(int64_t step)>& before_step = nullptr,
              int64_t unforeseen = 0) {
    Outcome outcome;
    outcome.status = Go(trial, budget, before_step, unforeseen, &outcome);
    return outcome;
  }

  void SetBudget(int64_t bytes) {
    ASSERT_TRUE(WriteFileAtomic(dir_ / kBudgetFile, absl::StrCat(bytes, "\n")).ok());
  }

  // That nothing was lost by what the governor did.
  static void ExpectSame(const Outcome& outcome, const Outcome& free) {
    ASSERT_EQ(outcome.losses.size(), free.losses.size());
    for (size_t i = 0; i < free.losses.size(); ++i) {
      EXPECT_NEAR(outcome.losses[i], free.losses[i], 1e-6 * std::abs(free.losses[i])) << i;
    }
    // Together: of a tensor whose gradient is nearly nothing the optimizer makes rounding large.
    double error = 0, norm = 0;
    for (size_t i = 0; i < free.trained.size(); ++i) {
      for (size_t k = 0; k < free.trained[i].size(); ++k) {
        error += std::pow(outcome.trained[i][k] - free.trained[i][k], 2);
        norm += std::pow(free.trained[i][k], 2);
      }
    }
    EXPECT_LE(std::sqrt(error), 1e-4 * std::sqrt(norm));
  }

 private:
  absl::Status Go(const Trial& trial, int64_t budget,
                  const std::function<int64_t(int64_t step)>& before_step, int64_t unforeseen,
                  Outcome* outcome) {
    std::filesystem::remove(dir_ / kBudgetFile);
    Inputs inputs;
    inputs.spec = trial.spec;
    inputs.config = trial.config;
    lemo::v1::RunSpec& spec = inputs.spec;
    spec.mutable_output()->set_dir(dir_.string());
    if (spec.tokens().policy() == "predictor") {
      const std::filesystem::path predictor = dir_ / "predictor";
      absl::Status written = WriteDrawnPredictor(spec.tokens(), trial.config, predictor);
      if (!written.ok()) return written;
      spec.mutable_tokens()->set_predictor(predictor.string());
    }
    if (budget > 0) spec.mutable_memory()->set_budget_bytes(budget);
    const Compute compute{.device = at::kCPU, .type = trial.type};
    const std::unique_ptr<Gang> gang = Gang::Alone();
    const std::unique_ptr<EventSink> sink = MakeNullSink();
    Reporter reporter(*sink);
    std::unique_ptr<MemoryGovernor> governor;
    if (budget > 0) {
      absl::StatusOr<std::unique_ptr<MemoryGovernor>> made = MemoryGovernor::Create(
          inputs, compute, {.train_rows = trial.longest, .micro_rows = trial.micro_rows_max}, *gang,
          reporter);
      if (!made.ok()) return made.status();
      governor = *std::move(made);
    }
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        Engine::Create(spec, inputs.config, compute, trial.micro_rows_max, gang.get());
    if (!engine.ok()) return engine.status();
    if (governor) governor->Attach(**engine, [] { return absl::OkStatus(); });
    testing::MoveOffZero((*engine)->trainables(), 6);
    const int64_t steps = trial.spec.train().steps();
    // As often as it takes to be within the budget.
    const auto step_within = [&](const Batch& batch,
                                 StepRequest request) -> absl::StatusOr<StepResult> {
      for (;;) {
        std::optional<MemoryGovernor::Plan> plan;
        if (governor) {
          absl::StatusOr<MemoryGovernor::Plan> prepared =
              governor->Prepare(batch, request.step, steps);
          if (!prepared.ok()) return prepared.status();
          plan = *std::move(prepared);
          request.keep_most = plan->keep_most;
        }
        try {
          const at::Tensor unknown = at::empty({request.rehearsal ? unforeseen : 0}, at::kByte);
          return (*engine)->Step(plan ? plan->batch : batch, request);
        } catch (const MemoryLimitError& error) {
          EXPECT_FALSE((*engine)->updated());
          EXPECT_TRUE(governor->Refused(error));
        }
      }
    };
    const int64_t largest = LargestStep(trial);
    if (governor && governor->IsTight(trial.batches[largest], largest, steps, 0)) {
      absl::Status rehearsed =
          step_within(trial.batches[largest], {.step = largest, .steps = steps, .rehearsal = true})
              .status();
      if (!rehearsed.ok()) return rehearsed;
      outcome->rehearsal = governor->Rehearsed(0.001);
      EXPECT_LE(outcome->rehearsal->peak_bytes(), budget);
      EXPECT_LE(outcome->rehearsal->peak_bytes(),
                outcome->rehearsal->predicted_bytes() + unforeseen);
    }
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t now = before_step ? before_step(step) : budget;
      TakeWindowPeak();
      // Not so large that Adam, which moves a weight of nearly no gradient as far as any other,
      // makes rounding a difference of the steps after.
      const absl::StatusOr<StepResult> result =
          step_within(trial.batches[step], {.step = step, .steps = steps, .learning_rate = 1e-3});
      if (!result.ok()) return result.status();
      outcome->losses.push_back(result->loss);
      lemo::v1::StepEvent event;
      if (governor) {
        governor->Done(step + 1, 0.001, &event);
        EXPECT_EQ(event.memory().budget_bytes(), now);
        EXPECT_LE(event.memory().peak_bytes(), now);
        EXPECT_LE(event.memory().peak_bytes(), event.memory().predicted_bytes()) << step;
        outcome->peak = std::max(outcome->peak, event.memory().peak_bytes());
        outcome->largest = std::max(outcome->largest, event.memory().predicted_bytes());
      } else {
        outcome->peak = std::max(outcome->peak, TakeWindowPeak());
      }
    }
    for (const Trainable& trainable : (*engine)->trainables()) {
      // A bias of keys that are not rotated moves all scores of a query alike: its gradient is
      // rounding, which the optimizer makes as large as any other.
      const bool is_noise = trial.config.family == "opt" && trainable.name.ends_with("k_proj.bias");
      if (is_noise) continue;
      const at::Tensor values = trainable.master.contiguous();
      const float* first = values.const_data_ptr<float>();
      outcome->trained.emplace_back(first, first + values.numel());
    }
    outcome->amendments = reporter.report().amendments();
    return absl::OkStatus();
  }

  std::filesystem::path dir_;
};

// The least budget that a run says it would do with.
int64_t LeastBudget(const absl::Status& refusal) {
  const std::string message(refusal.message());
  const size_t at = message.find("A budget of ");
  if (at == std::string::npos) return 0;
  return std::stoll(message.substr(at + 12));
}

TEST_F(Squeeze, MeasuredPeaksStayWithinAnyBudget) {
  int squeezed = 0, rehearsed = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const Trial trial = RandomTrial(seed, /*may_drop_rows=*/true);
    SCOPED_TRACE(trial.spec.ShortDebugString());
    const Outcome free = Run(trial, 0);
    ASSERT_TRUE(free.status.ok()) << free.status;
    // A budget of one byte is refused before a tensor is made, and says what would do.
    const int64_t before = CurrentMemory().total;
    const Outcome none = Run(trial, 1);
    ASSERT_TRUE(absl::IsResourceExhausted(none.status)) << none.status;
    EXPECT_EQ(CurrentMemory().total, before);
    const int64_t least = LeastBudget(none.status);
    ASSERT_GT(least, 0) << none.status;
    std::mt19937_64 random(seed);
    const int64_t most = std::max(free.peak, least + 1);
    const int64_t budget = least + static_cast<int64_t>(random() % (most - least));
    const Outcome run = Run(trial, budget);
    if (!run.status.ok()) {
      // Labels can make more blocks mandatory than could be known beforehand.
      EXPECT_TRUE(absl::IsResourceExhausted(run.status)) << run.status;
      EXPECT_TRUE(trial.spec.tokens().keep_labels()) << run.status;
      continue;
    }
    EXPECT_LE(run.peak, budget);
    // What a predictor learns from another micro-batch it chooses other rows by.
    const bool learns = trial.spec.tokens().has_online();
    bool exact = true;
    for (const lemo::v1::AmendmentEvent& amendment : run.amendments) {
      exact &= amendment.exact();
      EXPECT_EQ(amendment.exact(), !(learns && amendment.action() == "micro_batch"));
      EXPECT_NE(amendment.reason(), "allocator");
      EXPECT_LE(amendment.measured_peak_bytes(), budget);
      EXPECT_LE(amendment.predicted_bytes_after(), budget);
    }
    squeezed += !run.amendments.empty();
    rehearsed += run.rehearsal.has_value();
    EXPECT_TRUE(run.rehearsal.has_value() || run.amendments.empty());
    EXPECT_FALSE(run.rehearsal.has_value() && run.rehearsal->refused());
    if (exact) ExpectSame(run, free);
  }
  EXPECT_GE(squeezed, 15);
  EXPECT_GE(rehearsed, squeezed);
}

// As many specs as it takes to meet what nobody thought of; without the free run beside, which
// the other tests compare with. `Run` looks at the peak of every step.
TEST_F(Squeeze, NoSpecPassesItsBudget) {
  int ended = 0;
  for (uint64_t seed = 1000; seed < 1360; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const Trial trial = RandomTrial(seed, /*may_drop_rows=*/true, /*steps=*/2);
    SCOPED_TRACE(trial.spec.tokens().ShortDebugString());
    const int64_t least = LeastBudget(Run(trial, 1).status);
    ASSERT_GT(least, 0);
    std::mt19937_64 random(seed);
    const int64_t budget = least + static_cast<int64_t>(random() % least);
    const Outcome run = Run(trial, budget);
    ended += run.status.ok();
    if (run.status.ok()) continue;
    EXPECT_TRUE(absl::IsResourceExhausted(run.status)) << run.status;
    EXPECT_TRUE(trial.spec.tokens().keep_labels()) << run.status;
  }
  EXPECT_GE(ended, 300);
}

TEST_F(Squeeze, ABudgetThatIsCutAndRaisedChangesNoLoss) {
  int amended = 0;
  for (uint64_t seed = 100; seed < 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const Trial trial = RandomTrial(seed, /*may_drop_rows=*/seed % 2 == 0);
    const Outcome free = Run(trial, 0);
    const int64_t least = LeastBudget(Run(trial, 1).status);
    ASSERT_GT(least, 0);
    const int64_t most = std::max(free.peak, least) * 2;
    std::mt19937_64 random(seed);
    int64_t budget = most;
    const Outcome run = Run(trial, most, [&](int64_t) {
      if (random() % 2 == 0) {
        // As often a little more than what must be as anything up to all.
        const int64_t range = random() % 2 ? (most - least) / 8 : most - least;
        budget = least + static_cast<int64_t>(random() % (range + 1));
        SetBudget(budget);
      }
      return budget;
    });
    if (!run.status.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(run.status)) << run.status;
      EXPECT_TRUE(trial.spec.tokens().keep_labels()) << run.status;
      continue;
    }
    amended += !run.amendments.empty();
    const bool exact =
        std::all_of(run.amendments.begin(), run.amendments.end(),
                    [](const lemo::v1::AmendmentEvent& amendment) { return amendment.exact(); });
    if (exact) ExpectSame(run, free);
  }
  EXPECT_GE(amended, 50);
}

TEST_F(Squeeze, AllRungsGiveTheSameStep) {
  // From the most that is kept to passes of single documents.
  Trial trial = RandomTrial(7, /*may_drop_rows=*/false);
  trial.spec.mutable_memory()->set_policy("all");
  const Outcome free = Run(trial, 0);
  const int64_t least = LeastBudget(Run(trial, 1).status);
  std::set<std::string> actions;
  for (int i = 0; i <= 12; ++i) {
    const int64_t budget = least + (free.peak - least) * i / 12;
    SCOPED_TRACE(budget);
    const Outcome run = Run(trial, budget);
    ASSERT_TRUE(run.status.ok()) << run.status;
    ExpectSame(run, free);
    for (const auto& amendment : run.amendments) actions.insert(amendment.action());
  }
  EXPECT_TRUE(actions.contains("storage"));
  EXPECT_TRUE(actions.contains("micro_batch"));
}

TEST_F(Squeeze, OneLongRowAmongShortOnesIsAmendedForAndForgotten) {
  Trial trial = RandomTrial(3, /*may_drop_rows=*/false);
  trial.config = SmallConfig("gqa");
  trial.spec.mutable_memory()->set_policy("all");
  *trial.spec.mutable_tuner() = testing::LoraSpec();
  std::mt19937_64 random(5);
  for (Batch& batch : trial.batches) batch = RandomStep(trial.config, &random, 60);
  trial.micro_rows_max = 1000;
  trial.longest = 60;
  const Outcome short_rows = Run(trial, int64_t{1} << 30);
  ASSERT_TRUE(short_rows.status.ok()) << short_rows.status;

  MicroBatch long_row = RandomBatch(trial.config, {500}, 9);
  long_row.document_places = {0};
  trial.batches[2] = Batch{.rounds = 1, .sequences = 1, .tokens = 500};
  trial.batches[2].labelled_tokens =
      std::count_if(long_row.labels.begin(), long_row.labels.end(),
                    [](int32_t label) { return label != kIgnoreLabel; });
  trial.batches[2].micro_batches = {long_row};
  trial.longest = 500;
  const Outcome free = Run(trial, 0);
  // Everything kept of the long row is far beyond what the short ones need.
  const int64_t least = LeastBudget(Run(trial, 1).status);
  const int64_t budget = std::max(least, short_rows.largest);
  ASSERT_GT(free.peak, budget + budget / 4);
  const Outcome run = Run(trial, budget);
  ASSERT_TRUE(run.status.ok()) << run.status;
  ExpectSame(run, free);
  ASSERT_FALSE(run.amendments.empty());
  EXPECT_EQ(run.amendments.front().step(), 3);
  EXPECT_EQ(run.amendments.front().action(), "storage");
  EXPECT_EQ(run.amendments.front().reason(), "batch");
  EXPECT_GT(run.amendments.front().predicted_bytes_before(), budget);
}

// What a rehearsal finds wrong with the forecast is known to every step, none of which is lost.
TEST_F(Squeeze, ARefusedRehearsalIsLearntFrom) {
  Trial trial = RandomTrial(7, /*may_drop_rows=*/false);
  trial.spec.mutable_memory()->set_policy("all");
  const Outcome free = Run(trial, 0);
  const Outcome roomy = Run(trial, int64_t{1} << 30);
  EXPECT_FALSE(roomy.rehearsal.has_value());
  // As much as the largest step is forecast to need.
  const int64_t budget = roomy.largest;
  const Outcome known = Run(trial, budget);
  ASSERT_TRUE(known.status.ok()) << known.status;
  ASSERT_TRUE(known.rehearsal.has_value());
  EXPECT_FALSE(known.rehearsal->refused());
  EXPECT_THAT(known.rehearsal->changes(), IsEmpty());
  EXPECT_TRUE(known.amendments.empty());

  const Outcome unknown = Run(trial, budget, nullptr, /*unforeseen=*/budget / 8);
  ASSERT_TRUE(unknown.status.ok()) << unknown.status;
  ASSERT_TRUE(unknown.rehearsal.has_value());
  EXPECT_TRUE(unknown.rehearsal->refused());
  EXPECT_THAT(unknown.rehearsal->changes(), Not(IsEmpty()));
  ASSERT_FALSE(unknown.amendments.empty());
  for (const lemo::v1::AmendmentEvent& amendment : unknown.amendments) {
    EXPECT_EQ(amendment.reason(), "batch");
  }
  ExpectSame(unknown, free);
  // What no way of computing has room for is known before the first step.
  const Outcome none = Run(trial, budget, nullptr, /*unforeseen=*/budget);
  EXPECT_TRUE(absl::IsResourceExhausted(none.status)) << none.status;
  EXPECT_TRUE(none.losses.empty());
}

TEST_F(Squeeze, RowsAreLeftOutOnlyWhereTheJobAllowsIt) {
  Trial trial = RandomTrial(11, /*may_drop_rows=*/false);
  trial.config = SmallConfig("gqa");
  lemo::v1::TokensSpec& tokens = *trial.spec.mutable_tokens();
  tokens.set_policy("random");
  tokens.add_keep(1);
  tokens.set_block(16);
  FillDefaults(&trial.spec);
  const int64_t exact = LeastBudget(Run(trial, 1).status);
  trial.spec.mutable_memory()->set_elastic(true);
  trial.spec.mutable_memory()->set_min_keep(0.25);
  const int64_t elastic = LeastBudget(Run(trial, 1).status);
  ASSERT_LT(elastic, exact);
  const int64_t budget = elastic + (exact - elastic) / 2;
  const Outcome run = Run(trial, budget);
  ASSERT_TRUE(run.status.ok()) << run.status;
  const auto dropped =
      std::find_if(run.amendments.begin(), run.amendments.end(),
                   [](const auto& amendment) { return amendment.action() == "keep"; });
  ASSERT_NE(dropped, run.amendments.end());
  EXPECT_FALSE(dropped->exact());
  EXPECT_THAT(dropped->to(), HasSubstr("of the blocks"));
  // With room for everything nothing is left out.
  const Outcome roomy = Run(trial, int64_t{1} << 30);
  EXPECT_TRUE(roomy.amendments.empty());
  trial.spec.mutable_memory()->set_elastic(false);
  EXPECT_TRUE(absl::IsResourceExhausted(Run(trial, budget).status));
}

TEST_F(Squeeze, ABudgetBelowThePossibleStopsTheRunWithTheNumbers) {
  const Trial trial = RandomTrial(21, /*may_drop_rows=*/false);
  const int64_t least = LeastBudget(Run(trial, 1).status);
  EXPECT_THAT(std::string(Run(trial, least / 2).status.message()),
              AllOf(HasSubstr("memory.budget_bytes: "), HasSubstr("cannot be kept: weights take"),
                    HasSubstr(absl::StrCat("A budget of ", least, " would do"))));
  // While it runs: what is held is not to be had back.
  const Outcome cut = Run(trial, 2 * least, [&](int64_t step) -> int64_t {
    if (step < 3) return 2 * least;
    SetBudget(1000);
    return 1000;
  });
  EXPECT_TRUE(absl::IsResourceExhausted(cut.status)) << cut.status;
  EXPECT_THAT(std::string(cut.status.message()),
              AllOf(HasSubstr("step 4 needs"), HasSubstr("the budget is "), HasSubstr("of weights"),
                    HasSubstr(" would do")));
  EXPECT_EQ(cut.losses.size(), 3u);
}

}  // namespace
}  // namespace lemo::train
