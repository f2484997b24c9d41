#include "worker/agent/options.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <limits.h>
#include <netinet/in.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <optional>
#include <sstream>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/listen_address.h"
#include "common/metrics_server.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

std::string HostName() {
  char name[HOST_NAME_MAX + 1] = {};
  return ::gethostname(name, HOST_NAME_MAX) == 0 ? name : "unknown";
}

// Beside the program, as installed, or where a build tree has it.
fs::path FindTrain(const fs::path& program) {
  const fs::path folder = program.parent_path();
  const fs::path in_build = (folder / ".." / "train" / "lemo-train").lexically_normal();
  std::error_code ignored;
  if (!fs::exists(folder / "lemo-train", ignored) && fs::exists(in_build, ignored)) {
    return in_build;
  }
  return folder / "lemo-train";
}

// Whether it is on this machine, as `lemo up` and demonstrations have it.
bool IsLoopback(const std::string& address) {
  const std::optional<ListenAddress> parsed = ParseListenAddress(address);
  return parsed && parsed->loopback;
}

// The network interface that has the address; empty when none has. (Open MPI takes no block of one
// address.)
std::string InterfaceOf(const ListenAddress& address) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "";
  const absl::Cleanup free = [all] { ::freeifaddrs(all); };
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr) continue;
    char text[INET6_ADDRSTRLEN] = {};
    const void* bytes = nullptr;
    if (one->ifa_addr->sa_family == AF_INET) {
      bytes = &reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr;
    } else if (one->ifa_addr->sa_family == AF_INET6) {
      bytes = &reinterpret_cast<const sockaddr_in6*>(one->ifa_addr)->sin6_addr;
    }
    if (bytes != nullptr && ::inet_ntop(one->ifa_addr->sa_family, bytes, text, sizeof(text)) &&
        address.host == text) {
      return one->ifa_name;
    }
  }
  return "";
}

// FIRST-LAST.
bool ParsePorts(const std::string& text, AgentOptions* options) {
  const std::vector<std::string> ends = absl::StrSplit(text, '-');
  return ends.size() == 2 && absl::SimpleAtoi(ends[0], &options->mpi_first_port) &&
         absl::SimpleAtoi(ends[1], &options->mpi_last_port) && options->mpi_first_port > 0 &&
         options->mpi_first_port <= options->mpi_last_port && options->mpi_last_port < 65536;
}

// Where other agents reach this one, and what Open MPI may use. Fills in what follows from the
// rest.
absl::Status CompleteEndpoint(const std::string& ports, bool insecure, AgentOptions* options) {
  if (!ports.empty() && !ParsePorts(ports, options)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--mpi-ports: ", ports, " is not FIRST-LAST, such as 17000-17099"));
  }
  // Agents of one machine find each other by themselves. Of several, each must be told where the
  // others can reach it: loopback addresses would lead them to themselves.
  if (options->listen.empty() && IsLoopback(options->coordinator)) options->listen = "127.0.0.1:0";
  if (options->listen.empty()) {
    if (options->address.empty() && options->mpi_interfaces.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("--address and --mpi-interface: only with --listen");
  }
  const std::optional<ListenAddress> parsed = ParseListenAddress(options->listen);
  if (!parsed) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen: ", options->listen,
                     " is not HOST:PORT with a numeric address, such as 10.0.0.5:7420"));
  }
  if (!parsed->loopback && !insecure) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--listen: ", options->listen,
        " is not a loopback address, and connections are not encrypted; if the network is trusted, "
        "say --insecure-listen"));
  }
  const bool any = parsed->host == "0.0.0.0" || parsed->host == "::";
  if (any && options->address.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--address: needed with --listen ", options->listen,
                     ": the address at which other workers reach this one"));
  }
  if (!options->mpi_interfaces.empty()) return absl::OkStatus();
  options->mpi_interfaces = InterfaceOf(*parsed);
  if (options->mpi_interfaces.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--mpi-interface: needed with --listen ", options->listen,
                     ", which is the address of no interface: names (eth0) or CIDR blocks "
                     "(10.0.0.0/16) that Open MPI may use"));
  }
  return absl::OkStatus();
}

}  // namespace

CommandLine ParseCommandLine(const std::vector<std::string>& args, const fs::path& program,
                             const std::string& version) {
  CommandLine command;
  AgentOptions& options = command.options;
  options.host = HostName();
  options.version = version;
  std::string train, cuda = "auto";

  CLI::App app("Runs LeMo jobs on this machine for a coordinator.", "lemo-worker");
  app.set_version_flag("--version", "lemo-worker " + version);
  app.add_option("--coordinator", options.coordinator, "Address of the coordinator")
      ->required()
      ->type_name("HOST:PORT");
  app.add_option("--dir", options.directory,
                 "Where the agent keeps its id, jobs and files; one agent a directory")
      ->required()
      ->type_name("DIR");
  app.add_option("--name", options.host, "Name in lists [the host's name]")->type_name("HOST");
  app.add_option("--train", train, "The lemo-train program [beside this one]")->type_name("PATH");
  app.add_option("--cpu-devices", options.cpu_devices,
                 "Jobs that may run on the CPU at a time; each counts on its share of the memory")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  app.add_option(
         "--memory", options.memory_bytes,
         "Memory that jobs on the CPU may have between them, by their contracts: leave room "
         "for the programs themselves [that of the host]")
      ->type_name("BYTES")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->check(CLI::PositiveNumber.description(""));
  app.add_option("--bases", options.bases,
                 "Where frozen weights lie that jobs on the CPU have once between them; of a file "
                 "system in memory (/dev/shm/...) no disk is touched [DIR/bases]")
      ->type_name("DIR");
  app.add_option("--idle-bases", options.idle_bases_bytes,
                 "Of those that no job uses, bytes to keep for later jobs [0]")
      ->type_name("BYTES")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->check(CLI::NonNegativeNumber.description(""));
  app.add_flag("--cuda-bases", options.cuda_bases,
               "Jobs on one CUDA device have frozen weights once between them, too, by descriptors "
               "that they hand on through --bases. Off: no GPU has run it yet");
  app.add_option("--cuda", cuda,
                 "Whether to offer CUDA devices: auto (those that nvidia-smi lists), none")
      ->check(CLI::IsMember({"auto", "none"}))
      ->capture_default_str();
  app.add_flag("--calibrate", options.calibrate,
               "Measure first what the CPU does, for the times of offers, unless this version has "
               "done so (as `lemo-train calibrate`)");
  app.add_option("--model-root", options.model_roots,
                 "A directory under which base models lie: jobs whose model is here come to this "
                 "worker first, others are fetched; may be repeated")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory);

  std::string ports;
  app.add_option(
         "--listen", options.listen,
         "Where other workers reach this one, so that the ranks of a job may be on several; "
         "port 0 takes a free one [127.0.0.1:0 if the coordinator is on this machine, else "
         "nowhere]")
      ->type_name("HOST:PORT");
  app.add_option("--address", options.address,
                 "At which they do, where that is not what it listens on [--listen]")
      ->type_name("HOST[:PORT]");
  app.add_option("--mpi-interface", options.mpi_interfaces,
                 "Network interfaces that the ranks may use, by name or CIDR, with commas [that of "
                 "--listen]")
      ->type_name("NAME");
  app.add_option("--mpi-ports", ports, "TCP ports that the ranks may use [any]")
      ->type_name("FIRST-LAST");

  bool insecure = false;
  app.add_option("--metrics-listen", options.metrics_listen,
                 "Where /metrics is served for Prometheus; port 0 takes a free one, written to "
                 "DIR/metrics_address [nowhere]")
      ->type_name("HOST:PORT");
  app.add_flag("--insecure-listen", insecure,
               "Serve metrics and other workers beyond this machine although nothing is encrypted");

  try {
    std::vector<std::string> reversed(args.rbegin(), args.rend());
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    const int code = app.exit(error, out, err);
    command.exit = true;
    command.exit_code = code == 0 ? 0 : 2;
    command.text = code == 0 ? out.str() : err.str();
    return command;
  }
  if (const absl::Status valid = metrics::CheckListen(options.metrics_listen, insecure);
      !valid.ok()) {
    command.exit = true;
    command.exit_code = 2;
    command.text = absl::StrCat("lemo-worker: ", std::string(valid.message()), "\n");
    return command;
  }
  if (const absl::Status valid = CompleteEndpoint(ports, insecure, &options); !valid.ok()) {
    command.exit = true;
    command.exit_code = 2;
    command.text = absl::StrCat("lemo-worker: ", std::string(valid.message()), "\n");
    return command;
  }
  options.cuda = cuda == "auto";
  options.program = program;
  options.train = train.empty() ? FindTrain(program) : fs::path(train);
  if (options.train.is_relative()) options.train = fs::absolute(options.train);
  options.directory = fs::absolute(options.directory).lexically_normal();
  options.bases = options.bases.empty() ? options.directory / "bases"
                                        : fs::absolute(options.bases).lexically_normal();
  for (fs::path& root : options.model_roots) root = fs::absolute(root).lexically_normal();
  return command;
}

}  // namespace lemo::agent
