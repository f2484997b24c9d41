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
    all.broken_links += tally.broken_links;
    all.lost_leases += tally.lost_leases;
    all.lost_seconds += tally.lost_seconds;
    all.clock_jumps += tally.clock_jumps;
    all.succeeded += tally.succeeded;
    all.failed += tally.failed;
    all.cancelled += tally.cancelled;
  }
  std::cout << count << " worlds: " << all.steps << " steps, " << all.attempts << " attempts, "
            << all.succeeded << " jobs succeeded, " << all.failed << " failed, " << all.cancelled
            << " cancelled; " << all.crashes << " coordinators and " << all.agent_crashes
            << " agents died, " << all.broken_links << " streams broke, " << all.lost_leases
            << " jobs lost their worker, " << all.clock_jumps << " clocks were set\n";
  if (one || count < 100) return;
  // A world in which nothing happens proves nothing.
  EXPECT_GT(all.succeeded, count / 2);
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
