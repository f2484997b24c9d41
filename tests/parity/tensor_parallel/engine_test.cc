// Runs of the engine where ranks share the model, against the run of one rank: every rank makes
// both and compares.
#include "worker/train/loop/engine.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/parity/tensor_parallel/shapes.h"
#include "tests/support/test_gang.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

using testing::FullSpec;
using ::testing::HasSubstr;
using testing::LoraSpec;
using testing::RandomBatch;
using testing::RelativeError;
using testing::SharedConfig;

constexpr int64_t kSteps = 5;
constexpr int64_t kMaxRows = 160;

// The ranks in tensor groups of this size; 0: all in one.
Gang& SharingGang(int size = 0) {
  static int arranged = 0;
  if (size == 0) size = TestGang().size();
  if (arranged != size) {
    lemo::v1::ParallelSpec parallel;
    parallel.set_timeout_seconds(60);
    parallel.set_tensor(size);
    EXPECT_TRUE(TestGang().Arrange(&parallel, c10::kCPU).ok());
    arranged = size;
  }
  return TestGang();
}
Communicator& Group() { return SharingGang().tensor(); }

lemo::v1::RunSpec Spec(const std::string& tuner) {
  lemo::v1::RunSpec spec;
  spec.mutable_model()->mutable_random_init()->set_seed(5);
  *spec.mutable_tuner() = tuner == "full" ? FullSpec() : LoraSpec();
  spec.mutable_train()->set_max_grad_norm(0.5);
  spec.mutable_train()->set_steps(kSteps);
  spec.mutable_train()->set_weight_decay(0.1);
  // Neither divides the rows of a batch.
  spec.mutable_memory()->set_mlp_tile_rows(7);
  spec.mutable_memory()->set_loss_segment_rows(6);
  return spec;
}

// Whether ranks share the rows, too.
lemo::v1::RunSpec With(lemo::v1::RunSpec spec, bool sequence) {
  spec.mutable_parallel()->set_sequence(sequence);
  return spec;
}

lemo::v1::TokensSpec Tokens(const std::string& policy, const std::string& scope,
                            const std::string& mlp) {
  lemo::v1::TokensSpec tokens;
  tokens.set_policy(policy);
  tokens.set_scope(scope);
  tokens.add_keep(0.5);
  tokens.set_layers("all");
  tokens.set_mlp(mlp);
  tokens.set_block(5);
  return tokens;
}

absl::StatusOr<std::unique_ptr<Engine>> TryEngine(at::ScalarType type, lemo::v1::RunSpec spec,
                                                  const std::string& shape, Gang* gang) {
  FillDefaults(&spec);
  return Engine::Create(spec, SharedConfig(shape), {.device = at::kCPU, .type = type}, kMaxRows,
                        gang);
}

// With adapters off zero, so that every gradient is there.
std::unique_ptr<Engine> MakeEngine(at::ScalarType type, const lemo::v1::RunSpec& spec,
                                   const std::string& shape, Gang* gang) {
  auto engine = TryEngine(type, spec, shape, gang);
  if (!engine.ok()) {
    ADD_FAILURE() << engine.status();
    return nullptr;
  }
  testing::MoveOffZero((*engine)->trainables(), 6);
  return *std::move(engine);
}

Batch StepBatch(const std::string& shape, int64_t step) {
  const DecoderConfig config = SharedConfig(shape);
  Batch batch;
  batch.micro_batches = {RandomBatch(config, {43, 7, 60}, 100 + step),
                         RandomBatch(config, {31}, 200 + step)};
  batch.rounds = std::ssize(batch.micro_batches);
  for (const MicroBatch& part : batch.micro_batches) {
    batch.sequences += static_cast<int64_t>(part.document_starts.size()) - 1;
    batch.tokens += part.rows();
    batch.labelled_tokens += std::count_if(part.labels.begin(), part.labels.end(),
                                           [](int32_t label) { return label != kIgnoreLabel; });
  }
  return batch;
}

struct Curve {
  std::vector<double> losses, norms;
  std::vector<std::string> masks;  // of every selection
  double eval_loss = 0;
  std::vector<std::string> names;
  std::vector<at::Tensor> values;  // whole tensors
  at::Tensor logits;
};

Curve Train(Engine& engine, const std::string& shape, int64_t steps, double learning_rate) {
  Curve run;
  for (int64_t step = 0; step < steps; ++step) {
    const absl::StatusOr<StepResult> result = engine.Step(
        StepBatch(shape, step),
        {.step = step, .steps = kSteps, .learning_rate = learning_rate, .want_selections = true});
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return run;
    run.losses.push_back(result->loss);
    run.norms.push_back(result->grad_norm);
    for (const lemo::v1::SelectionEvent& event : result->selections) {
      run.masks.insert(run.masks.end(), event.attention().begin(), event.attention().end());
      run.masks.insert(run.masks.end(), event.mlp().begin(), event.mlp().end());
    }
  }
  std::vector<MicroBatch> batches = StepBatch(shape, kSteps).micro_batches;
  run.logits = engine.Logits(batches[0]);
  size_t next = 0;
  run.eval_loss = engine
                      .Evaluate([&]() -> std::optional<MicroBatch> {
                        if (next == batches.size()) return std::nullopt;
                        return batches[next++];
                      })
                      .Loss();
  for (const Trainable& trainable : engine.trainables()) run.names.push_back(trainable.name);
  for (const at::Tensor& master : engine.WholeMasters()) run.values.push_back(master.clone());
  return run;
}

void ExpectAlike(const Curve& shared, const Curve& alone, double bound) {
  ASSERT_EQ(shared.losses.size(), alone.losses.size());
  for (size_t i = 0; i < alone.losses.size(); ++i) {
    EXPECT_NEAR(shared.losses[i], alone.losses[i], bound * alone.losses[i]) << i;
    EXPECT_NEAR(shared.norms[i], alone.norms[i], 10 * bound * alone.norms[i]) << i;
  }
  EXPECT_NE(alone.losses.front(), alone.losses.back()) << "it trains";
  EXPECT_EQ(shared.masks, alone.masks);
  EXPECT_NEAR(shared.eval_loss, alone.eval_loss, bound * alone.eval_loss);
  EXPECT_LE(RelativeError(shared.logits, alone.logits), 10 * bound);
  ASSERT_EQ(shared.values.size(), alone.values.size());
  double errors = 0, squares = 0;
  for (size_t i = 0; i < alone.values.size(); ++i) {
    // Without rotation a bias of keys has no gradient but rounding, which AdamW makes a step of.
    if (alone.names[i].ends_with("k_proj.bias") &&
        alone.names[i].find("decoder") != std::string::npos) {
      continue;
    }
    errors += (shared.values[i] - alone.values[i]).to(at::kDouble).pow(2).sum().item<double>();
    squares += alone.values[i].to(at::kDouble).pow(2).sum().item<double>();
  }
  EXPECT_LE(std::sqrt(errors / squares), bound);
}

struct Case {
  std::string shape, tuner;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.shape << "_" << c.tuner; }

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const std::string& shape : testing::kSharedShapes) {
    for (const std::string tuner : {"lora", "full"}) cases.push_back({shape, tuner});
  }
  return cases;
}

class SharedEngine : public ::testing::TestWithParam<Case> {
 protected:
  // Of one rank, and of all.
  void Compare(const lemo::v1::RunSpec& spec, at::ScalarType type, double bound) {
    const std::string& shape = GetParam().shape;
    const auto alone = MakeEngine(type, spec, shape, nullptr);
    ASSERT_TRUE(alone != nullptr);
    const Curve expected = Train(*alone, shape, kSteps, 1e-3);
    // The tape's tests share the rows of every shape.
    const bool rows_too = shape == "gqa" || shape == "qwen3" || shape == "opt";
    for (const bool sequence :
         rows_too ? std::vector<bool>{false, true} : std::vector<bool>{false}) {
      SCOPED_TRACE(sequence ? "sequence" : "");
      const auto shared = MakeEngine(type, With(spec, sequence), shape, &SharingGang());
      ASSERT_TRUE(shared != nullptr);
      EXPECT_EQ(shared->parameters(), alone->parameters());
      ExpectAlike(Train(*shared, shape, kSteps, 1e-3), expected, bound);
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Shapes, SharedEngine, ::testing::ValuesIn(Cases()),
                         ::testing::PrintToStringParamName());

TEST_P(SharedEngine, TrainsAsOneRankDoes) {
  Compare(Spec(GetParam().tuner), at::kFloat, 1e-5);
  Compare(Spec(GetParam().tuner), at::kDouble, 1e-10);
}

TEST_P(SharedEngine, TrainsOnSomeRowsAsOneRankDoes) {
  // Four ranks take turns on few cores: there, the shapes that they share otherwise than two do.
  const std::string& shape = GetParam().shape;
  const bool plain = shape == "mha" || shape == "qwen2" || shape == "opt" || shape == "untied";
  if (Group().size() > 2 && plain) return;
  for (const auto& [policy, scope, mlp] :
       std::vector<std::array<std::string, 3>>{{"random", "layer", "shared"},
                                               {"norm", "layer", "own"},
                                               {"norm", "nested", "shared"},
                                               {"norm", "stack", "shared"}}) {
    SCOPED_TRACE(policy + ", " + scope + ", mlp " + mlp);
    const bool every = shape == "gqa" || shape == "qwen3";
    if (!every && policy == "norm" && scope != "stack") continue;
    lemo::v1::RunSpec spec = Spec(GetParam().tuner);
    *spec.mutable_tokens() = Tokens(policy, scope, mlp);
    Compare(spec, at::kDouble, 1e-10);
    // Rows that rank by their length may come in another order once it was rounded.
    if (policy == "random") Compare(spec, at::kFloat, 1e-5);
  }
}

TEST(SharedRun, DropsAsOneRankDoes) {
  for (const std::string shape : {"untied", "gqa"}) {
    lemo::v1::RunSpec spec = Spec("lora");
    spec.mutable_tuner()->mutable_lora()->set_dropout(0.3);
    const Curve alone = Train(*MakeEngine(at::kDouble, spec, shape, nullptr), shape, 3, 1e-3);
    for (const bool sequence : {false, true}) {
      const auto shared = MakeEngine(at::kDouble, With(spec, sequence), shape, &SharingGang());
      ExpectAlike(Train(*shared, shape, 3, 1e-3), alone, 1e-10);
    }
  }
}

// Also row by row.
TEST(SharedRun, EvaluatesAsOneRankDoes) {
  std::vector<EvalRows> rows;
  for (Gang* gang : {static_cast<Gang*>(nullptr), &SharingGang()}) {
    const auto engine = MakeEngine(at::kDouble, With(Spec("lora"), gang != nullptr), "mha", gang);
    std::optional<MicroBatch> next = StepBatch("mha", 0).micro_batches[0];
    const EvalResult result =
        engine->Evaluate([&] { return std::exchange(next, std::nullopt); }, {.rows = true});
    rows.push_back(result.rows);
  }
  ASSERT_EQ(rows[0].loss.size(), rows[1].loss.size());
  for (size_t i = 0; i < rows[0].loss.size(); ++i) {
    EXPECT_NEAR(rows[0].loss[i], rows[1].loss[i], 1e-6);
  }
  EXPECT_EQ(rows[0].hit, rows[1].hit);
  EXPECT_EQ(rows[0].position, rows[1].position);
}

// What a step hands to the group, of which rows that leave a layer are no part: two sums of rows a
// layer each way, one of attention's again for the storage policy, the embedded rows, the labelled
// ones and four numbers of each, and the gradients that are not cut. Shared rows are gathered for
// every sum, too, on the way down twice: what was normed, and the gradient.
class SharedBytes : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(Sequence, SharedBytes, ::testing::Bool());

TEST_P(SharedBytes, AreWhatTheFormulaSays) {
  const bool sequence = GetParam();
  for (const std::string scope : {"dense", "layer", "stack"}) {
    for (const std::string policy : {"mlp", "attn_out"}) {
      SCOPED_TRACE(scope + ", " + policy);
      lemo::v1::RunSpec spec = With(Spec("lora"), sequence);
      spec.mutable_memory()->set_policy(policy);
      if (scope != "dense") *spec.mutable_tokens() = Tokens("random", scope, "shared");
      const auto engine = MakeEngine(at::kDouble, spec, "mha", &SharingGang());
      const Batch batch = StepBatch("mha", 0);
      const int64_t before = Group().bytes();
      const auto result =
          engine->Step(batch, {.steps = kSteps, .learning_rate = 1e-3, .want_selections = true});
      ASSERT_TRUE(result.ok()) << result.status();

      const DecoderConfig config = SharedConfig("mha");
      int64_t elements = 0, bytes = 0, labelled = batch.labelled_tokens;
      for (size_t i = 0; i < batch.micro_batches.size(); ++i) {
        const int64_t rows = batch.micro_batches[i].rows();
        std::vector<int64_t> kept(config.layers, rows);
        if (scope != "dense") {
          const lemo::v1::SelectionEvent& event = result->selections[i];
          const int64_t blocks = event.block_starts_size() - 1;
          bytes += blocks * (scope == "layer" ? config.layers : 1);
          for (int64_t layer = 0; layer < config.layers; ++layer) {
            for (int n = 0; n < blocks; ++n) {
              if (event.attention(layer)[n]) continue;
              kept[layer] -= event.block_starts(n + 1) - event.block_starts(n);
            }
          }
        }
        elements += scope == "stack" ? kept[0] : rows;  // embedded
        for (int64_t layer = 0; layer < config.layers; ++layer) {
          elements += kept[layer] * (layer == 0 ? 3 : 4);  // nothing trains below the first
          if (sequence) elements += kept[layer] * 6;
          if (policy == "attn_out") elements += kept[layer];
        }
      }
      if (scope == "stack") {
        labelled = std::llround(result->sparsity->loss_kept() * static_cast<double>(labelled));
      }
      bytes += 8 * (elements + labelled * (sequence ? 2 : 1)) * config.hidden;
      bytes += Group().size() * labelled * 4 * 8;
      // Labels, and how many each rank has.
      if (sequence) bytes += 8 * labelled + 8 * Group().size() * batch.rounds;
      for (const Trainable& trainable : engine->trainables()) {
        if (!trainable.shard.cut()) bytes += static_cast<int64_t>(trainable.grad.nbytes());
      }
      bytes += 8;  // the norm of the cut ones
      EXPECT_EQ(Group().bytes() - before, bytes);
    }
  }
}

// Two ranks share the model and two such groups the batch: a micro-batch for each.
TEST(SharedRun, SharesAndDividesAsOneRankDoes) {
  if (TestGang().size() != 4) return;
  Gang& gang = SharingGang(2);
  for (const std::string shape : {"one_key", "qwen3"}) {
    for (const std::string sharding : {"lora", "none", "optimizer", "gradients", "parameters"}) {
      SCOPED_TRACE(shape + ", " + sharding);
      lemo::v1::RunSpec spec = Spec(sharding == "lora" ? "lora" : "full");
      spec.mutable_parallel()->set_shard(sharding == "lora" ? "none" : sharding);
      spec.mutable_parallel()->set_bucket_bytes(4096);
      *spec.mutable_tokens() = Tokens("norm", "layer", "own");
      const auto alone = MakeEngine(at::kDouble, spec, shape, nullptr);
      spec.mutable_parallel()->set_sequence(shape == "qwen3");
      FillDefaults(&spec);
      auto shared = Engine::Create(spec, SharedConfig(shape),
                                   {.device = at::kCPU, .type = at::kDouble}, kMaxRows, &gang);
      ASSERT_TRUE(shared.ok()) << shared.status();
      (*shared)->SetMasters(alone->WholeMasters());
      for (int64_t step = 0; step < 3; ++step) {
        const StepRequest request{.step = step, .steps = kSteps, .learning_rate = 1e-3};
        const Batch whole = StepBatch(shape, step);
        Batch share = whole;
        share.micro_batches = {whole.micro_batches[gang.data().rank()]};
        share.rounds = 1;
        const auto expected = alone->Step(whole, request);
        const auto got = (*shared)->Step(share, request);
        ASSERT_TRUE(expected.ok() && got.ok()) << expected.status() << got.status();
        EXPECT_NEAR(got->loss, expected->loss, 1e-10 * expected->loss);
        EXPECT_NEAR(got->grad_norm, expected->grad_norm, 1e-9 * expected->grad_norm);
      }
      const std::vector<at::Tensor> values = (*shared)->WholeMasters();
      const std::vector<at::Tensor> expected = alone->WholeMasters();
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_LE(RelativeError(values[i], expected[i]), 1e-9) << alone->trainables()[i].name;
      }
    }
  }
  SharingGang();
}

// The fault is in one rank's part alone.
TEST(SharedRun, AllRanksNameTheBadTensor) {
  const auto engine = MakeEngine(at::kFloat, Spec("full"), "mha", &SharingGang());
  if (Group().rank() == Group().size() - 1) {
    const at::NoGradGuard no_grad;
    for (Trainable& trainable : engine->trainables()) {
      if (trainable.name == "model.layers.1.mlp.up_proj.weight") {
        trainable.master.fill_(std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  const auto result = engine->Step(StepBatch("mha", 0), {.steps = kSteps});
  EXPECT_TRUE(absl::IsInternal(result.status()));
  EXPECT_THAT(std::string(result.status().message()),
              HasSubstr("model.layers.1.mlp.up_proj.weight"));
}

TEST(SharedRun, RefusesByField) {
  const auto refusal = [](const lemo::v1::RunSpec& spec, const std::string& shape) {
    const absl::Status status = TryEngine(at::kFloat, spec, shape, &SharingGang()).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal(Spec("lora"), "opt_post_norm"), HasSubstr("parallel.tensor: must be 1"));
}

// The model of several data-parallel ranks, each of which is a tensor group of its own, is whole.
TEST(SharedRun, AGroupOfOneIsAlone) {
  const std::unique_ptr<Gang> one = Gang::Alone();
  for (const std::string tuner : {"lora", "full"}) {
    const Curve alone = Train(*MakeEngine(at::kFloat, Spec(tuner), "gqa", nullptr), "gqa", 2, 1e-3);
    const Curve single =
        Train(*MakeEngine(at::kFloat, Spec(tuner), "gqa", one.get()), "gqa", 2, 1e-3);
    EXPECT_EQ(single.losses, alone.losses);
    for (size_t i = 0; i < alone.values.size(); ++i) {
      EXPECT_TRUE(at::equal(single.values[i], alone.values[i]));
    }
  }
  EXPECT_EQ(one->tensor().bytes(), 0);
}

}  // namespace
}  // namespace lemo::train
