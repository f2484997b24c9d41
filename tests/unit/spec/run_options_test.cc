#include "worker/train/spec/run_options.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/spec/faults.h"

namespace lemo::train {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

CommandLine Parse(const std::vector<std::string>& args) {
  return ParseCommandLine(args, "lemo-train 1.2.3");
}

// What a run is belongs into its spec: think twice before adding to this list.
TEST(CommandLine, TheFlagsAreFrozen) {
  EXPECT_THAT(CommandLineFlags(),
              ElementsAre("--device", "--eval-only", "--events", "--help", "--json", "--memory",
                          "--plan", "--plan-options", "--preview-data", "--print-spec", "--resume",
                          "--set", "--spec", "--validate", "--version"));
  EXPECT_THAT(CalibrateFlags(), ElementsAre("--compute-type", "--device", "--help", "--json",
                                            "--rates", "--seconds"));
}

TEST(CommandLine, CalibrateHasNoSpec) {
  const CommandLine plain = Parse({"calibrate"});
  ASSERT_FALSE(plain.exit) << plain.text;
  EXPECT_EQ(plain.options.mode, RunOptions::Mode::kCalibrate);
  EXPECT_EQ(plain.options.calibrate_seconds, 30);
  EXPECT_EQ(plain.options.rates_file, "");
  const CommandLine line = Parse({"calibrate", "--rates", "r.json", "--seconds", "0.5", "--device",
                                  "cpu", "--compute-type", "float32", "--json"});
  ASSERT_FALSE(line.exit) << line.text;
  EXPECT_EQ(line.options.rates_file, "r.json");
  EXPECT_EQ(line.options.calibrate_seconds, 0.5);
  EXPECT_EQ(line.options.device, "cpu");
  EXPECT_EQ(line.options.compute_type, "float32");
  EXPECT_TRUE(line.options.json);
  // A spec of that name is a spec.
  EXPECT_EQ(Parse({"--spec", "calibrate"}).options.spec_file, "calibrate");
  const CommandLine help = Parse({"calibrate", "--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const std::string& flag : CalibrateFlags()) EXPECT_THAT(help.text, HasSubstr(flag));
}

TEST(CommandLine, EveryFlag) {
  const CommandLine line =
      Parse({"--set", "a.b=c", "run.json", "--set=data.train=[{\"path\":\"x\"}]", "--resume",
             "auto", "--device", "cuda:1", "--events", "fd:3"});
  ASSERT_FALSE(line.exit) << line.text;
  EXPECT_EQ(line.options.spec_file, "run.json");
  EXPECT_THAT(line.options.overrides, ElementsAre("a.b=c", "data.train=[{\"path\":\"x\"}]"));
  EXPECT_EQ(line.options.resume, "auto");
  EXPECT_EQ(line.options.device, "cuda:1");
  EXPECT_EQ(line.options.events, "fd:3");
  EXPECT_EQ(line.options.mode, RunOptions::Mode::kTrain);
}

TEST(CommandLine, Modes) {
  using Mode = RunOptions::Mode;
  EXPECT_EQ(Parse({"--spec", "r"}).options.mode, Mode::kTrain);
  EXPECT_EQ(Parse({"--spec", "r"}).options.spec_file, "r");
  EXPECT_EQ(Parse({"--spec", "r"}).options.events, "pretty");
  EXPECT_EQ(Parse({"r", "--validate"}).options.mode, Mode::kValidate);
  EXPECT_EQ(Parse({"r", "--print-spec"}).options.mode, Mode::kPrintSpec);
  EXPECT_EQ(Parse({"r", "--eval-only"}).options.mode, Mode::kEvalOnly);
  EXPECT_EQ(Parse({"r", "--plan"}).options.mode, Mode::kPlan);
  EXPECT_EQ(Parse({"r", "--plan"}).options.plan_memory_bytes, 0);
  EXPECT_EQ(Parse({"r", "--plan", "--memory", "900MiB"}).options.plan_memory_bytes,
            int64_t{900} << 20);
  EXPECT_FALSE(Parse({"r", "--plan"}).options.json);
  EXPECT_TRUE(Parse({"r", "--plan", "--json"}).options.json);
  EXPECT_EQ(Parse({"r", "--plan", "--plan-options", "p"}).options.plan_options, "p");
  const CommandLine preview = Parse({"--preview-data", "3", "r"});
  EXPECT_EQ(preview.options.mode, Mode::kPreviewData);
  EXPECT_EQ(preview.options.preview_rows, 3);
}

TEST(CommandLine, MistakesLeaveWithTwoAndSayWhatToDo) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "no run spec"},
      {{"r", "--pritn-spec"}, "unknown option --pritn-spec; did you mean --print-spec?"},
      {{"r", "--sett=a=b"}, "unknown option --sett; did you mean --set?"},
      {{"r", "--zzzzzzzzzzz"}, "unknown option --zzzzzzzzzzz\n"},
      {{"a", "b"}, "unexpected argument \"b\""},
      {{"a", "--spec", "b"}, "two run specs"},
      {{"r", "--validate", "--eval-only"}, "--eval-only"},
      {{"r", "--memory", "1GiB"}, "--memory is for --plan"},
      {{"r", "--json"}, "--json and --plan-options are for --plan"},
      {{"r", "--plan", "--memory", "0"}, "--memory"},
      {{"r", "--plan", "--memory", "much"}, "--memory"},
      {{"r", "--preview-data", "0"}, "--preview-data"},
      {{"r", "--preview-data", "x"}, "--preview-data"},
      {{"r", "--set"}, "--set"},
      {{"calibrate", "--secnds", "1"}, "unknown option --secnds; did you mean --seconds?"},
      {{"calibrate", "run.json"}, "unexpected argument \"run.json\""},
      {{"calibrate", "--seconds", "-1"}, "--seconds"},
      {{"run.json", "calibrate"}, "is for runs, not for calibrate"},
  };
  for (const auto& [args, expected] : cases) {
    const CommandLine line = Parse(args);
    EXPECT_TRUE(line.exit) << expected;
    EXPECT_EQ(line.exit_code, 2) << expected;
    EXPECT_THAT(line.text, AllOf(HasSubstr(expected), HasSubstr("--help"))) << expected;
  }
}

TEST(CommandLine, HelpAndVersion) {
  const CommandLine help = Parse({"--help"});
  EXPECT_TRUE(help.exit);
  EXPECT_EQ(help.exit_code, 0);
  for (const std::string& flag : CommandLineFlags()) EXPECT_THAT(help.text, HasSubstr(flag));
  EXPECT_THAT(help.text, AllOf(HasSubstr("run.json"), HasSubstr("Exit codes"),
                               HasSubstr("lemo-train run.json --resume auto")));
  const CommandLine version = Parse({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_EQ(version.text, "lemo-train 1.2.3\n");
}

class LoadRunSpecTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& text) {
    const std::string path = ::testing::TempDir() + "spec-" + std::to_string(getpid()) + ".json";
    std::ofstream(path) << text;
    return path;
  }

  std::vector<std::string> Load(const std::string& file, std::vector<std::string> overrides = {},
                                const std::string& device = "") {
    RunOptions options;
    options.spec_file = file;
    options.overrides = std::move(overrides);
    options.device = device;
    Violations violations;
    spec_ = LoadRunSpec(options, &violations);
    return Texts(violations);
  }

  lemo::v1::RunSpec spec_;
};

TEST_F(LoadRunSpecTest, OverridesThenDeviceThenDefaults) {
  const std::string file = Write(R"({"model": {"path": "m"}, "data": {"train": [{"path": "a"}]},
                                     "tuner": {"full": {}}, "output": {"dir": "o"}})");
  EXPECT_THAT(Load(file, {"output.dir=p", "device=cuda"}, "cpu"), IsEmpty());
  EXPECT_EQ(spec_.device(), "cpu");
  EXPECT_EQ(spec_.data().cache_dir(), "p/cache");
}

TEST_F(LoadRunSpecTest, FaultsOfReadingAndOfValidationTogether) {
  const std::string file = Write(R"({"model": {"path": 3}, "data": {"train": [{"path": "a"}]},
                                     "tuner": {"lora": {"rank": -1}}, "output": {"dir": "o"}})");
  EXPECT_THAT(Load(file, {"train.stesp=3"}),
              ElementsAre(HasSubstr("model.path: "), HasSubstr("train.stesp: --set"),
                          HasSubstr("tuner.lora.rank: must be at least 1")));
}

TEST_F(LoadRunSpecTest, FilesThatCannotBeRead) {
  EXPECT_THAT(Load("/nonexistent/run.json"), ElementsAre(HasSubstr("/nonexistent/run.json")));
  EXPECT_THAT(Load(::testing::TempDir()).size(), 1u);
  EXPECT_THAT(Load(Write("")), ElementsAre(HasSubstr("not valid JSON")));
  EXPECT_THAT(Load(Write(std::string(2 << 20, ' '))), ElementsAre(HasSubstr("limit")));
}

}  // namespace
}  // namespace lemo::train
