// lemo up: a coordinator and a worker on this machine, until Ctrl-C.
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/health.h"
#include "cli/interrupt.h"
#include "cli/programs.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

// Start-up includes recovery of what was kept.
constexpr absl::Duration kStartPatience = absl::Seconds(30);
// Ranks finish their step and write a checkpoint before a worker leaves.
constexpr absl::Duration kWorkerPatience = absl::Minutes(5);
constexpr absl::Duration kCoordinatorPatience = absl::Seconds(30);
constexpr absl::Duration kLook = absl::Milliseconds(50);
constexpr int kTailLines = 10;

struct UpFlags {
  std::string dir;
  std::string listen = "127.0.0.1:7410";
  std::vector<std::string> model_roots;
};

absl::StatusOr<fs::path> Program(const std::string& name) {
  const std::optional<fs::path> program = FindProgram(name);
  if (program) return *program;
  return absl::NotFoundError(absl::StrCat(
      "there is no ", name, " beside this program or in its build tree; build it: ./dev build"));
}

absl::StatusOr<fs::path> Directory(const UpFlags& flags) {
  if (!flags.dir.empty()) return fs::absolute(flags.dir).lexically_normal();
  const char* home = std::getenv("HOME");
  if (!home || !*home) return absl::InvalidArgumentError("HOME is not set; name a --dir");
  return fs::path(home) / ".lemo";
}

// Where a person's models lie as a rule: below the directory that `lemo up` is run in, and in the
// cache of Hugging Face's tools.
std::vector<std::string> ModelRoots(const UpFlags& flags) {
  std::vector<std::string> roots;
  // Without symbolic links, as submitted jobs name their models.
  auto add = [&roots](const fs::path& root) {
    std::error_code error;
    const fs::path plain = fs::canonical(root, error);
    if (!error && fs::is_directory(plain, error)) roots.push_back(plain.string());
  };
  for (const std::string& root : flags.model_roots) add(root);
  if (!roots.empty()) return roots;
  add(fs::current_path());
  const char* home = std::getenv("HOME");
  if (home && *home) add(fs::path(home) / ".cache/huggingface/hub");
  return roots;
}

class Service {
 public:
  Service(Context& context, fs::path directory)
      : context_(context), directory_(std::move(directory)) {}

  absl::StatusOr<int> Run(const UpFlags& flags) {
    LEMO_ASSIGN_OR_RETURN(const fs::path coordinator_program, Program("lemo-coordinator"));
    LEMO_ASSIGN_OR_RETURN(const fs::path worker_program, Program("lemo-worker"));
    LEMO_ASSIGN_OR_RETURN(const fs::path train, Program("lemo-train"));
    for (const char* name : {"coordinator", "worker"}) {
      LEMO_RETURN_IF_ERROR(MakeDirectories(directory_ / name));
    }
    CatchInterrupts();

    // An address that an earlier coordinator left is not this one's.
    std::error_code error;
    fs::remove(directory_ / "coordinator/address", error);
    LEMO_ASSIGN_OR_RETURN(
        Child coordinator,
        Child::Start(coordinator_program,
                     {"--listen", flags.listen, "--dir", (directory_ / "coordinator").string(),
                      "--metrics-listen", "127.0.0.1:0", "--train", train.string()},
                     Log("coordinator")));
    const absl::StatusOr<std::string> address = AwaitCoordinator(coordinator);
    if (!address.ok()) {
      coordinator.Signal(SIGTERM);
      coordinator.Wait(kCoordinatorPatience);
      return address.status();
    }

    std::vector<std::string> worker_args = {"--coordinator",
                                            *address,
                                            "--dir",
                                            (directory_ / "worker").string(),
                                            "--train",
                                            train.string(),
                                            "--metrics-listen",
                                            "127.0.0.1:0"};
    for (const std::string& root : ModelRoots(flags)) {
      worker_args.insert(worker_args.end(), {"--model-root", root});
    }
    absl::StatusOr<Child> worker = Child::Start(worker_program, worker_args, Log("worker"));
    absl::Status ended = worker.status();
    if (ended.ok()) ended = AwaitWorker(*address, coordinator, *worker);
    if (ended.ok()) {
      Greet(*address);
      ended = Watch(coordinator, *worker);
    }
    if (worker.ok()) Stop("worker", *worker, kWorkerPatience);
    Stop("coordinator", coordinator, kCoordinatorPatience);
    if (absl::IsCancelled(ended)) return kExitOk;  // as asked
    return ended;
  }

 private:
  fs::path Log(const std::string& name) const { return directory_ / absl::StrCat(name, ".log"); }

  // Its address, once it answers.
  absl::StatusOr<std::string> AwaitCoordinator(Child& coordinator) {
    const absl::Time end = absl::Now() + kStartPatience;
    while (absl::Now() < end) {
      if (Interrupts() > 0) return absl::CancelledError("stopped");
      if (!coordinator.Running()) return Died("coordinator", coordinator);
      const absl::StatusOr<std::string> written =
          ReadFile(directory_ / "coordinator/address", 1 << 10);
      if (written.ok()) {
        const std::string address(absl::StripAsciiWhitespace(*written));
        Health health = Health::kNotServing;
        const Connection connection(address, absl::Seconds(1));
        if (CheckHealth(connection.channel(), absl::Seconds(1), &health).ok() &&
            health == Health::kServing) {
          return address;
        }
      }
      absl::SleepFor(kLook);
    }
    return absl::UnavailableError(absl::StrCat("the coordinator was not ready in ",
                                               absl::FormatDuration(kStartPatience), "; see ",
                                               Log("coordinator").string()));
  }

  absl::Status AwaitWorker(const std::string& address, Child& coordinator, Child& worker) {
    const Connection connection(address, absl::Seconds(5));
    const absl::Time end = absl::Now() + kStartPatience;
    while (absl::Now() < end) {
      if (Interrupts() > 0) return absl::CancelledError("stopped");
      if (!coordinator.Running()) return Died("coordinator", coordinator);
      if (!worker.Running()) return Died("worker", worker);
      lemo::v1::ListWorkersResponse workers;
      const absl::Status listed = connection.Call("list workers", [&](grpc::ClientContext* rpc) {
        return connection.cluster().ListWorkers(rpc, {}, &workers);
      });
      if (listed.ok()) {
        for (const lemo::v1::Worker& known : workers.workers()) {
          if (known.state() != lemo::v1::Worker::LOST) return absl::OkStatus();
        }
      }
      absl::SleepFor(kLook);
    }
    return absl::UnavailableError(absl::StrCat("the worker did not register in ",
                                               absl::FormatDuration(kStartPatience), "; see ",
                                               Log("worker").string()));
  }

  void Greet(const std::string& address) {
    if (context_.is_table()) {
      context_.out() << "LeMo is up at " << address << ", data and logs in " << directory_.string()
                     << "\n";
      if (address != "127.0.0.1:7410") {
        context_.out() << "From another terminal: export LEMO_COORDINATOR=" << address << "\n";
      }
      context_.out() << "Ctrl-C checkpoints what runs and ends it." << std::endl;
    } else {
      PrintJsonLine({{"address", address}, {"dir", directory_.string()}}, context_.out());
    }
  }

  absl::Status Watch(Child& coordinator, Child& worker) {
    while (Interrupts() == 0) {
      if (!coordinator.Running()) return Died("coordinator", coordinator);
      if (!worker.Running()) return Died("worker", worker);
      absl::SleepFor(kLook);
    }
    return absl::CancelledError("stopped");
  }

  absl::Status Died(const std::string& name, const Child& child) const {
    return absl::InternalError(absl::StrCat("the ", name, " ended (", child.End(), "); the end of ",
                                            Log(name).string(), ":\n",
                                            TailOf(Log(name), kTailLines)));
  }

  // Asks it to leave; what does not leave in time, or at a second Ctrl-C, is killed.
  void Stop(const std::string& name, Child& child, absl::Duration patience) {
    const int interrupts = Interrupts();
    child.Signal(SIGTERM);
    const absl::Time end = absl::Now() + patience;
    while (!child.Wait(kLook)) {
      if (absl::Now() < end && Interrupts() <= std::max(interrupts, 1)) continue;
      context_.err() << "the " << name << " is killed\n";
      child.Signal(SIGKILL);
    }
  }

  Context& context_;
  const fs::path directory_;
};

absl::StatusOr<int> Up(Context& context, const UpFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const fs::path directory, Directory(flags));
  return Service(context, directory).Run(flags);
}

}  // namespace

void AddUpCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<UpFlags>();
  CLI::App* up =
      AddCommand(app, context, "up", "Run a coordinator and a worker on this machine until Ctrl-C",
                 flags, &Up);
  up->add_option("--dir", flags->dir, "Where jobs, files, results and logs are kept [~/.lemo]")
      ->type_name("DIR");
  up->add_option("--listen", flags->listen, "Where the coordinator listens [127.0.0.1:7410]")
      ->type_name("HOST:PORT");
  up->add_option("--model-root", flags->model_roots,
                 "A directory under which base models lie; may be repeated [the current one, "
                 "~/.cache/huggingface/hub]")
      ->type_name("DIR")
      ->allow_extra_args(false)
      ->check(CLI::ExistingDirectory.description(""));
}

}  // namespace lemo::cli
