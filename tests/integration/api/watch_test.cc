// Watchers that are slow, vanish, or come too late.
#include <gmock/gmock.h>

#include <fstream>

#include "tests/integration/api/coordinator.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;
using lemo::v1::Job;

class WatchTest : public CoordinatorTest {
 protected:
  int64_t ResidentBytes() const {
    std::ifstream status("/proc/" + std::to_string(process_->pid()) + "/status");
    std::string word;
    while (status >> word) {
      int64_t kib = 0;
      if (word == "VmRSS:" && status >> kib) return kib << 10;
    }
    return 0;
  }
  size_t Descriptors() const {
    const fs::directory_iterator all("/proc/" + std::to_string(process_->pid()) + "/fd");
    return static_cast<size_t>(std::distance(begin(all), end(all)));
  }
  struct Watch {
    std::unique_ptr<lemo::v1::JobService::Stub> stub;
    std::unique_ptr<grpc::ClientContext> context = Patiently();
    std::unique_ptr<grpc::ClientReader<lemo::v1::WatchJobResponse>> reader;
  };
  Watch Open(const std::string& job, int64_t after = 0) {
    Watch watch;
    watch.stub = lemo::v1::JobService::NewStub(Dial());
    lemo::v1::WatchJobRequest request;
    request.set_name(job);
    request.set_after_sequence(after);
    watch.reader = watch.stub->WatchJob(watch.context.get(), request);
    return watch;
  }
};

TEST_F(WatchTest, SlowOnesCostNoMemoryAndMissNothing) {
  constexpr int kWatchers = 30, kMessages = 100, kEvents = 50, kBytes = 4000;  // 20 MB of events
  Start("data", {"--lease-seconds", "60"});
  const Placed placed = Place();
  placed.agent->Say(Started(placed.id));
  std::vector<Watch> watches;
  for (int i = 0; i < kWatchers; ++i) {
    watches.push_back(Open(placed.id.job()));
    lemo::v1::WatchJobResponse first;
    ASSERT_TRUE(watches.back().reader->Read(&first));
  }
  const int64_t before = ResidentBytes();
  for (int i = 0; i < kMessages; ++i) {
    placed.agent->Say(Events(placed.id, 1 + i * kEvents, kEvents, std::string(kBytes, 'x')));
  }
  placed.agent->Hear([](const auto& message) {
    return message.acknowledged().through_sequence() == kMessages * kEvents;
  });
  const int64_t grown = ResidentBytes() - before;
  EXPECT_LT(grown, int64_t{kWatchers} * kMessages * kEvents * kBytes / 4)
      << "a copy for each watcher would be four times that";
  RecordProperty("resident_growth_bytes", std::to_string(grown));

  int64_t next = 2;
  lemo::v1::WatchJobResponse response;
  const int64_t last = Get(placed.id.job()).last_sequence();
  while (next <= last && watches[0].reader->Read(&response)) {
    if (!response.has_event()) continue;
    ASSERT_EQ(response.event().sequence(), next++);
  }
  EXPECT_EQ(next, last + 1);
  EXPECT_EQ(Stop(), 0);
}

TEST_F(WatchTest, VanishedOnesLeaveNothing) {
  Start();
  AddModel();
  // A check that is under way has descriptors too.
  const Job job = Await(Submit(Spec(Upload("{}\n"))).name(), Job::QUEUED);
  const size_t before = Descriptors();
  {
    std::vector<Watch> watches;
    lemo::v1::WatchJobResponse first;
    for (int i = 0; i < 20; ++i) {
      watches.push_back(Open(job.name()));
      ASSERT_TRUE(watches.back().reader->Read(&first));
    }
    EXPECT_GE(Descriptors(), before + 20);
    for (Watch& watch : watches) watch.context->TryCancel();
    for (Watch& watch : watches) watch.reader->Finish();
  }
  EXPECT_TRUE(Comes([&] { return Descriptors() <= before + 1; })) << Descriptors();
  EXPECT_EQ(Stop(), 0);
}

TEST_F(WatchTest, UnknownJobsAndOddPlacesAreTold) {
  Start();
  lemo::v1::WatchJobResponse response;
  Watch none = Open("jobs/none");
  EXPECT_FALSE(none.reader->Read(&response));
  EXPECT_EQ(none.reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
  Watch negative = Open("jobs/none", -1);
  EXPECT_FALSE(negative.reader->Read(&response));
  EXPECT_EQ(negative.reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Stop(), 0);
}

}  // namespace
}  // namespace lemo::coordinator
