// Checks a job's whole spec and whole data set before anything is promised, off the request path.
//
// What a rank would check is checked by the rank's own program, `lemo-train --validate`, in a child
// process of its own: one implementation, and no hostile file is parsed in the process that holds
// everybody's jobs.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/artifacts/artifacts.h"
#include "coordinator/core/core.h"

namespace lemo::coordinator {

struct ValidatorOptions {
  std::string train_program;  // lemo-train
  std::string scratch;        // a directory of its own; emptied at the start
  int workers = 1;            // children at a time
  absl::Duration timeout = absl::Hours(1);
};

// nullopt: nothing is wrong.
using Verdict = std::optional<lemo::v1::Failure>;

// Thread-safe.
class Validator {
 public:
  // `done` is called from a thread of the validator, once for each Start that was not stopped.
  using Done = std::function<void(const std::string& job, Verdict verdict)>;
  Validator(ValidatorOptions options, ArtifactStore* artifacts, Done done);
  ~Validator();  // ends the children

  void Start(const JobRecord& record);
  void Stop(const std::string& job);

  // Checks now, in the calling thread; for calls that only ask. Violations name files as the spec
  // does.
  Verdict Check(const JobRecord& record);

 private:
  void Work();
  Verdict RunChild(const JobRecord& record, const std::function<void(pid_t)>& started);

  const ValidatorOptions options_;
  ArtifactStore* const artifacts_;
  const Done done_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<JobRecord> waiting_;
  std::map<std::string, pid_t> running_;  // 0: about to start
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lemo::coordinator
