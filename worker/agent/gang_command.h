// What is started for a gang of so many ranks.
#pragma once

#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lemo::agent {

// In the arguments of a rank: its number.
inline constexpr char kRankPlace[] = "{rank}";

struct RanksToStart {
  int ranks = 1;
  std::vector<std::string> command;  // of a rank; several may find kRankPlace in it
  std::filesystem::path directory;   // the job's
  int attempt = 1;
  std::filesystem::path worker;  // the lemo-worker program, which stands beside each of several
};

struct GangCommand {
  std::vector<std::string> command;      // of the leader
  std::vector<std::string> environment;  // NAME=VALUE
  // What asks the leader to have the ranks checkpoint and end.
  int stop_signal = SIGTERM;
};

// One rank is its own leader. Several are started by Open MPI's mpirun on this node, each under
// `lemo-worker rank` (rank_runner.h); mpirun passes SIGUSR1 on to those, while a SIGTERM would have
// it kill them after a moment. It keeps to loopback, asks no resource manager for hosts and leaves
// nothing outside of ScratchOf(directory). Gangs over nodes would differ here and in who tells
// rank_runner where its output goes. NotFound when there is no mpirun.
absl::StatusOr<GangCommand> MakeGangCommand(const RanksToStart& ranks);

// For files of mpirun's; made by MakeGangCommand for gangs that need it, to be removed when the
// gang has ended.
std::filesystem::path ScratchOf(const std::filesystem::path& job_directory);

}  // namespace lemo::agent
