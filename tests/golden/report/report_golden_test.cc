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

// What a run that drops rows has besides.
TEST(ReportGolden, Sparsity) {
  const auto report = lemo::testing::SparseSampleReport().ToJson();
  nlohmann::ordered_json out;
  out["sparsity"] = report["sparsity"];
  out["last point"] = report["curves"]["train"].back();
  out["last evaluation"] = report["curves"]["eval"].back();
  lemo::testing::ExpectGolden("tests/golden/report/sparsity.json", out.dump(1) + "\n");
}

TEST(ReportGolden, TrainerState) {
  lemo::testing::ExpectGolden("tests/golden/report/trainer_state.json",
                              lemo::testing::SampleReport().TrainerState().dump(1) + "\n");
}

}  // namespace
}  // namespace lemo::train
