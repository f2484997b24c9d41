// Jobs and events with content that shows what belongs together.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/store/store.h"

namespace lemo::coordinator {

// A directory of the test's own, removed at the end.
class ScratchDir {
 public:
  ScratchDir() {
    std::string name = testing::TempDir() + "/storeXXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~ScratchDir() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline std::string JobName(int64_t number) { return absl::StrCat("jobs/j", number); }

// Created at second `number`.
inline JobRecord SampleJob(int64_t number, lemo::v1::Job::State state = lemo::v1::Job::VALIDATING) {
  JobRecord record;
  record.number = number;
  record.job.set_name(JobName(number));
  record.job.set_state(state);
  record.job.mutable_create_time()->set_seconds(number);
  record.job.mutable_spec()->set_display_name(absl::StrCat("name", number));
  if (state >= lemo::v1::Job::SUCCEEDED) record.job.mutable_end_time()->set_seconds(number);
  return record;
}

// The next event of the job, which it counts.
inline lemo::v1::JobEvent NextEvent(JobRecord* record, const std::string& reason) {
  lemo::v1::JobEvent event;
  event.set_job(record->job.name());
  record->job.set_last_sequence(record->job.last_sequence() + 1);
  event.set_sequence(record->job.last_sequence());
  event.mutable_state()->set_reason(reason);
  return event;
}

inline std::unique_ptr<Store> MustOpen(const std::string& path) {
  absl::StatusOr<std::unique_ptr<Store>> store = OpenSqliteStore(path);
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

inline absl::Status Put(Store& store, const JobRecord& record,
                        std::vector<lemo::v1::JobEvent> events = {}) {
  return store.Apply({Persist{record, std::move(events)}});
}

}  // namespace lemo::coordinator
