#include "worker/agent/known_hashes.h"

#include <gtest/gtest.h>

#include <chrono>

#include "common/files.h"
#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

class KnownHashesTest : public testing::Test {
 protected:
  fs::path File() const { return scratch_.path() / "file"; }
  fs::path Store() const { return scratch_.path() / "known.json"; }
  // Writes the file as if `ago`, so that only a remembered checksum can be an old one.
  void WriteAged(const std::string& text, std::chrono::hours ago) const {
    scratch_.Write("file", text);
    fs::last_write_time(File(), now_ - ago);
  }

  const Scratch scratch_;
  const fs::file_time_type now_ = fs::file_time_type::clock::now();
  Canceller canceller_;
};

TEST_F(KnownHashesTest, ReadsAFileOnceAlsoAcrossRestarts) {
  using std::chrono::hours;
  WriteAged("before", hours(5));
  {
    KnownHashes hashes(Store());
    EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("before"));
    WriteAged("behind", hours(5));  // the same size, time and inode: nobody can see it
    EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("before"));
  }
  KnownHashes hashes(Store());
  EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("before"));
  WriteAged("behind", hours(4));
  EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("behind"));
  WriteAged("longer than that", hours(4));
  EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("longer than that"));
  scratch_.Write("other", "stranger than that");
  fs::resize_file(scratch_.path() / "other", 16);
  fs::last_write_time(scratch_.path() / "other", now_ - hours(4));
  fs::rename(scratch_.path() / "other", File());
  EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("stranger than th"));
}

TEST_F(KnownHashesTest, AFileThatWasJustWrittenIsReadAgain) {
  KnownHashes hashes(Store());
  scratch_.Write("file", "before");
  const auto written = fs::last_write_time(File());
  EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("before"));
  scratch_.Write("file", "behind");
  fs::last_write_time(File(), written);
  EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("behind"));
}

TEST_F(KnownHashesTest, AStoreThatIsNotUnderstoodIsBegunAnew) {
  for (const char* text : {"not JSON", "{\"path\": 1}", "[{\"path\": \"x\"}]", "7"}) {
    scratch_.Write("known.json", text);
    WriteAged("text", std::chrono::hours(1));
    KnownHashes hashes(Store());
    EXPECT_EQ(*hashes.Sha256(File(), &canceller_), Sha256Hex("text")) << text;
  }
}

TEST_F(KnownHashesTest, EndsWhenCancelled) {
  WriteAged("text", std::chrono::hours(1));
  KnownHashes hashes(Store());
  canceller_.Cancel();
  EXPECT_EQ(hashes.Sha256(File(), &canceller_).status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace lemo::agent
