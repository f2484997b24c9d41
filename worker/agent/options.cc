#include "worker/agent/options.h"

#include <limits.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>

#include "absl/strings/str_cat.h"
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
  app.add_option("--cuda", cuda,
                 "Whether to offer CUDA devices: auto (those that nvidia-smi lists), none")
      ->check(CLI::IsMember({"auto", "none"}))
      ->capture_default_str();
  app.add_option("--model-root", options.model_roots,
                 "A directory under which base models lie: jobs whose model is here come to this "
                 "worker first, others are fetched; may be repeated")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory);

  bool insecure = false;
  app.add_option("--metrics-listen", options.metrics_listen,
                 "Where /metrics is served for Prometheus; port 0 takes a free one, written to "
                 "DIR/metrics_address [nowhere]")
      ->type_name("HOST:PORT");
  app.add_flag("--insecure-listen", insecure,
               "Serve metrics beyond this machine although nothing is encrypted");

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
  options.cuda = cuda == "auto";
  options.program = program;
  options.train = train.empty() ? FindTrain(program) : fs::path(train);
  if (options.train.is_relative()) options.train = fs::absolute(options.train);
  options.directory = fs::absolute(options.directory).lexically_normal();
  for (fs::path& root : options.model_roots) root = fs::absolute(root).lexically_normal();
  return command;
}

}  // namespace lemo::agent
