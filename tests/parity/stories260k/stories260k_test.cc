// The engine on a trained model (tests/fixtures/stories260k) against results that were computed in
// float64 outside this project: logits, losses, greedy text, gradients, and 20 steps of full AdamW
// and of LoRA.
//
// Each case runs in float32, in float64, and in float64 with exact angles. The engine rounds the
// frequencies of the rotary angles to float32 in every type, as transformers does; the reference
// does not. So the last of the three, in which the test puts its own angles under the engine's tape
// and objective, is held to every recorded digit.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "lemo/v1/run_spec.pb.h"
#include "nlohmann/json.hpp"
#include "worker/train/data/batch.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/loop/engine.h"
#include "worker/train/model/family/family.h"
#include "worker/train/objective/objective.h"
#include "worker/train/optim/adamw.h"
#include "worker/train/spec/spec.h"
#include "worker/train/tape/tape.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {
namespace {

using nlohmann::json;

constexpr int64_t kMaxRows = 4 * 257;

// Bounds of the engine's own error, to which a test adds the rounding of the recorded number.
struct Precision {
  std::string name;
  at::ScalarType type;
  bool exact_angles;
  double logit;  // absolute
  double loss;   // relative
  // Of a tensor's norm, on the untrained model.
  double gradient;
  // Of the global norm, along a training run. AdamW divides by the root of the second moment, so
  // the first steps turn the rounding of small gradients into full-size differences of parameters.
  double trained_gradient;
};

// Engine::Logits answers in float32 whatever the run computes in, hence 1e-6 for values around 10.
const Precision kPrecisions[] = {
    {"float32", at::kFloat, false, 1e-4, 1e-5, 1e-5, 1e-4},
    // The frequency 0.1 in float32 is off by 1.5e-9, which turns position 255 by 4e-7 rad.
    {"float64", at::kDouble, false, 1e-6, 1e-8, 5e-7, 1e-7},
    {"float64_exact_angles", at::kDouble, true, 1e-6, 1e-9, 1e-9, 1e-9},
};

void PrintTo(const Precision& precision, std::ostream* out) { *out << precision.name; }

// Half of the last decimal place that was recorded, and a little for the addition.
double Rounding(int decimals) { return 0.51 * std::pow(10.0, -decimals); }

std::filesystem::path ModelDir() {
  return std::filesystem::path(LEMO_SOURCE_DIR) / "tests/fixtures/stories260k";
}

json Expected(const std::string& file) {
  std::ifstream in(ModelDir() / "expected" / file);
  return json::parse(in);
}

// Adds a document that starts with tokens[0]; every token but the first is trained.
void AddDocument(const std::vector<int32_t>& tokens, MicroBatch* batch) {
  if (batch->document_starts.empty()) batch->document_starts.push_back(0);
  for (size_t i = 0; i < tokens.size(); ++i) {
    batch->tokens.push_back(tokens[i]);
    batch->labels.push_back(i + 1 < tokens.size() ? tokens[i + 1] : kIgnoreLabel);
    batch->positions.push_back(static_cast<int32_t>(i));
  }
  batch->document_starts.push_back(static_cast<int32_t>(batch->rows()));
}

MicroBatch Document(const std::vector<int32_t>& tokens) {
  MicroBatch batch;
  AddDocument(tokens, &batch);
  return batch;
}

lemo::v1::RunSpec FullSpec(const std::string& policy, double max_grad_norm) {
  lemo::v1::RunSpec spec;
  spec.mutable_model()->set_path(ModelDir().string());
  spec.mutable_tuner()->mutable_full();
  spec.mutable_train()->set_max_grad_norm(max_grad_norm);
  spec.mutable_memory()->set_policy(policy);
  return spec;
}

// The angles of a model without rope scaling, in double throughout.
RopeTables ExactAngles(const std::vector<int32_t>& positions, const DecoderConfig& config) {
  const int64_t half = config.head_dim / 2;
  const at::Tensor exponents = at::arange(half, at::kDouble) / static_cast<double>(half);
  const at::Tensor frequencies = at::pow(config.rope.theta, exponents).reciprocal();
  const at::Tensor angles = at::outer(at::tensor(positions).to(at::kDouble), frequencies);
  return {angles.cos(), angles.sin()};
}

// The engine as it is, or its parts with exact angles.
class Runner {
 public:
  Runner(std::unique_ptr<Engine> engine, const lemo::v1::RunSpec& spec, bool exact_angles)
      : engine_(std::move(engine)), max_grad_norm_(spec.train().max_grad_norm()) {
    if (!exact_angles) return;
    TapeOptions options;
    options.policies = *PoliciesOf(spec.memory(), engine_->decoder().config.layers);
    options.mlp_tile_rows = spec.memory().mlp_tile_rows();
    tape_ = std::make_unique<Tape>(engine_->decoder(), engine_->trainables(), std::move(options),
                                   RowBounds::Dense(engine_->decoder().config.layers, kMaxRows));
    objective_ = std::make_unique<CrossEntropyObjective>(engine_->decoder(), engine_->trainables(),
                                                         spec.memory().loss_segment_rows());
  }

  Trainables& trainables() { return engine_->trainables(); }

  absl::StatusOr<StepResult> Step(const Batch& batch, int64_t step, double learning_rate) {
    if (tape_ == nullptr) {
      return engine_->Step(batch, {.step = step, .learning_rate = learning_rate});
    }
    ZeroGradients(trainables());
    LossSums sums;
    for (const MicroBatch& micro_batch : batch.micro_batches) {
      const auto [stream, labels] = Forward(micro_batch, /*for_backward=*/true);
      sums.Add(objective_->LossAndGradient(stream, labels,
                                           1.0 / static_cast<double>(batch.labelled_tokens)));
      tape_->Backward(stream);
    }
    const double norm = GlobalGradientNorm(trainables());
    // torch.nn.utils.clip_grad_norm_'s formula; without its 1e-6 the curve differs from 1e-8 on.
    const double clip = max_grad_norm_ > 0 ? std::min(1.0, max_grad_norm_ / (norm + 1e-6)) : 1.0;
    engine_->optimizer().Step(learning_rate, clip);
    return StepResult{.loss = sums.Mean(), .grad_norm = norm};
  }

  // The mean loss of all labelled rows.
  double Loss(const std::vector<MicroBatch>& batches) {
    if (tape_ == nullptr) {
      size_t next = 0;
      const auto give = [&]() -> std::optional<MicroBatch> {
        if (next == batches.size()) return std::nullopt;
        return batches[next++];
      };
      return engine_->Evaluate(give).Loss();
    }
    LossSums sums;
    for (const MicroBatch& batch : batches) {
      const auto [stream, labels] = Forward(batch, /*for_backward=*/false);
      sums.Add(objective_->Loss(stream, labels));
    }
    return sums.loss / static_cast<double>(sums.labelled);
  }

  at::Tensor Logits(const MicroBatch& batch) {
    if (tape_ == nullptr) return engine_->Logits(batch);
    return objective_->Logits(Forward(batch, /*for_backward=*/false).first);
  }

 private:
  // The stream and the labels.
  std::pair<at::Tensor, at::Tensor> Forward(const MicroBatch& batch, bool for_backward) {
    const DeviceBatch device = ToDevice(batch, engine_->decoder());
    const RopeTables exact = ExactAngles(batch.positions, engine_->decoder().config);
    device.space->all()->rope.cos.copy_(exact.cos);
    device.space->all()->rope.sin.copy_(exact.sin);
    return {tape_->Forward(device.tokens, device.space, nullptr, {}, for_backward), device.labels};
  }

  std::unique_ptr<Engine> engine_;
  double max_grad_norm_;
  // With exact angles only.
  std::unique_ptr<Tape> tape_;
  std::unique_ptr<CrossEntropyObjective> objective_;
};

class Stories260k : public ::testing::TestWithParam<Precision> {
 protected:
  // Products this small gain nothing from threads, and on a busy machine lose much.
  static void SetUpTestSuite() { at::set_num_threads(1); }

  std::unique_ptr<Runner> MakeRunner(lemo::v1::RunSpec spec) {
    FillDefaults(&spec);
    // Neither divides the rows of a micro-batch.
    spec.mutable_memory()->set_mlp_tile_rows(100);
    spec.mutable_memory()->set_loss_segment_rows(150);
    absl::StatusOr<DecoderConfig> config = LoadDecoderConfig(ModelDir());
    if (!config.ok()) {
      ADD_FAILURE() << config.status();
      return nullptr;
    }
    absl::StatusOr<std::unique_ptr<Engine>> engine =
        Engine::Create(spec, *config, {.device = at::kCPU, .type = GetParam().type}, kMaxRows);
    if (!engine.ok()) {
      ADD_FAILURE() << engine.status();
      return nullptr;
    }
    return std::make_unique<Runner>(*std::move(engine), spec, GetParam().exact_angles);
  }

  // What training step `step` of the reference runs on, `documents` of them a micro-batch. A row of
  // the reference is 256 inputs and their 256 targets: a document of 257 tokens whose last row
  // carries no loss.
  Batch StepBatch(size_t step, size_t documents) const {
    const size_t rows = reference_.at("batch_rows");
    Batch batch;
    for (size_t i = 0; i < rows; ++i) {
      if (i % documents == 0) batch.micro_batches.emplace_back();
      const auto tokens = ids_.at("rows").at(step * rows + i).get<std::vector<int32_t>>();
      AddDocument(tokens, &batch.micro_batches.back());
      ++batch.sequences;
      batch.tokens += static_cast<int64_t>(tokens.size());
      batch.labelled_tokens += static_cast<int64_t>(tokens.size()) - 1;
    }
    return batch;
  }

  static std::vector<int64_t> ArgMax(Runner& runner, const std::vector<int32_t>& tokens) {
    const at::Tensor best = runner.Logits(Document(tokens)).argmax(-1).contiguous();
    return {best.const_data_ptr<int64_t>(), best.const_data_ptr<int64_t>() + best.numel()};
  }

  // Runs all steps of `run` and compares each of them, then the loss of the first batch.
  void ExpectCurve(Runner& runner, const json& run, const std::string& norm_key,
                   size_t documents) const {
    const auto losses = run.at("loss").get<std::vector<double>>();
    const auto norms = run.at(norm_key).get<std::vector<double>>();
    ASSERT_EQ(losses.size(), reference_.at("steps").get<size_t>());
    ASSERT_EQ(norms.size(), losses.size());
    const double rate = run.at("lr");
    for (size_t step = 0; step < losses.size(); ++step) {
      SCOPED_TRACE(step);
      const absl::StatusOr<StepResult> result =
          runner.Step(StepBatch(step, documents), static_cast<int64_t>(step), rate);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_NEAR(result->loss, losses[step], GetParam().loss * losses[step] + Rounding(8));
      EXPECT_NEAR(result->grad_norm, norms[step],
                  GetParam().trained_gradient * norms[step] + Rounding(8));
    }
    const double after = run.at("loss_batch0_after");
    EXPECT_NEAR(runner.Loss(StepBatch(0, documents).micro_batches), after,
                GetParam().loss * after + Rounding(8));
  }

  const json reference_ = Expected("train_reference.json");
  const json ids_ = Expected("train_ids.json");
};

INSTANTIATE_TEST_SUITE_P(Precisions, Stories260k, ::testing::ValuesIn(kPrecisions),
                         [](const auto& info) { return info.param.name; });

TEST_P(Stories260k, LogitsOfPrompts) {
  const std::unique_ptr<Runner> runner = MakeRunner(FullSpec("input", 0));
  ASSERT_NE(runner, nullptr);
  const json expected = Expected("logits.json");
  ASSERT_EQ(expected.at("cases").size(), 3);
  for (const json& prompt : expected.at("cases")) {
    SCOPED_TRACE(prompt.at("text"));
    const auto tokens = prompt.at("ids").get<std::vector<int32_t>>();
    const at::Tensor logits = runner->Logits(Document(tokens));
    const at::Tensor last = at::tensor(prompt.at("last_logits").get<std::vector<double>>());
    ASSERT_EQ(logits.sizes(), at::IntArrayRef({static_cast<int64_t>(tokens.size()), 512}));
    ASSERT_EQ(last.numel(), 512);
    EXPECT_LE((logits[-1].to(at::kDouble) - last).abs().max().item<double>(),
              GetParam().logit + Rounding(5));
    EXPECT_EQ(ArgMax(*runner, tokens),
              prompt.at("argmax_per_position").get<std::vector<int64_t>>());
  }
}

TEST_P(Stories260k, LossOfEveryTokenOfPrompts) {
  const std::unique_ptr<Runner> runner = MakeRunner(FullSpec("input", 0));
  ASSERT_NE(runner, nullptr);
  const json expected = Expected("logits.json");
  for (const json& prompt : expected.at("cases")) {
    SCOPED_TRACE(prompt.at("text"));
    const MicroBatch all = Document(prompt.at("ids").get<std::vector<int32_t>>());
    const auto losses = prompt.at("token_nll").get<std::vector<double>>();
    ASSERT_EQ(losses.size() + 1, all.labels.size());
    for (size_t i = 0; i < losses.size(); ++i) {
      SCOPED_TRACE(i);
      MicroBatch one = all;
      one.labels.assign(all.labels.size(), kIgnoreLabel);
      one.labels[i] = all.labels[i];
      // A loss near zero is the difference of two large logits: relative to one, then.
      EXPECT_NEAR(runner->Loss({one}), losses[i],
                  GetParam().loss * std::max(1.0, losses[i]) + Rounding(6));
    }
    const double mean = prompt.at("mean_nll");
    EXPECT_NEAR(runner->Loss({all}), mean, GetParam().loss + Rounding(6));
  }
}

TEST_P(Stories260k, GreedyTokensOfPrompts) {
  const std::unique_ptr<Runner> runner = MakeRunner(FullSpec("input", 0));
  ASSERT_NE(runner, nullptr);
  const json expected = Expected("logits.json");
  for (const json& prompt : expected.at("cases")) {
    SCOPED_TRACE(prompt.at("text"));
    const auto greedy = prompt.at("greedy_40").get<std::vector<int32_t>>();
    ASSERT_EQ(greedy.size(), 40);
    auto tokens = prompt.at("ids").get<std::vector<int32_t>>();
    std::vector<int32_t> written;
    while (written.size() < greedy.size()) {
      written.push_back(static_cast<int32_t>(ArgMax(*runner, tokens).back()));
      tokens.push_back(written.back());
    }
    EXPECT_EQ(written, greedy);
  }
}

// The whole greedy story at once: at each position the arg max is the token that follows.
TEST_P(Stories260k, GreedyStory) {
  const std::unique_ptr<Runner> runner = MakeRunner(FullSpec("input", 0));
  ASSERT_NE(runner, nullptr);
  const auto story = Expected("greedy.json").at("ids").get<std::vector<int32_t>>();
  ASSERT_GT(story.size(), 200);
  std::vector<int64_t> next = ArgMax(*runner, story);
  next.pop_back();
  EXPECT_EQ(next, std::vector<int64_t>(story.begin() + 1, story.end()));
}

TEST_P(Stories260k, GradientsOfTheFirstBatch) {
  const json& norms = reference_.at("grad_norm");
  const double loss = reference_.at("loss_batch0");
  const double total = reference_.at("grad_norm_total");
  for (const std::string policy : {"all", "mlp", "attn_out", "input"}) {
    for (const size_t documents : {4, 1}) {
      SCOPED_TRACE(policy + ", documents in a micro-batch: " + std::to_string(documents));
      const std::unique_ptr<Runner> runner = MakeRunner(FullSpec(policy, 0));
      ASSERT_NE(runner, nullptr);
      const absl::StatusOr<StepResult> result = runner->Step(StepBatch(0, documents), 0, 0.0);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_NEAR(result->loss, loss, GetParam().loss * loss + Rounding(10));
      EXPECT_NEAR(result->grad_norm, total, GetParam().gradient * total + Rounding(10));
      // Without clipping the gradients stay as they were computed.
      ASSERT_EQ(runner->trainables().size(), norms.size());
      for (const Trainable& trainable : runner->trainables()) {
        SCOPED_TRACE(trainable.name);
        ASSERT_TRUE(norms.contains(trainable.name));
        const double norm = norms.at(trainable.name);
        EXPECT_NEAR(trainable.grad.to(at::kDouble).norm().item<double>(), norm,
                    GetParam().gradient * norm + Rounding(10));
      }
    }
  }
}

TEST_P(Stories260k, TwentyStepsOfFullAdamW) {
  const json& run = reference_.at("full_adamw");
  ASSERT_EQ(run.at("schedule"), "constant");
  lemo::v1::RunSpec spec = FullSpec("attn_out", run.at("clip_global_norm"));
  spec.mutable_train()->set_beta1(run.at("betas").at(0));
  spec.mutable_train()->set_beta2(run.at("betas").at(1));
  spec.mutable_train()->set_epsilon(run.at("eps"));
  spec.mutable_train()->set_weight_decay(run.at("weight_decay"));
  const std::unique_ptr<Runner> runner = MakeRunner(spec);
  ASSERT_NE(runner, nullptr);
  ExpectCurve(*runner, run, "grad_norm_before_clip", /*documents=*/2);
}

TEST_P(Stories260k, TwentyStepsOfLora) {
  const json& run = reference_.at("lora_adamw");
  ASSERT_TRUE(run.at("clip_global_norm").is_null());
  lemo::v1::RunSpec spec;
  spec.mutable_model()->set_path(ModelDir().string());
  lemo::v1::LoraSpec* lora = spec.mutable_tuner()->mutable_lora();
  lora->set_rank(run.at("rank"));
  lora->set_alpha(run.at("alpha"));
  for (const json& target : run.at("targets")) lora->add_targets(target.get<std::string>());
  spec.mutable_train()->set_max_grad_norm(0);
  spec.mutable_train()->set_beta1(run.at("betas").at(0));
  spec.mutable_train()->set_beta2(run.at("betas").at(1));
  spec.mutable_train()->set_epsilon(run.at("eps"));
  spec.mutable_train()->set_weight_decay(run.at("weight_decay"));
  const std::unique_ptr<Runner> runner = MakeRunner(spec);
  ASSERT_NE(runner, nullptr);
  ASSERT_EQ(runner->trainables().size(), 5 * 2 * 2);
  {
    const at::NoGradGuard no_grad;
    for (Trainable& trainable : runner->trainables()) {
      if (trainable.name.find("lora_A") == std::string::npos) {
        EXPECT_EQ(trainable.master.count_nonzero().item<int64_t>(), 0) << trainable.name;
        continue;
      }
      // A[i][j] = 0.05 cos(0.1 (i in_features + j)): the argument counts in row-major order.
      const at::Tensor index = at::arange(trainable.master.numel(), at::kDouble);
      trainable.master.copy_((index * 0.1).cos().mul_(0.05).view(trainable.master.sizes()));
    }
    RefreshValues(runner->trainables());
  }
  ExpectCurve(*runner, run, "grad_norm", /*documents=*/4);
}

}  // namespace
}  // namespace lemo::train
