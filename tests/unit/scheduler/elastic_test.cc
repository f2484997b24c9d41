// Cuts for a job that waits, and what is given back.
#include "scheduler/elastic.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lemo::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int64_t kGiB = int64_t{1} << 30;

Worker OneDevice(int64_t bytes, const std::string& id = "a") {
  Worker worker;
  worker.id = id;
  worker.devices.push_back({0, DeviceKind::kCpu, bytes});
  worker.devices.back().shares_bases = true;
  return worker;
}

Elastic Runs(const std::string& job, int64_t now, int64_t least, int64_t most,
             const std::string& worker = "a") {
  Elastic elastic;
  elastic.occupant = {job, {{worker, {0}}}, true, now, std::nullopt, {}};
  elastic.least_bytes = least;
  elastic.most_bytes = most;
  return elastic;
}

std::vector<Worker> With(std::vector<Worker> workers, const std::vector<Elastic>& jobs) {
  for (Worker& worker : workers) {
    for (const Elastic& job : jobs) Occupy(job.occupant, &worker);
  }
  return workers;
}

Request Wants(int64_t bytes, Base base = {}) {
  Request request;
  request.job = "me";
  request.memory_bytes = bytes;
  request.shares = true;
  request.base = base;
  return request;
}

std::map<std::string, int64_t> Asked(const std::vector<Allotment>& allotments) {
  std::map<std::string, int64_t> bytes;
  for (const Allotment& allotment : allotments) bytes[allotment.job] = allotment.memory_bytes;
  return bytes;
}

TEST(Cuts, AreWhatIsMissingAndNoMore) {
  const std::vector<Elastic> jobs = {Runs("x", 6 * kGiB, 2 * kGiB, 6 * kGiB)};
  const Cuts cuts = PlanCuts(With({OneDevice(8 * kGiB)}, jobs), jobs, Wants(3 * kGiB));
  EXPECT_THAT(Asked(cuts.jobs), ElementsAre(std::pair<const std::string, int64_t>("x", 5 * kGiB)));
  EXPECT_THAT(cuts.from, ElementsAre("x"));
}

TEST(Cuts, StopWhereAJobCanGoNoLower) {
  const std::vector<Elastic> jobs = {Runs("x", 6 * kGiB, 4 * kGiB, 6 * kGiB)};
  const std::vector<Worker> workers = With({OneDevice(8 * kGiB)}, jobs);
  EXPECT_FALSE(PlanCuts(workers, jobs, Wants(4 * kGiB)).from.empty());
  EXPECT_TRUE(PlanCuts(workers, jobs, Wants(4 * kGiB + 1)).from.empty());
  // One that has not said what it can go on with gives nothing.
  const std::vector<Elastic> silent = {Runs("x", 6 * kGiB, 0, 6 * kGiB)};
  EXPECT_TRUE(PlanCuts(workers, silent, Wants(3 * kGiB)).from.empty());
}

TEST(Cuts, TakeMuchOfFewRatherThanALittleOfMany) {
  const std::vector<Elastic> jobs = {Runs("x", 3 * kGiB, 2 * kGiB, 3 * kGiB),
                                     Runs("y", 5 * kGiB, 2 * kGiB, 5 * kGiB)};
  const std::vector<Worker> workers = With({OneDevice(8 * kGiB)}, jobs);
  EXPECT_EQ(Asked(PlanCuts(workers, jobs, Wants(2 * kGiB)).jobs),
            (std::map<std::string, int64_t>{{"y", 3 * kGiB}}));
  EXPECT_EQ(Asked(PlanCuts(workers, jobs, Wants(4 * kGiB)).jobs),
            (std::map<std::string, int64_t>{{"x", 2 * kGiB}, {"y", 2 * kGiB}}));
}

TEST(Cuts, WaitForThoseThatWereAskedBefore) {
  std::vector<Elastic> jobs = {Runs("x", 6 * kGiB, 0, 6 * kGiB)};
  jobs[0].asked_bytes = 5 * kGiB;
  const std::vector<Worker> workers = With({OneDevice(8 * kGiB)}, jobs);
  const Cuts cuts = PlanCuts(workers, jobs, Wants(3 * kGiB));
  EXPECT_THAT(cuts.jobs, IsEmpty());
  EXPECT_THAT(cuts.from, ElementsAre("x"));
}

TEST(Cuts, AreMadeOnTheDeviceWhereLeastIsMissing) {
  const std::vector<Elastic> jobs = {Runs("x", 7 * kGiB, kGiB, 7 * kGiB, "a"),
                                     Runs("y", 6 * kGiB, kGiB, 6 * kGiB, "b")};
  EXPECT_THAT(PlanCuts(With({OneDevice(8 * kGiB, "a"), OneDevice(8 * kGiB, "b")}, jobs), jobs,
                       Wants(3 * kGiB))
                  .from,
              ElementsAre("y"));
}

// Every rank gives what the one beside the job that waits gives, so that cutting a gang takes more.
TEST(Cuts, OfAGangAreOfEachRank) {
  std::vector<Elastic> jobs = {Runs("x", 6 * kGiB, kGiB, 6 * kGiB)};
  jobs[0].occupant.parts = {{"a", {0}}, {"b", {0}}};
  std::vector<Worker> workers = {OneDevice(8 * kGiB, "a"), OneDevice(6 * kGiB, "b")};
  EXPECT_EQ(Asked(PlanCuts(With(workers, jobs), jobs, Wants(3 * kGiB)).jobs),
            (std::map<std::string, int64_t>{{"x", 5 * kGiB}}));
  jobs.push_back(Runs("y", 7 * kGiB, kGiB, 7 * kGiB, "c"));
  workers.push_back(OneDevice(8 * kGiB + 1, "c"));
  EXPECT_EQ(Asked(PlanCuts(With(workers, jobs), jobs, Wants(3 * kGiB)).jobs),
            (std::map<std::string, int64_t>{{"y", 5 * kGiB + 1}}));
}

TEST(Cuts, CountABaseOnce) {
  std::vector<Elastic> jobs = {Runs("x", 7 * kGiB, 5 * kGiB, 7 * kGiB)};
  jobs[0].occupant.base = {"m", 4 * kGiB};
  const std::vector<Worker> workers = With({OneDevice(8 * kGiB)}, jobs);
  EXPECT_EQ(Asked(PlanCuts(workers, jobs, Wants(6 * kGiB, {"m", 4 * kGiB})).jobs),
            (std::map<std::string, int64_t>{{"x", 6 * kGiB}}));
  EXPECT_TRUE(PlanCuts(workers, jobs, Wants(6 * kGiB, {"n", 4 * kGiB})).from.empty());
}

TEST(Cuts, AreForJobsWithAContractAndOfTheKindThatIsWanted) {
  const std::vector<Elastic> jobs = {Runs("x", 6 * kGiB, 2 * kGiB, 6 * kGiB)};
  std::vector<Worker> workers = With({OneDevice(8 * kGiB)}, jobs);
  Request request = Wants(3 * kGiB);
  request.shares = false;
  EXPECT_TRUE(PlanCuts(workers, jobs, request).from.empty());
  request = Wants(3 * kGiB);
  request.kind = DeviceKind::kCuda;
  EXPECT_TRUE(PlanCuts(workers, jobs, request).from.empty());
  request = Wants(3 * kGiB);
  request.type = "fast";
  EXPECT_TRUE(PlanCuts(workers, jobs, request).from.empty());
  workers[0].devices[0].type = "fast";
  EXPECT_FALSE(PlanCuts(workers, jobs, request).from.empty());
}

Worker Devices(const std::string& id, int count, int64_t bytes) {
  Worker worker;
  worker.id = id;
  for (int i = 0; i < count; ++i) worker.devices.push_back({i, DeviceKind::kCpu, bytes});
  return worker;
}

TEST(Cuts, ForAGangAreOnEachOfItsDevices) {
  std::vector<Elastic> jobs = {Runs("x", 6 * kGiB, kGiB, 6 * kGiB),
                               Runs("y", 7 * kGiB, kGiB, 7 * kGiB)};
  jobs[1].occupant.parts = {{"a", {1}}};
  Request request = Wants(3 * kGiB);
  request.ranks = 2;
  EXPECT_EQ(Asked(PlanCuts(With({Devices("a", 2, 8 * kGiB)}, jobs), jobs, request).jobs),
            (std::map<std::string, int64_t>{{"x", 5 * kGiB}, {"y", 5 * kGiB}}));
  // A device that has room is taken before one that has not.
  EXPECT_EQ(Asked(PlanCuts(With({Devices("a", 3, 8 * kGiB)}, jobs), jobs, request).jobs),
            (std::map<std::string, int64_t>{{"x", 5 * kGiB}}));
  // There is no third.
  request.ranks = 3;
  EXPECT_TRUE(PlanCuts(With({Devices("a", 2, 8 * kGiB)}, jobs), jobs, request).from.empty());
}

// What one rank of a gang gives, the others give too.
TEST(Cuts, ForAGangBesideAGangAreMadeOnce) {
  std::vector<Elastic> jobs = {Runs("x", 6 * kGiB, kGiB, 6 * kGiB)};
  jobs[0].occupant.parts = {{"a", {0, 1}}};
  Request request = Wants(3 * kGiB);
  request.ranks = 2;
  EXPECT_EQ(Asked(PlanCuts(With({Devices("a", 2, 8 * kGiB)}, jobs), jobs, request).jobs),
            (std::map<std::string, int64_t>{{"x", 5 * kGiB}}));
}

TEST(Cuts, ForAGangMayBeOnSeveralWorkersThatSpan) {
  const std::vector<Elastic> jobs = {Runs("x", 6 * kGiB, kGiB, 6 * kGiB, "a"),
                                     Runs("y", 6 * kGiB, kGiB, 6 * kGiB, "b")};
  std::vector<Worker> workers = {OneDevice(8 * kGiB, "a"), OneDevice(8 * kGiB, "b")};
  Request request = Wants(3 * kGiB);
  request.ranks = 2;
  EXPECT_TRUE(PlanCuts(With(workers, jobs), jobs, request).from.empty());
  for (Worker& worker : workers) worker.spans = true;
  EXPECT_THAT(PlanCuts(With(workers, jobs), jobs, request).from, ElementsAre("x", "y"));
}

// Once all have followed, the scheduler finds the room.
TEST(Cuts, OfRandomClustersAreWhatTheSchedulerWaitsFor) {
  std::mt19937_64 random(6);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
  const FifoScheduler fifo;
  int placed = 0, gangs = 0;
  for (int round = 0; round < 5000; ++round) {
    SCOPED_TRACE(round);
    std::vector<Worker> idle;
    for (int w = 0; w <= below(3); ++w) {
      idle.push_back(Devices(std::string(1, static_cast<char>('a' + w)), 1 + below(3), 8 * kGiB));
      idle.back().spans = below(2) == 0;
    }
    std::vector<Worker> workers = idle;
    std::vector<Elastic> jobs;
    for (int j = 0; j < 6; ++j) {
      const int64_t bytes = (2 + below(6)) * kGiB;
      Elastic job = Runs("j" + std::to_string(j), bytes, kGiB, bytes);
      job.occupant.parts.clear();
      for (Worker& worker : workers) {
        Part part{worker.id, {}};
        for (const Device& device : worker.devices) {
          if (below(3) == 0 && device.UsedBytes() + bytes <= device.memory_bytes) {
            part.devices.push_back(device.index);
          }
        }
        if (!part.devices.empty()) job.occupant.parts.push_back(part);
      }
      if (job.occupant.parts.empty()) continue;
      for (Worker& worker : workers) Occupy(job.occupant, &worker);
      jobs.push_back(job);
    }
    Request request = Wants((3 + below(5)) * kGiB);
    request.ranks = 1 + below(4);
    request.multiple = request.ranks % 2 == 0 ? 1 + below(2) : 1;
    if (!fifo.Decide({workers, {request}, {}}).placements.empty()) continue;
    const Cuts cuts = PlanCuts(workers, jobs, request);
    if (cuts.from.empty()) continue;
    const std::map<std::string, int64_t> asked = Asked(cuts.jobs);
    for (Elastic& job : jobs) {
      const auto found = asked.find(job.occupant.job);
      if (found == asked.end()) continue;
      ASSERT_LT(found->second, job.occupant.memory_bytes);
      ASSERT_GE(found->second, job.least_bytes);
      job.occupant.memory_bytes = found->second;
    }
    ASSERT_EQ(fifo.Decide({With(idle, jobs), {request}, {}}).placements.size(), 1u);
    ++placed;
    gangs += request.ranks > 1 ? 1 : 0;
  }
  EXPECT_GT(placed, 500);
  EXPECT_GT(gangs, 200);
}

TEST(Raises, GiveBackWhatThereIs) {
  std::vector<Elastic> jobs = {Runs("x", 2 * kGiB, kGiB, 6 * kGiB),
                               Runs("y", 2 * kGiB, kGiB, 4 * kGiB), Runs("z", kGiB, kGiB, kGiB)};
  EXPECT_EQ(Asked(PlanRaises(With({OneDevice(10 * kGiB)}, jobs), jobs)),
            (std::map<std::string, int64_t>{{"x", 6 * kGiB}, {"y", 3 * kGiB}}));
  // Who is being cut has to be within first.
  jobs[0].asked_bytes = kGiB;
  EXPECT_EQ(Asked(PlanRaises(With({OneDevice(10 * kGiB)}, jobs), jobs)),
            (std::map<std::string, int64_t>{{"y", 4 * kGiB}}));
}

// As much as the device has that has least left.
TEST(Raises, OfAGangAreOfEachRank) {
  std::vector<Elastic> jobs = {Runs("x", 2 * kGiB, kGiB, 9 * kGiB)};
  jobs[0].occupant.parts = {{"a", {0}}, {"b", {0}}};
  const std::vector<Worker> workers = {OneDevice(8 * kGiB, "a"), OneDevice(3 * kGiB, "b")};
  EXPECT_EQ(Asked(PlanRaises(With(workers, jobs), jobs)),
            (std::map<std::string, int64_t>{{"x", 3 * kGiB}}));
  // Of a worker that is away nobody knows what its device has left.
  EXPECT_THAT(PlanRaises(With({OneDevice(20 * kGiB, "a")}, jobs), jobs), IsEmpty());
}

// Whatever is cut and raised, jobs are between their least and their most, what waits fits once all
// have followed, and nothing passes the device.
TEST(Elastic, RandomDevicesAreNeverPassed) {
  std::mt19937_64 random(5);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
  int cut = 0, raised = 0;
  for (int round = 0; round < 3000; ++round) {
    SCOPED_TRACE(round);
    const int64_t memory = (4 + below(13)) * kGiB;
    std::vector<Elastic> jobs;
    std::vector<Worker> workers = {OneDevice(memory)};
    for (int j = below(5); j >= 0; --j) {
      const int64_t most = (1 + below(6)) * kGiB, least = 1 + below(static_cast<int>(most >> 20));
      Elastic job = Runs("j" + std::to_string(j), most, least << 20, most);
      if (below(3) == 0) {
        job.occupant.base = {"m", kGiB >> 1};
        job.least_bytes = std::max(job.least_bytes, (kGiB >> 1) + 1);  // it holds its weights
      }
      if (below(3) == 0) {
        job.occupant.memory_bytes -= (job.occupant.memory_bytes - job.least_bytes) / 2;
      }
      if (job.occupant.memory_bytes > 0 && below(4) == 0) {
        job.asked_bytes = std::max(job.least_bytes, job.occupant.memory_bytes - (kGiB >> 3));
        job.least_bytes = 0;
      }
      const int64_t added =
          AddedBytes(workers[0].devices[0], job.occupant.memory_bytes, job.occupant.base);
      if (workers[0].devices[0].UsedBytes() + added > memory) continue;
      Occupy(job.occupant, &workers[0]);
      jobs.push_back(job);
    }
    const Request request =
        Wants((1 + below(8)) * (kGiB >> 1), below(2) == 0 ? Base{"m", kGiB >> 1} : Base{});
    const Cuts cuts = PlanCuts(workers, jobs, request);
    const std::map<std::string, int64_t> asked = Asked(cuts.jobs);
    Worker after = OneDevice(memory);
    for (const Elastic& job : jobs) {
      Occupant occupant = job.occupant;
      if (job.asked_bytes > 0) occupant.memory_bytes = job.asked_bytes;
      if (const auto found = asked.find(occupant.job); found != asked.end()) {
        ++cut;
        ASSERT_EQ(job.asked_bytes, 0) << "it was being cut";
        ASSERT_LT(found->second, occupant.memory_bytes);
        ASSERT_GE(found->second, job.least_bytes);
        occupant.memory_bytes = found->second;
      }
      Occupy(occupant, &after);
    }
    const Device& device = after.devices[0];
    if (!cuts.from.empty()) {
      ASSERT_LE(device.UsedBytes() + AddedBytes(device, request.memory_bytes, request.base),
                memory);
    }
    std::vector<Worker> raising = workers;
    for (const Allotment& raise : PlanRaises(workers, jobs)) {
      ++raised;
      const auto job = std::find_if(jobs.begin(), jobs.end(), [&](const Elastic& one) {
        return one.occupant.job == raise.job;
      });
      ASSERT_GT(raise.memory_bytes, job->occupant.memory_bytes);
      ASSERT_LE(raise.memory_bytes, job->most_bytes);
      raising[0].devices[0].shared_bytes += raise.memory_bytes - job->occupant.memory_bytes;
    }
    ASSERT_LE(raising[0].devices[0].UsedBytes(), memory);
  }
  EXPECT_GT(cut, 100);
  EXPECT_GT(raised, 100);
}

}  // namespace
}  // namespace lemo::scheduler
