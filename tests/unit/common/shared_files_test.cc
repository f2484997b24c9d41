#include "common/shared_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace lemo {
namespace {

namespace fs = std::filesystem;
using Shared = std::shared_ptr<const SharedFile>;
constexpr std::chrono::minutes kPatience{1};
constexpr int64_t kBytes = 3 << 20;

absl::Status Fill(char* data) {
  for (int64_t i = 0; i < kBytes; ++i) data[i] = static_cast<char>(i * 7);
  return absl::OkStatus();
}
bool IsFilled(const SharedFile& file) {
  for (int64_t i = 0; i < kBytes; ++i) {
    if (file.data()[i] != static_cast<char>(i * 7)) return false;
  }
  return file.bytes() == kBytes;
}
absl::Status Forbidden(char*) { return absl::InternalError("was asked to fill"); }

class SharedFiles : public testing::Test {
 protected:
  SharedFiles() {
    dir_ = fs::path(testing::TempDir()) /
           (std::string("shared_files.") +
            testing::UnitTest::GetInstance()->current_test_info()->name() + "." +
            std::to_string(::getpid()));
  }
  ~SharedFiles() override { fs::remove_all(dir_); }

  absl::StatusOr<Shared> Map(const std::string& name,
                             const std::function<absl::Status(char*)>& fill = Fill,
                             std::chrono::milliseconds patience = kPatience) {
    return MapSharedFile(dir_, name, kBytes, fill, patience);
  }
  // Names without what tells the boot.
  std::multiset<std::string> Files() const {
    std::multiset<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_)) {
      const std::string name = entry.path().filename().string();
      names.insert(name.substr(0, name.find('-')) + fs::path(name).extension().string());
    }
    return names;
  }
  fs::path Whole(const std::string& name) const {
    for (const auto& entry : fs::directory_iterator(dir_)) {
      if (entry.path().filename().string().rfind(name + "-", 0) == 0 &&
          entry.path().extension() == ".shared") {
        return entry.path();
      }
    }
    return {};
  }

  fs::path dir_;
};

TEST_F(SharedFiles, IsFilledOnceAndReadByAll) {
  const auto first = Map("a");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(IsFilled(**first));
  const auto second = Map("a", Forbidden);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(IsFilled(**second));
  EXPECT_FALSE(Map("b", Forbidden).ok());
  EXPECT_EQ(Files().count("b.shared"), 0u);
  EXPECT_EQ(Files().count("b.new"), 0u);
  // What could not be made can be made later.
  EXPECT_TRUE(Map("b").ok());
}

TEST_F(SharedFiles, NobodyCanWrite) {
  const auto file = Map("a");
  ASSERT_TRUE(file.ok()) << file.status();
  // The kernel is asked: a write of our own would end in a signal, which a sanitiser takes for
  // itself.
  const int zeros = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(zeros, 0);
  EXPECT_EQ(read(zeros, const_cast<char*>((*file)->data()), 1), -1);
  EXPECT_EQ(errno, EFAULT);
  close(zeros);
}

TEST_F(SharedFiles, WhatFillingThrowsLeavesNothing) {
  const auto filling = [](char*) -> absl::Status { throw std::runtime_error("no memory"); };
  EXPECT_THROW((void)Map("a", filling), std::runtime_error);
  EXPECT_EQ(Files().count("a.new"), 0u);
  EXPECT_TRUE(Map("a").ok());
}

TEST_F(SharedFiles, ADiskWithoutRoomIsAnErrorBeforeAnythingIsFilled) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1 << 20, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto file = Map("a", Forbidden);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, SIG_DFL);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kFailedPrecondition) << file.status();
  EXPECT_EQ(Files().count("a.new"), 0u);
}

// Processes that come at once: each sees all of it, and one has filled it.
TEST_F(SharedFiles, OfManyAtOnceOneFills) {
  constexpr int kProcesses = 8;
  int start[2], fills[2];
  ASSERT_EQ(::pipe(start), 0);
  ASSERT_EQ(::pipe(fills), 0);
  std::vector<pid_t> children;
  for (int i = 0; i < kProcesses; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    ::close(start[1]);
    char ignored;
    (void)!::read(start[0], &ignored, 1);  // until all are there
    const auto file = Map("a", [&](char* data) {
      (void)!::write(fills[1], "f", 1);
      return Fill(data);
    });
    ::_exit(file.ok() && IsFilled(**file) ? 0 : 1);
  }
  ::close(start[0]);
  ::close(start[1]);
  ::close(fills[1]);
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  char filled[kProcesses + 1];
  EXPECT_EQ(::read(fills[0], filled, sizeof(filled)), 1);
  ::close(fills[0]);
  EXPECT_EQ(Files().count("a.shared"), 1u);
}

// A maker that is killed in the midst of it: the next one begins anew.
TEST_F(SharedFiles, AMakerThatDiesIsInNobodysWay) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t maker = ::fork();
  ASSERT_GE(maker, 0);
  if (maker == 0) {
    (void)Map("a", [&](char* data) -> absl::Status {
      std::memset(data, 9, kBytes / 2);
      (void)!::write(ready[1], "x", 1);
      for (;;) ::pause();
    });
    ::_exit(0);
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(Files().count("a.new"), 1u);
  // While it lives others wait, but not for ever; and nobody removes what it makes.
  EXPECT_EQ(Map("a", Forbidden, std::chrono::milliseconds(20)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  RemoveUnusedSharedFiles(dir_, 0);
  EXPECT_EQ(Files().count("a.new"), 1u);
  ::kill(maker, SIGKILL);
  ASSERT_EQ(::waitpid(maker, nullptr, 0), maker);
  ::close(ready[0]);
  ::close(ready[1]);
  RemoveUnusedSharedFiles(dir_, 0);
  EXPECT_TRUE(Files().empty());
  const auto file = Map("a");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(IsFilled(**file));
}

TEST_F(SharedFiles, WhatIsMappedStaysAndTheRestGoesOldestFirst) {
  Shared a = *Map("a"), b = *Map("b"), c = *Map("c");
  std::ofstream(dir_ / "of-somebody-else") << "x";
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_, 0), 3 * kBytes);
  b = nullptr;
  c = nullptr;
  // `b` was taken later than `c`, as it is known by its time.
  ASSERT_FALSE(Whole("c").empty());
  fs::last_write_time(Whole("c"), fs::last_write_time(Whole("b")) - std::chrono::seconds(5));
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_, 2 * kBytes), 3 * kBytes);
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_, kBytes), 2 * kBytes);
  EXPECT_TRUE(Whole("c").empty());
  // One that was removed while it is mapped would be no harm either; but it is not.
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_, 0), kBytes);
  EXPECT_TRUE(Whole("b").empty());
  EXPECT_TRUE(IsFilled(*a));
  a = nullptr;
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_, 0), 0);
  EXPECT_TRUE(fs::exists(dir_ / "of-somebody-else"));
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_ / "none", 0), 0);
}

// A process that dies holds nothing.
TEST_F(SharedFiles, AUserThatIsKilledNoLongerCounts) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t user = ::fork();
  ASSERT_GE(user, 0);
  if (user == 0) {
    const auto file = Map("a");
    (void)!::write(ready[1], file.ok() ? "x" : "", 1);
    for (;;) ::pause();
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_, 0), kBytes);
  ::kill(user, SIGKILL);
  ASSERT_EQ(::waitpid(user, nullptr, 0), user);
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_, 0), 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(SharedFiles, WhatAnotherBootLeftIsRemovedAndNeverTaken) {
  ASSERT_TRUE(Map("a").ok());
  fs::rename(Whole("a"), dir_ / "a-00000000.shared");
  EXPECT_FALSE(Map("a", Forbidden).ok());
  EXPECT_EQ(RemoveUnusedSharedFiles(dir_, 100 * kBytes), 0);
}

}  // namespace
}  // namespace lemo
