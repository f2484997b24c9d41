// SIGKILL during a save: at random instants from a fixed seed, and at every system call.
//
// What must hold after every kill: the newest checkpoint is whole, is what was saved under its
// step, and is never older than one that was newest before; the next save works and clears up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <random>

#include "common/files.h"
#include "tests/support/test_checkpoint.h"
#include "worker/train/state/atomic_directory.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;

constexpr int kKills = 120;
constexpr unsigned kSeed = 20260131;

void KillMyself(int) { ::kill(::getpid(), SIGKILL); }

// In a child: saves steps first, first + 1, ... until the timer kills it.
[[noreturn]] void SaveUntilKilled(const fs::path& dir, int64_t first, int64_t delay_us) {
  std::signal(SIGALRM, KillMyself);
  itimerval timer = {};
  timer.it_value.tv_sec = delay_us / 1'000'000;
  timer.it_value.tv_usec = delay_us % 1'000'000;
  setitimer(ITIMER_REAL, &timer, nullptr);
  CheckpointStore store(dir, {.keep_last = 2});
  for (int64_t step = first;; ++step) {
    TestCheckpoint checkpoint(step);
    if (!store.Save(checkpoint.contents()).ok()) ::_exit(1);
  }
}

// The newest step, 0 when there is none. Everything that looks like a checkpoint must be a whole
// one.
int64_t CheckedNewest(const fs::path& dir) {
  for (const std::string& name : Names(dir)) {
    if (name.front() == '.') continue;
    const auto loaded = CheckpointStore::Load(dir / name);
    EXPECT_TRUE(loaded.ok()) << "a kill left a torn " << name << ": " << loaded.status();
  }
  const auto loaded = CheckpointStore(dir, {}).LoadNewest(nullptr);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  if (!loaded.ok() || !loaded->has_value()) return 0;
  EXPECT_TRUE(TestCheckpoint((*loaded)->step).Equals(**loaded));
  return (*loaded)->step;
}

bool HasLeftovers(const fs::path& dir) {
  for (const std::string& name : Names(dir)) {
    if (name.front() == '.') return true;
  }
  return false;
}

TEST(Kill, AtRandomInstants) {
  std::printf("seed %u\n", kSeed);
  const ScratchDir scratch;
  CheckpointStore store(scratch.path(), {.keep_last = 2});
  // How long a save takes here decides how long a child may live; the fractions come from the seed.
  const auto start = std::chrono::steady_clock::now();
  for (int64_t step = 1; step <= 4; ++step) {
    TestCheckpoint checkpoint(step);
    ASSERT_TRUE(store.Save(checkpoint.contents()).ok());
  }
  const double save_us =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() /
      4;
  std::mt19937 random(kSeed);
  std::uniform_real_distribution<double> saves(0.01, 3.0);

  int64_t newest = 4;
  int torn = 0;
  for (int i = 0; i < kKills; ++i) {
    const auto delay_us = static_cast<int64_t>(saves(random) * save_us) + 1;
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) SaveUntilKilled(scratch.path(), newest + 1, delay_us);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "kill " << i;
    if (HasLeftovers(scratch.path())) ++torn;
    const int64_t now = CheckedNewest(scratch.path());
    ASSERT_GE(now, newest) << "kill " << i;
    newest = now;
  }
  EXPECT_GT(torn, kKills / 20) << "hardly any kill fell into a save, so nothing was tested";
  TestCheckpoint checkpoint(newest + 1);
  ASSERT_TRUE(store.Save(checkpoint.contents()).ok());
  EXPECT_FALSE(HasLeftovers(scratch.path()));
}

enum class Ending { kKilled, kFinished, kNoTracing };

// Runs `work` in a child and kills it when it has stopped at `stops` entries to and exits from
// system calls.
template <typename Work>
Ending KillAfterStops(int stops, Work work) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(3);
    ::raise(SIGSTOP);
    ::_exit(work() ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status)) return Ending::kNoTracing;
  for (int i = 0; i < stops; ++i) {
    if (::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr) != 0) break;
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status)) {
      EXPECT_EQ(WEXITSTATUS(status), 0) << "the child's work failed";
      return Ending::kFinished;
    }
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  return Ending::kKilled;
}

constexpr int kStopsMax = 20'000;

TEST(Kill, AtEverySystemCallOfASave) {
  const ScratchDir scratch;
  const fs::path former = scratch.path() / "former", dir = scratch.path() / "dir";
  CheckpointStore store(former, {.keep_last = 2});
  for (const int64_t step : {1, 2}) {
    TestCheckpoint checkpoint(step);
    ASSERT_TRUE(store.Save(checkpoint.contents()).ok());
  }
  // Each life is its own trial: under a sanitiser two lives differ by some calls, so that a later
  // stop may lie before the rename again.
  int64_t newest = 0;
  int stops = 0;
  for (; stops < kStopsMax; ++stops) {
    fs::remove_all(dir);
    fs::copy(former, dir, fs::copy_options::recursive);
    const Ending ending = KillAfterStops(stops, [&dir] {
      TestCheckpoint checkpoint(3);
      return CheckpointStore(dir, {.keep_last = 2}).Save(checkpoint.contents()).ok();
    });
    if (ending == Ending::kNoTracing) GTEST_SKIP() << "this machine forbids ptrace";
    newest = CheckedNewest(dir);
    ASSERT_GE(newest, 2) << "killed at stop " << stops;
    if (ending == Ending::kFinished) break;
  }
  EXPECT_EQ(newest, 3);
  EXPECT_GT(stops, 50);
  EXPECT_LT(stops, kStopsMax);
}

TEST(Kill, AtEverySystemCallOfAReplacement) {
  for (const AtomicDirectory::Replace replace :
       {AtomicDirectory::Replace::kExchange, AtomicDirectory::Replace::kMoveAside}) {
    const ScratchDir scratch;
    const fs::path target = scratch.path() / "step";
    std::string text;
    int stops = 0;
    for (; stops < kStopsMax; ++stops) {
      fs::remove_all(scratch.path());
      WriteText(target / "text", "former");
      const Ending ending = KillAfterStops(stops, [&target, replace] {
        auto directory = AtomicDirectory::Begin(target);
        if (!directory.ok()) return false;
        return WriteFileAtomic(directory->path() / "text", "new").ok() &&
               directory->Commit(replace).ok();
      });
      if (ending == Ending::kNoTracing) GTEST_SKIP() << "this machine forbids ptrace";
      ASSERT_TRUE(AtomicDirectory::Recover(target).ok());
      text = ReadText(target / "text");
      ASSERT_TRUE(text == "new" || text == "former") << "killed at stop " << stops;
      if (ending == Ending::kFinished) break;
    }
    EXPECT_EQ(text, "new");
    EXPECT_LT(stops, kStopsMax);
  }
}

}  // namespace
}  // namespace lemo::train
