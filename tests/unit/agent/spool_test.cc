#include "worker/agent/spool.h"

#include <gtest/gtest.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

std::vector<lemo::v1::RunEvent> Steps(int first, int last) {
  std::vector<lemo::v1::RunEvent> events;
  for (int step = first; step <= last; ++step) {
    events.emplace_back().mutable_step()->set_step(step);
    events.back().set_sequence(999);  // the rank's own, which starts anew with each process
  }
  return events;
}

void ExpectSteps(const Spool& spool, int64_t first, int last) {
  int64_t sequence = first;
  while (sequence <= spool.last()) {
    const auto events = spool.Read(sequence, 100, 1 << 20);
    ASSERT_TRUE(events.ok()) << events.status();
    ASSERT_FALSE(events->empty());
    for (const lemo::v1::RunEvent& event : *events) {
      EXPECT_EQ(event.sequence(), sequence);
      EXPECT_EQ(event.step().step(), sequence);
      ++sequence;
    }
  }
  EXPECT_EQ(sequence, last + 1);
}

TEST(Spool, NumbersEventsAndKeepsThem) {
  const Scratch scratch;
  {
    auto spool = Spool::Open(scratch.path() / "events");
    ASSERT_TRUE(spool.ok()) << spool.status();
    EXPECT_EQ(spool->last(), 0);
    EXPECT_TRUE(spool->Read(1, 10, 1000)->empty());
    ASSERT_TRUE(spool->Append(Steps(1, 200)).ok());
    ASSERT_TRUE(spool->Append(Steps(201, 500)).ok());
    ASSERT_TRUE(spool->Sync().ok());
    ExpectSteps(*spool, 1, 500);
  }
  auto again = Spool::Open(scratch.path() / "events");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->last(), 500);
  for (int first : {1, 2, 127, 128, 129, 130, 256, 257, 499, 500}) ExpectSteps(*again, first, 500);
  EXPECT_TRUE(again->Read(501, 10, 1000)->empty());
  EXPECT_TRUE(again->Read(0, 10, 1000)->empty());
}

TEST(Spool, ReadsWithinBoundsButNeverNothing) {
  const Scratch scratch;
  auto spool = Spool::Open(scratch.path() / "events");
  ASSERT_TRUE(spool.ok());
  ASSERT_TRUE(spool->Append(Steps(1, 50)).ok());
  EXPECT_EQ(spool->Read(5, 7, 1 << 20)->size(), 7u);
  EXPECT_EQ(spool->Read(5, 7, 1)->size(), 1u);
  const size_t two = 2 * spool->Read(5, 1, 1)->front().SerializeAsString().size();
  EXPECT_EQ(spool->Read(5, 7, two)->size(), 2u);
}

// At every length to which a power cut could have left the file.
TEST(Spool, CutsATornTailOff) {
  const Scratch scratch;
  std::vector<size_t> ends = {0};
  std::string whole;
  {
    auto spool = Spool::Open(scratch.path() / "events");
    ASSERT_TRUE(spool.ok());
    for (int step = 1; step <= 3; ++step) {
      ASSERT_TRUE(spool->Append(Steps(step, step)).ok());
      whole = scratch.Read("events");
      ends.push_back(whole.size());
    }
  }
  for (size_t size = 0; size <= whole.size(); ++size) {
    SCOPED_TRACE(size);
    scratch.Write("torn", whole.substr(0, size));
    auto spool = Spool::Open(scratch.path() / "torn");
    ASSERT_TRUE(spool.ok());
    int records = 0;
    while (records < 3 && ends[records + 1] <= size) ++records;
    EXPECT_EQ(spool->last(), records);
    EXPECT_EQ(scratch.Read("torn").size(), ends[records]);
    ASSERT_TRUE(spool->Append(Steps(records + 1, records + 2)).ok());
    ExpectSteps(*spool, 1, records + 2);
  }
}

TEST(Spool, CutsOffWhatDoesNotMatchItsChecksum) {
  const Scratch scratch;
  {
    auto spool = Spool::Open(scratch.path() / "events");
    ASSERT_TRUE(spool.ok());
    ASSERT_TRUE(spool->Append(Steps(1, 3)).ok());
  }
  std::string bytes = scratch.Read("events");
  bytes.back() ^= 1;
  scratch.Write("flipped", bytes);
  EXPECT_EQ(Spool::Open(scratch.path() / "flipped")->last(), 2);
  scratch.Write("noise", std::string(64, '\xff'));
  EXPECT_EQ(Spool::Open(scratch.path() / "noise")->last(), 0);
  // Zeros, which file systems leave behind, are a record of length 0 with the checksum of nothing.
  scratch.Write("zeros", std::string(64, '\0'));
  EXPECT_EQ(Spool::Open(scratch.path() / "zeros")->last(), 0);
}

}  // namespace
}  // namespace lemo::agent
