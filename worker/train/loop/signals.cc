#include "worker/train/loop/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace lemo::train {
namespace {

std::atomic<int> stop_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);

void Handle(int signal) {
  if (stop_signal.exchange(signal) != 0) _exit(128 + signal);
}

}  // namespace

void CatchStopSignals() {
  struct sigaction action = {};
  action.sa_handler = &Handle;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
  // A file that may not grow (ulimit -f) is then an error of the write, which names the file.
  ::signal(SIGXFSZ, SIG_IGN);
}

int StopSignal() { return stop_signal.load(); }

void SetStopSignal(int signal) { stop_signal.store(signal); }

}  // namespace lemo::train
