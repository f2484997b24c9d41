// coordinator/core through thousands of small worlds in which everything breaks.
//
// LEMO_SIM_SEEDS: how many worlds (10,000). LEMO_SIM_SEED: only the world of this seed, with its
// story on the error stream.
#include <cstdint>
#include <cstdlib>

#include "gtest/gtest.h"
#include "tests/sim/core/world.h"

namespace lemo::coordinator::sim {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST(CoreSim, EveryJobEndsAndNoneRunsTwice) {
  const bool one = std::getenv("LEMO_SIM_SEED") != nullptr;
  const uint64_t first = FromEnvironment("LEMO_SIM_SEED", 1);
  const uint64_t count = one ? 1 : FromEnvironment("LEMO_SIM_SEEDS", 10'000);
  Tally all;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    World world(seed, one);
    world.Run();
    ASSERT_EQ(world.fault(), "") << "the story: LEMO_SIM_SEED=" << seed << " core_sim_test";
    const Tally& tally = world.tally();
    all.steps += tally.steps;
    all.crashes += tally.crashes;
    all.agent_crashes += tally.agent_crashes;
    all.attempts += tally.attempts;
    all.gangs += tally.gangs;
    all.shrunk += tally.shrunk;
    all.shared += tally.shared;
    all.on_one_base += tally.on_one_base;
    all.cuts += tally.cuts;
    all.kept_cuts += tally.kept_cuts;
    all.raises += tally.raises;
    all.broken_links += tally.broken_links;
    all.lost_leases += tally.lost_leases;
    all.lost_seconds += tally.lost_seconds;
    all.clock_jumps += tally.clock_jumps;
    all.succeeded += tally.succeeded;
    all.failed += tally.failed;
    all.cancelled += tally.cancelled;
  }
  std::cout << count << " worlds: " << all.steps << " steps, " << all.attempts << " attempts ("
            << all.gangs << " over several workers, " << all.shrunk << " with fewer ranks, "
            << all.shared << " beside another job, " << all.on_one_base << " on one base), "
            << all.cuts << " contracts were cut, " << all.kept_cuts << " of them kept, and "
            << all.raises << " raised again; " << all.succeeded << " jobs succeeded, " << all.failed
            << " failed, " << all.cancelled << " cancelled; " << all.crashes << " coordinators and "
            << all.agent_crashes << " agents died, " << all.broken_links << " streams broke, "
            << all.lost_leases << " jobs lost their worker, " << all.clock_jumps
            << " clocks were set\n";
  if (one || count < 100) return;
  // A world in which nothing happens proves nothing.
  EXPECT_GT(all.succeeded, count / 2);
  EXPECT_GT(all.gangs, count / 10);
  EXPECT_GT(all.shrunk, count / 100);
  EXPECT_GT(all.shared, count / 10);
  EXPECT_GT(all.on_one_base, count / 50);
  EXPECT_GT(all.kept_cuts, count / 50);
  EXPECT_GT(all.raises, count / 100);
  EXPECT_GT(all.crashes, count);
  EXPECT_GT(all.lost_leases, count / 10);
  EXPECT_GT(all.lost_seconds, all.lost_leases);
  EXPECT_GT(all.clock_jumps, count / 10);
}

TEST(CoreSim, TheSameSeedIsTheSameWorld) {
  World first(7, false);
  World second(7, false);
  first.Run();
  second.Run();
  EXPECT_EQ(first.tally().steps, second.tally().steps);
  EXPECT_EQ(first.store().changes(), second.store().changes());
  EXPECT_GT(first.store().changes(), 0);
}

}  // namespace
}  // namespace lemo::coordinator::sim
