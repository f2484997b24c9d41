#include "worker/train/tuner/lora.h"

#include <gmock/gmock.h>

#include <cmath>
#include <functional>

#include "tests/support/test_checkpoint.h"
#include "tests/unit/tuner/tuned_model.h"
#include "worker/train/model/tensor_view.h"
#include "worker/train/publish/peft_adapter.h"

namespace lemo::train {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// Rank 3, alpha 6 over `targets`.
lemo::v1::TunerSpec Spec(const std::vector<std::string>& targets) {
  lemo::v1::TunerSpec spec = testing::LoraSpec();
  spec.mutable_lora()->clear_targets();
  for (const std::string& target : targets) spec.mutable_lora()->add_targets(target);
  return spec;
}

const std::vector<LoraModule>& Modules(const TunedModel& model) {
  return static_cast<const LoraTuner&>(*model.tuner).modules();
}

const LoraModule* FindModule(const TunedModel& model, const std::string& name) {
  for (const LoraModule& module : Modules(model)) {
    if (module.name == name) return &module;
  }
  return nullptr;
}

std::vector<std::string> TrainedNames(const TunedModel& model) {
  std::vector<std::string> names;
  for (const Trainable& trainable : model.trainables) names.push_back(trainable.name);
  return names;
}

TEST(LoraTuner, UnknownTargetsAreRefusedWithTheRealNames) {
  TunedModel model("gqa", at::kFloat,
                   Spec({"q_proj", "query", "mlp.q_proj", "layers.7.self_attn.q_proj"}));
  const absl::Status status = model.Attach(1);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "tuner.lora.targets: no linear module of this model is called query, mlp.q_proj, "
            "layers.7.self_attn.q_proj; it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
            "down_proj (or use all-linear)");
  for (DecoderLayer& layer : model.decoder.layers) {
    for (const Projection* projection : layer.Projections()) EXPECT_FALSE(projection->branch);
  }
}

TEST(LoraTuner, TargetsAreNamesOrDottedSuffixes) {
  TunedModel model("gqa", at::kFloat, Spec({"layers.1.self_attn.v_proj", "down_proj"}));
  ASSERT_TRUE(model.Attach(1).ok());
  EXPECT_EQ(model.tuner->kind(), "lora");
  const std::string prefix = "base_model.model.model.layers.";
  EXPECT_THAT(
      TrainedNames(model),
      ElementsAre(
          prefix + "0.mlp.down_proj.lora_A.weight", prefix + "0.mlp.down_proj.lora_B.weight",
          prefix + "1.self_attn.v_proj.lora_A.weight", prefix + "1.self_attn.v_proj.lora_B.weight",
          prefix + "1.mlp.down_proj.lora_A.weight", prefix + "1.mlp.down_proj.lora_B.weight",
          prefix + "2.mlp.down_proj.lora_A.weight", prefix + "2.mlp.down_proj.lora_B.weight"));
  EXPECT_EQ(model.trainables[2].layer, 1);
  EXPECT_EQ(model.trainables[2].stage, Stage::kQkv);
  EXPECT_EQ(model.trainables[4].stage, Stage::kMlp);
}

TEST(LoraTuner, AllLinearIsEveryProjectionAndNothingElse) {
  TunedModel model("qwen3", at::kFloat, Spec({"all-linear"}));
  ASSERT_TRUE(model.Attach(1).ok());
  ASSERT_EQ(Modules(model).size(), 7 * model.config.layers);
  ASSERT_EQ(model.trainables.size(), 14 * model.config.layers);
  for (const Trainable& trainable : model.trainables) {
    EXPECT_THAT(trainable.name, AllOf(HasSubstr("_proj.lora_"), Not(HasSubstr("lm_head"))));
    EXPECT_TRUE(trainable.decay);
  }
}

// rank * (in + out) a module.
TEST(LoraTuner, CountsItsParameters) {
  TunedModel model("qwen3", at::kFloat, Spec({"all-linear"}));
  ASSERT_TRUE(model.Attach(1).ok());
  const DecoderConfig& c = model.config;
  const int64_t h = c.hidden, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const int64_t widths = (h + q) + 2 * (h + kv) + (q + h) + 3 * (h + c.intermediate);
  EXPECT_EQ(CountParameters(model.trainables), c.layers * 3 * widths);
}

TEST(LoraTuner, PatternsSetRankAndAlphaOfModules) {
  lemo::v1::TunerSpec spec = Spec({"q_proj", "up_proj"});
  auto& lora = *spec.mutable_lora();
  (*lora.mutable_rank_pattern())["layers.0.self_attn.q_proj"] = 5;
  (*lora.mutable_rank_pattern())["layers\\.[12]\\.mlp\\.up_proj"] = 2;
  (*lora.mutable_alpha_pattern())["up_proj"] = 8;
  TunedModel model("gqa", at::kFloat, spec);
  ASSERT_TRUE(model.Attach(1).ok());
  const auto expect = [&](const std::string& name, int64_t rank, double alpha) {
    const LoraModule* module = FindModule(model, "model.layers." + name);
    ASSERT_NE(module, nullptr) << name;
    EXPECT_EQ(module->rank, rank) << name;
    EXPECT_EQ(module->alpha, alpha) << name;
    EXPECT_DOUBLE_EQ(module->scale, alpha / static_cast<double>(rank)) << name;
    EXPECT_EQ(model.Find(LoraKey("model.layers." + name, "A"))->master.size(0), rank) << name;
    EXPECT_EQ(model.Find(LoraKey("model.layers." + name, "B"))->master.size(1), rank) << name;
  };
  expect("0.self_attn.q_proj", 5, 6);
  expect("1.self_attn.q_proj", 3, 6);
  expect("2.self_attn.q_proj", 3, 6);
  expect("0.mlp.up_proj", 3, 8);
  expect("1.mlp.up_proj", 2, 8);
  expect("2.mlp.up_proj", 2, 8);
}

TEST(LoraTuner, ScaleIsAlphaOverRankOrItsRoot) {
  for (const bool rslora : {false, true}) {
    lemo::v1::TunerSpec spec = Spec({"q_proj"});
    spec.mutable_lora()->set_rslora(rslora);
    TunedModel model("gqa", at::kDouble, spec);
    ASSERT_TRUE(model.Attach(1).ok());
    const double scale = rslora ? 6 / std::sqrt(3.0) : 2.0;
    EXPECT_DOUBLE_EQ(Modules(model)[0].scale, scale);
    // And it is what the branch computes.
    testing::MoveOffZero(model.trainables, 2);
    const at::NoGradGuard no_grad;
    const at::Tensor x = at::ones({2, model.config.hidden}, at::kDouble);
    const Projection& q = model.decoder.layers[0].q;
    const at::Tensor& a = model.trainables[0].value;
    const at::Tensor& b = model.trainables[1].value;
    const at::Tensor expected =
        at::matmul(x, q.weight.t()) + scale * at::matmul(at::matmul(x, a.t()), b.t());
    EXPECT_TRUE(at::allclose(q(x, {}, Output::Compute()), expected, 1e-13, 1e-13));
  }
}

TEST(LoraTuner, StartsAsTheBaseModel) {
  TunedModel model("gqa", at::kFloat, Spec({"all-linear"}));
  ASSERT_TRUE(model.Attach(1).ok());
  for (size_t i = 0; i < model.trainables.size(); i += 2) {
    const at::Tensor &a = model.trainables[i].master, &b = model.trainables[i + 1].master;
    EXPECT_TRUE(b.eq(0).all().item<bool>());
    // Uniform in +-1 / sqrt(in).
    const double bound = 1.0 / std::sqrt(static_cast<double>(a.size(1)));
    EXPECT_LE(a.abs().max().item<double>(), bound);
    EXPECT_GT(a.abs().max().item<double>(), 0.8 * bound);
    EXPECT_LT(a.min().item<double>(), 0);
    EXPECT_GT(a.max().item<double>(), 0);
  }
}

// Adding a target or another model beside it changes no other tensor's start.
TEST(LoraTuner, StartDependsOnSeedAndNameOnly) {
  TunedModel all("gqa", at::kFloat, Spec({"all-linear"}));
  TunedModel one("gqa", at::kFloat, Spec({"layers.1.self_attn.q_proj"}));
  TunedModel same("gqa", at::kBFloat16, Spec({"layers.1.self_attn.q_proj"}));
  TunedModel other("gqa", at::kFloat, Spec({"layers.1.self_attn.q_proj"}));
  ASSERT_TRUE(all.Attach(1).ok());
  ASSERT_TRUE(one.Attach(1).ok());
  ASSERT_TRUE(same.Attach(1).ok());
  ASSERT_TRUE(other.Attach(2).ok());
  const at::Tensor& a = one.trainables[0].master;
  EXPECT_TRUE(at::equal(all.Find(one.trainables[0].name)->master, a));
  EXPECT_TRUE(at::equal(same.trainables[0].master, a));
  EXPECT_FALSE(at::equal(other.trainables[0].master, a));
  EXPECT_FALSE(at::equal(
      all.Find("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight")->master, a));
}

TEST(LoraTuner, EverythingElseStaysBitEqual) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const std::string shape : {"gqa", "qwen2", "qwen3"}) {
      TunedModel model(shape, type, Spec({"all-linear"}));
      const auto base = model.CopyWeights();
      ASSERT_TRUE(model.Attach(1).ok());
      std::vector<at::Tensor> start;
      for (const Trainable& trainable : model.trainables) start.push_back(trainable.master.clone());
      model.Train(3, {.weight_decay = 0.5});
      for (size_t i = 0; i < start.size(); ++i) {
        EXPECT_FALSE(at::equal(model.trainables[i].master, start[i])) << model.trainables[i].name;
      }
      model.decoder.VisitParameters(
          [&](const std::string& name, int64_t, Stage, at::Tensor& tensor) {
            EXPECT_TRUE(at::equal(tensor, base.at(name))) << name;
            EXPECT_FALSE(tensor.requires_grad()) << name;
          });
    }
  }
}

class LoraInitFrom : public ::testing::Test {
 protected:
  // Rank 5 in one module, alpha 8 in others.
  static lemo::v1::TunerSpec PatternSpec() {
    lemo::v1::TunerSpec spec = Spec({"q_proj", "down_proj"});
    (*spec.mutable_lora()->mutable_rank_pattern())["layers.1.self_attn.q_proj"] = 5;
    (*spec.mutable_lora()->mutable_alpha_pattern())["down_proj"] = 8;
    return spec;
  }

  // Trains an adapter of PatternSpec and writes it; returns it.
  std::unique_ptr<TunedModel> WriteTrained(const lemo::v1::TunerSpec& spec) {
    auto model = std::make_unique<TunedModel>("gqa", at::kFloat, spec);
    EXPECT_TRUE(model->Attach(1).ok());
    model->Train(2, {});
    const auto& lora = spec.lora();
    LoraExport adapter{.base_model_name_or_path = "base",
                       .rank = lora.rank(),
                       .alpha = lora.alpha(),
                       .rslora = lora.rslora(),
                       .target_modules = {lora.targets().begin(), lora.targets().end()},
                       .rank_pattern = {lora.rank_pattern().begin(), lora.rank_pattern().end()},
                       .alpha_pattern = {lora.alpha_pattern().begin(), lora.alpha_pattern().end()}};
    for (const Trainable& trainable : model->trainables) {
      adapter.tensors[trainable.name] = AsView(trainable.master);
    }
    const absl::Status status =
        WritePeftAdapter(Path(), adapter, {.model_dir = scratch_.path() / "absent"});
    EXPECT_TRUE(status.ok()) << status;
    return model;
  }

  std::string Path() const { return (scratch_.path() / "adapter").string(); }

  // What Attach says to PatternSpec, changed by `change`, that starts from the written adapter.
  std::string Refusal(const std::function<void(lemo::v1::LoraSpec&)>& change,
                      const std::string& shape = "gqa") {
    lemo::v1::TunerSpec spec = PatternSpec();
    spec.mutable_lora()->set_init_from(Path());
    change(*spec.mutable_lora());
    TunedModel model(shape, at::kFloat, spec);
    const absl::Status status = model.Attach(7);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    for (DecoderLayer& layer : model.decoder.layers) {
      for (const Projection* projection : layer.Projections()) EXPECT_FALSE(projection->branch);
    }
    return std::string(status.message());
  }

  const ScratchDir scratch_;
};

TEST_F(LoraInitFrom, GoesOnFromTheAdapter) {
  for (const bool rslora : {false, true}) {
    lemo::v1::TunerSpec spec = PatternSpec();
    spec.mutable_lora()->set_rslora(rslora);
    const std::unique_ptr<TunedModel> trained = WriteTrained(spec);
    spec.mutable_lora()->set_init_from(Path());
    TunedModel model("gqa", at::kFloat, spec);
    const absl::Status status = model.Attach(7);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(model.trainables.size(), trained->trainables.size());
    for (size_t i = 0; i < model.trainables.size(); ++i) {
      EXPECT_EQ(model.trainables[i].name, trained->trainables[i].name);
      EXPECT_TRUE(at::equal(model.trainables[i].master, trained->trainables[i].master));
    }
    // The tensors are the run's own: training does not write to the file's mapping.
    EXPECT_GT(model.Train(1, {}), 0);
  }
}

TEST_F(LoraInitFrom, RefusesAnotherRank) {
  WriteTrained(PatternSpec());
  EXPECT_THAT(Refusal([](auto& lora) { lora.set_rank(4); }),
              AllOf(HasSubstr("tuner.lora.init_from: " + Path()),
                    HasSubstr("model.layers.0.self_attn.q_proj has rank 3, this spec gives 4"),
                    Not(HasSubstr("layers.1.self_attn.q_proj"))));
  EXPECT_THAT(Refusal([](auto& lora) { lora.clear_rank_pattern(); }),
              AllOf(HasSubstr("model.layers.1.self_attn.q_proj has rank 5, this spec gives 3"),
                    Not(HasSubstr("layers.0"))));
}

TEST_F(LoraInitFrom, RefusesAnotherAlpha) {
  WriteTrained(PatternSpec());
  EXPECT_THAT(Refusal([](auto& lora) { lora.clear_alpha_pattern(); }),
              AllOf(HasSubstr("model.layers.2.mlp.down_proj has alpha 8, this spec gives 6"),
                    Not(HasSubstr("q_proj"))));
}

TEST_F(LoraInitFrom, RefusesTheOtherScaling) {
  WriteTrained(PatternSpec());
  EXPECT_THAT(
      Refusal([](auto& lora) { lora.set_rslora(true); }),
      HasSubstr("model.layers.0.self_attn.q_proj is scaled by 2, this spec gives 3.4641: one "
                "of the two uses rsLoRA"));
}

TEST_F(LoraInitFrom, RefusesOtherTargets) {
  WriteTrained(PatternSpec());
  EXPECT_THAT(Refusal([](auto& lora) { lora.add_targets("v_proj"); }),
              HasSubstr("model.layers.0.self_attn.v_proj is a target of this spec, but the adapter "
                        "does not have it"));
  EXPECT_THAT(Refusal([](auto& lora) { lora.mutable_targets()->RemoveLast(); }),
              HasSubstr("model.layers.0.mlp.down_proj is no target of this spec in this model"));
}

TEST_F(LoraInitFrom, RefusesAnotherModelsShapes) {
  WriteTrained(PatternSpec());
  EXPECT_THAT(Refusal([](auto&) {}, "qwen3"),
              HasSubstr("model.layers.0.self_attn.q_proj has A [3, 16] and B [16, 3], this model "
                        "needs [3, 16] and [32, 3]"));
}

TEST_F(LoraInitFrom, NamesTheFieldWhenThereIsNoAdapter) {
  lemo::v1::TunerSpec spec = PatternSpec();
  spec.mutable_lora()->set_init_from(Path());
  TunedModel model("gqa", at::kFloat, spec);
  const absl::Status status = model.Attach(7);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("tuner.lora.init_from"), HasSubstr("adapter_config.json")));
}

}  // namespace
}  // namespace lemo::train
