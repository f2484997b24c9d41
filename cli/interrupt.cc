#include "cli/interrupt.h"

#include <csignal>

namespace lemo::cli {
namespace {

volatile std::sig_atomic_t g_interrupts = 0;

void Count(int) { g_interrupts = g_interrupts + 1; }

}  // namespace

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = &Count;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int Interrupts() { return g_interrupts; }

}  // namespace lemo::cli
