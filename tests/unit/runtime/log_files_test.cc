// Logs: once, in order, bounded.
#include "coordinator/runtime/log_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

using testing::HasSubstr;

class LogFilesTest : public testing::Test {
 protected:
  void Append(int64_t offset, const std::string& data, int rank = 0) {
    lemo::v1::LogChunk chunk;
    chunk.set_attempt(1);
    chunk.set_rank(rank);
    chunk.set_offset(offset);
    chunk.set_data(data);
    logs_.Append("jobs/a", chunk);
  }
  std::string All(int rank = 0) {
    std::string all;
    for (;;) {
      const std::string piece = *logs_.Read("jobs/a", 1, rank, static_cast<int64_t>(all.size()));
      if (piece.empty()) return all;
      all += piece;
    }
  }

  ScratchDir scratch_;
  LogFiles logs_{scratch_ / "logs", 100'000};
};

TEST_F(LogFilesTest, WhatComesTwiceIsKeptOnce) {
  Append(0, "abc");
  Append(0, "abc");
  Append(1, "bcd");
  Append(0, "other rank", 1);
  EXPECT_EQ(All(), "abcd");
  EXPECT_EQ(All(1), "other rank");
  EXPECT_EQ(All(2), "");
  EXPECT_EQ(*logs_.Read("jobs/none", 1, 0, 0), "");
  EXPECT_EQ(*logs_.Read("jobs/a", 1, 0, 1'000'000), "");
}

TEST_F(LogFilesTest, AGapIsFilledSoThatOffsetsStayTrue) {
  Append(0, "abc");
  Append(50, "xyz");
  const std::string all = All();
  ASSERT_EQ(all.size(), 53);
  EXPECT_THAT(all, HasSubstr("[47 bytes of this log were lost]"));
  EXPECT_EQ(all.substr(50), "xyz");
}

TEST_F(LogFilesTest, ALogHasAnEnd) {
  Append(0, std::string(99'999, 'a'));
  Append(99'999, std::string(5000, 'b'));
  const size_t size = All().size();
  EXPECT_LE(size, 105'000);
  Append(static_cast<int64_t>(size), "more");
  EXPECT_EQ(All().size(), size);
}

TEST_F(LogFilesTest, AFarOffsetMakesNoLargeFile) {
  Append(int64_t{1} << 60, "abc");
  Append(std::numeric_limits<int64_t>::max(), "abc");
  EXPECT_EQ(All(), "");
}

TEST_F(LogFilesTest, LogsOfAJobGoTogether) {
  Append(0, "abc");
  Append(0, "abc", 1);
  EXPECT_THAT(logs_.Jobs(), testing::ElementsAre("jobs/a"));
  logs_.Remove("jobs/a");
  EXPECT_EQ(All(), "");
  EXPECT_THAT(logs_.Jobs(), testing::IsEmpty());
}

}  // namespace
}  // namespace lemo::coordinator
