#include "worker/train/publish/full_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/publish/sample.h"
#include "worker/train/publish/json_file.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class FullModelTest : public testing::Test {
 protected:
  FullModelTest() {
    tensors_.Add("model.embed_tokens.weight", {8, 4});
    for (const char* name : {"a", "b", "c"}) tensors_.Add(std::string("model.") + name, {4, 4});
    model_ = {
        .base_model_name_or_path = "models/base", .tensors = tensors_.views, .dtype = "float32"};
  }
  absl::Status Write() { return WriteModelDirectory(out_, base_, model_, SampleExtras(base_)); }
  void MustWrite() {
    const absl::Status status = Write();
    ASSERT_TRUE(status.ok()) << status;
  }
  OrderedJson Json(const char* name) { return *ReadJsonObject(out_ / name); }

  const ScratchDir scratch_;
  const fs::path base_ = WriteBaseModel(scratch_.path() / "base");
  const fs::path out_ = scratch_.path() / "run" / "merged";
  SampleTensors tensors_;
  FullModelExport model_;
};

TEST_F(FullModelTest, ASmallModelIsOneFile) {
  MustWrite();
  const auto file = SafetensorsFile::Open(out_ / "model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->tensors().at("model.b").bytes, tensors_.views.at("model.b").bytes);
  EXPECT_FALSE(fs::exists(out_ / "model.safetensors.index.json"));
  EXPECT_TRUE(fs::exists(out_ / "tokenizer.json"));
  EXPECT_THAT(ReadText(out_ / "README.md"), HasSubstr("AutoModelForCausalLM"));
}

TEST_F(FullModelTest, ALargeOneIsSplitAndIndexed) {
  model_.shard_bytes_max = 130;  // the embedding (128 bytes) alone, then two of 64 bytes
  MustWrite();
  const OrderedJson index = Json("model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 128 + 3 * 64);
  EXPECT_EQ(index["weight_map"].size(), 4u);
  std::map<std::string, int> files;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const auto shard = SafetensorsFile::Open(out_ / file.get<std::string>());
    ASSERT_TRUE(shard.ok()) << shard.status();
    ASSERT_TRUE(shard->tensors().contains(name));
    EXPECT_EQ(shard->tensors().at(name).bytes, tensors_.views.at(name).bytes);
    ++files[file.get<std::string>()];
  }
  EXPECT_EQ(files, (std::map<std::string, int>{{"model-00001-of-00003.safetensors", 2},
                                               {"model-00002-of-00003.safetensors", 1},
                                               {"model-00003-of-00003.safetensors", 1}}));
  EXPECT_FALSE(fs::exists(out_ / "model.safetensors"));
}

TEST_F(FullModelTest, ATensorLargerThanAShardHasOneOfItsOwn) {
  model_.shard_bytes_max = 1;
  MustWrite();
  EXPECT_TRUE(fs::exists(out_ / "model-00004-of-00004.safetensors"));
}

TEST_F(FullModelTest, TheDtypeIsBroughtUpToDateInTheSpellingsThatAreThere) {
  MustWrite();
  EXPECT_EQ(
      Json("config.json"),
      OrderedJson::parse(R"({"model_type": "llama", "torch_dtype": "float32", "hidden_size": 4})"));
  WriteText(base_ / "config.json", R"({"torch_dtype": "float16", "dtype": "float16"})");
  MustWrite();
  EXPECT_EQ(Json("config.json"),
            OrderedJson::parse(R"({"torch_dtype": "float32", "dtype": "float32"})"));
  WriteText(base_ / "config.json", R"({"hidden_size": 4})");
  MustWrite();
  EXPECT_EQ(Json("config.json")["torch_dtype"], "float32");
  const std::string same = "{\"dtype\":   \"float32\"}";
  WriteText(base_ / "config.json", same);
  MustWrite();
  EXPECT_EQ(ReadText(out_ / "config.json"), same);
}

TEST_F(FullModelTest, TiedTensorsAreWrittenOnce) {
  model_.tensors["lm_head.weight"] = model_.tensors["model.embed_tokens.weight"];
  model_.tied_embeddings = true;
  MustWrite();
  EXPECT_FALSE(
      SafetensorsFile::Open(out_ / "model.safetensors")->tensors().contains("lm_head.weight"));
  model_.tied_embeddings = false;
  MustWrite();
  EXPECT_TRUE(
      SafetensorsFile::Open(out_ / "model.safetensors")->tensors().contains("lm_head.weight"));
}

TEST_F(FullModelTest, TiedTensorsThatDifferAreRefused) {
  tensors_.Add("lm_head.weight", {8, 4});
  model_.tensors = tensors_.views;
  model_.tied_embeddings = true;
  EXPECT_THAT(std::string(Write().message()), HasSubstr("the two differ"));
  model_.tensors.erase("model.embed_tokens.weight");
  EXPECT_THAT(std::string(Write().message()), HasSubstr("not there"));
}

TEST_F(FullModelTest, AFailureLeavesTheEarlierModel) {
  MustWrite();
  const std::string card = ReadText(out_ / "README.md");
  fs::remove(base_ / "config.json");
  EXPECT_EQ(Write().code(), absl::StatusCode::kNotFound);
  WriteText(base_ / "config.json", "{");
  EXPECT_EQ(Write().code(), absl::StatusCode::kInvalidArgument);
  model_.tensors.clear();
  EXPECT_EQ(Write().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadText(out_ / "README.md"), card);
  EXPECT_THAT(Names(out_.parent_path()), testing::ElementsAre("merged"));
}

}  // namespace
}  // namespace lemo::train
