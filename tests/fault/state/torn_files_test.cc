// Files of the newest checkpoint damaged in every way: it is passed over with the reason, the
// former taken.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/test_checkpoint.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class TornFileTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const int64_t step : {1, 2}) {
      TestCheckpoint checkpoint(step);
      ASSERT_TRUE(store_.Save(checkpoint.contents()).ok());
    }
    whole_ = ReadText(file_);
    ASSERT_FALSE(whole_.empty());
    ExpectNewest(2, "");
  }

  void ExpectNewest(int64_t step, const std::string& what) {
    std::vector<std::string> skipped;
    const auto loaded = store_.LoadNewest(&skipped);
    ASSERT_TRUE(loaded.ok()) << what << ": " << loaded.status();
    ASSERT_TRUE(loaded->has_value()) << what;
    EXPECT_TRUE(TestCheckpoint(step).Equals(**loaded)) << what;
    if (step == 2) {
      EXPECT_TRUE(skipped.empty()) << what;
      return;
    }
    ASSERT_EQ(skipped.size(), 1u) << what;
    EXPECT_THAT(skipped[0], HasSubstr("step-00000002")) << what;
    EXPECT_THAT(skipped[0], HasSubstr(GetParam())) << what;
  }

  const ScratchDir scratch_;
  CheckpointStore store_{scratch_.path(), {}};
  const fs::path file_ = scratch_.path() / "step-00000002" / GetParam();
  std::string whole_;
};

TEST_P(TornFileTest, Missing) {
  fs::remove(file_);
  ExpectNewest(1, "missing");
}

TEST_P(TornFileTest, Truncated) {
  for (size_t size = 0; size + 1 < whole_.size(); size += 1 + size / 4) {
    WriteText(file_, whole_.substr(0, size));
    ExpectNewest(1, absl::StrCat("cut to ", size));
  }
}

TEST_P(TornFileTest, Longer) {
  WriteText(file_, whole_ + "}");
  ExpectNewest(1, "longer");
}

TEST_P(TornFileTest, OneBitFlipped) {
  for (size_t i = 0; i < whole_.size(); i += 3) {
    std::string torn = whole_;
    torn[i] = static_cast<char>(torn[i] ^ (1 << (i % 8)));
    WriteText(file_, torn);
    ExpectNewest(1, absl::StrCat("byte ", i));
  }
  WriteText(file_, whole_);
  ExpectNewest(2, "mended");
}

TEST_P(TornFileTest, ADirectoryInItsPlace) {
  fs::remove(file_);
  fs::create_directory(file_);
  ExpectNewest(1, "directory");
}

INSTANTIATE_TEST_SUITE_P(EveryFile, TornFileTest,
                         testing::Values("manifest.json", "state.json", "trainables.safetensors",
                                         "optimizer.safetensors"),
                         [](const auto& info) {
                           return info.param.substr(0, info.param.find('.'));
                         });

}  // namespace
}  // namespace lemo::train
