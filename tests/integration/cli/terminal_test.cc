// lemo on a terminal: one live line that is redrawn, and nothing of it left at the end.
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "tests/integration/cli/run_lemo.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kColumns = 60;
constexpr int kPatienceMilliseconds = 60'000;

// `lemo` whose standard streams are a terminal of kColumns. The destructor kills and reaps it.
class TerminalLemo {
 public:
  TerminalLemo(const std::string& coordinator, std::vector<std::string> args) {
    args.insert(args.begin(), LEMO_PROGRAM);
    std::string variable = "LEMO_COORDINATOR=" + coordinator;
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    char* const envp[] = {variable.data(), nullptr};
    winsize size = {};
    size.ws_row = 24;
    size.ws_col = kColumns;
    pid_ = ::forkpty(&fd_, nullptr, nullptr, &size);
    if (pid_ == 0) {
      ::execve(argv[0], argv.data(), envp);
      ::_exit(126);
    }
  }
  ~TerminalLemo() {
    ::kill(pid_, SIGKILL);
    ::close(fd_);
    if (!reaped_) ::waitpid(pid_, nullptr, 0);
  }

  // What it has written until `text` came; fails the test when it ends, or is silent, before.
  void WaitFor(const std::string& text) {
    while (written_.find(text) == std::string::npos) {
      if (!ReadSome()) {
        ADD_FAILURE() << "no \"" << text << "\" in: " << written_;
        return;
      }
    }
  }
  int Wait() {
    while (ReadSome()) {
    }
    int status = 0;
    reaped_ = ::waitpid(pid_, &status, 0) == pid_;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  // As Ctrl-C does; a terminal would also show ^C.
  void Interrupt() { ::kill(pid_, SIGINT); }
  const std::string& written() const { return written_; }

 private:
  bool ReadSome() {
    pollfd poll = {fd_, POLLIN, 0};
    if (::poll(&poll, 1, kPatienceMilliseconds) != 1) return false;
    char bytes[4096];
    const ssize_t count = ::read(fd_, bytes, sizeof(bytes));
    if (count <= 0) return false;  // EIO: it has ended
    written_.append(bytes, static_cast<size_t>(count));
    return true;
  }

  pid_t pid_ = 0;
  int fd_ = -1;
  bool reaped_ = false;
  std::string written_;
};

class TerminalTest : public CliTest {
 protected:
  TerminalTest() {
    const std::lock_guard lock(state_.mutex);
    state_.jobs["jobs/a"].set_name("jobs/a");
    state_.jobs["jobs/a"].mutable_spec()->mutable_limits()->set_host_memory_bytes(int64_t{1} << 30);
    state_.jobs["jobs/a"].set_state(Job::RUNNING);
    state_.events["jobs/a"] = {StateEvent(1, Job::RUNNING), StepEvent(2, 1)};
  }
};

TEST_F(TerminalTest, OneLineIsRedrawnAndGoneAtTheEnd) {
  TerminalLemo watch(server_->address(), {"job", "watch", "a"});
  // A step stands in the live line alone; memory is shown against what the job was given.
  watch.WaitFor("\r\x1b[KRUNNING  step 1/2  loss ");
  watch.WaitFor("of 1");
  EXPECT_THAT(watch.written(), Not(HasSubstr("\n")));
  {
    const std::lock_guard lock(state_.mutex);
    state_.events["jobs/a"].push_back(StepEvent(3, 2));
    state_.events["jobs/a"].push_back(StateEvent(4, Job::SUCCEEDED));
    state_.jobs["jobs/a"].set_state(Job::SUCCEEDED);
  }
  EXPECT_EQ(watch.Wait(), 0);
  // The last that was drawn is erased before the ending is written.
  const size_t ending = watch.written().find("\r\njobs/a succeeded");
  ASSERT_NE(ending, std::string::npos) << watch.written();
  EXPECT_THAT(watch.written().substr(0, ending), EndsWith("\r\x1b[K"));
}

TEST_F(TerminalTest, NoLineIsWiderThanTheTerminal) {
  TerminalLemo watch(server_->address(), {"job", "watch", "a"});
  watch.WaitFor("step 1/2");
  watch.Interrupt();
  EXPECT_EQ(watch.Wait(), 130);
  for (const absl::string_view line : absl::StrSplit(watch.written(), absl::ByAnyChar("\r\n"))) {
    if (!absl::StartsWith(line, "\x1b[K")) continue;
    EXPECT_LT(line.size() - 3, size_t{kColumns}) << line;
  }
  EXPECT_THAT(watch.written(), HasSubstr("jobs/a goes on"));
}

}  // namespace
}  // namespace lemo::cli
