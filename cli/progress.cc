#include "cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/format.h"

namespace lemo::cli {
namespace {

constexpr absl::Duration kRedraw = absl::Milliseconds(100);

}  // namespace

bool IsTerminal(const std::ostream& stream) {
  const int fd = &stream == &std::cout ? STDOUT_FILENO : &stream == &std::cerr ? STDERR_FILENO : -1;
  const char* term = std::getenv("TERM");
  return fd >= 0 && isatty(fd) == 1 && !(term && std::string_view(term) == "dumb");
}

int TerminalWidth() {
  winsize size{};
  for (int fd : {STDOUT_FILENO, STDERR_FILENO}) {
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  }
  return 80;
}

ProgressLine::ProgressLine(std::ostream& stream, std::string what, int64_t bytes)
    : stream_(stream),
      what_(Printable(std::move(what))),
      total_(bytes),
      shown_(IsTerminal(stream)) {}

ProgressLine::~ProgressLine() {
  if (shown_ && first_ >= 0) stream_ << "\r\x1b[K" << std::flush;
}

void ProgressLine::Update(int64_t bytes) {
  if (!shown_) return;
  const absl::Time now = absl::Now();
  if (first_ < 0) {
    first_ = bytes;
    start_ = now;
  } else if (now - last_ < kRedraw) {
    return;
  }
  last_ = now;
  const double seconds = absl::ToDoubleSeconds(now - start_);
  std::string line = absl::StrCat(what_, "  ", total_ > 0 ? bytes * 100 / total_ : 100, " %  ",
                                  HumanBytes(bytes), " of ", HumanBytes(total_));
  if (seconds > 0.5) {
    absl::StrAppend(&line, "  ", HumanBytes(static_cast<int64_t>((bytes - first_) / seconds)),
                    "/s");
  }
  stream_ << "\r\x1b[K" << line.substr(0, std::max(TerminalWidth() - 1, 1)) << std::flush;
}

}  // namespace lemo::cli
