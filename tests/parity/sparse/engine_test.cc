// Steps of the engine that leave rows out: schedules, the divisor of the loss, what is recorded.
#include "worker/train/loop/engine.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/plain_model.h"
#include "tests/support/tiny_model.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using testing::PlainOptions;
using testing::RandomBatch;
using testing::RelativeError;
using testing::TinyConfig;

constexpr int64_t kSteps = 8;
constexpr int64_t kMaxRows = 160;
constexpr int kBlock = 5;

lemo::v1::RunSpec Spec() {
  lemo::v1::RunSpec spec;
  spec.mutable_model()->mutable_random_init()->set_seed(5);
  *spec.mutable_tuner() = testing::LoraSpec();
  spec.mutable_train()->set_max_grad_norm(0);
  spec.mutable_train()->set_steps(kSteps);
  // Neither divides the rows of a batch.
  spec.mutable_memory()->set_mlp_tile_rows(7);
  spec.mutable_memory()->set_loss_segment_rows(6);
  return spec;
}

lemo::v1::TokensSpec Tokens(const std::string& policy, const std::string& scope, double keep,
                            const std::string& mlp = "shared", const std::string& loss = "") {
  lemo::v1::TokensSpec tokens;
  tokens.set_policy(policy);
  tokens.set_scope(scope);
  tokens.add_keep(keep);
  tokens.set_layers("all");
  tokens.set_mlp(mlp);
  tokens.set_block(kBlock);
  if (!loss.empty()) tokens.set_loss_rows(loss);
  return tokens;
}

// With adapters off zero, so that every gradient is there. Tokens absent for a dense engine.
std::unique_ptr<Engine> MakeEngine(at::ScalarType type, lemo::v1::RunSpec spec,
                                   const std::string& shape = "gqa") {
  FillDefaults(&spec);
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Create(spec, TinyConfig(shape), {.device = at::kCPU, .type = type}, kMaxRows);
  if (!engine.ok()) {
    ADD_FAILURE() << engine.status();
    return nullptr;
  }
  testing::MoveOffZero((*engine)->trainables(), 6);
  return *std::move(engine);
}

std::unique_ptr<Engine> MakeEngine(at::ScalarType type, const lemo::v1::TokensSpec& tokens) {
  lemo::v1::RunSpec spec = Spec();
  *spec.mutable_tokens() = tokens;
  return MakeEngine(type, spec);
}

Batch MakeBatch(std::vector<MicroBatch> micro_batches) {
  Batch batch;
  for (MicroBatch& part : micro_batches) {
    for (size_t d = 0; d + 1 < part.document_starts.size(); ++d) {
      part.document_places.push_back(batch.tokens + part.document_starts[d]);
    }
    batch.sequences += static_cast<int64_t>(part.document_starts.size()) - 1;
    batch.tokens += part.rows();
    batch.labelled_tokens += std::count_if(part.labels.begin(), part.labels.end(),
                                           [](int32_t label) { return label != kIgnoreLabel; });
  }
  batch.micro_batches = std::move(micro_batches);
  return batch;
}

Batch StepBatch(int64_t step) {
  const DecoderConfig config = TinyConfig("gqa");
  return MakeBatch(
      {RandomBatch(config, {43, 7, 60}, 100 + step), RandomBatch(config, {31}, 200 + step)});
}

struct Curve {
  std::vector<double> losses, norms;
  std::vector<std::optional<lemo::v1::TokenSparsity>> sparsity;
  std::vector<at::Tensor> values;
};

Curve Train(Engine& engine) {
  Curve curve;
  for (int64_t step = 0; step < kSteps; ++step) {
    const absl::StatusOr<StepResult> result =
        engine.Step(StepBatch(step), {.step = step, .steps = kSteps, .learning_rate = 1e-2});
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) break;
    curve.losses.push_back(result->loss);
    curve.norms.push_back(result->grad_norm);
    curve.sparsity.push_back(result->sparsity);
  }
  for (const Trainable& trainable : engine.trainables()) {
    curve.values.push_back(trainable.master.clone());
  }
  return curve;
}

void ExpectSame(const Curve& a, const Curve& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.norms, b.norms);
  ASSERT_EQ(a.values.size(), b.values.size());
  for (size_t i = 0; i < a.values.size(); ++i) EXPECT_TRUE(at::equal(a.values[i], b.values[i]));
}

const std::vector<std::string> kScopes = {"layer", "group", "nested", "stack"};

// random-LTD's schedule (arXiv 2211.11586) down to a share of 1 is the dense run; so is a share
// that the mandatory blocks fill up to everything.
TEST(SparseEngine, KeepingAllIsTheDenseRunToTheBit) {
  const Curve dense = Train(*MakeEngine(at::kFloat, Spec()));
  for (const std::string& scope : kScopes) {
    SCOPED_TRACE(scope);
    lemo::v1::TokensSpec tokens = Tokens("random", scope, 1.0);
    tokens.set_warmup_steps(1);
    tokens.set_anneal_steps(3);
    tokens.set_cooldown_steps(2);
    const Curve all = Train(*MakeEngine(at::kFloat, tokens));
    ExpectSame(all, dense);
    for (const auto& sparsity : all.sparsity) EXPECT_FALSE(sparsity.has_value());

    tokens = Tokens("random", scope, 0.5);
    tokens.set_sink_blocks(100);
    const Curve mandatory = Train(*MakeEngine(at::kFloat, tokens));
    ExpectSame(mandatory, dense);
    for (const auto& sparsity : mandatory.sparsity) {
      ASSERT_TRUE(sparsity.has_value());
      EXPECT_THAT(sparsity->attention_kept(), Each(1.0));
      EXPECT_EQ(sparsity->never_kept(), 0.0);
    }
  }
}

TEST(SparseEngine, TheShareFollowsTheSchedule) {
  lemo::v1::RunSpec spec = Spec();
  const Curve dense = Train(*MakeEngine(at::kFloat, spec));
  for (const std::string& scope : kScopes) {
    SCOPED_TRACE(scope);
    *spec.mutable_tokens() = Tokens("random", scope, 0.4);
    spec.mutable_tokens()->set_warmup_steps(2);
    spec.mutable_tokens()->set_anneal_steps(3);
    spec.mutable_tokens()->set_cooldown_steps(1);
    const Curve curve = Train(*MakeEngine(at::kFloat, spec));
    // 1, 1 | 1, 0.8, 0.6 | 0.4, 0.4 | 1; of 9, 2, 12 and 7 blocks, the two kept whole.
    const std::vector<double> shares = {1, 1, 1, 0.8, 0.6, 0.4, 0.4, 1};
    for (size_t i = 0; i < shares.size(); ++i) {
      SCOPED_TRACE(i);
      ASSERT_EQ(curve.sparsity[i].has_value(), shares[i] < 1);
      if (shares[i] == 1) continue;
      double rows = 7;
      for (const int blocks : {9, 12, 7}) rows += kBlock * std::ceil(shares[i] * blocks - 1e-9);
      for (const double kept : curve.sparsity[i]->attention_kept()) {
        // The last block of two of the documents is short.
        EXPECT_NEAR(kept, rows / 141, 6.1 / 141);
        EXPECT_LT(kept, shares[i] + 0.15);
      }
      EXPECT_EQ(curve.sparsity[i]->attention_kept_size(), 3);
    }
    // Up to the first sparse step the runs are one.
    for (size_t i = 0; i <= 2; ++i) EXPECT_EQ(curve.losses[i], dense.losses[i]);
    EXPECT_NE(curve.losses[3], dense.losses[3]);
  }
}

// A layer's mask in rows. One byte a block.
at::Tensor RowsOf(const lemo::v1::SelectionEvent& event, const std::string& mask) {
  at::Tensor rows = at::zeros({event.block_starts(event.block_starts_size() - 1)}, at::kBool);
  for (int n = 0; n + 1 < event.block_starts_size(); ++n) {
    if (!mask[n]) continue;
    rows.narrow(0, event.block_starts(n), event.block_starts(n + 1) - event.block_starts(n))
        .fill_(true);
  }
  return rows;
}

// What the event says, for the masked dense model.
PlainOptions OracleOf(const lemo::v1::SelectionEvent& event, bool through, double lora_scale) {
  PlainOptions options{.lora_scale = lora_scale};
  at::Tensor passed;
  for (int i = 0; i < event.attention_size(); ++i) {
    options.attention_rows.push_back(RowsOf(event, event.attention(i)));
    options.mlp_rows.push_back(
        RowsOf(event, event.mlp(i).empty() ? event.attention(i) : event.mlp(i)));
    const at::Tensor both = options.attention_rows.back() & options.mlp_rows.back();
    passed = i == 0 ? both : passed & both;
  }
  if (through) options.loss_rows = passed;
  return options;
}

struct Way {
  std::string scope, mlp, loss_rows;
};

// The loss of a step is the mean over the labelled rows that were kept, of all micro-batches; its
// gradient that of the masked dense model under the selections that the step recorded.
TEST(SparseEngine, AStepEqualsPlainAutogradUnderItsSelections) {
  for (const std::string shape : {"gqa", "qwen2", "qwen3", "mha"}) {
    for (const Way& way :
         {Way{"layer", "shared", "all"}, Way{"layer", "own", "through"}, Way{"layer", "off", "all"},
          Way{"group", "shared", "through"}, Way{"nested", "shared", "all"},
          Way{"nested", "shared", "through"}, Way{"stack", "shared", "through"}}) {
      for (const std::string policy : {"random", "norm", "recency"}) {
        SCOPED_TRACE(shape + ", " + way.scope + ", mlp " + way.mlp + ", loss " + way.loss_rows +
                     ", " + policy);
        lemo::v1::RunSpec spec = Spec();
        *spec.mutable_tokens() = Tokens(policy, way.scope, 0.6, way.mlp, way.loss_rows);
        if (way.scope == "nested") {
          spec.mutable_tokens()->clear_layers();
          spec.mutable_tokens()->clear_keep();
          for (const double keep : {1.0, 0.7, 0.45}) spec.mutable_tokens()->add_keep(keep);
        }
        const std::unique_ptr<Engine> engine = MakeEngine(at::kDouble, spec, shape);
        ASSERT_NE(engine, nullptr);
        const DecoderConfig config = TinyConfig(shape);
        testing::Parameters parameters =
            testing::PlainParameters(engine->decoder(), engine->trainables());
        const Batch batch = StepBatch(3);
        const absl::StatusOr<StepResult> result =
            engine->Step(batch, {.step = 2, .steps = kSteps, .want_selections = true});
        ASSERT_TRUE(result.ok()) << result.status();
        ASSERT_EQ(result->selections.size(), batch.micro_batches.size());

        at::Tensor loss = at::zeros({}, at::kDouble);
        int64_t labelled = 0;
        for (size_t i = 0; i < batch.micro_batches.size(); ++i) {
          EXPECT_EQ(result->selections[i].step(), 3);
          EXPECT_EQ(result->selections[i].micro_batch(), static_cast<int>(i));
          const PlainOptions options =
              OracleOf(result->selections[i], way.loss_rows == "through", 2.0);
          loss = loss + PlainLoss(config, parameters, batch.micro_batches[i], options);
          labelled +=
              PlainLabels(batch.micro_batches[i], options).ne(kIgnoreLabel).sum().item<int64_t>();
        }
        if (way.loss_rows == "through") {
          EXPECT_LT(labelled, batch.labelled_tokens);
        } else {
          EXPECT_EQ(labelled, batch.labelled_tokens);
        }
        (loss / labelled).backward();
        EXPECT_NEAR(result->loss, loss.item<double>() / labelled, 1e-10 * result->loss);
        EXPECT_NEAR(result->sparsity->loss_kept(),
                    static_cast<double>(labelled) / batch.labelled_tokens, 1e-12);
        double squares = 0;
        for (const Trainable& trainable : engine->trainables()) {
          const at::Tensor expected = parameters.at(trainable.name).grad();
          EXPECT_GT(expected.norm().item<double>(), 0.0) << trainable.name;
          EXPECT_LE(RelativeError(trainable.grad, expected), 1e-10) << trainable.name;
          squares += expected.pow(2).sum().item<double>();
        }
        EXPECT_NEAR(result->grad_norm, std::sqrt(squares), 1e-10 * result->grad_norm);
      }
    }
  }
}

TEST(SparseEngine, SeveralMicroBatchesAreOne) {
  const DecoderConfig config = TinyConfig("gqa");
  std::vector<MicroBatch> parts;
  for (const int length : {43, 26, 60}) parts.push_back(RandomBatch(config, {length}, length));
  for (const Way& way : {Way{"layer", "own", "through"}, Way{"nested", "shared", "through"},
                         Way{"stack", "shared", "through"}, Way{"layer", "shared", "all"}}) {
    SCOPED_TRACE(way.scope + ", loss " + way.loss_rows);
    // A policy whose choice does not hang on the micro-batch's number.
    const lemo::v1::TokensSpec tokens = Tokens("norm", way.scope, 0.5, way.mlp, way.loss_rows);
    const auto whole = MakeEngine(at::kDouble, tokens), split = MakeEngine(at::kDouble, tokens);
    const auto one = whole->Step(MakeBatch({testing::Pack(parts)}), {.steps = kSteps});
    const auto three = split->Step(MakeBatch(parts), {.steps = kSteps});
    ASSERT_TRUE(one.ok() && three.ok()) << one.status() << three.status();
    EXPECT_NEAR(one->loss, three->loss, 1e-12 * one->loss);
    EXPECT_EQ(one->sparsity->loss_kept(), three->sparsity->loss_kept());
    for (size_t i = 0; i < whole->trainables().size(); ++i) {
      EXPECT_LE(RelativeError(split->trainables()[i].grad, whole->trainables()[i].grad), 1e-10);
    }
  }
}

// Losses are told apart by nothing but what was computed: both are of the same labelled rows.
TEST(SparseEngine, AShadowComparesTheSameRows) {
  const DecoderConfig config = TinyConfig("gqa");
  for (const Way& way : {Way{"layer", "shared", "all"}, Way{"layer", "own", "through"},
                         Way{"group", "shared", "all"}, Way{"nested", "shared", "all"},
                         Way{"nested", "shared", "through"}, Way{"stack", "shared", "through"},
                         Way{"stack", "shared", "all"}}) {
    SCOPED_TRACE(way.scope + ", mlp " + way.mlp + ", loss " + way.loss_rows);
    lemo::v1::TokensSpec tokens = Tokens("random", way.scope, 0.5, way.mlp, way.loss_rows);
    tokens.set_keep_labels(false);
    const std::unique_ptr<Engine> engine = MakeEngine(at::kDouble, tokens);
    const auto shadow = [&](double keep) {
      int next = 0;
      return engine->Shadow(
          [&]() -> std::optional<MicroBatch> {
            return next == 2 ? std::nullopt
                             : std::optional(RandomBatch(config, {43, 60}, 300 + next++));
          },
          std::vector<double>(config.layers, keep));
    };
    const ShadowResult some = shadow(0.5);
    EXPECT_GT(some.sparse.labelled, 0);
    EXPECT_EQ(some.sparse.labelled, some.dense.labelled);
    EXPECT_GT(std::abs(some.sparse.loss - some.dense.loss), 1e-6);
    // Where all rows are kept the two passes are one, and the shadow the evaluation.
    const ShadowResult all = shadow(1);
    EXPECT_EQ(all.sparse.labelled, all.dense.labelled);
    EXPECT_NEAR(all.sparse.loss, all.dense.loss, 1e-12 * all.dense.loss);
    int next = 0;
    const EvalResult eval = engine->Evaluate([&]() -> std::optional<MicroBatch> {
      return next == 2 ? std::nullopt : std::optional(RandomBatch(config, {43, 60}, 300 + next++));
    });
    EXPECT_EQ(all.dense.labelled, eval.sums.labelled);
    EXPECT_NEAR(all.dense.loss, eval.sums.loss, 1e-12 * eval.sums.loss);
    const bool fewer = way.loss_rows == "through" || way.scope == "stack";
    EXPECT_EQ(some.dense.labelled < eval.sums.labelled, fewer);
  }
}

// One document of 20 blocks whose only label is in the middle.
MicroBatch OneLabel() {
  MicroBatch batch = RandomBatch(TinyConfig("gqa"), {100}, 9);
  for (int32_t& label : batch.labels) label = kIgnoreLabel;
  batch.labels[52] = batch.tokens[53];
  return batch;
}

TEST(SparseEngine, AStepThatKeptNoLabelIsAnError) {
  lemo::v1::TokensSpec tokens = Tokens("recency", "stack", 0.3);
  tokens.set_keep_labels(false);
  const std::unique_ptr<Engine> engine = MakeEngine(at::kFloat, tokens);
  std::vector<at::Tensor> before;
  for (const Trainable& trainable : engine->trainables())
    before.push_back(trainable.master.clone());
  const auto result =
      engine->Step(MakeBatch({OneLabel()}), {.step = 4, .steps = kSteps, .learning_rate = 1});
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
  for (const char* said : {"step 5", "none of the 1 labelled rows", "tokens.keep_labels"}) {
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(said));
  }
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(at::equal(before[i], engine->trainables()[i].master));
  }
  // A micro-batch without any beside one with some is no error.
  MicroBatch labelled = RandomBatch(TinyConfig("gqa"), {40}, 10);
  EXPECT_TRUE(engine->Step(MakeBatch({OneLabel(), labelled}), {.steps = kSteps}).ok());
}

TEST(SparseEngine, SinksTheLastBlocksAndLabelsAreKept) {
  for (const std::string& scope : kScopes) {
    SCOPED_TRACE(scope);
    lemo::v1::TokensSpec tokens = Tokens("random", scope, 0.3);
    tokens.set_sink_blocks(2);
    tokens.set_local_blocks(3);
    const std::unique_ptr<Engine> engine = MakeEngine(at::kFloat, tokens);
    for (int64_t step = 0; step < 20; ++step) {
      const auto result = engine->Step(MakeBatch({OneLabel()}),
                                       {.step = step, .steps = 100, .want_selections = true});
      ASSERT_TRUE(result.ok()) << result.status();
      for (const std::string& mask : result->selections[0].attention()) {
        EXPECT_EQ(std::count(mask.begin(), mask.end(), 1), 6);
        for (const int block : {0, 1, 10, 17, 18, 19}) EXPECT_EQ(mask[block], 1) << block;
      }
    }
  }
}

// Chance that is the run's own: the same again, other in another step, micro-batch or seed.
TEST(SparseEngine, RandomChoicesFollowSeedStepAndMicroBatch) {
  const MicroBatch part = RandomBatch(TinyConfig("gqa"), {150}, 3);
  const auto masks = [&part](uint32_t seed, int64_t step) {
    lemo::v1::RunSpec spec = Spec();
    spec.mutable_train()->set_seed(seed);
    *spec.mutable_tokens() = Tokens("random", "layer", 0.5);
    const std::unique_ptr<Engine> engine = MakeEngine(at::kFloat, spec);
    const auto result = engine->Step(MakeBatch({part, part}),
                                     {.step = step, .steps = kSteps, .want_selections = true});
    std::vector<std::string> all;
    for (const lemo::v1::SelectionEvent& event : result->selections) {
      all.insert(all.end(), event.attention().begin(), event.attention().end());
    }
    return all;
  };
  const std::vector<std::string> first = masks(1, 0);
  EXPECT_EQ(masks(1, 0), first);
  std::vector<std::string> others = first;
  for (const auto& [seed, step] : {std::pair{1, 1}, {2, 0}}) {
    for (const std::string& mask : masks(seed, step)) others.push_back(mask);
  }
  std::sort(others.begin(), others.end());
  EXPECT_EQ(std::adjacent_find(others.begin(), others.end()), others.end())
      << "layers, micro-batches, steps and seeds differ";
}

TEST(SparseEngine, EvaluationComputesAllRowsUnlessAsked) {
  const auto evaluate = [](Engine& engine, const EvalOptions& options) {
    std::vector<MicroBatch> batches = StepBatch(0).micro_batches;
    size_t next = 0;
    return engine.Evaluate(
        [&]() -> std::optional<MicroBatch> {
          if (next == batches.size()) return std::nullopt;
          return batches[next++];
        },
        options);
  };
  const std::unique_ptr<Engine> dense = MakeEngine(at::kFloat, Spec());
  const double loss = evaluate(*dense, {}).Loss();
  for (const std::string& scope : kScopes) {
    SCOPED_TRACE(scope);
    const auto engine = MakeEngine(at::kFloat, Tokens("random", scope, 0.5));
    const EvalResult plain = evaluate(*engine, {});
    EXPECT_EQ(plain.Loss(), loss);
    EXPECT_FALSE(plain.sparse.has_value());
    const EvalResult both = evaluate(*engine, {.sparse = true, .rows = true});
    EXPECT_EQ(both.Loss(), loss);
    ASSERT_TRUE(both.sparse.has_value());
    EXPECT_NE(both.sparse->Mean(), loss);
    EXPECT_EQ(evaluate(*engine, {.sparse = true}).sparse->Mean(), both.sparse->Mean());
    ASSERT_EQ(static_cast<int64_t>(both.rows.loss.size()), both.sums.labelled);
    double sum = 0;
    for (const float row : both.rows.loss) sum += row;
    EXPECT_NEAR(sum, both.sums.loss, 1e-5 * sum);
    const auto all = MakeEngine(at::kFloat, Tokens("random", scope, 1.0));
    EXPECT_EQ(evaluate(*all, {.sparse = true}).sparse->Mean(), loss);
  }
}

// Buffers of a sparse run are made for the rows it keeps.
TEST(SparseEngine, BuffersFollowTheShare) {
  const DecoderConfig config = TinyConfig("gqa");
  const auto arena = [](const lemo::v1::RunSpec& spec) {
    const std::unique_ptr<Engine> engine = MakeEngine(at::kFloat, spec);
    EXPECT_TRUE(
        engine->Step(MakeBatch({RandomBatch(TinyConfig("gqa"), {160}, 1)}), {.steps = kSteps})
            .ok());
    return engine->tape().arena_bytes();
  };
  lemo::v1::RunSpec spec = Spec();
  const int64_t dense = arena(spec);
  const int64_t stream = Arena::Rounded(kMaxRows * config.hidden * 4);
  for (const std::string scope : {"layer", "group"}) {
    *spec.mutable_tokens() = Tokens("random", scope, 0.25);
    EXPECT_NEAR(arena(spec) - stream, 0.25 * (dense - stream), 0.01 * dense) << scope;
  }
  *spec.mutable_tokens() = Tokens("random", "stack", 0.25);
  EXPECT_NEAR(arena(spec), 0.25 * dense, 0.01 * dense) << "the stream as well";
}

}  // namespace
}  // namespace lemo::train
