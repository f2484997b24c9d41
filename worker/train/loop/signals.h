// Being asked to stop: SIGTERM and SIGINT end a run at its next step border; a second one ends it
// at once.
#pragma once

namespace lemo::train {

// Installs the handlers, and has a limit on file sizes (SIGXFSZ) fail the write alone. Call once.
void CatchStopSignals();

// The signal that asked, or 0.
int StopSignal();
// As if it had come: another rank got it.
void SetStopSignal(int signal);

}  // namespace lemo::train
