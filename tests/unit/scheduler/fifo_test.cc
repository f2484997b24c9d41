#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler.h"

namespace lemo::scheduler {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kGiB = int64_t{1} << 30;

Worker MakeWorker(const std::string& id, int cpus, int gpus, int64_t gpu_bytes = 16 * kGiB) {
  Worker worker;
  worker.id = id;
  for (int i = 0; i < cpus + gpus; ++i) {
    Device& device = worker.devices.emplace_back();
    device.index = i;
    device.kind = i < cpus ? DeviceKind::kCpu : DeviceKind::kCuda;
    device.memory_bytes = i < cpus ? 8 * kGiB : gpu_bytes;
  }
  return worker;
}

Request MakeRequest(const std::string& job, int ranks,
                    std::optional<DeviceKind> kind = std::nullopt, int64_t bytes = 0) {
  Request request;
  request.job = job;
  request.ranks = ranks;
  request.kind = kind;
  request.memory_bytes = bytes;
  return request;
}

Worker Spanning(const std::string& id, int cpus) {
  Worker worker = MakeWorker(id, cpus, 0);
  worker.spans = true;
  return worker;
}

size_t Ranks(const Placement& placement) {
  size_t ranks = 0;
  for (const Part& part : placement.parts) ranks += part.devices.size();
  return ranks;
}

// Devices of `kind` on the worker that fit, busy ones too or not.
size_t Fitting(const Worker& worker, DeviceKind kind, const Request& request, bool busy_too) {
  size_t count = 0;
  for (const Device& device : worker.devices) {
    const bool fits = device.kind == kind && request.kind.value_or(kind) == kind &&
                      device.memory_bytes >= request.memory_bytes;
    count += fits && (busy_too || !device.busy) ? 1 : 0;
  }
  return count;
}

// Of an idle cluster.
size_t MostRanks(const Snapshot& snapshot, const Request& request) {
  size_t most = 0;
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    size_t together = 0;
    for (const Worker& worker : snapshot.workers) {
      if (!worker.accepts_jobs) continue;
      const size_t fitting = Fitting(worker, kind, request, true);
      most = std::max(most, fitting);
      if (worker.spans) together += fitting;
    }
    most = std::max(most, together);
  }
  return most;
}

// By trying every set of workers. As many as there are, and one, when no set has the devices.
size_t FewestNodes(const Snapshot& snapshot, const Request& request, size_t ranks) {
  const size_t count = snapshot.workers.size();
  size_t fewest = count + 1;
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (size_t set = 1; set < (size_t{1} << count); ++set) {
      size_t nodes = 0, free = 0;
      bool allowed = true;
      for (size_t w = 0; w < count; ++w) {
        if ((set >> w & 1) == 0) continue;
        const Worker& worker = snapshot.workers[w];
        const size_t here = Fitting(worker, kind, request, false);
        free += here - here % static_cast<size_t>(request.multiple);
        ++nodes;
        allowed &= worker.accepts_jobs && (worker.spans || here >= ranks);
      }
      if (nodes > 1) {
        for (size_t w = 0; w < count; ++w) {
          if ((set >> w & 1) == 1) allowed &= snapshot.workers[w].spans;
        }
      }
      if (allowed && free >= ranks) fewest = std::min(fewest, nodes);
    }
  }
  return fewest;
}

Decisions Decide(const Snapshot& snapshot) { return FifoScheduler().Decide(snapshot); }

// The reason and the sentence of the only job, which waits.
std::pair<WaitReason, std::string> WhyWaits(const Snapshot& snapshot) {
  Decisions decisions = Decide(snapshot);
  EXPECT_TRUE(decisions.placements.empty());
  if (decisions.waiting.size() != 1) return {};
  return {decisions.waiting[0].reason, decisions.waiting[0].text};
}

// One of the wanted type is waited for, though another is idle; and if there is none, that is said.
TEST(FifoScheduler, ATypeOfDeviceIsKeptTo) {
  Snapshot snapshot;
  snapshot.workers = {MakeWorker("a", 1, 0), MakeWorker("b", 2, 0)};
  snapshot.workers[0].devices[0].type = "fast";
  for (Device& device : snapshot.workers[1].devices) device.type = "slow";
  Request request = MakeRequest("jobs/a", 1);
  request.type = "fast";
  snapshot.queue = {request};
  const FifoScheduler fifo;
  Decisions decisions = fifo.Decide(snapshot);
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_EQ(decisions.placements[0].parts[0].worker, "a");

  snapshot.workers[0].devices[0].busy = true;
  Request other = MakeRequest("jobs/b", 2);
  other.type = "slow";
  snapshot.queue = {request, other};
  decisions = fifo.Decide(snapshot);
  ASSERT_EQ(decisions.waiting.size(), 1u);
  EXPECT_EQ(decisions.waiting[0].job, "jobs/a");
  EXPECT_EQ(decisions.waiting[0].reason, WaitReason::kDevicesBusy);
  // What waits for one type keeps none of another from later jobs.
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_EQ(decisions.placements[0].parts[0].worker, "b");

  request.type = "none";
  snapshot.queue = {request};
  decisions = fifo.Decide(snapshot);
  EXPECT_EQ(decisions.waiting[0].reason, WaitReason::kNoSuchDevice);
  EXPECT_EQ(decisions.waiting[0].text,
            "needs 1 device of type none on one worker; the largest has 0");
}

TEST(Fifo, PlacesAGangOnOneWorkerAndOneKind) {
  Snapshot snapshot{{MakeWorker("a", 1, 1), MakeWorker("b", 1, 2)}, {MakeRequest("j", 2)}};
  Decisions decisions = Decide(snapshot);
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_EQ(decisions.placements[0].parts.at(0).worker, "b");
  EXPECT_THAT(decisions.placements[0].parts.at(0).devices, ElementsAre(1, 2));
}

TEST(Fifo, TakesTheTightestWorkerAndTheSmallestDevice) {
  Worker mixed = MakeWorker("b", 0, 2);
  mixed.devices[0].memory_bytes = 80 * kGiB;
  Snapshot snapshot{{MakeWorker("a", 0, 4), mixed},
                    {MakeRequest("j", 1, DeviceKind::kCuda, 10 * kGiB)}};
  Decisions decisions = Decide(snapshot);
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_EQ(decisions.placements[0].parts.at(0).worker, "b");
  EXPECT_THAT(decisions.placements[0].parts.at(0).devices, ElementsAre(1));
}

TEST(Fifo, SaysWhatIsMissing) {
  const Request two_gpus = MakeRequest("j", 2, DeviceKind::kCuda, 24 * kGiB);
  EXPECT_EQ(WhyWaits({{}, {two_gpus}}).first, WaitReason::kNoWorker);

  auto [device, device_text] = WhyWaits({{MakeWorker("a", 4, 1)}, {two_gpus}});
  EXPECT_EQ(device, WaitReason::kNoSuchDevice);
  EXPECT_EQ(device_text, "needs 2 CUDA devices on one worker; the largest has 1");

  auto [memory, memory_text] = WhyWaits({{MakeWorker("a", 0, 2)}, {two_gpus}});
  EXPECT_EQ(memory, WaitReason::kMemoryTooSmall);
  EXPECT_EQ(memory_text,
            "needs 2 CUDA devices with 24.0 GiB each on one worker; 0 of that size are there, the "
            "largest device has 16.0 GiB");

  Worker cordoned = MakeWorker("a", 2, 0);
  cordoned.accepts_jobs = false;
  auto [cordon, cordon_text] = WhyWaits({{cordoned}, {MakeRequest("j", 1)}});
  EXPECT_EQ(cordon, WaitReason::kWorkersCordoned);
  EXPECT_THAT(cordon_text, ::testing::StartsWith("1 worker would fit, but take"));

  Worker busy = MakeWorker("a", 2, 0);
  busy.devices[0].busy = true;
  auto [wait, wait_text] = WhyWaits({{busy}, {MakeRequest("j", 2)}});
  EXPECT_EQ(wait, WaitReason::kDevicesBusy);
  EXPECT_EQ(wait_text, "needs 2 devices free at once on one worker; at most 1 is free");
}

TEST(Fifo, AWorkerThatHasTheModelComesFirst) {
  Worker with = MakeWorker("b", 4, 0);
  with.model_paths = {"/models/other", "/models/llama"};
  Request request = MakeRequest("j", 1);
  request.model_path = "/models/llama";
  // Though others are tighter, and whatever the order.
  const Worker a = MakeWorker("a", 1, 0);
  const Worker c = MakeWorker("c", 1, 0);
  for (const std::vector<Worker>& workers :
       {std::vector<Worker>{a, with, c}, {with, a, c}, {a, c, with}}) {
    Decisions decisions = Decide({workers, {request}});
    ASSERT_EQ(decisions.placements.size(), 1u);
    EXPECT_EQ(decisions.placements[0].parts.at(0).worker, "b");
  }
  // Of several that have it the tightest.
  Worker tight = MakeWorker("d", 2, 0);
  tight.model_paths = {"/models/llama"};
  EXPECT_EQ(Decide({{a, with, tight}, {request}}).placements.at(0).parts.at(0).worker, "d");
}

TEST(Fifo, AWorkerWithoutTheModelIsTakenRatherThanNone) {
  Worker with = MakeWorker("a", 1, 0);
  with.model_paths = {"/models/llama"};
  with.devices[0].busy = true;
  Request request = MakeRequest("j", 1);
  request.model_path = "/models/llama";
  Decisions decisions = Decide({{with, MakeWorker("b", 1, 0)}, {request}});
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_EQ(decisions.placements[0].parts.at(0).worker, "b");
}

TEST(Fifo, AWaitingGangHoldsBackOnlyWhatItCouldUse) {
  Worker a = MakeWorker("a", 1, 2);
  a.devices[1].busy = true;
  Snapshot snapshot{
      {a},
      {MakeRequest("gang", 2, DeviceKind::kCuda), MakeRequest("gpu", 1, DeviceKind::kCuda),
       MakeRequest("cpu", 1, DeviceKind::kCpu)}};
  Decisions decisions = Decide(snapshot);
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_EQ(decisions.placements[0].job, "cpu");
  ASSERT_EQ(decisions.waiting.size(), 2u);
  EXPECT_EQ(decisions.waiting[0].reason, WaitReason::kDevicesBusy);
  EXPECT_EQ(decisions.waiting[1].reason, WaitReason::kBehindOthers);
}

TEST(Fifo, AnImpossibleJobHoldsBackNobody) {
  Decisions decisions =
      Decide({{MakeWorker("a", 1, 0)}, {MakeRequest("huge", 9), MakeRequest("small", 1)}});
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_EQ(decisions.placements[0].job, "small");
  EXPECT_EQ(decisions.waiting[0].reason, WaitReason::kNoSuchDevice);
}

// Jobs that want the same are answered together; so they are when each wants a byte more than the
// one before, which fits the same devices.
TEST(Fifo, EqualJobsAreAnsweredAsIfEachWereLookedAt) {
  std::mt19937_64 random(5);
  const auto below = [&](uint64_t n) { return static_cast<int>(random() % n); };
  for (int round = 0; round < 2000; ++round) {
    Snapshot snapshot;
    for (int w = below(4); w > 0; --w) {
      Worker worker =
          MakeWorker("w" + std::to_string(w), below(3), below(4), (1 + below(3)) * kGiB + 100);
      for (Device& device : worker.devices) device.busy = below(3) == 0;
      snapshot.workers.push_back(worker);
    }
    Snapshot distinct = snapshot;
    for (int j = 1; j <= 12; ++j) {
      Request request = MakeRequest("j" + std::to_string(j), 1 + below(2));
      if (below(2) == 0) request.kind = DeviceKind::kCuda;
      request.memory_bytes = (1 + below(2)) * kGiB;
      snapshot.queue.push_back(request);
      request.memory_bytes += j;
      distinct.queue.push_back(request);
    }
    const Decisions together = Decide(snapshot);
    const Decisions apart = Decide(distinct);
    SCOPED_TRACE(round);
    ASSERT_EQ(together.placements.size(), apart.placements.size());
    for (size_t i = 0; i < apart.placements.size(); ++i) {
      ASSERT_EQ(together.placements[i].job, apart.placements[i].job);
      ASSERT_EQ(together.placements[i].parts.size(), apart.placements[i].parts.size());
      for (size_t part = 0; part < apart.placements[i].parts.size(); ++part) {
        ASSERT_EQ(together.placements[i].parts[part].devices,
                  apart.placements[i].parts[part].devices);
      }
    }
    for (size_t i = 0; i < apart.waiting.size(); ++i) {
      ASSERT_EQ(together.waiting[i].job, apart.waiting[i].job);
      ASSERT_EQ(together.waiting[i].reason, apart.waiting[i].reason);
    }
  }
}

// On random clusters: every job once, gangs whole, devices idle and fitting and given once, and
// nobody waits for what is there.
TEST(Fifo, KeepsItsRulesOnRandomClusters) {
  std::mt19937_64 random(11);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
  int over_several = 0;
  int shrunk = 0;
  for (int round = 0; round < 2000; ++round) {
    Snapshot snapshot;
    for (int w = below(5); w > 0; --w) {
      Worker worker =
          MakeWorker("w" + std::to_string(w), below(3), below(4), (1 + below(3)) * kGiB);
      worker.accepts_jobs = below(4) > 0;
      worker.spans = below(4) > 0;
      for (Device& device : worker.devices) device.busy = below(3) == 0;
      snapshot.workers.push_back(worker);
    }
    for (int j = below(6); j > 0; --j) {
      Request request = MakeRequest("j" + std::to_string(j), 1 + below(6));
      if (below(2) == 0) request.kind = below(2) == 0 ? DeviceKind::kCpu : DeviceKind::kCuda;
      request.multiple = request.ranks % 2 == 0 ? 1 + below(2) : 1;
      request.min_ranks = below(3) == 0 ? 1 + below(request.ranks) : 0;
      request.memory_bytes = below(4) * kGiB;
      snapshot.queue.push_back(request);
    }
    Decisions decisions = Decide(snapshot);
    SCOPED_TRACE(round);
    ASSERT_EQ(decisions.placements.size() + decisions.waiting.size(), snapshot.queue.size());
    Snapshot after = snapshot;
    for (const Placement& placement : decisions.placements) {
      const Request* request = nullptr;
      for (const Request& candidate : snapshot.queue) {
        if (candidate.job == placement.job) request = &candidate;
      }
      ASSERT_NE(request, nullptr);
      const size_t ranks = Ranks(placement);
      ASSERT_LE(ranks, static_cast<size_t>(request->ranks));
      if (ranks < static_cast<size_t>(request->ranks)) {
        ASSERT_GE(ranks, static_cast<size_t>(request->min_ranks));
        ASSERT_EQ(ranks % static_cast<size_t>(request->multiple), 0u);
        // Not for want of free devices: there are no more.
        ASSERT_LT(MostRanks(snapshot, *request), static_cast<size_t>(request->ranks));
      }
      // Where nothing is kept for an earlier job.
      if (decisions.waiting.empty()) {
        ASSERT_LE(placement.parts.size(), FewestNodes(after, *request, ranks));
      }
      std::optional<DeviceKind> kind;
      std::set<std::string> workers;
      for (const Part& part : placement.parts) {
        ASSERT_TRUE(workers.insert(part.worker).second);
        ASSERT_FALSE(part.devices.empty());
        for (Worker& worker : after.workers) {
          if (worker.id != part.worker) continue;
          ASSERT_TRUE(worker.accepts_jobs);
          ASSERT_TRUE(worker.spans || placement.parts.size() == 1);
          for (int index : part.devices) {
            Device& device = worker.devices[static_cast<size_t>(index)];
            ASSERT_FALSE(device.busy);
            ASSERT_GE(device.memory_bytes, request->memory_bytes);
            ASSERT_EQ(device.kind, kind.value_or(device.kind));
            ASSERT_EQ(device.kind, request->kind.value_or(device.kind));
            kind = device.kind;
            device.busy = true;
          }
        }
      }
      over_several += placement.parts.size() > 1 ? 1 : 0;
      shrunk += ranks < static_cast<size_t>(request->ranks) ? 1 : 0;
    }
    // The first in the queue that waits would not fit on what is left either.
    for (const Request& request : snapshot.queue) {
      if (decisions.waiting.empty() || decisions.waiting[0].job != request.job) continue;
      after.queue = {request};
      EXPECT_TRUE(Decide(after).placements.empty());
    }
  }
  // Rounds without these would prove nothing of them.
  EXPECT_GT(over_several, 100);
  EXPECT_GT(shrunk, 50);
}

TEST(Fifo, AGangOverSeveralWorkersTakesAsFewAsPossible) {
  Snapshot snapshot{{Spanning("a", 1), Spanning("b", 3), Spanning("c", 2), Spanning("d", 4)},
                    {MakeRequest("j", 6)}};
  Decisions decisions = Decide(snapshot);
  ASSERT_EQ(decisions.placements.size(), 1u);
  const std::vector<Part>& parts = decisions.placements[0].parts;
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].worker, "d");  // the lead has the most
  EXPECT_THAT(parts[0].devices, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(parts[1].worker, "c");  // and the rest goes where it leaves the least
  EXPECT_THAT(parts[1].devices, ElementsAre(0, 1));
}

TEST(Fifo, AGangStaysOnOneWorkerIfItCan) {
  Decisions decisions =
      Decide({{Spanning("a", 4), Spanning("b", 2), Spanning("c", 2)}, {MakeRequest("j", 2)}});
  ASSERT_EQ(decisions.placements.size(), 1u);
  ASSERT_EQ(decisions.placements[0].parts.size(), 1u);
  EXPECT_EQ(decisions.placements[0].parts[0].worker, "b");
}

TEST(Fifo, WorkersThatOthersDoNotReachTakeNoPart) {
  const auto [reason, text] = WhyWaits(
      {{Spanning("a", 1), MakeWorker("b", 1, 0), Spanning("c", 1)}, {MakeRequest("j", 3)}});
  EXPECT_EQ(reason, WaitReason::kNoSuchDevice);
  EXPECT_EQ(text, "needs 3 devices; the workers have 2 between them");
}

TEST(Fifo, AGangWaitsForAllOfItsDevicesAndKeepsTheFreeOnes) {
  Worker busy = Spanning("b", 2);
  busy.devices[1].busy = true;
  Decisions decisions =
      Decide({{Spanning("a", 2), busy}, {MakeRequest("gang", 4), MakeRequest("j", 1)}});
  EXPECT_TRUE(decisions.placements.empty());  // not half of it either
  ASSERT_EQ(decisions.waiting.size(), 2u);
  EXPECT_EQ(decisions.waiting[0].reason, WaitReason::kDevicesBusy);
  EXPECT_EQ(decisions.waiting[0].text, "needs 4 devices free at once; at most 3 are free");
  EXPECT_EQ(decisions.waiting[1].reason, WaitReason::kBehindOthers);
}

TEST(Fifo, ShrinksOnlyForWantOfDevicesThatExist) {
  Request request = MakeRequest("j", 6);
  request.min_ranks = 2;
  request.multiple = 2;
  const auto ranks = [&](const Snapshot& snapshot) -> size_t {
    const Decisions decisions = Decide(snapshot);
    return decisions.placements.empty() ? 0 : Ranks(decisions.placements[0]);
  };
  EXPECT_EQ(ranks({{Spanning("a", 4), Spanning("b", 2)}, {request}}), 6u);
  EXPECT_EQ(ranks({{Spanning("a", 4), Spanning("b", 1)}, {request}}), 4u);
  EXPECT_EQ(ranks({{Spanning("a", 3)}, {request}}), 2u);
  EXPECT_EQ(ranks({{Spanning("a", 1)}, {request}}), 0u);
  // Busy ones exist, and those of a worker that will be back in a moment.
  Worker busy = Spanning("b", 2);
  busy.devices[0].busy = true;
  EXPECT_EQ(WhyWaits({{Spanning("a", 4), busy}, {request}}).first, WaitReason::kDevicesBusy);
  Snapshot returning{{Spanning("a", 4)}, {request}};
  returning.returning.push_back(Spanning("b", 2));
  const auto [reason, text] = WhyWaits(returning);
  EXPECT_EQ(reason, WaitReason::kWorkersCordoned);
  EXPECT_EQ(text,
            "needs 6 devices; some of the 6 that fit are on workers that take no new jobs "
            "(cordoned, draining or out of reach)");
}

TEST(Fifo, RanksThatShareAMatrixStayOnANode) {
  Request request = MakeRequest("j", 4);
  request.multiple = 2;
  const std::vector<Worker> workers = {Spanning("a", 3), Spanning("b", 3)};
  const Decisions decisions = Decide({workers, {request}});
  ASSERT_EQ(decisions.placements.size(), 1u);
  EXPECT_EQ(decisions.placements[0].parts.at(0).devices.size(), 2u);
  EXPECT_EQ(decisions.placements[0].parts.at(1).devices.size(), 2u);
  // But rather over nodes than not at all.
  EXPECT_EQ(Decide({{Spanning("a", 1), Spanning("b", 3)}, {request}}).placements.size(), 1u);
}

}  // namespace
}  // namespace lemo::scheduler
