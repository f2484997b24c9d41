#include "worker/train/report/descriptor_writer.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

namespace lemo::train {
namespace {

// A descriptor in non-blocking mode whose reader takes nothing for this long counts as gone.
constexpr int kPatienceMs = 30'000;

// While it lives, a write to a pipe without a reader does not end the process, whatever the process
// does with SIGPIPE otherwise.
class BlockSigpipe {
 public:
  BlockSigpipe() {
    sigemptyset(&sigpipe_);
    sigaddset(&sigpipe_, SIGPIPE);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &sigpipe_, &before_);
  }
  ~BlockSigpipe() {
    if (!was_pending_) {
      const timespec now{};
      while (sigtimedwait(&sigpipe_, nullptr, &now) < 0 && errno == EINTR) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  BlockSigpipe(const BlockSigpipe&) = delete;
  BlockSigpipe& operator=(const BlockSigpipe&) = delete;

 private:
  sigset_t sigpipe_;
  sigset_t before_;
  bool was_pending_ = false;
};

}  // namespace

void DescriptorWriter::Write(std::string_view data) {
  if (failed_) return;
  BlockSigpipe block;
  while (!data.empty()) {
    const ssize_t written = ::write(fd_, data.data(), data.size());
    if (written >= 0) {
      data.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EAGAIN) {
      pollfd poll{.fd = fd_, .events = POLLOUT};
      if (::poll(&poll, 1, kPatienceMs) == 0) failed_ = true;
    } else if (errno != EINTR) {
      failed_ = true;
    }
    if (failed_) return;
  }
}

}  // namespace lemo::train
