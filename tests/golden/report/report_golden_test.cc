#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/sample_run.h"

namespace lemo::train {
namespace {

TEST(ReportGolden, Report) {
  // Changing the meaning of a field takes a new number here.
  EXPECT_EQ(lemo::testing::SampleReport().ToJson()["schema"], 1);
  lemo::testing::ExpectGolden("tests/golden/report/report.json",
                              lemo::testing::SampleReport().ToJson().dump(1) + "\n");
}

TEST(ReportGolden, TrainerState) {
  lemo::testing::ExpectGolden("tests/golden/report/trainer_state.json",
                              lemo::testing::SampleReport().TrainerState().dump(1) + "\n");
}

}  // namespace
}  // namespace lemo::train
