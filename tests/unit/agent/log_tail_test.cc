#include "worker/agent/log_tail.h"

#include <gtest/gtest.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

TEST(LogTail, SendsEachByteOnceWithItsPlace) {
  const Scratch scratch;
  LogTail tail(scratch.path() / "log", 2, 5);
  EXPECT_EQ(tail.Next().data(), "");  // no file yet
  scratch.Write("log", "one\n");
  lemo::v1::LogChunk chunk = tail.Next();
  EXPECT_EQ(chunk.data(), "one\n");
  EXPECT_EQ(chunk.offset(), 0);
  EXPECT_EQ(chunk.rank(), 2);
  EXPECT_EQ(chunk.attempt(), 5);
  EXPECT_EQ(tail.Next().data(), "");
  scratch.Write("log", "one\n" + std::string(100'000, 'x'));
  std::string all = "one\n";
  while (!(chunk = tail.Next()).data().empty()) {
    EXPECT_EQ(chunk.offset(), static_cast<int64_t>(all.size()));
    EXPECT_LE(chunk.data().size(), 32u << 10);
    all += chunk.data();
  }
  EXPECT_EQ(all.size(), 100'004u);
}

TEST(LastBytes, BeginsWithALineAndIsUtf8) {
  const Scratch scratch;
  scratch.Write("log", "a long first line\nsecond\nthird\n");
  EXPECT_EQ(LastBytes(scratch.path() / "log", 16), "second\nthird\n");
  EXPECT_EQ(LastBytes(scratch.path() / "log", 1000), "a long first line\nsecond\nthird\n");
  EXPECT_EQ(LastBytes(scratch.path() / "none", 1000), "");
  scratch.Write("bytes", "gr\xc3\xbcn \xff \xe2\x82 \xed\xa0\x80 end");
  EXPECT_EQ(LastBytes(scratch.path() / "bytes", 1000), "gr\xc3\xbcn ? ?? ??? end");
}

}  // namespace
}  // namespace lemo::agent
