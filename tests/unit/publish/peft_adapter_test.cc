#include "worker/train/publish/peft_adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>

#include "tests/unit/publish/sample.h"
#include "worker/train/publish/json_file.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kQ0 = "model.layers.0.self_attn.q_proj";
constexpr const char* kQ1 = "model.layers.1.self_attn.q_proj";

class PeftAdapterTest : public testing::Test {
 protected:
  PeftAdapterTest() {
    AddModule(kQ0, 2);
    AddModule(kQ1, 3);
    adapter_ = {.base_model_name_or_path = "models/base",
                .rank = 2,
                .alpha = 16,
                .dropout = 0.5,
                .target_modules = {"q_proj"},
                .rank_pattern = {{"layers.1.self_attn.q_proj", 3}},
                .alpha_pattern = {{"layers.1.self_attn.q_proj", 4.5}},
                .tensors = tensors_.views};
  }

  void AddModule(const std::string& module, int64_t rank) {
    tensors_.Add(LoraKey(module, "A"), {rank, 4});
    tensors_.Add(LoraKey(module, "B"), {6, rank});
  }
  absl::Status Write() { return WritePeftAdapter(out_, adapter_, SampleExtras(base_)); }
  void MustWrite() {
    const absl::Status status = Write();
    ASSERT_TRUE(status.ok()) << status;
  }
  // Changes one member of the written config.
  void Patch(const char* key, const OrderedJson& value) {
    OrderedJson config = *ReadJsonObject(out_ / "adapter_config.json");
    config[key] = value;
    ASSERT_TRUE(WriteJson(out_ / "adapter_config.json", config).ok());
  }
  std::string ReadFault() {
    const auto read = ReadPeftAdapter(out_);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << read.status();
    return std::string(read.status().message());
  }

  const ScratchDir scratch_;
  const fs::path base_ = WriteBaseModel(scratch_.path() / "base");
  const fs::path out_ = scratch_.path() / "run" / "adapter";
  SampleTensors tensors_;
  LoraExport adapter_;
};

TEST_F(PeftAdapterTest, KeysAreThoseOfPeft) {
  EXPECT_EQ(LoraKey(kQ0, "A"), "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
}

TEST_F(PeftAdapterTest, TheConfigHasEveryMemberThatReadersLookFor) {
  MustWrite();
  const OrderedJson config = *ReadJsonObject(out_ / "adapter_config.json");
  EXPECT_EQ(config, OrderedJson::parse(R"({
    "alpha_pattern": {"layers.1.self_attn.q_proj": 4.5}, "auto_mapping": null,
    "base_model_name_or_path": "models/base", "bias": "none", "exclude_modules": null,
    "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
    "layers_pattern": null, "layers_to_transform": null, "lora_alpha": 16, "lora_bias": false,
    "lora_dropout": 0.5, "modules_to_save": null, "peft_type": "LORA", "peft_version": "0.18.0",
    "r": 2, "rank_pattern": {"layers.1.self_attn.q_proj": 3}, "revision": null,
    "target_modules": ["q_proj"], "target_parameters": null, "task_type": "CAUSAL_LM",
    "use_dora": false, "use_rslora": false})"));
  EXPECT_THAT(ReadText(out_ / "adapter_config.json"), HasSubstr("\"lora_alpha\": 16,"));
}

TEST_F(PeftAdapterTest, TheDirectoryIsCompleteAndNothingIsLeftBeside) {
  MustWrite();
  EXPECT_THAT(Names(out_),
              ElementsAre("README.md", "adapter_config.json", "adapter_model.safetensors",
                          "chat_template.jinja", "generation_config.json", "lemo_run.json",
                          "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"));
  EXPECT_THAT(Names(out_.parent_path()), ElementsAre("adapter"));
  const auto file = SafetensorsFile::Open(out_ / "adapter_model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->metadata(), ElementsAre(testing::Pair("format", "pt")));
}

TEST_F(PeftAdapterTest, ReadsWhatItWrote) {
  MustWrite();
  const auto read = ReadPeftAdapter(out_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->base_model_name_or_path, "models/base");
  EXPECT_EQ(read->rank, 2);
  EXPECT_EQ(read->alpha, 16);
  EXPECT_EQ(read->dropout, 0.5);
  EXPECT_FALSE(read->rslora);
  EXPECT_THAT(read->target_modules, ElementsAre("q_proj"));
  ASSERT_EQ(read->tensors.size(), 4u);
  for (const auto& [key, tensor] : tensors_.views) {
    EXPECT_EQ(read->tensors.at(key).bytes, tensor.bytes) << key;
    EXPECT_EQ(read->tensors.at(key).shape, tensor.shape) << key;
  }
  ASSERT_EQ(read->modules.size(), 2u);
  EXPECT_EQ(read->modules.at(kQ0).scale, 8);
  EXPECT_EQ(read->modules.at(kQ1).rank, 3);
  EXPECT_EQ(read->modules.at(kQ1).alpha, 4.5);
  EXPECT_EQ(read->modules.at(kQ1).scale, 1.5);
}

TEST_F(PeftAdapterTest, RsloraScalesByTheRootOfTheModulesRank) {
  adapter_.rslora = true;
  MustWrite();
  const auto read = ReadPeftAdapter(out_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->modules.at(kQ0).scale, 16 / std::sqrt(2.0));
  EXPECT_EQ(read->modules.at(kQ1).scale, 4.5 / std::sqrt(3.0));
}

TEST_F(PeftAdapterTest, AllLinearBecomesTheNamesThatHaveTensors) {
  AddModule("model.layers.0.mlp.up_proj", 2);
  adapter_.tensors = tensors_.views;
  adapter_.target_modules = {"all-linear"};
  MustWrite();
  EXPECT_THAT(ReadPeftAdapter(out_)->target_modules, ElementsAre("q_proj", "up_proj"));
}

TEST_F(PeftAdapterTest, AnEarlierAdapterIsReplacedAsAWhole) {
  MustWrite();
  WriteText(out_ / "stale.txt", "of the earlier run");
  adapter_.alpha = 32;
  MustWrite();
  EXPECT_FALSE(fs::exists(out_ / "stale.txt"));
  EXPECT_EQ(ReadPeftAdapter(out_)->alpha, 32);
}

TEST_F(PeftAdapterTest, NothingIsWrittenWhenTensorsAndConfigDoNotFit) {
  AddModule("model.layers.0.mlp.up_proj", 5);
  tensors_.Add("lm_head.weight", {2, 2});
  adapter_.tensors = tensors_.views;
  adapter_.tensors.erase(LoraKey(kQ0, "B"));
  const absl::Status status = Write();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("lm_head.weight"), HasSubstr("q_proj.lora_B.weight"),
                    HasSubstr("the config gives it rank 2")));
  adapter_.tensors = {{LoraKey(kQ0, "A"), tensors_.views.at(LoraKey(kQ0, "A"))},
                      {LoraKey(kQ0, "B"), tensors_.views.at(LoraKey(kQ0, "B"))}};
  adapter_.target_modules = {"v_proj"};
  EXPECT_THAT(std::string(Write().message()), HasSubstr("not among the target modules v_proj"));
  adapter_.tensors.clear();
  EXPECT_THAT(std::string(Write().message()), HasSubstr("empty"));
  EXPECT_FALSE(fs::exists(out_.parent_path()));
}

TEST_F(PeftAdapterTest, ADiskThatFillsLeavesTheEarlierAdapter) {
  MustWrite();
  adapter_.alpha = 32;
  absl::Status status;
  const auto former_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit former;
  getrlimit(RLIMIT_FSIZE, &former);
  for (const rlim_t bytes : {0, 100, 700}) {
    rlimit limit = former;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
    status = Write();
    setrlimit(RLIMIT_FSIZE, &former);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(out_.parent_path().string()));
    EXPECT_THAT(Names(out_.parent_path()), ElementsAre("adapter"));
    EXPECT_EQ(ReadPeftAdapter(out_)->alpha, 16);
  }
  std::signal(SIGXFSZ, former_handler);
}

TEST_F(PeftAdapterTest, OptionsThatChangeTheMeaningAreRefusedAllAtOnce) {
  MustWrite();
  Patch("use_dora", true);
  Patch("modules_to_save", {"lm_head"});
  Patch("bias", "all");
  Patch("init_lora_weights", "pissa");
  Patch("a_new_option", 3);
  Patch("another_new_option", nullptr);
  const std::string fault = ReadFault();
  EXPECT_THAT(fault, AllOf(HasSubstr("DoRA"), HasSubstr("modules_to_save"), HasSubstr("biases"),
                           HasSubstr("base weights"), HasSubstr("a_new_option")));
  EXPECT_THAT(fault, testing::Not(HasSubstr("another_new_option")));
}

TEST_F(PeftAdapterTest, OtherTypesAreRefusedByName) {
  MustWrite();
  Patch("peft_type", "IA3");
  EXPECT_THAT(ReadFault(), AllOf(HasSubstr("IA3"), HasSubstr("adapter_config.json")));
}

TEST_F(PeftAdapterTest, MembersOfAnotherTypeAreNamed) {
  MustWrite();
  Patch("r", "two");
  Patch("lora_alpha", OrderedJson::array());
  Patch("rank_pattern", {{"q_proj", 2.5}, {"v_proj", nullptr}});
  Patch("target_modules", 7);
  EXPECT_THAT(ReadFault(),
              AllOf(HasSubstr("r: "), HasSubstr("lora_alpha"), HasSubstr("rank_pattern.q_proj"),
                    HasSubstr("rank_pattern.v_proj"), HasSubstr("target_modules")));
  for (const OrderedJson& rank : {OrderedJson(0), OrderedJson(-1), OrderedJson(1e300)}) {
    Patch("r", rank);
    ReadFault();
  }
}

TEST_F(PeftAdapterTest, ARankThatTheConfigDoesNotGiveIsRefused) {
  MustWrite();
  Patch("rank_pattern", OrderedJson::object());
  EXPECT_THAT(ReadFault(),
              AllOf(HasSubstr(kQ1), HasSubstr("A is [3, 4] and B is [6, 3]"), HasSubstr("rank 2")));
}

TEST_F(PeftAdapterTest, UnexpectedKeysAreListed) {
  MustWrite();
  auto tensors = tensors_.views;
  const TensorView any = tensors.begin()->second;
  tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = any;
  tensors["base_model.model.lm_head.weight"] = any;
  tensors[std::string("base_model.model.") + kQ0 + ".lora_magnitude_vector"] = any;
  ASSERT_TRUE(WriteSafetensors(out_ / "adapter_model.safetensors", tensors, {}).ok());
  EXPECT_THAT(ReadFault(), AllOf(HasSubstr("embedding"), HasSubstr("lm_head.weight"),
                                 HasSubstr("DoRA"), HasSubstr("adapter_model.safetensors")));
}

TEST_F(PeftAdapterTest, MissingFilesAndPicklesAreNamed) {
  EXPECT_EQ(ReadPeftAdapter(out_).status().code(), absl::StatusCode::kNotFound);
  MustWrite();
  fs::rename(out_ / "adapter_model.safetensors", out_ / "adapter_model.bin");
  EXPECT_THAT(ReadFault(), HasSubstr("pickle"));
}

TEST_F(PeftAdapterTest, ATornConfigIsAnError) {
  MustWrite();
  const std::string whole = ReadText(out_ / "adapter_config.json");
  for (size_t size = 0; size + 2 < whole.size(); size += 7) {
    WriteText(out_ / "adapter_config.json", whole.substr(0, size));
    ReadFault();
  }
}

}  // namespace
}  // namespace lemo::train
