#include "tests/integration/gang_nodes/network.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "gtest/gtest.h"

namespace lemo::agent {
namespace {

bool Run(const std::string& command) { return std::system(command.c_str()) == 0; }

void MustRun(const std::string& command) { ASSERT_TRUE(Run(command)) << command; }

std::string Link(int number) { return "node" + std::to_string(number); }

// Becomes `command`; does not return.
[[noreturn]] void Become(const std::vector<std::string>& command, const std::string& log) {
  const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  ::dup2(fd, STDOUT_FILENO);
  ::dup2(fd, STDERR_FILENO);
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

}  // namespace

std::string Network::Enter() {
  if (!Run("ip -V >/dev/null 2>&1")) return "there is no `ip` (iproute2)";
  if (::unshare(CLONE_NEWNET) != 0) {
    return std::string("no network namespace can be made: ") + std::strerror(errno);
  }
  if (!Run("ip link set lo up && ip link add switch type bridge && "
           "ip addr add 10.123.0.1/24 dev switch && ip link set switch up")) {
    return "no bridge can be made in a network namespace";
  }
  return "";
}

Network::~Network() {
  for (const auto& [number, holder] : holders_) {
    // At once: the kernel takes its time over a namespace whose last process has gone.
    Run("ip link del " + Link(number));
    ::kill(holder, SIGKILL);
    ::waitpid(holder, nullptr, 0);
  }
}

std::string Network::AddNode(int number) {
  int ready[2];
  EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t parent = ::getpid();
  const pid_t holder = ::fork();
  if (holder == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent || ::unshare(CLONE_NEWNET) != 0) ::_exit(1);
    [[maybe_unused]] const ssize_t wrote = ::write(ready[1], "", 1);
    for (;;) ::pause();
  }
  ::close(ready[1]);
  char byte;
  EXPECT_EQ(::read(ready[0], &byte, 1), 1) << "no network namespace for a node";
  ::close(ready[0]);
  holders_[number] = holder;
  const std::string link = Link(number), pid = std::to_string(holder);
  const std::string address = "10.123.0." + std::to_string(number);
  MustRun("ip link add " + link + " type veth peer name eth0 netns " + pid);
  MustRun("ip link set " + link + " master switch up");
  const std::string there = "nsenter -t " + pid + " -n ip ";
  MustRun(there + "link set lo up");
  MustRun(there + "addr add " + address + "/24 dev eth0");
  MustRun(there + "link set eth0 up");
  return address;
}

pid_t Network::Spawn(int number, const std::vector<std::string>& command, const std::string& log) {
  const pid_t holder = number == 0 ? ::getpid() : holders_.at(number);
  const std::string path = "/proc/" + std::to_string(holder) + "/ns/net";
  const int there = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_GE(there, 0) << path;
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent || ::setns(there, CLONE_NEWNET) != 0) ::_exit(1);
    Become(command, log);
  }
  ::close(there);
  return pid;
}

void Network::Cut(int number) { MustRun("ip link set " + Link(number) + " down"); }
void Network::Join(int number) { MustRun("ip link set " + Link(number) + " up"); }

}  // namespace lemo::agent
