// Runs that have their frozen weights once between them (model.bases_dir).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/files.h"
#include "tests/e2e/train/model_writer.h"
#include "tests/e2e/train/workspace.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

constexpr const char* kAdapter = "adapter/adapter_model.safetensors";

class Bases : public testing::Test {
 protected:
  Bases() { WriteBfloat16Model(workspace_.path() / "model", json::object()); }

  json Spec(const std::string& out, bool shares) const {
    json spec = Workspace::Spec();
    spec["model"] = {{"path", "model"}, {"compute_type", "float32"}};
    if (shares) spec["model"]["bases_dir"] = "bases";
    spec["output"]["dir"] = out;
    return spec;
  }
  std::string AdapterOf(const std::string& out) const {
    return Sha256Hex(ReadAll(workspace_.path() / out / kAdapter));
  }
  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(workspace_.path() / "bases", ignored)) {
      if (entry.path().extension() == ".shared") files.push_back(entry.path());
    }
    return files;
  }

  const Workspace workspace_;
};

int64_t Peak(const Outcome& run, const std::string& category) {
  return run.Last("result").at("peak_bytes").value(category, json(0)).get<int64_t>();
}

TEST_F(Bases, AreMadeOnceAndChangeNoBit) {
  const Outcome own = workspace_.Run(Spec("own", false));
  ASSERT_EQ(own.exit_code, 0) << own.out << own.err;
  EXPECT_EQ(Peak(own, "base"), 0);
  const Outcome maker = workspace_.Run(Spec("maker", true));
  ASSERT_EQ(maker.exit_code, 0) << maker.out << maker.err;
  ASSERT_EQ(Files().size(), 1u);
  const std::string content = Sha256Hex(ReadAll(Files()[0]));
  const Outcome second = workspace_.Run(Spec("second", true));
  ASSERT_EQ(second.exit_code, 0) << second.out << second.err;
  ASSERT_EQ(Files().size(), 1u);
  EXPECT_EQ(Sha256Hex(ReadAll(Files()[0])), content);
  for (const Outcome* run : {&maker, &second}) {
    EXPECT_EQ(run->Losses(), own.Losses());
    // What is counted is the same, and all weights are the base.
    EXPECT_EQ(Peak(*run, "total"), Peak(own, "total"));
    EXPECT_EQ(Peak(*run, "base"), Peak(own, "weights"));
  }
  EXPECT_EQ(AdapterOf("maker"), AdapterOf("own"));
  EXPECT_EQ(AdapterOf("second"), AdapterOf("own"));
}

TEST_F(Bases, RunsThatBeginTogetherMakeOne) {
  const Outcome own = workspace_.Run(Spec("own", false));
  std::vector<std::unique_ptr<Process>> runs;
  for (int i = 0; i < 3; ++i) {
    const std::string out = "run" + std::to_string(i);
    const json spec = Spec(out, true);
    workspace_.Write(out + ".json", spec.dump());
    runs.push_back(std::make_unique<Process>(
        Workspace::Program(),
        std::vector<std::string>{out + ".json", "--events", "json", "--device", "cpu"},
        ProcessOptions{workspace_.path(), {}, {}}));
  }
  for (int i = 0; i < 3; ++i) {
    while (runs[i]->NextLine(Process::Clock::now() + std::chrono::minutes(2))) {
    }
    EXPECT_EQ(runs[i]->Wait(), 0) << runs[i]->Errors();
    EXPECT_EQ(AdapterOf("run" + std::to_string(i)), AdapterOf("own"));
  }
  EXPECT_EQ(Files().size(), 1u);
}

// Another model of the same layout, in the same place: its weights are not taken for the first's.
TEST_F(Bases, TellModelsApartByWhatIsInThem) {
  ASSERT_EQ(workspace_.Run(Spec("first", true)).exit_code, 0);
  std::string bytes = ReadAll(workspace_.path() / "model/model.safetensors");
  bytes[bytes.size() - 1] = static_cast<char>(bytes[bytes.size() - 1] ^ 1);
  workspace_.Write("model/model.safetensors", bytes);
  const Outcome own = workspace_.Run(Spec("own", false));
  const Outcome shared = workspace_.Run(Spec("shared", true));
  EXPECT_EQ(Files().size(), 2u);
  EXPECT_EQ(shared.Losses(), own.Losses());
  EXPECT_EQ(AdapterOf("shared"), AdapterOf("own"));
}

// The run goes on as the same run whether it shares or not.
TEST_F(Bases, AreNoPartOfWhatARunIs) {
  json spec = Spec("out", false);
  spec["checkpoint"] = {{"every_steps", 2}};
  spec["train"]["schedule"] = "constant";
  ASSERT_EQ(workspace_.Run(spec).exit_code, 0);
  fs::remove_all(workspace_.path() / "out/adapter");
  spec["model"]["bases_dir"] = "bases";
  const Outcome again = workspace_.Run(spec, {"--resume", "auto"});
  EXPECT_EQ(again.exit_code, 0) << again.out << again.err;
}

TEST_F(Bases, AreNotForWeightsThatTrainNorThoseThatCanBeMappedAsTheyLie) {
  json spec = Spec("full", true);
  spec["tuner"] = {{"full", json::object()}};
  EXPECT_EQ(workspace_.Run(spec).exit_code, 0);
  spec = Spec("mapped", true);
  spec["model"]["path"] = Workspace::Model().string();
  const Outcome mapped = workspace_.Run(spec);
  EXPECT_EQ(mapped.exit_code, 0);
  EXPECT_EQ(Peak(mapped, "base"), Peak(mapped, "weights"));
  EXPECT_TRUE(Files().empty());
}

TEST_F(Bases, ADirectoryThatCannotBeIsNamed) {
  workspace_.Write("bases", "a file");
  const Outcome run = workspace_.Run(Spec("out", true));
  EXPECT_NE(run.exit_code, 0);
  EXPECT_THAT(run.Last("error").at("message").get<std::string>(), HasSubstr("model.bases_dir: "));
}

}  // namespace
}  // namespace lemo::train
