// Watchers: woken, without gaps, and at no cost when they are slow.
#include "coordinator/runtime/watch_hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/runtime/kept.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;

class FakeWatcher final : public Watcher {
 public:
  void Wake(bool heartbeat) override { ++(heartbeat ? beats : wakes); }
  std::atomic<int> wakes = 0, beats = 0;
};

class WatchHubTest : public testing::Test {
 protected:
  // Stores that many more events of the job, and publishes them when told so.
  void Add(int events, bool publish, Job::State state = Job::RUNNING) {
    record_.job.set_state(state);
    if (state >= Job::SUCCEEDED) record_.job.mutable_end_time()->set_seconds(2);
    std::vector<lemo::v1::JobEvent> added;
    for (int i = 0; i < events; ++i) added.push_back(NextEvent(&record_, absl::StrCat("e", i)));
    ASSERT_TRUE(Put(*store_, record_, added).ok());
    if (publish) hub_.Publish(record_.job, added);
  }
  // All sequences from `after` on, page by page, and the largest page.
  std::vector<int64_t> ReadAll(int64_t after, size_t* largest = nullptr) {
    std::vector<int64_t> sequences;
    for (;;) {
      const auto page = hub_.Read(JobName(1), after);
      EXPECT_TRUE(page.ok()) << page.status();
      if (!page.ok() || page->events.empty()) return sequences;
      if (largest != nullptr) *largest = std::max(*largest, page->events.size());
      for (const auto& event : page->events) sequences.push_back(event->sequence());
      after = sequences.back();
      if (page->complete) return sequences;
    }
  }
  static std::vector<int64_t> Range(int64_t first, int64_t last) {
    std::vector<int64_t> range;
    for (int64_t i = first; i <= last; ++i) range.push_back(i);
    return range;
  }

  ScratchDir scratch_;
  std::unique_ptr<Store> store_ = MustOpen(scratch_ / "db");
  WatchHub hub_{store_.get(), std::chrono::milliseconds(20)};
  JobRecord record_ = SampleJob(1, Job::RUNNING);
};

TEST_F(WatchHubTest, NoGapBetweenPagesOrBetweenStoreAndMemory) {
  Add(150, false);
  for (int i = 0; i < 50; ++i) Add(3, true);
  for (int64_t after : {0, 1, 63, 64, 65, 149, 150, 151, 235, 236, 237, 299}) {
    EXPECT_EQ(ReadAll(after), Range(after + 1, 300)) << after;
  }
  EXPECT_TRUE(ReadAll(300).empty());
  EXPECT_FALSE(hub_.Read(JobName(1), 300)->complete);
  Add(1, true, Job::SUCCEEDED);
  EXPECT_EQ(ReadAll(0), Range(1, 301));
  EXPECT_TRUE(hub_.Read(JobName(1), 301)->complete);
}

// Pages of exactly the page's size at the end of an ended job.
TEST_F(WatchHubTest, AnEndOnAPageBorderIsAnEnd) {
  Add(128, false, Job::FAILED);
  EXPECT_EQ(ReadAll(0), Range(1, 128));
  const auto end = hub_.Read(JobName(1), 128);
  EXPECT_TRUE(end->events.empty() && end->complete);
}

TEST_F(WatchHubTest, ASlowWatcherCostsOnePage) {
  const auto slow = std::make_shared<FakeWatcher>();
  hub_.Subscribe(JobName(1), slow);
  for (int i = 0; i < 20; ++i) Add(500, true);
  size_t largest = 0;
  EXPECT_EQ(ReadAll(0, &largest), Range(1, 10'000));
  EXPECT_LE(largest, 64);
  hub_.Unsubscribe(JobName(1), slow.get());
}

TEST_F(WatchHubTest, WakesWatchersOfTheJobAndBeatsForAll) {
  const auto mine = std::make_shared<FakeWatcher>(), other = std::make_shared<FakeWatcher>();
  hub_.Subscribe(JobName(1), mine);
  hub_.Subscribe("jobs/other", other);
  EXPECT_EQ(hub_.Watchers(), 2);
  Add(1, true);
  EXPECT_TRUE(Comes([&] { return mine->wakes > 0 && mine->beats > 1 && other->beats > 1; }));
  EXPECT_EQ(other->wakes, 0);
  hub_.Unsubscribe(JobName(1), mine.get());
  EXPECT_EQ(hub_.Watchers(), 1);
  hub_.Unsubscribe("jobs/none", mine.get());
}

TEST_F(WatchHubTest, AWatcherThatIsGoneIsNotWoken) {
  auto gone = std::make_shared<FakeWatcher>();
  const auto here = std::make_shared<FakeWatcher>();
  const Watcher* key = gone.get();
  hub_.Subscribe(JobName(1), gone);
  hub_.Subscribe(JobName(1), here);
  gone.reset();
  Add(1, true);
  EXPECT_TRUE(Comes([&] { return here->wakes > 0; }));
  hub_.Unsubscribe(JobName(1), key);
  EXPECT_EQ(hub_.Watchers(), 1);
}

TEST_F(WatchHubTest, ErrorsAreTheStores) {
  EXPECT_EQ(hub_.Read("jobs/none", 0).status().code(), absl::StatusCode::kNotFound);
  Add(5, false, Job::SUCCEEDED);
  ASSERT_EQ(*store_->Expire(absl::InfiniteFuture()), 5);
  EXPECT_EQ(hub_.Read(JobName(1), 0).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(hub_.Read(JobName(1), 5)->complete);
}

}  // namespace
}  // namespace lemo::coordinator
