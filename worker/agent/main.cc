// lemo-worker: one agent a machine. Exit codes: 0 after a drain, 2 for a mistake in the command
// line or a directory that another agent has, 4 for a fault of the machine, 128 + the signal's
// number when a second signal ended it at once.
#include <signal.h>
#include <sys/prctl.h>

#include <atomic>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "common/metrics_server.h"
#include "worker/agent/agent.h"
#include "worker/agent/calibration.h"
#include "worker/agent/daemon_call.h"
#include "worker/agent/metrics.h"
#include "worker/agent/options.h"
#include "worker/agent/rank_runner.h"
#include "worker/agent/watchdog.h"

namespace lemo::agent {
namespace {

// The first SIGTERM or SIGINT drains, the second leaves at once. A thread that waits for signals,
// rather than a handler: everything is allowed there.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&signals_);
    for (int signal : {SIGTERM, SIGINT}) sigaddset(&signals_, signal);
    // Before any other thread is made, so that all have it.
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  }
  void Serve(Agent* agent) {
    thread_ = std::thread([this, agent] {
      for (int count = 0;; ++count) {
        int signal = 0;
        if (sigwait(&signals_, &signal) != 0 || over_) return;
        if (count == 0) {
          agent->Drain();
        } else {
          killed_by_ = signal;
          agent->Kill();
        }
      }
    });
  }
  // After the agent's Run. Answers the signal that ended it at once, or 0.
  int End() {
    over_ = true;
    pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
    return killed_by_;
  }

 private:
  sigset_t signals_;
  std::thread thread_;
  std::atomic<bool> over_{false};
  std::atomic<int> killed_by_{0};
};

int Main(const std::vector<std::string>& args) {
  // Of the agent's own: what mpirun starts for each of several ranks.
  if (!args.empty() && args[0] == "rank") return RunRank({args.begin() + 1, args.end()});
  // And what it calls to have ranks on other nodes.
  if (!args.empty() && args[0] == "exec") return RunDaemonCall({args.begin() + 1, args.end()});
  std::error_code ignored;
  const CommandLine command = ParseCommandLine(
      args, std::filesystem::read_symlink("/proc/self/exe", ignored), LEMO_VERSION);
  if (command.exit) {
    (command.exit_code == 0 ? std::cout : std::cerr) << command.text;
    return command.exit_code;
  }
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);  // a file that is too large is an error to handle, as a full disk
  // What a rank starts and leaves behind becomes this process's child, which reaps it.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  if (command.options.calibrate) {
    // Jobs are not kept waiting for what only their offers' times want.
    if (const absl::Status done = CalibrateOnce(command.options); !done.ok()) {
      std::cerr << "lemo-worker: " << done.message() << "\n";
    }
  }
  auto watchdog = Watchdog::Start();
  if (!watchdog.ok()) {
    std::cerr << "lemo-worker: " << watchdog.status().message() << "\n";
    return 4;
  }
  StopSignals signals;
  Metrics metrics(command.options.directory, LEMO_VERSION);
  auto agent = Agent::Create(command.options, watchdog->get(), &metrics);
  if (!agent.ok()) {
    std::cerr << "lemo-worker: " << agent.status().message() << "\n";
    return agent.status().code() == absl::StatusCode::kInternal ? 4 : 2;
  }
  const auto server = metrics::Server::Start(command.options.metrics_listen, metrics.registry(),
                                             command.options.directory / "metrics_address");
  if (!server.ok()) {
    std::cerr << "lemo-worker: " << server.status().message() << "\n";
    return 2;
  }
  if (*server) std::cout << "metrics on http://" << (*server)->address() << "/metrics" << std::endl;
  signals.Serve(agent->get());
  (*agent)->Run();
  const int killed_by = signals.End();
  agent->reset();
  return killed_by == 0 ? 0 : 128 + killed_by;
}

}  // namespace
}  // namespace lemo::agent

int main(int argc, char** argv) {
  return lemo::agent::Main(std::vector<std::string>(argv + 1, argv + argc));
}
