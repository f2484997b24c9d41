// What an agent must know of an attempt after its own death.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lemo/v1/worker_service.pb.h"

namespace lemo::agent {

struct AttemptRecord {
  lemo::v1::AttemptId id;
  int ranks = 1;       // on this node
  int first_rank = 0;  // of those
  int gang_ranks = 1;  // on all nodes
  pid_t leader = 0;    // 0: no rank was started
  uint64_t start_ticks = 0;
  std::string boot_id;
  double start_unix_seconds = 0;
  double run_seconds = 0;  // of a gang that has ended
  bool succeeded = false;  // the ranks have left with 0; what remains is to hand over the result
};

// Files of one attempt in its job's directory. Every write is durable and whole when it returns.
// Not thread-safe.
class AttemptJournal {
 public:
  AttemptJournal(std::filesystem::path job_directory, int attempt)
      : directory_(std::move(job_directory)), attempt_(attempt) {}

  std::filesystem::path spool() const { return Numbered("events-", ""); }
  std::filesystem::path log(int rank) const {
    return Numbered("rank-" + std::to_string(rank) + "-", ".log");
  }
  // How one of several ranks ended; see rank_runner.h.
  std::filesystem::path rank_end(int rank) const {
    return Numbered("rank-" + std::to_string(rank) + "-", ".end");
  }
  // What mpirun says, which starts several, or on another node than the lead's its daemon.
  std::filesystem::path mpirun_log() const { return Numbered("mpirun-", ".log"); }
  std::filesystem::path spec() const { return directory_ / "run.json"; }
  // Of one of several ranks, or with kRankPlace for its number.
  std::filesystem::path spec(const std::string& rank) const {
    return directory_ / ("run-" + rank + ".json");
  }
  // Of a gang over several nodes, on its lead's: what `lemo-worker exec` reads.
  std::filesystem::path gang() const { return Numbered("gang-", ".json"); }
  std::filesystem::path out() const { return directory_ / "out"; }
  // What the ranks may have, where that has been amended: they read it before every step.
  std::filesystem::path budget() const { return out() / "budget"; }
  std::filesystem::path share() const { return directory_ / "share"; }
  // Links to the files of another job's predictor.
  std::filesystem::path predictor() const { return directory_ / "predictor"; }
  const std::filesystem::path& directory() const { return directory_; }

  absl::Status Write(const AttemptRecord& record) const;
  absl::Status WriteEnded(const lemo::v1::AttemptEnded& ended) const;
  // nullopt when the attempt has not ended.
  std::optional<lemo::v1::AttemptEnded> ReadEnded() const;

  // Of the attempt that last lived in `job_directory`; NotFound when there was none. One that was
  // made on another boot of the machine has no leader.
  static absl::StatusOr<AttemptRecord> Read(const std::filesystem::path& job_directory);

  // Removes all that is the attempt's own; what later attempts go on from (out/) stays.
  void Remove() const;

 private:
  std::filesystem::path Numbered(const char* before, const char* after) const {
    return directory_ / (before + std::to_string(attempt_) + after);
  }
  std::filesystem::path Numbered(const std::string& before, const char* after) const {
    return Numbered(before.c_str(), after);
  }

  std::filesystem::path directory_;
  int attempt_;
};

}  // namespace lemo::agent
