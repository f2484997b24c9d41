// When the CPU is measured, and what is known of it.
#include "worker/agent/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/unit/agent/scratch.h"
#include "worker/agent/devices.h"

namespace lemo::agent {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

class CalibrationTest : public testing::Test {
 protected:
  CalibrationTest() { ::setenv("LEMO_RATES", Path("rates.json").c_str(), /*overwrite=*/1); }
  ~CalibrationTest() override { ::setenv("LEMO_RATES", "", /*overwrite=*/1); }

  std::string Path(const std::string& name) const { return (scratch_.path() / name).string(); }

  // Whose lemo-train is the script.
  AgentOptions Options(const std::string& script) const {
    scratch_.Write("train", "#!/bin/sh\necho \"$*\" >>" + Path("asked") + "\n" + script);
    std::filesystem::permissions(Path("train"), std::filesystem::perms::owner_all);
    AgentOptions options;
    options.version = "7";
    options.train = Path("train");
    return options;
  }
  // Measures as version 7 would.
  std::string Measures() const {
    return "cat >" + Path("rates.json") +
           " <<END\n{\"rates\": [{\"type\": \"cpu\", \"compute_type\": \"float32\", \"threads\": " +
           std::to_string(ThreadsOfCpu(1)) +
           ", \"products\": 1.0, \"calibration\": {\"version\": \"7\"}}]}\nEND\n";
  }
  std::string Asked() const { return scratch_.Read("asked"); }

  const Scratch scratch_;
};

TEST_F(CalibrationTest, IsMadeOnce) {
  const AgentOptions options = Options(Measures());
  EXPECT_THAT(KnownRates().rates(), IsEmpty());
  for (int i = 0; i < 2; ++i) {
    const absl::Status done = CalibrateOnce(options);
    ASSERT_TRUE(done.ok()) << done;
    EXPECT_EQ(Asked(), "calibrate --device=cpu\n");
  }
  ASSERT_THAT(KnownRates().rates(), SizeIs(1));
  EXPECT_EQ(KnownRates().rates(0).products(), 1);
}

TEST_F(CalibrationTest, IsMadeAgainByAnotherVersionAndForOtherThreads) {
  AgentOptions options = Options(Measures());
  ASSERT_TRUE(CalibrateOnce(options).ok());
  options.version = "8";
  ASSERT_TRUE(CalibrateOnce(options).ok());
  EXPECT_EQ(Asked(), "calibrate --device=cpu\ncalibrate --device=cpu\n");
  options.cpu_devices = 0;  // there is nothing to measure
  ASSERT_TRUE(CalibrateOnce(options).ok());
  EXPECT_EQ(Asked(), "calibrate --device=cpu\ncalibrate --device=cpu\n");
}

TEST_F(CalibrationTest, SaysThatItFailed) {
  EXPECT_EQ(CalibrateOnce(Options("exit 3\n")).code(), absl::StatusCode::kInternal);
  AgentOptions options = Options("");
  options.train = Path("missing");
  EXPECT_EQ(CalibrateOnce(options).code(), absl::StatusCode::kNotFound);
}

// A damaged file is none, and no reason to stay away.
TEST_F(CalibrationTest, PassesOverAFileThatIsSomethingElse) {
  scratch_.Write("rates.json", "{\"rates\": 7}");
  EXPECT_THAT(KnownRates().rates(), IsEmpty());
}

}  // namespace
}  // namespace lemo::agent
