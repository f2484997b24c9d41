#include "worker/agent/gang_command.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<std::string> FindMpirun() {
  const char* path = ::getenv("PATH");
  for (const std::string& folder :
       std::vector<std::string>(absl::StrSplit(path == nullptr ? "" : path, ':'))) {
    const std::string program = folder + "/mpirun";
    if (!folder.empty() && ::access(program.c_str(), X_OK) == 0) return program;
  }
  return absl::NotFoundError(
      "this worker has no mpirun, which starts the ranks of a job; on its machine: "
      "apt-get install openmpi-bin");
}

}  // namespace

fs::path ScratchOf(const fs::path& job_directory) { return job_directory / "mpi"; }

absl::StatusOr<GangCommand> MakeGangCommand(const RanksToStart& ranks) {
  if (ranks.ranks == 1) return GangCommand{.command = ranks.command, .environment = {}};
  GangCommand gang;
  gang.stop_signal = SIGUSR1;
  LEMO_ASSIGN_OR_RETURN(const std::string mpirun, FindMpirun());
  const fs::path scratch = ScratchOf(ranks.directory);
  LEMO_RETURN_IF_ERROR(MakeDirectories(scratch));
  const std::string count = absl::StrCat(ranks.ranks);
  gang.command = {mpirun, "--np", count, "--host", "localhost:" + count};
  const std::pair<const char*, std::string> settings[] = {
      {"plm", "isolated"},             // no ssh: the ranks are mpirun's own children
      {"ras", "^slurm,gridengine"},    // the devices are what the coordinator has given
      {"odls_base_num_threads", "0"},  // children of the thread that stays
      {"oob_tcp_if_include", "lo"},    // mpirun's own connections
      {"btl_tcp_if_include", "lo"},    // those of the ranks
      {"orte_tmpdir_base", scratch.string()},
  };
  for (const auto& [name, value] : settings) {
    gang.command.insert(gang.command.end(), {"--mca", name, value});
  }
  gang.command.insert(gang.command.end(), {"--bind-to", "none"});
  if (::geteuid() == 0) gang.command.push_back("--allow-run-as-root");
  gang.command.insert(gang.command.end(), {ranks.worker.string(), "rank", ranks.directory.string(),
                                           absl::StrCat(ranks.attempt), "--"});
  gang.command.insert(gang.command.end(), ranks.command.begin(), ranks.command.end());
  gang.environment = {"TMPDIR=" + scratch.string()};
  return gang;
}

}  // namespace lemo::agent
