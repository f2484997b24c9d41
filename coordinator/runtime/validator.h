// Checks a job's whole spec and whole data set before anything is promised, off the request path,
// and has the offers of those that ask for one worked out.
//
// What a rank would check is checked by the rank's own program, `lemo-train --validate` or
// `--plan`, in a child process of its own: one implementation, and no hostile file is parsed in the
// process that holds everybody's jobs.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <deque>
#include <filesystem>
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
  // Where the rates are kept that a plan measured here: later ones use them, so that offers and
  // their ids stay the same. Read again when somebody else has written it (`lemo-train calibrate`);
  // removing it has them measured anew. Empty: in memory alone.
  std::string rates_file;
  // What finished runs tell of the planner's times, newest first. May be null.
  std::function<std::vector<lemo::v1::RunTime>()> history;
  // What workers tell of their devices, of those of the type if there is one
  // (core/planned_devices.h); their rates come before those of the file. May be null.
  std::function<lemo::v1::PlanOptions(const std::string& type)> devices;
  // Adds to a plan what only the cluster knows (core/contract.h, AddTimes). May be null.
  std::function<void(const JobRecord&, lemo::v1::PlanResult*)> add_times;
  // Told how each plan ended (`lemo_offers_total`). May be null.
  std::function<void(const char* outcome)> count_offers;
};

// nullopt: nothing is wrong.
using Verdict = std::optional<lemo::v1::Failure>;

struct Finding {
  Verdict verdict;
  std::optional<lemo::v1::Contract>
      contract;  // of a job that has `spec.plan`, where nothing is wrong
};

// Thread-safe.
class Validator {
 public:
  // `done` is called from a thread of the validator, once for each Start that was not stopped.
  using Done = std::function<void(const std::string& job, Finding finding)>;
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
  Finding Check(const JobRecord& record);
  // The same for a job that has `spec.plan`, and fills in `plan` instead of taking an offer.
  Verdict Plan(const JobRecord& record, lemo::v1::PlanResult* plan);

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
  // Runs `work` for a call, which waits for its turn; `work` is given its key of running_.
  Verdict Attend(const std::function<Verdict(const std::string& key)>& work);
  // The check or plan that `key` of running_ stands for.
  Finding Examine(const JobRecord& record, const std::string& key);
  Verdict MakePlan(const JobRecord& record, const std::string& key, lemo::v1::PlanResult* plan);
  // What a child is to do: with `options` it plans, and `said` is what it wrote.
  struct Errand {
    const lemo::v1::PlanOptions* options = nullptr;
    std::string said;
  };
  Verdict RunChild(const JobRecord& record, const std::string& key, Errand* errand);
  // Reads the rates' file unless it is the one that was read or written last. With rates_mutex_.
  void LoadRates();
  // Those that were known before, when another plan has measured the same device meanwhile.
  std::optional<lemo::v1::DeviceRates> KeepRates(const lemo::v1::DeviceRates& rates);
  void CountOffers(const char* outcome) const;

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
  std::mutex rates_mutex_;
  lemo::v1::PlanOptions rates_;                    // `rates` alone
  std::filesystem::file_time_type rates_written_;  // of the file that they are of
  std::vector<std::thread> threads_;
};

}  // namespace lemo::coordinator
