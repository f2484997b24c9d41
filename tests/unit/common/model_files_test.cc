#include "common/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "common/files.h"

namespace lemo {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

class ModelFiles : public testing::Test {
 protected:
  ModelFiles() {
    std::string name = testing::TempDir() + "/modelXXXXXX";
    root_ = ::mkdtemp(name.data());
  }
  ~ModelFiles() override { fs::remove_all(root_); }
  void Write(const fs::path& path, const std::string& text = "x") const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }

  fs::path root_;
};

TEST_F(ModelFiles, ListsWhatARunReadsOrPassesOn) {
  for (const char* path :
       {"m/model-00002-of-00002.safetensors", "m/model-00001-of-00002.safetensors",
        "m/model.safetensors.index.json", "m/config.json", "m/tokenizer.json",
        "m/tokenizer_config.json", "m/special_tokens_map.json", "m/generation_config.json",
        "m/chat_template.jinja", "m/additional_chat_templates/tools.jinja",
        "m/additional_chat_templates/notes.txt", "m/README.md", "m/pytorch_model.bin",
        "m/onnx/model.safetensors", "m/.gitattributes"}) {
    Write(path);
  }
  EXPECT_THAT(
      *ListModelFiles(root_ / "m"),
      ElementsAre("additional_chat_templates/tools.jinja", "chat_template.jinja", "config.json",
                  "generation_config.json", "model-00001-of-00002.safetensors",
                  "model-00002-of-00002.safetensors", "model.safetensors.index.json",
                  "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"));
}

TEST_F(ModelFiles, FollowsLinksToFilesOnly) {
  Write("blobs/1");
  Write("m/config.json");
  fs::create_symlink("../blobs/1", root_ / "m" / "model.safetensors");
  fs::create_directory_symlink("../blobs", root_ / "m" / "folder.safetensors");
  fs::create_symlink("../none", root_ / "m" / "dangling.safetensors");
  EXPECT_THAT(*ListModelFiles(root_ / "m"), ElementsAre("config.json", "model.safetensors"));
}

TEST_F(ModelFiles, AMissingDirectoryIsNotFound) {
  EXPECT_EQ(ListModelFiles(root_ / "none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ModelFiles, AHashIsTheSameInPiecesAndEndsWhenToldTo) {
  const std::string bytes(5 << 20, 'b');
  Write("big", bytes);
  EXPECT_EQ(*Sha256HexOfFile(root_ / "big", [] { return true; }), Sha256Hex(bytes));
  int asked = 0;
  const auto stopped = Sha256HexOfFile(root_ / "big", [&asked] { return ++asked < 3; });
  EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(asked, 3);
}

TEST(WeightsDigest, IsOfWhatDecidesTheWeights) {
  using Files = std::vector<std::pair<std::string, std::string>>;
  const Files files = {{"config.json", "1"}, {"model.safetensors", "2"}, {"tokenizer.json", "3"}};
  const std::string digest = WeightsDigest(files);
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(WeightsDigest({files[1], files[0]}), digest);
  EXPECT_NE(WeightsDigest({{"config.json", "1"}, {"model.safetensors", "4"}}), digest);
  EXPECT_NE(WeightsDigest({{"config.json", "4"}, {"model.safetensors", "2"}}), digest);
  EXPECT_NE(WeightsDigest({{"config.json", "1"}, {"model-2.safetensors", "2"}}), digest);
  EXPECT_NE(WeightsDigest({{"config.json", "1"},
                           {"model.safetensors", "2"},
                           {"model.safetensors.index.json", "5"}}),
            digest);
  EXPECT_EQ(WeightsDigest({}), "");
  EXPECT_EQ(WeightsDigest({{"config.json", "1"}}), "");
  EXPECT_EQ(WeightsDigest({{"config.json", "1"}, {"model.safetensors", ""}}), "");
}

TEST(WeightsDigest, OfADirectoryIsThatOfItsFiles) {
  const std::filesystem::path model = LEMO_SOURCE_DIR "/tests/fixtures/stories260k";
  std::vector<std::pair<std::string, std::string>> files;
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    files.emplace_back(name, Sha256HexOfFile(model / name).value());
  }
  EXPECT_EQ(WeightsDigestOf(model).value(), WeightsDigest(files));
  EXPECT_FALSE(WeightsDigestOf(model / "none").ok());
}

}  // namespace
}  // namespace lemo
