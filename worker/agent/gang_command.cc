#include "worker/agent/gang_command.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

constexpr char kInterfaces[] = "LEMO_NODE_INTERFACES";
constexpr char kPorts[] = "LEMO_NODE_PORTS";

// Of Open MPI's settings those that differ from node to node. Its daemons' own, and not in the
// arguments of ranks.
constexpr std::array kOfOneNode = {"oob_tcp_if_include", "oob_tcp_dynamic_ipv4_ports",
                                   "oob_tcp_dynamic_ipv6_ports", "orte_tmpdir_base",
                                   "plm_rsh_agent"};

std::string Path() {
  const char* path = ::getenv("PATH");
  return path == nullptr ? "" : path;
}

absl::StatusOr<std::string> Find(const std::string& name) {
  for (const std::string& folder : std::vector<std::string>(absl::StrSplit(Path(), ':'))) {
    const std::string program = absl::StrCat(folder, "/", name);
    if (!folder.empty() && ::access(program.c_str(), X_OK) == 0) return program;
  }
  return absl::NotFoundError(absl::StrCat(
      "this worker has no ", name,
      ", which starts the ranks of a job; on its machine: apt-get install openmpi-bin"));
}

using Settings = std::vector<std::pair<std::string, std::string>>;

void Add(const Settings& settings, std::vector<std::string>* command) {
  for (const auto& [name, value] : settings) {
    command->insert(command->end(), {"--mca", name, value});
  }
}

// The highest free port of those: ranks take the lowest. 0: none is free.
int FreePort(int first, int last) {
  for (int port = last; port >= first; --port) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return 0;
    const absl::Cleanup close = [fd] { ::close(fd); };
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return port;
  }
  return 0;
}

// Of the connections between mpirun and its daemons. One port: of a range each of them would take
// every port that is free.
absl::StatusOr<Settings> DaemonSettings(const NodeSettings& here) {
  Settings settings = {{"oob_tcp_if_include", here.interfaces}};
  if (here.first_port == 0) return settings;
  const int port = FreePort(here.first_port, here.last_port);
  if (port == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("--mpi-ports: all of ", here.first_port, "-", here.last_port, " are taken"));
  }
  settings.emplace_back("oob_tcp_dynamic_ipv4_ports", absl::StrCat(port));
  settings.emplace_back("oob_tcp_dynamic_ipv6_ports", absl::StrCat(port));
  return settings;
}

// What `lemo-worker rank` and `lemo-worker exec` read, and how they are found by their names, which
// alone are the same on all nodes.
std::vector<std::string> NodeEnvironment(const NodeSettings& here) {
  return {
      absl::StrCat("PATH=", here.worker.parent_path().string(), ":", Path()),
      absl::StrCat("TMPDIR=", ScratchOf(here.directory).string()),
      absl::StrCat(kNodeDirectory, "=", here.directory.string()),
      absl::StrCat(kNodeTrain, "=", here.train.string()),
      absl::StrCat(kInterfaces, "=", here.interfaces),
      absl::StrCat(kPorts, "=",
                   here.first_port > 0 ? absl::StrCat(here.first_port, "-", here.last_port) : "")};
}

absl::Status MakeScratch(const fs::path& directory) {
  LEMO_RETURN_IF_ERROR(MakeDirectories(ScratchOf(directory)));
  // To be without costs speed, not the run.
  if (::access("/dev/shm", W_OK) != 0) return absl::OkStatus();
  const fs::path memory = SharedMemoryOf(directory);
  LEMO_RETURN_IF_ERROR(MakeDirectories(memory));
  std::error_code error;
  fs::permissions(memory, fs::perms::owner_all, error);
  return error ? ErrnoStatus(error.value(), "protect", memory) : absl::OkStatus();
}

GangCommand OnOneNode(const RanksToStart& ranks, const std::string& mpirun) {
  GangCommand gang;
  const std::string scratch = ScratchOf(ranks.directory).string();
  const std::string count = absl::StrCat(ranks.ranks);
  gang.command = {mpirun, "--np", count, "--host", "localhost:" + count};
  Add({{"plm", "isolated"},             // no ssh: the ranks are mpirun's own children
       {"ras", "^slurm,gridengine"},    // the devices are what the coordinator has given
       {"odls_base_num_threads", "0"},  // children of the thread that stays
       {"oob_tcp_if_include", "lo"},    // mpirun's own connections
       {"btl_tcp_if_include", "lo"},    // those of the ranks
       {"orte_tmpdir_base", scratch}},
      &gang.command);
  const fs::path memory = SharedMemoryOf(ranks.directory);
  std::error_code ignored;
  if (fs::is_directory(memory, ignored)) {
    Add({{"btl_vader_backing_directory", memory.string()}}, &gang.command);
  }
  gang.command.insert(gang.command.end(), {"--bind-to", "none"});
  if (::geteuid() == 0) gang.command.push_back("--allow-run-as-root");
  gang.command.insert(gang.command.end(), {ranks.worker.string(), "rank", ranks.directory.string(),
                                           absl::StrCat(ranks.attempt), "--"});
  gang.environment = {"TMPDIR=" + scratch};
  return gang;
}

absl::StatusOr<GangCommand> OnSeveralNodes(const RanksToStart& ranks, const std::string& mpirun) {
  const SeveralNodes& nodes = *ranks.nodes;
  std::vector<std::string> hosts;
  for (size_t node = 0; node < nodes.ranks.size(); ++node) {
    hosts.push_back(absl::StrCat(node == 0 ? "localhost" : HostOf(node), ":", nodes.ranks[node]));
  }
  GangCommand gang;
  // Ranks in the order of the nodes, each filled before the next. The programs of the daemons are
  // found by the nodes themselves.
  gang.command = {mpirun,     "--noprefix",
                  "--np",     absl::StrCat(ranks.ranks),
                  "--host",   absl::StrJoin(hosts, ","),
                  "--map-by", "slot",
                  "--wdir",   "/"};
  Add({{"plm", "rsh"},
       {"plm_rsh_agent", "lemo-worker exec"},
       {"plm_rsh_no_tree_spawn", "1"},        // every daemon is started from here
       {"orte_leave_session_attached", "1"},  // and lives as long as the call that started it
       {"orte_do_not_resolve", "1"},          // hosts have no addresses: see HostOf
       {"ras", "^slurm,gridengine"},
       {"odls_base_num_threads", "0"}},
      &gang.command);
  LEMO_ASSIGN_OR_RETURN(const Settings settings, DaemonSettings(nodes.here));
  Add(settings, &gang.command);
  gang.command.insert(gang.command.end(), {"--bind-to", "none"});
  if (::geteuid() == 0) gang.command.push_back("--allow-run-as-root");
  gang.command.insert(gang.command.end(),
                      {"lemo-worker", "rank", kDirectoryPlace, absl::StrCat(ranks.attempt), "--"});
  gang.environment = NodeEnvironment(nodes.here);
  gang.environment.push_back(absl::StrCat("LEMO_GANG_FILE=", nodes.gang.string()));
  return gang;
}

}  // namespace

fs::path ScratchOf(const fs::path& job_directory) { return job_directory / "mpi"; }

fs::path SharedMemoryOf(const fs::path& job_directory) {
  return fs::path("/dev/shm") /
         absl::StrCat("lemo-", Sha256Hex(job_directory.string()).substr(0, 24));
}

void RemoveScratch(const fs::path& job_directory) {
  std::error_code ignored;
  fs::remove_all(ScratchOf(job_directory), ignored);
  fs::remove_all(SharedMemoryOf(job_directory), ignored);
}

std::string HostOf(size_t node) { return absl::StrCat("lemo-", node); }

absl::StatusOr<GangCommand> MakeGangCommand(const RanksToStart& ranks) {
  if (ranks.ranks == 1) return GangCommand{.command = ranks.command, .environment = {}};
  LEMO_ASSIGN_OR_RETURN(const std::string mpirun, Find("mpirun"));
  LEMO_RETURN_IF_ERROR(MakeScratch(ranks.directory));
  GangCommand gang;
  if (ranks.nodes) {
    LEMO_ASSIGN_OR_RETURN(gang, OnSeveralNodes(ranks, mpirun));
  } else {
    gang = OnOneNode(ranks, mpirun);
  }
  gang.command.insert(gang.command.end(), ranks.command.begin(), ranks.command.end());
  gang.stop_signal = SIGUSR1;
  return gang;
}

absl::StatusOr<GangCommand> MakeDaemonCommand(const NodeSettings& here,
                                              const std::vector<std::string>& arguments) {
  GangCommand gang;
  LEMO_ASSIGN_OR_RETURN(const std::string orted, Find("orted"));
  LEMO_RETURN_IF_ERROR(MakeScratch(here.directory));
  gang.command = {orted};
  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool setting =
        (arguments[i] == "-mca" || arguments[i] == "--mca") && i + 2 < arguments.size();
    if (setting &&
        std::find(kOfOneNode.begin(), kOfOneNode.end(), arguments[i + 1]) != kOfOneNode.end()) {
      i += 2;
    } else {
      gang.command.push_back(arguments[i]);
    }
  }
  LEMO_ASSIGN_OR_RETURN(Settings settings, DaemonSettings(here));
  settings.emplace_back("plm_rsh_agent", "lemo-worker exec");
  Add(settings, &gang.command);
  gang.environment = NodeEnvironment(here);
  // Without its lead the gang is over, and nobody is left to write a checkpoint for.
  gang.stop_signal = SIGKILL;
  return gang;
}

std::vector<std::string> RankEnvironment() {
  std::vector<std::string> environment;
  const char* directory = ::getenv(kNodeDirectory);
  if (directory == nullptr) return environment;
  const fs::path memory = SharedMemoryOf(directory);
  std::error_code ignored;
  if (fs::is_directory(memory, ignored)) {
    environment.push_back("OMPI_MCA_btl_vader_backing_directory=" + memory.string());
  }
  if (const char* interfaces = ::getenv(kInterfaces); interfaces != nullptr) {
    environment.push_back(absl::StrCat("OMPI_MCA_btl_tcp_if_include=", interfaces));
    // NCCL's own connections; it takes names alone, whole ones after `=`.
    if (::getenv("NCCL_SOCKET_IFNAME") == nullptr &&
        std::string_view(interfaces).find('/') == std::string_view::npos) {
      environment.push_back(absl::StrCat("NCCL_SOCKET_IFNAME==", interfaces));
    }
  }
  int first = 0, last = 0;
  const char* ports = ::getenv(kPorts);
  const std::vector<std::string> ends = absl::StrSplit(ports == nullptr ? "" : ports, '-');
  if (ends.size() == 2 && absl::SimpleAtoi(ends[0], &first) && absl::SimpleAtoi(ends[1], &last)) {
    for (const char* family : {"v4", "v6"}) {
      environment.push_back(absl::StrCat("OMPI_MCA_btl_tcp_port_min_", family, "=", first));
      environment.push_back(
          absl::StrCat("OMPI_MCA_btl_tcp_port_range_", family, "=", last - first + 1));
    }
  }
  return environment;
}

}  // namespace lemo::agent
