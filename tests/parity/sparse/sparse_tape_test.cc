// The tape with rows left out, against the masked dense model: acceptance tests C1, C2, C3, C4, C8,
// C9 and C11 of lemo-spec section 16.1.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "tests/parity/sparse/random_rows.h"
#include "tests/support/taped_model.h"
#include "worker/train/model/random_tensor.h"

namespace lemo::train {
namespace {

using testing::Expected;
using testing::FullSpec;
using testing::kSchemes;
using testing::kStoragePolicies;
using testing::LoraSpec;
using testing::Plain;
using testing::RandomBatch;
using testing::RandomRows;
using testing::RelativeError;
using testing::Scheme;
using testing::SkipPositions;
using testing::TapedModel;
using testing::Uniform;

constexpr uint64_t kSeed = testing::kModelSeed;

struct Case {
  std::string shape, tuner;
  std::vector<int> documents;
  int64_t block_rows;  // divides no document of the case but for one
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.shape << " " << c.tuner << ", " << c.documents.size() << " documents, blocks of "
       << c.block_rows;
}

class SparseTape : public ::testing::TestWithParam<Case> {
 protected:
  TapedModel Make(at::ScalarType type) const {
    TapedModel model(GetParam().shape, type, GetParam().tuner == "full" ? FullSpec() : LoraSpec());
    model.block_rows = GetParam().block_rows;
    return model;
  }
  MicroBatch Batch(const TapedModel& model) const {
    return RandomBatch(model.config, GetParam().documents, kSeed);
  }
};

INSTANTIATE_TEST_SUITE_P(
    Shapes, SparseTape,
    ::testing::Values(Case{"mha", "lora", {40}, 3}, Case{"mha", "full", {9, 1, 16, 20}, 4},
                      Case{"gqa", "lora", {23, 2, 30}, 5}, Case{"gqa", "full", {47}, 6},
                      Case{"qwen2", "lora", {50}, 8}, Case{"qwen2", "full", {7, 21, 13}, 3},
                      Case{"qwen3", "lora", {30, 12}, 7}, Case{"qwen3", "full", {33, 5}, 4},
                      Case{"opt", "lora", {31, 14}, 4}, Case{"opt", "full", {27, 8}, 5},
                      Case{"opt_post_norm", "lora", {41}, 6},
                      Case{"opt_post_norm", "full", {13, 22}, 3}));

// C2
TEST_P(SparseTape, EqualsTheMaskedDenseModel) {
  TapedModel model = Make(at::kDouble);
  const MicroBatch batch = Batch(model);
  for (const Scheme& scheme : kSchemes) {
    SCOPED_TRACE(scheme.name);
    RandomRows rows(scheme, batch, model, kSeed);
    model.Run(batch, Uniform("input", model.config.layers), rows.Rows());
    const Expected expected = Plain(model, batch, rows.Oracle());
    for (const std::string& policy : kStoragePolicies) {
      SCOPED_TRACE(policy);
      ExpectNear(model, model.Run(batch, Uniform(policy, model.config.layers), rows.Rows()),
                 expected, 1e-10);
    }
    EXPECT_NEAR(model.Loss(batch, rows.Rows()), expected.loss, 1e-10 * expected.loss);
  }
}

TEST_P(SparseTape, KeptRowsKeepSkippedPositions) {
  TapedModel model = Make(at::kDouble);
  const MicroBatch batch = SkipPositions(Batch(model), model.config.max_positions, kSeed);
  for (const Scheme& scheme : kSchemes) {
    SCOPED_TRACE(scheme.name);
    RandomRows rows(scheme, batch, model, kSeed);
    const LossSums sums = model.Run(batch, Uniform("attn_out", model.config.layers), rows.Rows());
    ExpectNear(model, sums, Plain(model, batch, rows.Oracle()), 1e-10);
  }
}

// C1
TEST_P(SparseTape, AllBlocksKeptIsTheDensePassToTheBit) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    TapedModel model = Make(type);
    const MicroBatch batch = Batch(model);
    const auto policies = Uniform("attn_out", model.config.layers);
    const LossSums dense = model.Run(batch, policies);
    const at::Tensor hidden = model.hidden, gradient = model.gradient;
    const std::vector<at::Tensor> grads = model.Gradients();
    for (Scheme scheme : kSchemes) {
      SCOPED_TRACE(scheme.name);
      scheme.share = 1;
      RandomRows rows(scheme, batch, model, kSeed);
      EXPECT_EQ(model.Run(batch, policies, rows.Rows()).loss, dense.loss);
      EXPECT_TRUE(at::equal(model.hidden, hidden));
      EXPECT_TRUE(at::equal(model.gradient, gradient));
      for (size_t i = 0; i < grads.size(); ++i) {
        EXPECT_TRUE(at::equal(model.trainables[i].grad, grads[i])) << model.trainables[i].name;
      }
    }
  }
}

// C3: slopes of the loss along one direction a tensor, as in tests/parity/tape with the bounds
// derived there. A full tuner's embedding is the input.
TEST_P(SparseTape, FiniteDifferences) {
  TapedModel model = Make(at::kDouble);
  // The loss has a kink wherever a ReLU's argument passes zero.
  if (model.config.mlp == DecoderConfig::Mlp::kRelu) GTEST_SKIP() << "kinks of the ReLU";
  const MicroBatch batch = Batch(model);
  const double step = 1e-3;
  for (const Scheme& scheme : kSchemes) {
    // One of each way that rows take; the slow test of this file.
    if (scheme.name != "layer_own" && scheme.name != "nested" && scheme.name != "stack") continue;
    SCOPED_TRACE(scheme.name);
    RandomRows rows(scheme, batch, model, kSeed);
    const LossSums start = model.Run(batch, Uniform("input", model.config.layers), rows.Rows());
    const std::vector<at::Tensor> grads = model.Gradients();
    for (size_t i = 0; i < model.trainables.size(); ++i) {
      const Trainable& trainable = model.trainables[i];
      SCOPED_TRACE(trainable.name);
      const at::NoGradGuard no_grad;
      const at::Tensor value = trainable.master.clone();  // `master` is the value itself in fp64
      const at::Tensor random =
          UniformTensor(trainable.shape(), 1.0, kSeed, trainable.name).to(at::kDouble);
      const at::Tensor direction =
          (grads[i] / grads[i].norm() + random / random.norm()) / std::sqrt(2.0);
      const auto loss_at = [&](double t) {
        trainable.master.copy_(value).add_(direction, t);
        return model.Loss(batch, rows.Rows());
      };
      const double near = loss_at(step) - loss_at(-step);
      const double far = loss_at(2 * step) - loss_at(-2 * step);
      trainable.master.copy_(value);
      const double slope = (8 * near - far) / (12 * step) / static_cast<double>(start.labelled);
      const double expected = (grads[i] * direction).sum().item<double>();
      EXPECT_GT(grads[i].norm().item<double>(), 1e-6);
      EXPECT_NEAR(slope, expected, 1e-6 * std::abs(expected));
    }
  }
}

// Rows of `mask` are bit for bit the same in both.
void ExpectSameRows(const at::Tensor& mask, const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor rows = mask.nonzero().view(-1);
  EXPECT_TRUE(at::equal(a.index_select(0, rows), b.index_select(0, rows)));
}

// C4, forward. The norms of post-norm models take every row.
TEST_P(SparseTape, ASubBlockLeavesTheStreamOfOtherRowsAsItIs) {
  TapedModel model = Make(at::kFloat);
  if (model.config.post_norm) GTEST_SKIP() << "its norms take every row";
  const MicroBatch batch = Batch(model);
  int64_t checked = 0;
  for (const Scheme& scheme : kSchemes) {
    SCOPED_TRACE(scheme.name);
    RandomRows rows(scheme, batch, model, kSeed);
    model.Run(batch, Uniform("attn_out", model.config.layers), rows.Rows());
    at::Tensor last = at::full({batch.rows(), model.config.hidden}, 0.0 / 0.0, at::kFloat);
    last.index_copy_(0, model.order, model.hidden);
    std::vector<at::Tensor> streams = rows.streams();
    streams.push_back(last);
    for (int64_t i = 0; i < 2 * model.config.layers; ++i) {
      SCOPED_TRACE(i);
      const at::Tensor& computed = i % 2 == 0 ? rows.attention()[i / 2] : rows.mlp()[i / 2];
      const at::Tensor present = streams[i + 1].isnan().any(1).logical_not();
      const at::Tensor before = streams[i].isnan().any(1).logical_not();
      const at::Tensor passed = computed.logical_not() & present & before;
      ExpectSameRows(passed, streams[i], streams[i + 1]);
      checked += passed.sum().item<int64_t>();
      // The others did change.
      const at::Tensor changed = streams[i].ne(streams[i + 1]).any(1);
      EXPECT_TRUE((changed | (computed & present).logical_not()).all().item<bool>());
    }
  }
  EXPECT_GT(checked, 0);
}

// C4, backward: a layer whose gradient begins at the objective.
TEST_P(SparseTape, ALayerLeavesTheGradientOfOtherRowsAsItIs) {
  DecoderConfig config = testing::TinyConfig(GetParam().shape);
  if (config.post_norm) GTEST_SKIP() << "its norms take every row";
  config.layers = 1;
  config.sliding_window.assign(1, 0);
  TapedModel model(config, at::kFloat, FullSpec());
  model.block_rows = GetParam().block_rows;
  const MicroBatch batch = Batch(model);
  // The gradient of the last stream.
  const auto at_objective = [&](const RandomRows& rows) {
    CrossEntropyObjective objective(model.decoder, model.trainables, model.loss_segment_rows);
    const at::Tensor labels = at::tensor(at::ArrayRef<int32_t>(batch.labels), at::kLong)
                                  .masked_fill(rows.loss_rows().logical_not(), kIgnoreLabel);
    at::Tensor stream = at::zeros({batch.rows(), config.hidden}, at::kFloat);
    stream.index_copy_(0, model.order, model.hidden);
    objective.LossAndGradient(stream, labels, 1.0 / labels.ne(kIgnoreLabel).sum().item<double>());
    return stream;
  };
  for (const Scheme& scheme : kSchemes) {
    if (scheme.scope != Scheme::Scope::kLayer) continue;
    SCOPED_TRACE(scheme.name);
    for (const std::string& policy : kStoragePolicies) {
      SCOPED_TRACE(policy);
      RandomRows rows(scheme, batch, model, kSeed);
      model.Run(batch, Uniform(policy, 1), rows.Rows());
      const at::Tensor top = at_objective(rows);
      const at::Tensor computed = rows.attention()[0] | rows.mlp()[0];
      ExpectSameRows(computed.logical_not(), top, model.gradient);
      EXPECT_FALSE(at::equal(top, model.gradient));
    }
  }
}

at::Tensor Together(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> flat;
  for (const at::Tensor& tensor : tensors) flat.push_back(tensor.reshape({-1}));
  return at::cat(flat);
}

// C8, tensor by tensor in double precision, where nothing can hide behind rounding. In single
// precision of all tensors together: softmax does not see what moves all scores of a row, so that
// the gradients of keys are small differences, and how these round is the library's choice. On one
// thread: a product shared out over several is cut elsewhere for another number of rows.
TEST_P(SparseTape, SegmentsOfTheLossDoNotMatter) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  for (const auto& [type, bound] : {std::pair{at::kDouble, 1e-12}, {at::kFloat, 1e-6}}) {
    TapedModel model = Make(type);
    const MicroBatch batch = Batch(model);
    const auto policies = Uniform("attn_out", model.config.layers);
    for (const Scheme& scheme : kSchemes) {
      if (!scheme.loss_through) continue;
      SCOPED_TRACE(scheme.name);
      RandomRows rows(scheme, batch, model, kSeed);
      model.loss_segment_rows = 1000;
      const LossSums whole = model.Run(batch, policies, rows.Rows());
      const std::vector<at::Tensor> grads = model.Gradients();
      EXPECT_GT(whole.labelled, 5);
      for (const int64_t segment : {1, 2, 5, 7}) {
        model.loss_segment_rows = segment;
        const LossSums sums = model.Run(batch, policies, rows.Rows());
        EXPECT_EQ(sums.labelled, whole.labelled);
        EXPECT_NEAR(sums.loss, whole.loss, bound * whole.loss);
        if (type == at::kFloat) {
          EXPECT_LE(RelativeError(Together(model.Gradients()), Together(grads)), bound)
              << "segments of " << segment;
          continue;
        }
        for (size_t i = 0; i < grads.size(); ++i) {
          // Nothing but rounding: a bias of keys that are not rotated has no gradient.
          if (model.config.family == "opt" && model.trainables[i].name.ends_with("k_proj.bias")) {
            continue;
          }
          EXPECT_LE(RelativeError(model.trainables[i].grad, grads[i]), bound)
              << model.trainables[i].name << ", segments of " << segment;
        }
      }
    }
  }
  at::set_num_threads(threads);
}

// C9
TEST_P(SparseTape, PoliciesGiveBitEqualGradientsAndNothingIsChosenTwice) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    TapedModel model = Make(type);
    const MicroBatch batch = Batch(model);
    std::vector<std::vector<StoragePolicy>> plans;
    for (const std::string& policy : kStoragePolicies) {
      plans.push_back(Uniform(policy, model.config.layers));
    }
    plans.push_back({*ParseStoragePolicy("input"), *ParseStoragePolicy("all"),
                     *ParseStoragePolicy("attn_out+offload")});
    for (const Scheme& scheme : kSchemes) {
      SCOPED_TRACE(scheme.name);
      RandomRows rows(scheme, batch, model, kSeed);
      std::vector<at::Tensor> first;
      for (const auto& plan : plans) {
        SCOPED_TRACE(StoragePolicyName(plan[0]));
        model.Run(batch, plan, rows.Rows());
        EXPECT_EQ(rows.calls(), 3 * model.config.layers);
        if (first.empty()) first = model.Gradients();
        for (size_t i = 0; i < first.size(); ++i) {
          EXPECT_TRUE(at::equal(model.trainables[i].grad, first[i])) << model.trainables[i].name;
        }
      }
    }
  }
}

// C11: the bytes that a pass kept are those of the formula, for the rows that were kept.
TEST_P(SparseTape, SavedBytesAreThoseOfTheKeptRows) {
  TapedModel model = Make(at::kFloat);
  const MicroBatch batch = Batch(model);
  for (const Scheme& scheme : kSchemes) {
    SCOPED_TRACE(scheme.name);
    RandomRows rows(scheme, batch, model, kSeed);
    for (const std::string& policy : kStoragePolicies) {
      model.Run(batch, Uniform(policy, model.config.layers), rows.Rows());
      int64_t expected = 0;
      for (int64_t i = 0; i < model.config.layers; ++i) {
        const int64_t seen =
            scheme.kv_all ? batch.rows() - rows.attention()[i].sum().item<int64_t>() : 0;
        const LayerRowCounts counts = {.attention = rows.attention()[i].sum().item<int64_t>(),
                                       .mlp = rows.mlp()[i].sum().item<int64_t>(),
                                       .separate = scheme.mlp != Scheme::Mlp::kShared,
                                       .seen = seen,
                                       .stream = rows.stream_rows()[i].sum().item<int64_t>()};
        expected += SavedBytes(*ParseStoragePolicy(policy), model.config, counts, sizeof(float),
                               sizeof(float), /*down_trains=*/true);
      }
      EXPECT_EQ(model.saved_bytes, expected) << policy;
    }
  }
}

// Dropout masks go by a row's number in the micro-batch, so leaving rows out changes no other's.
TEST(SparsePass, DropoutGoesByTheOriginalRow) {
  lemo::v1::TunerSpec spec = LoraSpec();
  spec.mutable_lora()->set_dropout(0.3);
  TapedModel model("gqa", at::kDouble, spec);
  model.block_rows = 5;
  const MicroBatch batch = RandomBatch(model.config, {40}, kSeed);
  // Rows 0..19 of a causal model see nothing of those behind them.
  class FirstHalf final : public RowSource {
   public:
    BlocksKept Stay(int64_t layer, const RowSpace&, const at::Tensor&) override {
      return layer == 1 ? std::make_shared<const BlockMask>(BlockMask{1, 1, 1, 1, 0, 0, 0, 0})
                        : nullptr;
    }
    BlocksKept Attention(int64_t, const RowSpace&, const at::Tensor&) override { return nullptr; }
    BlocksKept Mlp(int64_t, const RowSpace&, const at::Tensor&) override { return nullptr; }
  } source;
  const auto policies = Uniform("attn_out", model.config.layers);
  model.Run(batch, policies);
  const at::Tensor dense = model.hidden.narrow(0, 0, 20);
  model.Run(batch, policies, {.source = &source, .keep_left_rows = false});
  EXPECT_LE(RelativeError(model.hidden, dense), 1e-12);

  // The last rows, whose numbers do not begin at 0.
  RandomRows rows({.name = "own", .mlp = Scheme::Mlp::kOwn}, batch, model, kSeed);
  std::vector<at::Tensor> first;
  for (const std::string& policy : kStoragePolicies) {
    model.Run(batch, Uniform(policy, model.config.layers), rows.Rows());
    if (first.empty()) first = model.Gradients();
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(at::equal(model.trainables[i].grad, first[i])) << policy;
    }
  }
}

// Below the lowest tensor that trains nothing is kept, whatever rows a layer computes.
TEST(SparsePass, StartsAtTheLowestTrainableTensor) {
  lemo::v1::TunerSpec spec = LoraSpec();
  for (const std::string target :
       {"layers.2.self_attn.q_proj", "layers.2.self_attn.o_proj", "layers.2.mlp.down_proj"}) {
    spec.mutable_lora()->clear_targets();
    spec.mutable_lora()->add_targets(target);
    TapedModel model("gqa", at::kDouble, spec);
    model.block_rows = 4;
    const MicroBatch batch = RandomBatch(model.config, {22, 19}, kSeed);
    for (const Scheme& scheme : kSchemes) {
      SCOPED_TRACE(target + ", " + scheme.name);
      RandomRows rows(scheme, batch, model, kSeed);
      model.Run(batch, Uniform("input", model.config.layers), rows.Rows());
      const Expected expected = Plain(model, batch, rows.Oracle());
      for (const std::string& policy : kStoragePolicies) {
        ExpectNear(model, model.Run(batch, Uniform(policy, model.config.layers), rows.Rows()),
                   expected, 1e-10);
      }
    }
  }
}

// A pass that needs more than the buffers were made for asks first; what it needs is the kept
// rows'.
TEST(SparsePass, BuffersGrowToTheKeptRows) {
  TapedModel model("gqa", at::kFloat, LoraSpec());
  model.block_rows = 8;
  const MicroBatch batch = RandomBatch(model.config, {128}, kSeed);
  const int64_t layers = model.config.layers;
  const int64_t stream = Arena::Rounded(batch.rows() * model.config.hidden * 4);
  Tape tape(model.decoder, model.trainables, {.policies = Uniform("attn_out", layers)},
            {.stream = batch.rows(), .layers = std::vector<LayerRowCounts>(layers)});
  EXPECT_EQ(tape.arena_bytes(), stream);
  int64_t grown = 0;
  for (const int64_t rows : {64, 32, 96}) {
    RowBounds bounds{batch.rows(), std::vector<LayerRowCounts>(layers, {rows, rows})};
    tape.Reserve(bounds);
    grown = std::max(grown, stream + layers * SavedBytes(*ParseStoragePolicy("attn_out"),
                                                         model.config, {rows, rows}, 4, 4));
    EXPECT_EQ(tape.arena_bytes(), grown) << "never smaller";
  }
  const DeviceBatch device = ToDevice(batch, model.decoder, model.block_rows);
  RandomRows rows({.name = "half"}, batch, model, kSeed);
  const testing::PassRows pass = rows.Rows();
  CrossEntropyObjective objective(model.decoder, model.trainables, 5);
  const at::Tensor out = tape.Forward(device.tokens, device.space, pass.source, {}, true);
  objective.LossAndGradient(out, device.labels, 1.0);
  tape.Backward(out);
  EXPECT_EQ(tape.arena_bytes(), grown);
  EXPECT_THROW(tape.Forward(device.tokens, device.space, nullptr, {}, true), c10::Error)
      << "all rows are more than was asked for";
}

// C11: lemo-spec section 7's table, KiB a kept row and layer at bf16.
TEST(SavedBytes, AreThoseOfTheSpecificationsTable) {
  struct Model {
    const char* name;
    DecoderConfig config;
    double attention, mlp, input;
  };
  const auto shape = [](int hidden, int heads, int kv_heads, int width) {
    DecoderConfig config;
    config.hidden = hidden;
    config.heads = heads;
    config.kv_heads = kv_heads;
    config.head_dim = 128;
    config.intermediate = width;
    return config;
  };
  const int64_t all = 8192, kept = 3328;
  const auto bytes = [](const char* policy, const DecoderConfig& config, LayerRowCounts rows) {
    return static_cast<double>(SavedBytes(*ParseStoragePolicy(policy), config, rows, 2, 4)) / 1024;
  };
  for (const Model& model : {Model{"Llama-2-7B", shape(4096, 32, 32, 11008), 40, 51, 8},
                             Model{"Llama-3-8B", shape(4096, 32, 8, 14336), 28, 64, 8}}) {
    SCOPED_TRACE(model.name);
    const auto near = [](double got, double expected) {
      EXPECT_NEAR(got, expected, 0.03 * expected);
    };
    // The same rows in both sub-blocks, other rows, all rows in the MLP.
    near(bytes("all", model.config, {kept, kept}), (model.attention + model.mlp) * kept);
    near(bytes("all", model.config, {kept, 2 * kept, true}),
         (model.attention + 2 * model.mlp) * kept);
    near(bytes("all", model.config, {kept, all, true}), model.attention * kept + model.mlp * all);
    near(bytes("input", model.config, {kept, kept}), model.input * kept);
    // Its example: inputs of 64K rows and 32 layers, 16 GiB, at a share of 0.4 6.4 GiB.
    if (model.attention == 40) {
      near(32 * bytes("input", model.config, {65536, 65536}), 16.0 * 1024 * 1024);
      near(32 * bytes("input", model.config, {26214, 26214}), 6.4 * 1024 * 1024);
    }
    // P1, P2: 16 of 32 layers at 0.4.
    if (model.attention == 40) {
      const double dense = bytes("all", model.config, {all, all});
      const int64_t some = all * 2 / 5;
      near((dense + bytes("all", model.config, {some, all, true})) / (2 * dense), 0.87);
      near((dense + bytes("all", model.config, {some, some})) / (2 * dense), 0.70);
    }
  }
}

}  // namespace
}  // namespace lemo::train
