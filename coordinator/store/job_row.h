// A JobRecord as a row of `jobs`, and back.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/core/core.h"
#include "coordinator/store/sqlite.h"

namespace lemo::coordinator {

// Nanoseconds since 1970; the infinite times are the ends of int64.
int64_t ToNanoseconds(absl::Time time);
absl::Time FromNanoseconds(int64_t nanoseconds);

// Equal messages give equal bytes.
std::string SerializeDeterministic(const google::protobuf::MessageLite& message);

// One Persist, in the form in which it is stored. Made by the caller's thread: the writer's only
// binds.
struct JobRow {
  JobRecord record;  // for its plain fields
  int64_t create_ns = 0;
  int64_t end_ns = 0;  // 0 while the job has not ended
  std::string devices;
  std::string files;
  std::string model_files;
  std::string job;
  // Sequence and bytes.
  std::vector<std::pair<int64_t, std::string>> events;
  // Checksums of its artifacts and, with true, of its checkpoint's files.
  std::set<std::pair<std::string, bool>> contents;
  // Of a job that succeeded by contract: its RunTime, and what makes others like it. Else empty.
  std::string run_kind, run_time;
};
JobRow ToRow(const Persist& persist);

// Stores the job, its labels and its request id when it is new, else what may change; then its
// events. ALREADY_EXISTS when the request id is taken; DATA_LOSS when an event is there with other
// content; INTERNAL when a number is taken by another job or events leave a gap.
absl::Status PutJob(SqlConnection& db, const JobRow& row);

// Once after the migration that made the table: the contents of jobs that had ended before.
absl::Status FillContents(SqlConnection& db);

// The newest RunTimes, so many of each kind and so many altogether, newest first.
absl::StatusOr<std::vector<lemo::v1::RunTime>> ReadRunTimes(SqlConnection& db, int of_kind,
                                                            int limit);

// All jobs that have not ended, by number.
absl::StatusOr<std::vector<JobRecord>> ReadActiveJobs(SqlConnection& db);

// Parses a message that the store wrote; DATA_LOSS naming `what` when it cannot.
absl::Status ParseStored(std::string_view bytes, std::string_view what,
                         google::protobuf::MessageLite* message);

}  // namespace lemo::coordinator
