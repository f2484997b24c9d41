// SIGKILL of a process that commits from several threads, at random instants from a fixed seed.
//
// What must hold after every kill: every change whose call had returned is there; of the calls
// under way each is there as a whole or not at all; the store opens and goes on.
#include <gtest/gtest.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <map>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

constexpr int kThreads = 3;
constexpr int kKills = 40;
constexpr int kKillsWhileCreating = 20;
constexpr unsigned kSeed = 20261121;

void KillMyself(int) { ::kill(::getpid(), SIGKILL); }

void KillAfter(int64_t delay_us) {
  std::signal(SIGALRM, KillMyself);
  itimerval timer = {};
  timer.it_value.tv_sec = delay_us / 1'000'000;
  timer.it_value.tv_usec = std::max<int64_t>(delay_us % 1'000'000, 1);
  setitimer(ITIMER_REAL, &timer, nullptr);
}

// One call: the thread's two jobs and a worker change together, to round `i`.
std::vector<Effect> Round(JobRecord* one, JobRecord* two, int64_t i) {
  std::vector<Effect> effects;
  for (JobRecord* record : {one, two}) {
    record->job.set_reason(absl::StrCat(i));
    lemo::v1::JobEvent event = NextEvent(record, absl::StrCat(i));
    // More than a page, so that a torn write would show.
    event.mutable_state()->mutable_failure()->set_log_tail(std::string(5000, 'a' + i % 26));
    effects.push_back(Persist{*record, {event}});
  }
  effects.push_back(PersistWorker{absl::StrCat("workers/", one->number), i % 2 == 1});
  return effects;
}

struct Acknowledged {
  int32_t thread;
  int32_t round;
};

// In a child: goes on from what is stored until the timer ends it. Each call that returned is told
// to the pipe.
[[noreturn]] void CommitUntilKilled(const std::string& path, int pipe, int64_t delay_us) {
  KillAfter(delay_us);
  auto store = OpenSqliteStore(path);
  if (!store.ok()) ::_exit(1);
  std::map<int64_t, JobRecord> jobs;
  const auto active = (*store)->ActiveJobs();
  if (!active.ok()) ::_exit(1);
  for (const JobRecord& record : *active) jobs[record.number] = record;
  std::vector<std::thread> threads;
  for (int t = 1; t <= kThreads; ++t) {
    JobRecord one = jobs.count(t) ? jobs[t] : SampleJob(t);
    JobRecord two = jobs.count(t + 100) ? jobs[t + 100] : SampleJob(t + 100);
    threads.emplace_back([&store, pipe, t, one, two]() mutable {
      for (int32_t i = static_cast<int32_t>(one.job.last_sequence()) + 1;; ++i) {
        if (!(*store)->Apply(Round(&one, &two, i)).ok()) ::_exit(1);
        const Acknowledged done{t, i};
        if (::write(pipe, &done, sizeof done) != sizeof done) ::_exit(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ::_exit(1);
}

// The last acknowledged round of each thread.
std::map<int, int> RunAndKill(const std::string& path, int64_t delay_us) {
  std::array<int, 2> ends;
  EXPECT_EQ(::pipe(ends.data()), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[0]);
    CommitUntilKilled(path, ends[1], delay_us);
  }
  ::close(ends[1]);
  std::map<int, int> last;
  Acknowledged done;
  while (::read(ends[0], &done, sizeof done) == sizeof done) last[done.thread] = done.round;
  ::close(ends[0]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "the child failed: " << status;
  return last;
}

// Checks that every call is whole. Answers the last round of each thread.
std::map<int, int> CheckedRounds(Store& store) {
  std::map<int, int> rounds;
  const auto active = store.ActiveJobs();
  EXPECT_TRUE(active.ok()) << active.status();
  std::map<int64_t, JobRecord> jobs;
  for (const JobRecord& record : *active) jobs[record.number] = record;
  const auto cordoned = store.CordonedWorkers();
  for (int t = 1; t <= kThreads; ++t) {
    EXPECT_EQ(jobs.count(t), jobs.count(t + 100));
    const int round = jobs.count(t) ? static_cast<int>(jobs[t].job.last_sequence()) : 0;
    rounds[t] = round;
    EXPECT_EQ(cordoned->count(absl::StrCat("workers/", t)), round % 2);
    if (round == 0) continue;
    for (const int64_t number : {t, t + 100}) {
      EXPECT_EQ(jobs[number].job.last_sequence(), round) << "half a call";
      EXPECT_EQ(jobs[number].job.reason(), absl::StrCat(round));
      const auto events = store.Events(JobName(number), 0, 1'000'000);
      EXPECT_TRUE(events.ok()) << events.status();
      EXPECT_EQ(events->size(), round);
      for (size_t i = 0; i < events->size(); ++i) {
        EXPECT_EQ((*events)[i].state().reason(), absl::StrCat(i + 1));
      }
    }
  }
  return rounds;
}

TEST(Kill, EveryAnsweredChangeIsThereAndNoneHalf) {
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  const ScratchDir scratch;
  const std::string path = scratch / "db";
  // How long it takes here to open and to commit decides how long a child may live.
  const auto start = std::chrono::steady_clock::now();
  {
    const auto store = MustOpen(scratch / "clock");
    JobRecord one = SampleJob(1), two = SampleJob(2);
    for (int i = 1; i <= 10; ++i) ASSERT_TRUE(store->Apply(Round(&one, &two, i)).ok());
  }
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - start);
  int64_t acknowledged = 0;
  std::map<int, int> before;
  for (int kill = 0; kill < kKills; ++kill) {
    const int64_t delay_us = std::uniform_int_distribution<int64_t>(1, 2 * took.count())(random);
    const std::map<int, int> told = RunAndKill(path, delay_us);
    const auto store = MustOpen(path);
    ASSERT_NE(store, nullptr) << "after kill " << kill;
    const std::map<int, int> rounds = CheckedRounds(*store);
    for (const auto& [thread, round] : rounds) {
      const int least = told.count(thread) ? told.at(thread) : before[thread];
      // Each thread had at most one more call under way.
      EXPECT_TRUE(round == least || round == least + 1) << round << " after " << least;
    }
    for (const auto& [thread, round] : told) acknowledged += round - before[thread];
    before = rounds;
    ASSERT_FALSE(HasFailure()) << "after kill " << kill;
  }
  EXPECT_GT(acknowledged, kKills) << "the children lived too shortly to show anything";
}

TEST(Kill, WhileTheDatabaseIsMade) {
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  const auto start = std::chrono::steady_clock::now();
  const ScratchDir scratch;
  { const auto store = MustOpen(scratch / "clock"); }
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - start);
  for (int kill = 0; kill < kKillsWhileCreating; ++kill) {
    const std::string path = scratch / absl::StrCat("db", kill);
    RunAndKill(path, std::uniform_int_distribution<int64_t>(1, took.count())(random));
    const auto store = MustOpen(path);
    ASSERT_NE(store, nullptr) << "after kill " << kill;
    CheckedRounds(*store);
    ASSERT_TRUE(Put(*store, SampleJob(999)).ok());
  }
}

}  // namespace
}  // namespace lemo::coordinator
