// The engine against what transformers and PEFT computed: tests/parity/oracles/README.md says how
// the results in recorded/ were made and what each number is.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/safetensors.h"
#include "nlohmann/json.hpp"
#include "worker/train/loop/device_batch.h"
#include "worker/train/model/family/family.h"
#include "worker/train/model/weights.h"
#include "worker/train/objective/objective.h"
#include "worker/train/optim/adamw.h"
#include "worker/train/tape/tape.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {
namespace {

using nlohmann::json;

// The engine runs in float32 against float64. Sums of some hundred terms keep five digits.
constexpr double kLogitTolerance = 1e-4;
constexpr double kLossTolerance = 1e-5;
// Of a tensor's norm.
constexpr double kGradientTolerance = 1e-5;
// Adam divides by the root of the second moment, which turns the rounding of a small gradient into
// a visible part of the update. So much of the longest possible update, rate times steps.
constexpr double kUpdateTolerance = 1e-3;

std::filesystem::path Recorded() {
  return std::filesystem::path(LEMO_SOURCE_DIR) / "tests/parity/oracles/recorded";
}

// In the order of their names, which the listing of a directory does not promise.
std::vector<std::string> CaseNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(Recorded())) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

at::Tensor ToTensor(const TensorView& view) {
  return at::from_blob(const_cast<char*>(view.bytes.data()), view.shape, at::kFloat).clone();
}

MicroBatch ToBatch(const json& documents) {
  MicroBatch batch;
  for (const json& document : documents) {
    batch.document_starts.push_back(static_cast<int32_t>(batch.rows()));
    const auto tokens = document.at("tokens").get<std::vector<int32_t>>();
    const auto labels = document.at("labels").get<std::vector<int32_t>>();
    for (size_t i = 0; i < tokens.size(); ++i) {
      batch.tokens.push_back(tokens[i]);
      batch.labels.push_back(labels[i]);
      batch.positions.push_back(static_cast<int32_t>(i));
    }
  }
  batch.document_starts.push_back(static_cast<int32_t>(batch.rows()));
  return batch;
}

// sum of x[i] cos(i), i counting in row-major order.
double Probe(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().to(at::kDouble).flatten();
  return flat.dot(at::arange(flat.numel(), at::kDouble).cos()).item<double>();
}

// At most 16 elements, as record.py takes them.
at::Tensor Sample(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.detach().flatten();
  return flat.slice(0, 0, flat.numel(), (flat.numel() + 15) / 16);
}

// `error` bounds the length of the difference of the two tensors.
void ExpectSummary(const at::Tensor& tensor, const json& expected, double error) {
  const double norm = tensor.detach().to(at::kDouble).norm().item<double>();
  EXPECT_NEAR(norm, expected.at("norm").get<double>(), error);
  // Cauchy-Schwarz; the sum of cos(i)^2 over n elements is about n / 2.
  EXPECT_NEAR(Probe(tensor), expected.at("probe").get<double>(),
              error * std::sqrt(tensor.numel() / 2.0 + 1.0));
}

double MaxDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

// A recorded model with a tuner on it, in float32 on the CPU.
struct Engine {
  Engine(const std::filesystem::path& model_dir, const lemo::v1::TunerSpec& spec)
      : config(*LoadDecoderConfig(model_dir)),
        weights(*LoadWeights(model_dir, config, at::kFloat, at::kCPU)),
        decoder(config, weights),
        tuner(*MakeTuner(spec)),
        trainables(*tuner->Attach(decoder, /*seed=*/1)) {}

  Tape MakeTape(const std::string& policy, int64_t rows) {
    return Tape(decoder, trainables,
                {.policies = std::vector<StoragePolicy>(config.layers, *ParseStoragePolicy(policy)),
                 .mlp_tile_rows = 7},
                RowBounds::Dense(config.layers, rows));
  }

  at::Tensor Logits(const MicroBatch& batch) {
    const DeviceBatch device = ToDevice(batch, decoder);
    Tape tape = MakeTape("input", batch.rows());
    CrossEntropyObjective objective(decoder, trainables, /*segment_rows=*/0);
    return objective.Logits(tape.Forward(device.tokens, device.space, nullptr, {}, false));
  }

  // Leaves the gradients of the mean loss in the trainables. Segments and tiles that do not divide
  // the rows.
  LossSums Gradients(const MicroBatch& batch, const std::string& policy) {
    ZeroGradients(trainables);
    const DeviceBatch device = ToDevice(batch, decoder);
    Tape tape = MakeTape(policy, batch.rows());
    CrossEntropyObjective objective(decoder, trainables, /*segment_rows=*/5);
    const at::Tensor stream = tape.Forward(device.tokens, device.space, nullptr, {}, true);
    const auto labelled = device.labels.ne(kIgnoreLabel).sum().item<int64_t>();
    const LossSums sums =
        objective.LossAndGradient(stream, device.labels, 1.0 / static_cast<double>(labelled));
    tape.Backward(stream);
    return sums;
  }

  DecoderConfig config;
  ModelWeights weights;
  Decoder decoder;
  std::unique_ptr<Tuner> tuner;
  Trainables trainables;
};

lemo::v1::TunerSpec FullSpec() {
  lemo::v1::TunerSpec spec;
  spec.mutable_full();
  return spec;
}

class Oracle : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    std::ifstream in(dir_ / "expected.json");
    expected_ = json::parse(in);
    for (const auto& [name, view] : file_.tensors()) tensors_[name] = ToTensor(view);
  }

  std::filesystem::path model_dir() const { return dir_ / "model"; }
  const json& documents() const { return expected_.at("documents"); }

  lemo::v1::TunerSpec LoraFromRecorded() const {
    const json& recorded = expected_.at("lora");
    lemo::v1::TunerSpec spec;
    spec.mutable_lora()->set_rank(recorded.at("rank").get<int>());
    spec.mutable_lora()->set_alpha(recorded.at("alpha").get<double>());
    spec.mutable_lora()->set_init_from((dir_ / "adapter_init").string());
    for (const json& target : recorded.at("targets")) {
      spec.mutable_lora()->add_targets(target.get<std::string>());
    }
    return spec;
  }

  // Trains as `recorded` says, all documents packed, and compares each step and the final tensors.
  void ExpectSteps(Engine& engine, const json& recorded, const std::string& policy) {
    const MicroBatch batch = ToBatch(documents());
    AdamW optimizer(PiecesOf(engine.trainables), {.beta1 = recorded.at("beta1"),
                                                  .beta2 = recorded.at("beta2"),
                                                  .epsilon = recorded.at("epsilon"),
                                                  .weight_decay = recorded.at("weight_decay")});
    const auto losses = recorded.at("losses").get<std::vector<double>>();
    const auto norms = recorded.at("grad_norms").get<std::vector<double>>();
    const double rate = recorded.at("learning_rate");
    for (size_t step = 0; step < losses.size(); ++step) {
      SCOPED_TRACE(step);
      const LossSums sums = engine.Gradients(batch, policy);
      EXPECT_NEAR(sums.loss / static_cast<double>(sums.labelled), losses[step],
                  kLossTolerance * losses[step]);
      EXPECT_NEAR(GlobalGradientNorm(engine.trainables), norms[step],
                  10 * kGradientTolerance * norms[step]);
      optimizer.Step(rate, 1.0);
      RefreshValues(engine.trainables);
    }
    const json& final = recorded.at("final");
    ASSERT_EQ(engine.trainables.size(), final.size());
    for (const Trainable& trainable : engine.trainables) {
      SCOPED_TRACE(trainable.name);
      ASSERT_TRUE(final.contains(trainable.name));
      const double update = rate * static_cast<double>(losses.size());
      ExpectSummary(trainable.master, final.at(trainable.name),
                    kUpdateTolerance * update * std::sqrt(trainable.master.numel()));
      const auto sample = tensors_.find("lora." + trainable.name);
      if (sample != tensors_.end()) {
        EXPECT_LE(MaxDifference(Sample(trainable.master), sample->second),
                  kUpdateTolerance * update);
      }
    }
  }

  std::filesystem::path dir_ = Recorded() / GetParam();
  SafetensorsFile file_ = *SafetensorsFile::Open(dir_ / "expected.safetensors");
  json expected_;
  std::map<std::string, at::Tensor> tensors_;
};

INSTANTIATE_TEST_SUITE_P(Recorded, Oracle, ::testing::ValuesIn(CaseNames()),
                         [](const auto& info) { return info.param; });

TEST_P(Oracle, LogitsAndLossesOfEachDocument) {
  Engine engine(model_dir(), FullSpec());
  const json& forward = expected_.at("forward");
  for (size_t i = 0; i < documents().size(); ++i) {
    SCOPED_TRACE(i);
    const MicroBatch batch = ToBatch(json::array({documents()[i]}));
    const at::Tensor rows = at::tensor(forward.at("logit_rows")[i].get<std::vector<int64_t>>());
    const at::Tensor logits = engine.Logits(batch).index_select(0, rows);
    const at::Tensor& expected = tensors_.at("logits." + std::to_string(i));
    ASSERT_EQ(logits.sizes(), expected.sizes());
    EXPECT_LE(MaxDifference(logits, expected), kLogitTolerance);
    const LossSums sums = engine.Gradients(batch, "all");
    const double loss = forward.at("loss_sums")[i];
    EXPECT_NEAR(sums.loss, loss, kLossTolerance * loss);
    EXPECT_EQ(sums.labelled, forward.at("labelled_tokens")[i].get<int64_t>());
  }
}

TEST_P(Oracle, PackedLossAndGradients) {
  Engine engine(model_dir(), FullSpec());
  const json& packed = expected_.at("packed");
  const MicroBatch batch = ToBatch(documents());
  EXPECT_EQ(batch.document_starts, packed.at("document_starts").get<std::vector<int32_t>>());
  for (const std::string policy : {"all", "mlp", "attn_out", "input"}) {
    SCOPED_TRACE(policy);
    const LossSums sums = engine.Gradients(batch, policy);
    const double loss = packed.at("loss_sum");
    EXPECT_NEAR(sums.loss, loss, kLossTolerance * loss);
    EXPECT_EQ(sums.labelled, packed.at("labelled_tokens").get<int64_t>());
    const json& gradients = expected_.at("gradients");
    ASSERT_EQ(engine.trainables.size(), gradients.size());
    for (const Trainable& trainable : engine.trainables) {
      SCOPED_TRACE(trainable.name);
      ASSERT_TRUE(gradients.contains(trainable.name));
      const double norm = gradients.at(trainable.name).at("norm");
      ASSERT_GT(norm, 0.0);
      ExpectSummary(trainable.grad, gradients.at(trainable.name), kGradientTolerance * norm);
      EXPECT_LE(MaxDifference(Sample(trainable.grad), tensors_.at("gradient." + trainable.name)),
                kGradientTolerance * norm);
    }
  }
}

TEST_P(Oracle, FiveFullAdamWSteps) {
  Engine engine(model_dir(), FullSpec());
  ExpectSteps(engine, expected_.at("full"), "attn_out");
}

TEST_P(Oracle, FiveLoraAdamWSteps) {
  Engine engine(model_dir(), LoraFromRecorded());
  ExpectSteps(engine, expected_.at("lora"), "attn_out");
}

// Without this, an empty folder would pass.
TEST(Oracles, EveryFamilyIsRecorded) {
  EXPECT_THAT(CaseNames(), ::testing::IsSupersetOf(
                               {"llama_gqa", "llama_mha_head_dim", "llama_tied_bias",
                                "llama_linear", "llama_dynamic", "llama_llama3", "llama_yarn",
                                "mistral", "mistral_window", "qwen2", "qwen3"}));
}

}  // namespace
}  // namespace lemo::train
