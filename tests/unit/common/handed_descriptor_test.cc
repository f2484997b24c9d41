#include "common/handed_descriptor.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "common/making_lock.h"

namespace lemo {
namespace {

namespace fs = std::filesystem;
using Handed = std::unique_ptr<HandedDescriptor>;
constexpr std::chrono::minutes kPatience{1};

// Which thing a descriptor is of.
ino_t ThingOf(int fd) {
  struct stat info;
  return ::fstat(fd, &info) == 0 ? info.st_ino : 0;
}

class HandedDescriptors : public testing::Test {
 protected:
  HandedDescriptors() {
    dir_ = fs::path(testing::TempDir()) /
           (std::string("handed.") + testing::UnitTest::GetInstance()->current_test_info()->name() +
            "." + std::to_string(::getpid()));
  }
  ~HandedDescriptors() override { fs::remove_all(dir_); }

  absl::StatusOr<Descriptor> Make() {
    ++made_;
    return Descriptor(::memfd_create("thing", MFD_CLOEXEC));
  }
  Handed Take(const std::string& name = "a") {
    absl::StatusOr<Handed> taken = TakeDescriptor(
        dir_, name, [this] { return Make(); }, kPatience);
    EXPECT_TRUE(taken.ok()) << taken.status();
    return taken.ok() ? *std::move(taken) : nullptr;
  }
  int Sockets() const {
    int sockets = 0;
    for (const auto& entry : fs::directory_iterator(dir_)) {
      sockets += entry.path().extension() == ".socket";
    }
    return sockets;
  }

  fs::path dir_;
  std::atomic<int> made_{0};
};

TEST_F(HandedDescriptors, GoFromOneToTheNextAndEndWithTheLast) {
  Handed first = Take();
  Handed second = Take();
  const ino_t thing = ThingOf(first->get());
  EXPECT_EQ(ThingOf(second->get()), thing);
  EXPECT_NE(first->get(), second->get());
  first.reset();  // whoever made it need not stay
  Handed third = Take();
  EXPECT_EQ(ThingOf(third->get()), thing);
  EXPECT_EQ(made_, 1);
  EXPECT_NE(ThingOf(Take("b")->get()), thing);
  second.reset();
  third.reset();
  EXPECT_EQ(Sockets(), 0);
  const Handed anew = Take();
  EXPECT_EQ(made_, 3);
}

TEST_F(HandedDescriptors, OneMakesItForAllThatComeAtOnce) {
  std::vector<Handed> taken(8);
  std::vector<std::thread> threads;
  for (Handed& one : taken) threads.emplace_back([this, &one] { one = Take(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made_, 1);
  for (const Handed& one : taken) EXPECT_EQ(ThingOf(one->get()), ThingOf(taken[0]->get()));
}

TEST_F(HandedDescriptors, ErrorsOfMakingArePassedOnAndLeaveNothing) {
  const auto failed = TakeDescriptor(
      dir_, "a",
      []() -> absl::StatusOr<Descriptor> { return absl::ResourceExhaustedError("full"); },
      kPatience);
  EXPECT_EQ(failed.status().message(), "full");
  EXPECT_EQ(Sockets(), 0);
  EXPECT_NE(Take(), nullptr);
}

TEST_F(HandedDescriptors, WaitsNoLongerThanItsPatience) {
  fs::create_directories(dir_);
  const auto lock = LockMaking(dir_ / "a.lock", LockClock::now() + kPatience);
  ASSERT_TRUE(lock.ok());
  const auto late = TakeDescriptor(
      dir_, "a", [this] { return Make(); }, std::chrono::milliseconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.status())) << late.status();
  EXPECT_EQ(made_, 0);
}

// Takes it in a process of its own, which says so and then waits to be killed.
pid_t TakeElsewhere(const fs::path& dir, ino_t* thing) {
  int told[2];
  EXPECT_EQ(::pipe(told), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto taken = TakeDescriptor(
        dir, "a", [] { return Descriptor(::memfd_create("thing", MFD_CLOEXEC)); }, kPatience);
    const ino_t of = taken.ok() ? ThingOf((*taken)->get()) : 0;
    if (::write(told[1], &of, sizeof(of)) != sizeof(of)) ::_exit(1);
    for (;;) ::pause();
  }
  ::close(told[1]);
  EXPECT_EQ(::read(told[0], thing, sizeof(*thing)), static_cast<ssize_t>(sizeof(*thing)));
  ::close(told[0]);
  return child;
}

void Kill(pid_t child) {
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST_F(HandedDescriptors, OutliveAProcessThatIsKilledWhereAnotherHasThem) {
  // Both before this process has threads of its own.
  ino_t thing = 0, same = 0;
  const pid_t maker = TakeElsewhere(dir_, &thing);
  const pid_t second = TakeElsewhere(dir_, &same);
  ASSERT_NE(thing, 0u);
  EXPECT_EQ(same, thing);
  Kill(maker);
  Handed here = Take();
  EXPECT_EQ(ThingOf(here->get()), thing);
  Kill(second);
  Handed other = Take();
  EXPECT_EQ(ThingOf(other->get()), thing);
  EXPECT_EQ(made_, 0);
  here.reset();
  other.reset();
  // Nobody has it now, and sockets that were left are gone.
  here = Take();
  EXPECT_EQ(made_, 1);
  EXPECT_EQ(Sockets(), 1);
}

}  // namespace
}  // namespace lemo
