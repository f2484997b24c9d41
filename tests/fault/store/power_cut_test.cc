// Power fails: of what was written and not synced, any 512-byte sector may be lost.
//
// This program's own fsync and fdatasync stand before the C library's, so it knows what each file
// held at its last sync, and which names its directory had at the last sync of that. Before a sync
// of the store takes effect, a disk is made up of the synced content, with the sectors of later
// writes on it or not, by chance from a fixed seed; a store opened there must have every change
// whose call had returned, each whole.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "tests/unit/store/sample_jobs.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kSeed = 20261122;
constexpr size_t kSector = 512;
constexpr int kCalls = 120;

class Disk {
 public:
  static Disk& Get() {
    static Disk* const disk = new Disk;
    return *disk;
  }

  // Follows what is in `directory`; calls `before_sync` in the thread that syncs.
  void Watch(const fs::path& directory, std::function<void()> before_sync) {
    std::lock_guard lock(mutex_);
    directory_ = directory;
    before_sync_ = std::move(before_sync);
    synced_.clear();
    names_.clear();
  }

  void Synced(int fd) {
    std::array<char, 4096> target;
    const std::string link = absl::StrCat("/proc/self/fd/", fd);
    const ssize_t length = ::readlink(link.c_str(), target.data(), target.size());
    if (length <= 0) return;
    const fs::path path(std::string(target.data(), static_cast<size_t>(length)));
    std::function<void()> before_sync;
    {
      std::lock_guard lock(mutex_);
      if (directory_.empty() || (path != directory_ && path.parent_path() != directory_)) return;
      before_sync = before_sync_;
    }
    if (before_sync) before_sync();
    std::lock_guard lock(mutex_);
    if (path == directory_) {
      names_.clear();
      for (const auto& entry : fs::directory_iterator(path)) {
        names_.insert(entry.path().filename().string());
      }
    } else if (const auto content = ReadFile(path); content.ok()) {
      synced_[path.filename().string()] = *content;
    }
  }

  // What a power cut now might leave.
  void MakeUp(std::mt19937& random, const fs::path& where) {
    std::map<std::string, std::string> files;
    {
      std::lock_guard lock(mutex_);
      for (const std::string& name : names_) files[name] = synced_[name];
    }
    for (auto& [name, content] : files) {
      if (name.find("-shm") != std::string::npos) continue;  // memory, by another name
      const std::string later = ReadFile(directory_ / name).value_or("");
      const size_t chance = random() % 3;  // no, some or all later sectors
      content.resize(chance == 0 ? content.size() : std::max(content.size(), later.size()));
      for (size_t at = 0; at < later.size() && chance > 0; at += kSector) {
        if (chance == 2 || random() % 2 == 0) {
          content.replace(at, kSector, later.substr(at, kSector));
        }
      }
      EXPECT_TRUE(WriteFileAtomic(where / name, content).ok());
    }
  }

 private:
  std::mutex mutex_;
  fs::path directory_;
  std::function<void()> before_sync_;
  std::map<std::string, std::string> synced_;
  std::set<std::string> names_;
};

// Every round is whole; answers how many there are.
int64_t CheckedRounds(Store& store) {
  const auto one = store.GetJob(JobName(1)), two = store.GetJob(JobName(2));
  EXPECT_EQ(one.ok(), two.ok());
  if (!one.ok()) return 0;
  EXPECT_EQ(one->last_sequence(), two->last_sequence()) << "half a call";
  for (const int64_t number : {1, 2}) {
    const auto events = store.Events(JobName(number), 0, 1'000'000);
    EXPECT_TRUE(events.ok()) << events.status();
    EXPECT_EQ(events->size(), one->last_sequence());
  }
  return one->last_sequence();
}

TEST(PowerCut, WhatWasAnsweredIsOnTheDisk) {
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  const ScratchDir scratch;
  fs::create_directory(scratch / "live");
  std::atomic<int64_t> answered = 0;
  int cuts = 0;
  int64_t syncs = 0;
  Disk::Get().Watch(scratch / "live", [&] {
    // All of the first, which make the database, then a part.
    if (++syncs > 20 && random() % 6 != 0) return;
    ++cuts;
    const fs::path made = scratch / absl::StrCat("cut", cuts);
    fs::create_directory(made);
    Disk::Get().MakeUp(random, made);
    auto store = MustOpen((made / "db").string());
    ASSERT_NE(store, nullptr) << "cut " << cuts;
    const int64_t there = CheckedRounds(*store);
    EXPECT_TRUE(there == answered || there == answered + 1)
        << "cut " << cuts << ": " << there << " of " << answered;
    store.reset();
    fs::remove_all(made);
  });
  auto store = MustOpen((fs::path(scratch / "live") / "db").string());
  JobRecord one = SampleJob(1), two = SampleJob(2);
  for (int i = 1; i <= kCalls && !HasFailure(); ++i) {
    std::vector<Effect> effects;
    for (JobRecord* record : {&one, &two}) {
      auto event = NextEvent(record, absl::StrCat(i));
      // Large, so that the log is carried over into the database several times.
      event.mutable_state()->mutable_failure()->set_log_tail(std::string(60'000, 'a' + i % 26));
      effects.push_back(Persist{*record, {event}});
    }
    ASSERT_TRUE(store->Apply(effects).ok());
    ++answered;
  }
  store.reset();
  Disk::Get().Watch("", nullptr);
  EXPECT_GE(syncs, kCalls) << "every answer waits for a sync";
  EXPECT_GT(cuts, 20);
}

}  // namespace
}  // namespace lemo::coordinator

extern "C" int fsync(int fd) {
  lemo::coordinator::Disk::Get().Synced(fd);
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

extern "C" int fdatasync(int fd) {
  lemo::coordinator::Disk::Get().Synced(fd);
  return static_cast<int>(::syscall(SYS_fdatasync, fd));
}
