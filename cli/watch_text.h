// The events of a job as text for a person.
#pragma once

#include <string>

#include "lemo/v1/job.pb.h"

namespace lemo::cli {

struct WatchTextOptions {
  // One live line at the bottom that is drawn over; what is worth keeping scrolls above it.
  // Otherwise every event is a line.
  bool terminal = false;
  int width = 80;            // columns
  int64_t memory_limit = 0;  // bytes that the job allowed itself, 0 for none
};

// Turns events into what is to be written, one after another. It looks at no clock: the caller says
// when to draw. Foreign text cannot move the cursor. Not thread-safe.
class WatchText {
 public:
  explicit WatchText(WatchTextOptions options) : options_(options) {}

  // Lines to keep. The live line, if it was drawn, is erased first when there are any.
  std::string Event(const lemo::v1::JobEvent& event);

  // The live line as it is now, over the former one; "" when there is no terminal.
  std::string Draw();

  // The same with a note (that the coordinator is away) in place of the job's figures.
  std::string DrawNote(const std::string& note);

  // Takes the live line away.
  std::string Erase();

  // The last word on a job that has ended.
  static std::string Ending(const lemo::v1::Job& job);

 private:
  std::string Line(const lemo::v1::JobEvent& event) const;
  bool IsKept(const lemo::v1::JobEvent& event) const;
  std::string LiveLine() const;

  const WatchTextOptions options_;
  lemo::v1::Job::State state_ = lemo::v1::Job::STATE_UNSPECIFIED;
  std::string reason_;
  std::string phase_;
  lemo::v1::Progress progress_;
  std::string kept_;  // of the last step
  bool drawn_ = false;
};

}  // namespace lemo::cli
