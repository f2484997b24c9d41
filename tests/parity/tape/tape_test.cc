// The tape against plain autograd through the same model: every storage policy, shape, tuner,
// packed or not, all rows computed. tests/parity/sparse does the same with rows left out.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/taped_model.h"
#include "worker/train/model/random_tensor.h"

namespace lemo::train {
namespace {

using testing::Expected;
using testing::FullSpec;
using testing::kStoragePolicies;
using testing::LoraSpec;
using testing::Plain;
using testing::RandomBatch;
using testing::RelativeError;
using testing::SkipPositions;
using testing::TapedModel;
using testing::Uniform;

constexpr uint64_t kSeed = testing::kModelSeed;

// Plain autograd through the engine's own stages: what the tape must not change. In fp32 two ways
// to write one formula differ by more rounding than the bound allows where a gradient is a small
// difference of large terms; fp64 compares with a model written down independently.
Expected ThroughStages(TapedModel& engine, const MicroBatch& batch) {
  const DeviceBatch device = ToDevice(batch, engine.decoder);
  const RowSet& rows = *device.space->all();
  const Decoder& decoder = engine.decoder;
  const int64_t group = decoder.config.heads / decoder.config.kv_heads;
  const auto attend = [&](const Qkv& qkv) {
    std::vector<at::Tensor> documents;
    for (size_t i = 0; i + 1 < rows.segments.starts.size(); ++i) {
      const int64_t first = rows.segments.starts[i], count = rows.segments.starts[i + 1] - first;
      const auto heads = [&](const at::Tensor& all, int64_t repeats) {
        return all.narrow(0, first, count)
            .repeat_interleave(repeats, 1)
            .transpose(0, 1)
            .unsqueeze(0);
      };
      documents.push_back(at::scaled_dot_product_attention(
                              heads(qkv.q, 1), heads(qkv.k, group), heads(qkv.v, group),
                              /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true)[0]
                              .transpose(0, 1));
    }
    return at::cat(documents);
  };
  at::Tensor x = decoder.embedding.index_select(0, device.tokens);
  if (decoder.project_in.defined()) x = at::linear(x, decoder.project_in);
  if (decoder.positions.defined()) {
    x = x + decoder.positions.index_select(
                0, device.space->positions() + decoder.config.position_offset);
  }
  for (const DecoderLayer& layer : decoder.layers) {
    const Qkv qkv = QkvStage(decoder, layer, x, rows.rope, {}, {});
    x = x + OutputStage(layer, attend(qkv), {}, Output::Compute());
    if (decoder.config.post_norm) x = AttentionNorm(decoder, layer, x);
    x = x + MlpStage(decoder, layer, x, {}, {}, Output::Compute(), nullptr);
    if (decoder.config.post_norm) x = MlpNorm(decoder, layer, x);
  }
  const at::Tensor logits = at::linear(FinalNorm(decoder, x), decoder.head);
  const at::Tensor loss = at::nll_loss(at::log_softmax(logits, -1), device.labels, {},
                                       at::Reduction::Sum, kIgnoreLabel);
  (loss / device.labels.ne(kIgnoreLabel).sum()).backward();
  Expected expected{loss.item<double>(), x.detach(), {}};
  for (Trainable& trainable : engine.trainables) {
    expected.grads.push_back(trainable.value.grad().clone());
    trainable.value.mutable_grad().reset();
  }
  return expected;
}

struct Case {
  std::string shape, tuner;
  bool packed;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.shape << " " << c.tuner << (c.packed ? " packed" : "");
}

class TapeParity : public ::testing::TestWithParam<Case> {
 protected:
  TapedModel Make(at::ScalarType type) const {
    return TapedModel(GetParam().shape, type, GetParam().tuner == "full" ? FullSpec() : LoraSpec());
  }
  MicroBatch Batch(const DecoderConfig& config) const {
    return RandomBatch(
        config, GetParam().packed ? std::vector<int>{9, 1, 14, 6} : std::vector<int>{30}, kSeed);
  }
};

INSTANTIATE_TEST_SUITE_P(Shapes, TapeParity,
                         ::testing::Values(Case{"mha", "lora", false}, Case{"mha", "full", true},
                                           Case{"gqa", "lora", true}, Case{"gqa", "full", false},
                                           Case{"qwen2", "lora", false},
                                           Case{"qwen2", "full", true}, Case{"qwen3", "lora", true},
                                           Case{"qwen3", "full", true}, Case{"opt", "lora", true},
                                           Case{"opt", "full", false}, Case{"opt", "full", true},
                                           Case{"opt_post_norm", "lora", true},
                                           Case{"opt_post_norm", "full", true}));

TEST_P(TapeParity, EqualsPlainAutogradInFloat64) {
  TapedModel engine = Make(at::kDouble);
  const MicroBatch batch = Batch(engine.config);
  const Expected expected = Plain(engine, batch, {});
  for (const std::string& policy : kStoragePolicies) {
    SCOPED_TRACE(policy);
    ExpectNear(engine, engine.Run(batch, Uniform(policy, engine.config.layers)), expected, 1e-12);
  }
}

// Tables of the learned kind and of angles alike go by positions, not by rows.
TEST_P(TapeParity, EqualsPlainAutogradWherePositionsAreSkipped) {
  TapedModel engine = Make(at::kDouble);
  const MicroBatch consecutive = Batch(engine.config);
  const MicroBatch batch = SkipPositions(consecutive, engine.config.max_positions, kSeed);
  const Expected expected = Plain(engine, batch, {});
  EXPECT_NE(expected.loss, Plain(engine, consecutive, {}).loss);
  for (const char* policy : {"all", "input"}) {
    SCOPED_TRACE(policy);
    ExpectNear(engine, engine.Run(batch, Uniform(policy, engine.config.layers)), expected, 1e-12);
  }
}

TEST_P(TapeParity, EqualsPlainAutogradInFloat32) {
  TapedModel engine = Make(at::kFloat);
  const MicroBatch batch = Batch(engine.config);
  const Expected expected = ThroughStages(engine, batch);
  engine.mlp_tile_rows = batch.rows();  // products of other shapes round differently
  // Behind post-norms one gradient, of the first bias of q, is what is left of larger terms.
  const double bound = engine.config.post_norm ? 4e-6 : 1e-6;
  for (const std::string& policy : kStoragePolicies) {
    SCOPED_TRACE(policy);
    ExpectNear(engine, engine.Run(batch, Uniform(policy, engine.config.layers)), expected, bound);
  }
}

TEST_P(TapeParity, PoliciesGiveBitEqualGradients) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    TapedModel engine = Make(type);
    const MicroBatch batch = Batch(engine.config);
    std::vector<std::vector<StoragePolicy>> plans;
    for (const std::string& policy : kStoragePolicies)
      plans.push_back(Uniform(policy, engine.config.layers));
    plans.push_back({*ParseStoragePolicy("input"), *ParseStoragePolicy("all"),
                     *ParseStoragePolicy("attn_out+offload")});
    std::vector<at::Tensor> first;
    for (const auto& plan : plans) {
      SCOPED_TRACE(StoragePolicyName(plan[0]));
      engine.Run(batch, plan);
      if (first.empty()) first = engine.Gradients();
      for (size_t i = 0; i < first.size(); ++i) {
        EXPECT_TRUE(at::equal(engine.trainables[i].grad, first[i])) << engine.trainables[i].name;
      }
    }
  }
}

TEST_P(TapeParity, SavedBytesAreThoseOfThePolicy) {
  TapedModel engine = Make(at::kFloat);
  const MicroBatch batch = Batch(engine.config);
  for (const std::string& name : kStoragePolicies) {
    engine.Run(batch, Uniform(name, engine.config.layers));
    const int64_t layer =
        SavedBytes(*ParseStoragePolicy(name), engine.config,
                   {.attention = batch.rows(), .mlp = batch.rows(), .stream = batch.rows()},
                   sizeof(float), sizeof(float), /*down_trains=*/true);
    EXPECT_EQ(engine.saved_bytes, layer * engine.config.layers) << name;
  }
}

TEST_P(TapeParity, PackedDocumentsEqualUnpackedOnes) {
  TapedModel engine = Make(at::kDouble);
  const auto policies = Uniform("attn_out", engine.config.layers);
  std::vector<MicroBatch> parts;
  for (const int length : {5, 17, 8})
    parts.push_back(RandomBatch(engine.config, {length}, kSeed + length));
  double loss = 0;
  int64_t labelled = 0;
  std::vector<at::Tensor> sum;
  for (const MicroBatch& part : parts) {
    const LossSums sums = engine.Run(part, policies);
    loss += sums.loss;
    labelled += sums.labelled;
    for (size_t i = 0; i < engine.trainables.size(); ++i) {
      const at::Tensor grad = engine.trainables[i].grad * static_cast<double>(sums.labelled);
      if (sum.size() <= i) sum.push_back(at::zeros_like(grad));
      sum[i] += grad;
    }
  }
  const LossSums packed = engine.Run(testing::Pack(parts), policies);
  EXPECT_EQ(packed.labelled, labelled);
  EXPECT_NEAR(packed.loss, loss, 1e-10 * loss);
  for (size_t i = 0; i < sum.size(); ++i) {
    const std::string& name = engine.trainables[i].name;
    // Nothing but rounding: see ExpectNear.
    if (engine.config.family == "opt" && name.ends_with("k_proj.bias")) continue;
    EXPECT_LE(RelativeError(engine.trainables[i].grad * static_cast<double>(labelled), sum[i]),
              1e-10)
        << name;
  }
}

// Slopes of the loss along one direction a tensor, by the five-point formula
//
//   f'(0) = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h  +  h^4 f5(0) / 30  +  rounding
//
// The direction d is half the gradient's, half random, |d| about 1: the slope is then about |g|,
// never a small difference. Truncation: if the loss, as a function of the length of d, varies on a
// scale r, its fifth derivative f5 is about 4! |g| / r^4, so the term is |g| (h / r)^4; r is not
// below 0.1 here (weights of deviation 0.12, adapter tensors of 0.1, rows of several of them),
// which gives 1e-8 |g| for h = 1e-3. Rounding: the loss sum is near 100 with an error of some
// 1e-14, so the slope of the mean over ~25 rows has 1.5 * 1e-14 / (25 h), under 1e-12; the bound of
// 1e-6 |g| is above that for |g| > 1e-6, which is checked.
TEST_P(TapeParity, FiniteDifferences) {
  TapedModel engine = Make(at::kDouble);
  // The loss has a kink wherever a ReLU's argument passes zero.
  if (engine.config.mlp == DecoderConfig::Mlp::kRelu) GTEST_SKIP() << "kinks of the ReLU";
  const MicroBatch batch = Batch(engine.config);
  const LossSums at_start = engine.Run(batch, Uniform("input", engine.config.layers));
  const std::vector<at::Tensor> grads = engine.Gradients();
  const double step = 1e-3;
  for (size_t i = 0; i < engine.trainables.size(); ++i) {
    const Trainable& trainable = engine.trainables[i];
    SCOPED_TRACE(trainable.name);
    const at::NoGradGuard no_grad;
    const at::Tensor start = trainable.master.clone();  // `master` is the value itself in fp64
    const at::Tensor random =
        UniformTensor(trainable.shape(), 1.0, kSeed, trainable.name).to(at::kDouble);
    const at::Tensor direction =
        (grads[i] / grads[i].norm() + random / random.norm()) / std::sqrt(2.0);
    const auto loss_at = [&](double t) {
      trainable.master.copy_(start).add_(direction, t);
      return engine.Loss(batch);
    };
    const double near = loss_at(step) - loss_at(-step);
    const double far = loss_at(2 * step) - loss_at(-2 * step);
    trainable.master.copy_(start);
    const double slope = (8 * near - far) / (12 * step) / static_cast<double>(at_start.labelled);
    const double expected = (grads[i] * direction).sum().item<double>();
    EXPECT_GT(grads[i].norm().item<double>(), 1e-6);
    EXPECT_NEAR(slope, expected, 1e-6 * std::abs(expected));
  }
}

TEST(Tape, StartsAtTheLowestTrainableTensor) {
  lemo::v1::TunerSpec spec = LoraSpec();
  for (const std::string target :
       {"layers.2.self_attn.q_proj", "layers.2.self_attn.o_proj", "layers.2.mlp.down_proj"}) {
    SCOPED_TRACE(target);
    spec.mutable_lora()->clear_targets();
    spec.mutable_lora()->add_targets(target);
    TapedModel engine("gqa", at::kDouble, spec);
    const MicroBatch batch = RandomBatch(engine.config, {12, 9}, kSeed);
    const Expected expected = Plain(engine, batch, {});
    for (const std::string& policy : kStoragePolicies) {
      SCOPED_TRACE(policy);
      ExpectNear(engine, engine.Run(batch, Uniform(policy, engine.config.layers)), expected, 1e-12);
      EXPECT_LE(engine.saved_bytes,
                SavedBytes(*ParseStoragePolicy(policy), engine.config, {batch.rows(), batch.rows()},
                           sizeof(double), sizeof(double)));
    }
  }
}

// Design section 4: bytes a token-layer of Llama-3-8B at bf16.
TEST(StoragePolicy, LlamaBytesAreThoseOfTheDesign) {
  DecoderConfig config;
  config.hidden = 4096;
  config.heads = 32;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate = 14336;
  const int64_t rows = 8192;
  for (const auto& [policy, bytes] : std::vector<std::pair<std::string, double>>{
           {"all", 94e3}, {"mlp", 37e3}, {"attn_out", 16.5e3}, {"input", 8.192e3}}) {
    const double each =
        static_cast<double>(SavedBytes(*ParseStoragePolicy(policy), config, {rows, rows}, 2, 4)) /
        rows;
    EXPECT_NEAR(each, bytes, 0.03 * bytes) << policy;
  }
}

// A ReLU MLP whose fc2 is frozen keeps the signs of fc1's result, and loses nothing by it.
TEST(Tape, SignsAreEnoughForAFrozenReluMlp) {
  for (const std::string shape : {"opt", "opt_post_norm"}) {
    const std::vector<std::vector<std::string>> choices = {
        {"q_proj", "v_proj"}, {"q_proj", "fc1"}, {"q_proj", "fc2"}, {"q_proj", "fc1", "fc2"}};
    for (const std::vector<std::string>& targets : choices) {
      SCOPED_TRACE(shape + " " + targets.back());
      lemo::v1::TunerSpec spec = LoraSpec();
      spec.mutable_lora()->clear_targets();
      for (const std::string& target : targets) spec.mutable_lora()->add_targets(target);
      TapedModel engine(shape, at::kDouble, spec);
      const MicroBatch batch = RandomBatch(engine.config, {12, 9}, kSeed);
      const Expected expected = Plain(engine, batch, {});
      for (const std::string policy : {"all", "all+offload"}) {
        ExpectNear(engine, engine.Run(batch, Uniform(policy, engine.config.layers)), expected,
                   1e-12);
        const bool down_trains = targets.back() == "fc2";
        const LayerRowCounts rows = {
            .attention = batch.rows(), .mlp = batch.rows(), .stream = batch.rows()};
        const int64_t layer = SavedBytes(*ParseStoragePolicy(policy), engine.config, rows,
                                         sizeof(double), sizeof(double), down_trains);
        EXPECT_EQ(engine.saved_bytes, layer * engine.config.layers);
      }
    }
  }
}

// lemo-spec section 7, OPT-6.7B: 40 KiB for attention and 10 for the MLP.
TEST(StoragePolicy, OptBytesAreThoseOfTheSpecification) {
  DecoderConfig config;
  config.hidden = 4096;
  config.heads = config.kv_heads = 32;
  config.head_dim = 128;
  config.intermediate = 16384;
  config.mlp = DecoderConfig::Mlp::kRelu;
  const int64_t rows = 8192;
  const auto each = [&](bool down_trains) {
    return static_cast<double>(SavedBytes(*ParseStoragePolicy("all"), config,
                                          {.attention = rows, .mlp = rows, .stream = rows}, 2, 4,
                                          down_trains)) /
           rows;
  };
  EXPECT_NEAR(each(false), 50 * 1024, 0.03 * 50 * 1024);
  EXPECT_EQ(each(true) - each(false), 2 * 16384 - 16384 / 8);
  config.post_norm = true;  // two sums of all rows in place of x2
  EXPECT_NEAR(each(false), 58 * 1024, 0.03 * 58 * 1024);
}

TEST(Tape, DropoutIsReplayedInBackward) {
  lemo::v1::TunerSpec spec = LoraSpec();
  spec.mutable_lora()->set_dropout(0.3);
  TapedModel engine("gqa", at::kDouble, spec);
  const MicroBatch batch = RandomBatch(engine.config, {20}, kSeed);
  std::vector<at::Tensor> first;
  for (const std::string& policy : kStoragePolicies) {
    engine.Run(batch, Uniform(policy, engine.config.layers));
    if (first.empty()) first = engine.Gradients();
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(at::equal(engine.trainables[i].grad, first[i])) << policy;
    }
  }
  const Expected without = Plain(engine, batch, {});
  EXPECT_GT(RelativeError(engine.hidden, without.hidden), 1e-3);
}

}  // namespace
}  // namespace lemo::train
