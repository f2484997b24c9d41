// One line that tells how far a transfer is.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/time/time.h"

namespace lemo::cli {

// Whether `stream` is this program's standard output or error and a terminal that can redraw.
bool IsTerminal(const std::ostream& stream);
// Its columns; 80 when it does not tell.
int TerminalWidth();

// Redraws "what  45 %  1.2 GiB of 2.6 GiB  80 MiB/s" on a terminal, writes nothing elsewhere; the
// destructor erases it. The stream must outlive it.
class ProgressLine {
 public:
  ProgressLine(std::ostream& stream, std::string what, int64_t bytes);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // `bytes` of the whole are there.
  void Update(int64_t bytes);

 private:
  std::ostream& stream_;
  const std::string what_;
  const int64_t total_;
  const bool shown_;
  int64_t first_ = -1;  // of the first update: a resumed transfer has no speed for what lay there
  absl::Time start_;
  absl::Time last_;
};

}  // namespace lemo::cli
