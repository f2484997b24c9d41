// Jobs with contracts on one device.
#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/occupancy.h"
#include "scheduler/scheduler.h"

namespace lemo::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

Worker MakeWorker(const std::string& id, std::vector<int64_t> device_bytes) {
  Worker worker;
  worker.id = id;
  for (const int64_t bytes : device_bytes) {
    worker.devices.push_back({static_cast<int>(worker.devices.size()), DeviceKind::kCpu, bytes});
  }
  return worker;
}

Request WithContract(const std::string& job, int64_t bytes, int ranks = 1) {
  Request request;
  request.job = job;
  request.ranks = ranks;
  request.memory_bytes = bytes;
  request.shares = true;
  return request;
}

Request Without(const std::string& job, int64_t bytes, int ranks = 1) {
  Request request = WithContract(job, bytes, ranks);
  request.shares = false;
  return request;
}

std::vector<std::string> Placed(const Decisions& decisions) {
  std::vector<std::string> jobs;
  for (const Placement& placement : decisions.placements) jobs.push_back(placement.job);
  return jobs;
}

void Mark(const std::vector<Occupant>& occupants, Snapshot* snapshot) {
  for (Worker& worker : snapshot->workers) {
    for (const Occupant& occupant : occupants) Occupy(occupant, &worker);
  }
}

Decisions Decide(const Snapshot& snapshot) { return FifoScheduler().Decide(snapshot); }

TEST(Sharing, JobsShareADeviceWhenTheirContractsFit) {
  const Decisions decisions =
      Decide({{MakeWorker("a", {8 * kGiB})},
              {WithContract("x", 3 * kGiB), WithContract("y", 5 * kGiB), WithContract("z", 1)}});
  EXPECT_THAT(Placed(decisions), ElementsAre("x", "y"));
  ASSERT_EQ(decisions.waiting.size(), 1u);
  EXPECT_EQ(decisions.waiting[0].reason, WaitReason::kDevicesBusy);
  EXPECT_EQ(decisions.waiting[0].text,
            "needs 1 device; all that fit are busy or have too little memory left");
}

TEST(Sharing, AJobWithoutAContractHasItsDeviceForItself) {
  const std::vector<Worker> one = {MakeWorker("a", {8 * kGiB})};
  EXPECT_THAT(Placed(Decide({one, {Without("x", kGiB), WithContract("y", kGiB)}})),
              ElementsAre("x"));
  EXPECT_THAT(Placed(Decide({one, {WithContract("x", kGiB), Without("y", kGiB)}})),
              ElementsAre("x"));
}

TEST(Sharing, ADeviceOfUnknownMemoryIsNotShared) {
  EXPECT_THAT(
      Placed(Decide({{MakeWorker("a", {0})}, {WithContract("x", kGiB), WithContract("y", kGiB)}})),
      ElementsAre("x"));
}

TEST(Sharing, IdleDevicesComeFirstThenTheTightestFit) {
  Worker a = MakeWorker("a", {8 * kGiB, 8 * kGiB, 8 * kGiB});
  a.devices[0].shared_bytes = 2 * kGiB;
  a.devices[1].shared_bytes = 5 * kGiB;
  Decisions decisions = Decide(
      {{a},
       {WithContract("x", 2 * kGiB), WithContract("y", 2 * kGiB), WithContract("z", 2 * kGiB)}});
  ASSERT_EQ(decisions.placements.size(), 3u);
  EXPECT_THAT(decisions.placements[0].parts[0].devices, ElementsAre(2));
  EXPECT_THAT(decisions.placements[1].parts[0].devices, ElementsAre(1));
  EXPECT_THAT(decisions.placements[2].parts[0].devices, ElementsAre(0));
  // Rather an idle device elsewhere than a model that is there.
  Worker b = MakeWorker("b", {8 * kGiB});
  b.devices[0].shared_bytes = 1;
  b.model_paths = {"/m"};
  Request request = WithContract("x", kGiB);
  request.model_path = "/m";
  decisions = Decide({{b, MakeWorker("c", {8 * kGiB})}, {request}});
  EXPECT_EQ(decisions.placements.at(0).parts[0].worker, "c");
}

TEST(Sharing, RanksOfOneJobAreOnDevicesOfTheirOwn) {
  EXPECT_TRUE(
      Decide({{MakeWorker("a", {8 * kGiB})}, {WithContract("x", kGiB, 2)}}).placements.empty());
  const Decisions decisions = Decide(
      {{MakeWorker("a", {8 * kGiB, 8 * kGiB})},
       {WithContract("x", 5 * kGiB, 2), WithContract("y", 3 * kGiB, 2), WithContract("z", kGiB)}});
  EXPECT_THAT(Placed(decisions), ElementsAre("x", "y"));
}

// Else small jobs could keep a large one from ever running.
TEST(Sharing, WhoWaitsForADeviceKeepsItFromLaterJobs) {
  Worker a = MakeWorker("a", {8 * kGiB});
  a.devices[0].shared_bytes = kGiB;
  for (const Request& first : {Without("x", kGiB), WithContract("x", 8 * kGiB)}) {
    const Decisions decisions = Decide({{a}, {first, WithContract("y", kGiB)}});
    EXPECT_TRUE(decisions.placements.empty());
    ASSERT_EQ(decisions.waiting.size(), 2u);
    EXPECT_EQ(decisions.waiting[0].reason, WaitReason::kDevicesBusy);
    EXPECT_EQ(decisions.waiting[1].reason, WaitReason::kBehindOthers);
  }
}

Request OnBase(const std::string& job, int64_t bytes, const std::string& base, int64_t base_bytes) {
  Request request = WithContract(job, bytes);
  request.base = {base, base_bytes};
  return request;
}

Worker WithBases(Worker worker) {
  for (Device& device : worker.devices) device.shares_bases = true;
  return worker;
}

TEST(Bases, CountOnceForTheJobsOfADevice) {
  const std::vector<Request> queue = {
      OnBase("x", 5 * kGiB, "m", 4 * kGiB), OnBase("y", 6 * kGiB, "m", 4 * kGiB),
      OnBase("z", 5 * kGiB, "m", 4 * kGiB), OnBase("more", 4 * kGiB + 1, "m", 4 * kGiB)};
  // 4 of the base, 1 + 2 + 1 beside it.
  EXPECT_THAT(Placed(Decide({{WithBases(MakeWorker("a", {8 * kGiB}))}, queue})),
              ElementsAre("x", "y", "z"));
  // Where each has its own they are too many, and so they are with other weights.
  EXPECT_THAT(Placed(Decide({{MakeWorker("a", {8 * kGiB})}, queue})), ElementsAre("x"));
  EXPECT_THAT(Placed(Decide(
                  {{WithBases(MakeWorker("a", {8 * kGiB}))},
                   {OnBase("x", 5 * kGiB, "m", 4 * kGiB), OnBase("y", 5 * kGiB, "n", 4 * kGiB)}})),
              ElementsAre("x"));
}

// Whoever brought the base may go: the rest still has it, once.
TEST(Bases, OutliveTheJobThatBroughtThem) {
  const auto occupant = [](const std::string& job, int64_t bytes) {
    return Occupant{job, {{"a", {0}}}, true, bytes, std::nullopt, {"m", 4 * kGiB}};
  };
  Snapshot snapshot{{WithBases(MakeWorker("a", {8 * kGiB}))}, {}};
  Mark({occupant("x", 5 * kGiB), occupant("y", 6 * kGiB)}, &snapshot);
  EXPECT_EQ(snapshot.workers[0].devices[0].UsedBytes(), 7 * kGiB);
  snapshot = {{WithBases(MakeWorker("a", {8 * kGiB}))}, {}};
  Mark({occupant("y", 6 * kGiB)}, &snapshot);
  EXPECT_EQ(snapshot.workers[0].devices[0].UsedBytes(), 6 * kGiB);
  snapshot.queue = {OnBase("z", 6 * kGiB, "m", 4 * kGiB), WithContract("w", kGiB)};
  EXPECT_THAT(Placed(Decide(snapshot)), ElementsAre("z"));
}

TEST(Bases, JobsGoWhereTheirsIsRatherThanWhereAnotherIs) {
  Worker worker = WithBases(MakeWorker("a", {8 * kGiB, 8 * kGiB}));
  Snapshot snapshot{{worker}, {OnBase("z", 5 * kGiB, "m", 4 * kGiB)}};
  Mark({{"x", {{"a", {0}}}, true, 5 * kGiB, std::nullopt, {"n", 4 * kGiB}},
        {"y", {{"a", {1}}}, true, 5 * kGiB, std::nullopt, {"m", 4 * kGiB}}},
       &snapshot);
  const Decisions decisions = Decide(snapshot);
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_THAT(decisions.placements[0].parts[0].devices, ElementsAre(1));
}

// Two equal jobs but for their base are no equals to wait behind.
TEST(Bases, WaitingForOneBaseSaysNothingOfAnother) {
  Snapshot snapshot{
      {WithBases(MakeWorker("a", {8 * kGiB}))},
      {OnBase("big", 12 * kGiB, "n", 4 * kGiB), OnBase("y", 5 * kGiB, "m", 4 * kGiB)}};
  Mark({{"x", {{"a", {0}}}, true, 6 * kGiB, std::nullopt, {"m", 4 * kGiB}}}, &snapshot);
  EXPECT_THAT(Placed(Decide(snapshot)), ElementsAre("y"));
}

TEST(Bases, MayBeTheOnlyThingThatLetsAJobStartEarlier) {
  Outlook outlook{{WithBases(MakeWorker("a", {8 * kGiB}))}, {}, {}, {}};
  outlook.occupants = {{"x", {{"a", {0}}}, true, 6 * kGiB, 50, {"m", 4 * kGiB}}};
  EXPECT_EQ(ForecastStart(FifoScheduler(), outlook, OnBase("me", 6 * kGiB, "m", 4 * kGiB)).seconds,
            0);
  EXPECT_EQ(ForecastStart(FifoScheduler(), outlook, OnBase("me", 6 * kGiB, "n", 4 * kGiB)).seconds,
            50);
}

// Jobs come and go at random: at no time have those of a device more than its memory, what they
// have in common counted once, or one without a contract company; and once nothing comes any more
// all have run.
TEST(Sharing, ContractsFitAtAllTimesOnRandomClusters) {
  std::mt19937_64 random(3);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
  int most_on_one = 0, saved = 0;
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    std::vector<Worker> workers;
    for (int w = 1 + below(3); w > 0; --w) {
      workers.push_back(MakeWorker("w" + std::to_string(w), {}));
      workers.back().spans = below(2) == 0;
      for (int d = 1 + below(3); d > 0; --d) {
        workers.back().devices.push_back({static_cast<int>(workers.back().devices.size()),
                                          DeviceKind::kCpu,
                                          below(5) == 0 ? 0 : (1 + below(8)) * kGiB});
        workers.back().devices.back().shares_bases = below(4) > 0;
      }
    }
    std::vector<Request> queue;
    std::map<std::string, Request> requests;
    std::vector<Occupant> occupants;
    int submitted = 0;
    for (int step = 0; step < 60; ++step) {
      if (step < 30 && below(3) > 0) {
        Request request = WithContract("j" + std::to_string(++submitted),
                                       1 + below(3 * 1024) * (kGiB >> 10), 1 + below(8) / 7);
        request.shares = below(4) > 0;
        // Of three models; some contracts are no larger than their weights.
        if (below(3) > 0) {
          const int base = below(3);
          request.base = {"m" + std::to_string(base), (1 + base) * (kGiB >> 2)};
        }
        requests[request.job] = request;
        queue.push_back(request);
      }
      if (!occupants.empty() && below(2) == 0)
        occupants.erase(occupants.begin() + below(static_cast<int>(occupants.size())));
      Snapshot snapshot{workers, queue};
      Mark(occupants, &snapshot);
      for (const Placement& placement : Decide(snapshot).placements) {
        const Request& request = requests.at(placement.job);
        occupants.push_back({placement.job, placement.parts, request.shares, request.memory_bytes,
                             std::nullopt, request.base});
        std::erase_if(queue, [&](const Request& waiting) { return waiting.job == placement.job; });
      }
      for (const Worker& worker : workers) {
        for (const Device& device : worker.devices) {
          int64_t bytes = 0;
          int jobs = 0, alone = 0;
          std::map<std::string, int64_t> bases;
          for (const Occupant& occupant : occupants) {
            for (const Part& part : occupant.parts) {
              if (part.worker != worker.id) continue;
              const auto ranks = std::count(part.devices.begin(), part.devices.end(), device.index);
              ASSERT_LE(ranks, 1);
              if (ranks == 0) continue;
              ++jobs;
              alone += occupant.shares && device.memory_bytes > 0 ? 0 : 1;
              bytes += occupant.memory_bytes;
              if (!device.shares_bases || occupant.base.bytes >= occupant.memory_bytes) continue;
              // The same again is no more.
              if (!bases.emplace(occupant.base.name, occupant.base.bytes).second) {
                bytes -= occupant.base.bytes;
                saved += occupant.base.bytes > 0;
              }
            }
          }
          ASSERT_TRUE(alone == 0 || jobs == 1);
          if (device.memory_bytes > 0) {
            ASSERT_LE(bytes, device.memory_bytes);
          }
          most_on_one = std::max(most_on_one, jobs);
          Worker marked = worker;
          for (const Occupant& occupant : occupants) Occupy(occupant, &marked);
          if (alone == 0 && device.memory_bytes > 0) {
            ASSERT_EQ(marked.devices[static_cast<size_t>(device.index)].UsedBytes(), bytes);
          }
        }
      }
    }
    // Who could run on an idle cluster has run, or has a device it waits for in use.
    while (!occupants.empty()) {
      occupants.pop_back();
      Snapshot snapshot{workers, queue};
      Mark(occupants, &snapshot);
      for (const Placement& placement : Decide(snapshot).placements) {
        const Request& request = requests.at(placement.job);
        occupants.push_back({placement.job, placement.parts, request.shares, request.memory_bytes,
                             std::nullopt, request.base});
        std::erase_if(queue, [&](const Request& waiting) { return waiting.job == placement.job; });
      }
    }
    for (const Request& waiting : queue) {
      EXPECT_TRUE(Decide({workers, {waiting}}).placements.empty());
    }
  }
  EXPECT_GT(most_on_one, 3);
  EXPECT_GT(saved, 100);
}

Occupant Running(const std::string& job, int device, std::optional<double> seconds) {
  return {job, {{"a", {device}}}, false, kGiB, seconds, {}};
}

TEST(StartForecast, IsNowWhereThereIsRoom) {
  const Outlook outlook{{MakeWorker("a", {8 * kGiB, 8 * kGiB})}, {}, {Running("x", 0, 60)}, {}};
  const Start start = ForecastStart(FifoScheduler(), outlook, Without("me", kGiB));
  EXPECT_EQ(start.seconds, 0);
  EXPECT_EQ(start.text, "");
}

TEST(StartForecast, IsAfterTheJobsThatAreBeforeIt) {
  Outlook outlook{{MakeWorker("a", {8 * kGiB})}, {}, {Running("x", 0, 60)}, {}};
  outlook.queue.push_back({Without("y", kGiB), 100});
  const Start start = ForecastStart(FifoScheduler(), outlook, WithContract("me", kGiB));
  EXPECT_EQ(start.seconds, 160);
  EXPECT_THAT(start.text, HasSubstr("all that fit are busy"));
  // One that shares its device with those before it starts with them.
  outlook.queue[0].request = WithContract("y", kGiB);
  EXPECT_EQ(ForecastStart(FifoScheduler(), outlook, WithContract("me", kGiB)).seconds, 60);
}

TEST(StartForecast, SaysWhyNobodyCanSay) {
  EXPECT_EQ(ForecastStart(FifoScheduler(), {}, Without("me", kGiB)).text, "no worker is connected");
  Outlook outlook{{MakeWorker("a", {8 * kGiB})}, {}, {Running("x", 0, std::nullopt)}, {}};
  Start start = ForecastStart(FifoScheduler(), outlook, Without("me", kGiB));
  EXPECT_EQ(start.seconds, std::nullopt);
  EXPECT_THAT(start.text, HasSubstr("nobody can say when x will have ended"));
  // What can never run is not a matter of time.
  outlook.occupants = {Running("x", 0, 10)};
  start = ForecastStart(FifoScheduler(), outlook, Without("me", 9 * kGiB));
  EXPECT_EQ(start.seconds, std::nullopt);
  EXPECT_THAT(start.text, HasSubstr("the largest device has 8.0 GiB"));
}

TEST(StartForecast, LooksSoFarAheadAndNoFarther) {
  Outlook outlook{{MakeWorker("a", {8 * kGiB})}, {}, {Running("x", 0, 10)}, {}};
  for (int i = 0; i < 200; ++i) {
    outlook.queue.push_back({Without("y" + std::to_string(i), kGiB), 10});
  }
  EXPECT_EQ(ForecastStart(FifoScheduler(), outlook, Without("me", kGiB)).seconds, 2010);
  for (int i = 200; i < 20'000; ++i) {
    outlook.queue.push_back({Without("y" + std::to_string(i), kGiB), 10});
  }
  const Start start = ForecastStart(FifoScheduler(), outlook, Without("me", kGiB));
  EXPECT_EQ(start.seconds, std::nullopt);
  EXPECT_THAT(start.text, HasSubstr("too much runs and waits before it"));
}

}  // namespace
}  // namespace lemo::scheduler
