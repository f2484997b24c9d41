#include "tests/fault/service/mischief.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

namespace lemo::coordinator {
namespace {

using std::chrono::milliseconds;

// Of the lease and margin that the test gives: the end of a coordinator's patience is about here.
constexpr double kLost = 4;

pid_t ParentOf(const std::string& process) {
  // "pid (name) state ppid ..."
  const std::string stat = train::ReadAll("/proc/" + process + "/stat");
  const size_t name_end = stat.rfind(')');
  return name_end == std::string::npos ? -1 : std::atoi(stat.c_str() + name_end + 4);
}

}  // namespace

const char* NameOf(Fault fault) {
  static constexpr const char* kNames[] = {"kill coordinator",
                                           "stop coordinator",
                                           "restart coordinator",
                                           "fill coordinator's disk",
                                           "kill agent",
                                           "stop agent",
                                           "stop agent that starts a rank",
                                           "fill agent's disk",
                                           "drain agent",
                                           "kill rank",
                                           "stop rank",
                                           "kill check",
                                           "cut agents",
                                           "delay agents",
                                           "throttle agents",
                                           "cut clients",
                                           "delay clients"};
  static_assert(std::size(kNames) == static_cast<size_t>(Fault::kCount));
  return kNames[static_cast<size_t>(fault)];
}

Mischief::Mischief(Service* service, const std::string& train, unsigned seed)
    : service_(service),
      train_(train),
      random_(seed),
      agents_proxy_(service->address(), seed + 1),
      clients_(service->address(), seed + 2) {
  const std::pair<const char*, const char*> kAgents[] = {{"a", "2"}, {"b", "1"}, {"c", "1"}};
  for (const auto& [name, devices] : kAgents) {
    auto agent = std::make_unique<Agent>();
    agent->name = name;
    agent->args = {"--coordinator", agents_proxy_.address(),
                   "--train",       train_,
                   "--name",        name,
                   "--cpu-devices", devices};
    agents_.push_back(std::move(agent));
  }
  StartAgents();
}

void Mischief::Start(Agent* agent) {
  agent->process = &service_->StartAgent(agent->name, agent->args);
  agent->busy = false;
}

void Mischief::StartAgents() {
  for (const auto& agent : agents_) Start(agent.get());
}

bool Mischief::AllConnected() const {
  return std::all_of(agents_.begin(), agents_.end(), [](const auto& agent) {
    return agent->process->Errors().find("connected to ") != std::string::npos;
  });
}

std::vector<int> Mischief::StopAgents() {
  for (const auto& agent : agents_) agent->process->Signal(SIGTERM);
  std::vector<int> codes;
  for (const auto& agent : agents_) {
    codes.push_back(agent->process->Wait());
    KeepErrors("agent " + agent->name, *agent->process);
  }
  return codes;
}

std::vector<std::filesystem::path> Mischief::AgentDirs() const {
  std::vector<std::filesystem::path> dirs;
  for (const auto& agent : agents_) dirs.push_back(service_->AgentDir(agent->name));
  return dirs;
}

Mischief::Clock::duration Mischief::Between(double least, double most) {
  const double seconds = std::uniform_real_distribution<double>(least, most)(random_);
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

int Mischief::Below(int bound) { return std::uniform_int_distribution<int>(0, bound - 1)(random_); }

void Mischief::Later(Clock::duration delay, std::function<void()> what) {
  agenda_.emplace(Clock::now() + delay, std::move(what));
}

void Mischief::Note(const std::string& text) {
  char time[32];
  std::snprintf(time, sizeof(time), "%8.3f ",
                std::chrono::duration<double>(Clock::now() - begin_).count());
  log_.push_back(time + text);
}

std::string Mischief::Log() const {
  std::string text;
  for (const std::string& line : log_) text += line + "\n";
  return text;
}

void Mischief::KeepErrors(const std::string& who, train::Process& process) {
  Note("(" + who + " has ended)");
  errors_ += "--- " + log_.back() + "\n" + process.Errors();
}

void Mischief::RunAgenda() {
  while (!agenda_.empty() && agenda_.begin()->first <= Clock::now()) {
    const std::function<void()> what = std::move(agenda_.begin()->second);
    agenda_.erase(agenda_.begin());
    what();
  }
}

// What needs a rank is drawn more often: half of the time there is none to harm.
Fault Mischief::Draw() {
  static constexpr Fault kAgain[] = {Fault::kKillRank, Fault::kStopRank, Fault::kStopStartingAgent};
  const int kinds = static_cast<int>(Fault::kCount);
  const int drawn = Below(kinds + 2 * static_cast<int>(std::size(kAgain)));
  if (drawn < kinds) return static_cast<Fault>(drawn);
  return kAgain[static_cast<size_t>(drawn) % std::size(kAgain)];
}

void Mischief::Do(int faults) {
  for (int done = 0; done < faults; ++done) {
    const Clock::time_point next = Clock::now() + Between(0.2, 1.6);
    while (Clock::now() < next) {
      RunAgenda();
      const auto until = agenda_.empty() ? next : std::min(next, agenda_.begin()->first);
      std::this_thread::sleep_until(until);
    }
    Fault fault;
    do {
      RunAgenda();
      fault = Draw();
    } while (!Strike(fault));
    ++counts_[fault];
  }
}

void Mischief::Undo() {
  agents_proxy_.Calm();
  clients_.Calm();
  // In rounds, since an agent that drains is asked anew until it has left.
  while (!agenda_.empty()) {
    auto due = std::exchange(agenda_, {});
    for (const auto& [time, what] : due) what();
    if (!agenda_.empty()) std::this_thread::sleep_for(milliseconds(50));
  }
  Note("(all is calm)");
}

bool Mischief::Strike(Fault fault) {
  switch (fault) {
    case Fault::kKillCoordinator:
    case Fault::kStopCoordinator:
    case Fault::kRestartCoordinator:
    case Fault::kFillCoordinatorsDisk:
      return StrikeCoordinator(fault);
    case Fault::kKillAgent:
    case Fault::kStopAgent:
    case Fault::kFillAgentsDisk:
    case Fault::kDrainAgent:
      return StrikeAgent(fault);
    case Fault::kStopStartingAgent:
      return StrikeStartingAgent();
    case Fault::kKillRank:
    case Fault::kStopRank:
    case Fault::kKillCheck:
      return StrikeRank(fault);
    default:
      return StrikeProxy(fault);
  }
}

bool Mischief::StrikeCoordinator(Fault fault) {
  if (coordinator_busy_) return false;
  coordinator_busy_ = true;
  train::Process& process = service_->coordinator();
  Note(NameOf(fault));
  if (fault == Fault::kKillCoordinator) {
    service_->KillCoordinator();
    EXPECT_EQ(process.Wait(), -SIGKILL) << "it had ended by itself: " << process.Errors();
    KeepErrors("coordinator", process);
    // Now and then for longer than agents hold their leases.
    Later(Below(4) == 0 ? Between(2, kLost) : Between(0, 1), [this] {
      service_->StartCoordinator();
      Note("(coordinator up)");
      coordinator_busy_ = false;
    });
  } else if (fault == Fault::kRestartCoordinator) {
    EXPECT_EQ(service_->StopCoordinator(), 0);
    KeepErrors("coordinator", process);
    service_->StartCoordinator();
    coordinator_busy_ = false;
  } else if (fault == Fault::kStopCoordinator) {
    process.Signal(SIGSTOP);
    Later(Between(0.3, kLost), [this, &process] {
      process.Signal(SIGCONT);
      Note("(coordinator goes on)");
      coordinator_busy_ = false;
    });
  } else {
    LimitFiles(process.pid(), Below(2) * 65'536);
    Later(Between(0.3, 3), [this, &process] {
      LimitFiles(process.pid(), -1);
      // A check that was begun meanwhile has the limit from its parent.
      for (const MarkedProcess& child : MarkedProcesses()) {
        if (child.Has("--validate")) LimitFiles(child.pid, -1);
      }
      Note("(coordinator has room)");
      coordinator_busy_ = false;
    });
  }
  return true;
}

bool Mischief::StrikeAgent(Fault fault) {
  Agent* agent = agents_[static_cast<size_t>(Below(static_cast<int>(agents_.size())))].get();
  if (agent->busy) return false;
  agent->busy = true;
  Note(NameOf(fault) + (" " + agent->name));
  // Back before its lease is over, about then, or when others have its jobs.
  const Clock::duration away = Below(2) == 0 ? Between(0, 1) : Between(1, 2 * kLost);
  switch (fault) {
    case Fault::kKillAgent:
      service_->KillAgent(agent->name);
      EXPECT_EQ(agent->process->Wait(), -SIGKILL)
          << "it had ended by itself: " << agent->process->Errors();
      KeepErrors("agent " + agent->name, *agent->process);
      Later(away, [this, agent] {
        Start(agent);
        Note("(agent " + agent->name + " up)");
      });
      return true;
    case Fault::kStopAgent:
      StopForAWhile(agent);
      return true;
    case Fault::kDrainAgent:
      agent->process->Signal(SIGTERM);
      AwaitDrained(agent, away);
      return true;
    default:
      break;
  }
  // Its ranks share its disk, and those that it starts have the limit from it.
  const std::string directory = service_->AgentDir(agent->name).string();
  const auto limit = [agent, directory](int64_t bytes) {
    LimitFiles(agent->process->pid(), bytes);
    for (const MarkedProcess& process : MarkedProcesses()) {
      if (process.WorksIn(directory)) LimitFiles(process.pid, bytes);
    }
  };
  limit(Below(2) * 4096);
  Later(Between(0.3, 3), [this, agent, limit] {
    limit(-1);
    Note("(agent " + agent->name + " has room)");
    agent->busy = false;
  });
  return true;
}

void Mischief::StopForAWhile(Agent* agent) {
  agent->process->Signal(SIGSTOP);
  Later(Between(0.3, 1.5 * kLost), [this, agent] {
    agent->process->Signal(SIGCONT);
    Note("(agent " + agent->name + " goes on)");
    agent->busy = false;
  });
}

// In the short time in which a new rank might run without anybody's watching it.
bool Mischief::StrikeStartingAgent() {
  const std::string runs = std::string(::getenv("LEMO_GUARD_DIR")) + "/runs";
  const int notify = ::inotify_init1(IN_CLOEXEC);
  ::inotify_add_watch(notify, runs.c_str(), IN_CREATE);
  pollfd poll = {.fd = notify, .events = POLLIN, .revents = 0};
  alignas(inotify_event) char buffer[4096];
  bool struck = false;
  if (::poll(&poll, 1, /*milliseconds=*/1500) == 1 && ::read(notify, buffer, sizeof(buffer)) > 0) {
    // "{job} {milliseconds} {process}"
    const std::string name = reinterpret_cast<const inotify_event*>(buffer)->name;
    const std::string rank = name.substr(name.rfind(' ') + 1);
    for (const auto& agent : agents_) {
      if (agent->busy || ParentOf(rank) != agent->process->pid()) continue;
      agent->busy = struck = true;
      StopForAWhile(agent.get());
      Note(NameOf(Fault::kStopStartingAgent) + (" " + agent->name + ": " + name));
    }
  }
  ::close(notify);
  return struck;
}

void Mischief::AwaitDrained(Agent* agent, Clock::duration away) {
  // Asked again and again: to wait for it would hold up the other faults.
  Later(milliseconds(50), [this, agent, away] {
    if (agent->process->Running()) {
      AwaitDrained(agent, away);
      return;
    }
    // One that has just been started may not be ready for signals.
    const std::string said = agent->process->Errors();
    const int code = agent->process->Wait();
    EXPECT_TRUE(code == 0 || (code == -SIGTERM && said.empty())) << code << " " << said;
    KeepErrors("agent " + agent->name, *agent->process);
    Later(away, [this, agent] {
      Start(agent);
      Note("(agent " + agent->name + " up)");
    });
  });
}

bool Mischief::StrikeRank(Fault fault) {
  std::vector<MarkedProcess> found = MarkedProcesses();
  std::erase_if(found, [fault](const MarkedProcess& process) {
    return !process.Has(fault == Fault::kKillCheck ? "--validate" : "--resume");
  });
  if (found.empty()) return false;
  const MarkedProcess& process = found[static_cast<size_t>(Below(static_cast<int>(found.size())))];
  Note(NameOf(fault) + (" " + process.words[1]));
  if (fault != Fault::kStopRank) {
    process.Signal(SIGKILL);
    return true;
  }
  process.Signal(SIGSTOP);
  Later(Between(0.3, 3), [process] { process.Signal(SIGCONT); });
  return true;
}

bool Mischief::StrikeProxy(Fault fault) {
  Note(NameOf(fault));
  switch (fault) {
    case Fault::kCutAgents:
      agents_proxy_.Cut(Below(2) == 0 ? Clock::duration::zero() : Between(0, kLost));
      break;
    case Fault::kDelayAgents:
      agents_proxy_.Delay(Between(0.05, 1), Between(1, 4));
      break;
    case Fault::kThrottleAgents:
      agents_proxy_.Throttle(2000 + Below(20'000), Between(1, 3));
      break;
    case Fault::kCutClients:
      clients_.Cut(Below(2) == 0 ? Clock::duration::zero() : Between(0, 2));
      break;
    default:
      clients_.Delay(Between(0.05, 1), Between(1, 4));
  }
  return true;
}

}  // namespace lemo::coordinator
