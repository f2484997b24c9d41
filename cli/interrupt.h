// Ctrl-C as something that a loop can ask for.
#pragma once

namespace lemo::cli {

// From then on SIGINT and SIGTERM are counted instead of ending the program. Idempotent.
void CatchInterrupts();

// How many came; 0 before CatchInterrupts.
int Interrupts();

}  // namespace lemo::cli
