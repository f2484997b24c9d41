// What is started for a gang of so many ranks.
#pragma once

#include <csignal>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lemo::agent {

// In the arguments of a rank: its number.
inline constexpr char kRankPlace[] = "{rank}";
// Of gangs over several nodes, whose ranks all have the same arguments: the job's directory and the
// rank's program on the rank's own node.
inline constexpr char kDirectoryPlace[] = "{directory}";
inline constexpr char kTrainPlace[] = "{train}";
// The environment variables that tell a rank's node these.
inline constexpr char kNodeDirectory[] = "LEMO_NODE_DIRECTORY";
inline constexpr char kNodeTrain[] = "LEMO_NODE_TRAIN";

// What a gang over several nodes needs to know of this one. Handed on to `lemo-worker rank` in the
// environment of mpirun or of Open MPI's daemon.
struct NodeSettings {
  std::filesystem::path directory;  // the job's
  std::filesystem::path worker;     // the lemo-worker program
  std::filesystem::path train;      // the lemo-train program
  std::string interfaces;           // that Open MPI may use
  int first_port = 0;               // 0: any
  int last_port = 0;
};

// Of a gang over several nodes.
struct SeveralNodes {
  std::vector<int> ranks;      // of each node; the first is this one
  std::filesystem::path gang;  // what `lemo-worker exec` reads (daemon_call.h)
  NodeSettings here;
};

struct RanksToStart {
  int ranks = 1;
  std::vector<std::string> command;  // of a rank; several may find the places above in it
  std::filesystem::path directory;   // the job's
  int attempt = 1;
  std::filesystem::path worker;  // the lemo-worker program, which stands beside each of several
  std::optional<SeveralNodes> nodes;
};

struct GangCommand {
  std::vector<std::string> command;      // of the leader
  std::vector<std::string> environment;  // NAME=VALUE
  // What asks the leader to have the ranks checkpoint and end.
  int stop_signal = SIGTERM;
};

// One rank is its own leader. Several are started by Open MPI's mpirun, each under `lemo-worker
// rank` (rank_runner.h); mpirun passes SIGUSR1 on to those, while a SIGTERM would have it kill them
// after a moment. It asks no resource manager for hosts and leaves nothing outside of
// ScratchOf(directory). On one node it keeps to loopback. For ranks on others it calls `lemo-worker
// exec` in place of ssh, with the names of HostOf. NotFound when there is no mpirun.
absl::StatusOr<GangCommand> MakeGangCommand(const RanksToStart& ranks);

// What starts Open MPI's daemon on a node that does not lead. `arguments` are those that mpirun
// wants it to have; what in them is of the lead's machine is replaced. NotFound when there is no
// orted.
absl::StatusOr<GangCommand> MakeDaemonCommand(const NodeSettings& here,
                                              const std::vector<std::string>& arguments);

// By what name mpirun calls the node of that number, from 1 on. No name that a resolver knows: two
// agents may have one machine, and mpirun is not to find out.
std::string HostOf(size_t node);

// For files of mpirun's; made by the above for gangs that need it, to be removed when the gang has
// ended.
std::filesystem::path ScratchOf(const std::filesystem::path& job_directory);
// Where ranks of one node share memory. Made and removed as the above: killed ranks would leave it
// behind. A directory of the node's own, since Open MPI's names for such memory are the same on all
// nodes of a gang, and some may be one machine.
std::filesystem::path SharedMemoryOf(const std::filesystem::path& job_directory);
// Removes both.
void RemoveScratch(const std::filesystem::path& job_directory);

// What MakeGangCommand and MakeDaemonCommand have put into the environment, as rank_runner finds
// it: settings of Open MPI for the rank, NAME=VALUE.
std::vector<std::string> RankEnvironment();

}  // namespace lemo::agent
