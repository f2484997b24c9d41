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
  // A check of a Start that could not run, because its child was killed or the disk is full, is run
  // again after this pause, and so on with doubled pauses, so many times.
  absl::Duration retry_pause = absl::Milliseconds(500);
  int retries = 8;
};

// nullopt: nothing is wrong.
using Verdict = std::optional<lemo::v1::Failure>;

// Thread-safe.
class Validator {
 public:
  // `done` is called from a thread of the validator, once for each Start that was not stopped.
  using Done = std::function<void(const std::string& job, Verdict verdict)>;
  Validator(ValidatorOptions options, ArtifactStore* artifacts, Done done);
  ~Validator();  // as Shutdown

  void Start(const JobRecord& record);
  void Stop(const std::string& job);
  struct Load {
    size_t running = 0;
    size_t waiting = 0;
  };
  // Of what Start was called for.
  Load CurrentLoad();

  // Checks now, in the calling thread; for calls that only ask, of which no more than `workers` run
  // at a time. Violations name files as the spec does.
  Verdict Check(const JobRecord& record);

  // Ends the children and waits for them; Check answers at once, and nothing is done any more.
  void Shutdown();

 private:
  struct Waiting {
    JobRecord record;
    int tries = 0;  // so far
    absl::Time not_before = absl::InfinitePast();
  };

  void Work();
  // Waits for what is due next; nullopt when stopping.
  std::optional<Waiting> Next();
  // The check that `key` of running_ stands for.
  Verdict RunChild(const JobRecord& record, const std::string& key);

  const ValidatorOptions options_;
  ArtifactStore* const artifacts_;
  const Done done_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Waiting> waiting_;
  // By job, and one for each Check; 0: about to start.
  std::map<std::string, pid_t> running_;
  int checks_ = 0;
  int64_t last_check_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lemo::coordinator
