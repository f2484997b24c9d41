// Events as text for a person.
#pragma once

#include <string>

#include "lemo/v1/run_event.pb.h"

namespace lemo::train {

struct PrettyOptions {
  // One progress line that each step draws over; otherwise steps are lines, at most one a second.
  bool terminal = false;
  bool color = false;
  int width = 80;  // columns
};

// What a terminal at `fd` can do: a terminal that is not dumb, its width, and colour unless
// NO_COLOR is set.
PrettyOptions DetectTerminal(int fd);

// Turns events into what is to be written, one after another. It keeps what it must know of the
// screen and looks at no clock but the events'. Text from files cannot move the cursor: control
// characters are shown as '?'. Not thread-safe.
class PrettyFormatter {
 public:
  explicit PrettyFormatter(PrettyOptions options) : options_(options) {}

  std::string Format(const lemo::v1::RunEvent& event);

  // The terminal may be resized at any time.
  void set_width(int width) { options_.width = width; }

 private:
  std::string Step(const lemo::v1::StepEvent& step, double now);
  std::string Shadow(const lemo::v1::ShadowEvent& shadow) const;
  std::string Rehearsal(const lemo::v1::RehearsalEvent& rehearsal) const;
  std::string Amendment(const lemo::v1::AmendmentEvent& amendment) const;
  std::string Eval(const lemo::v1::EvalEvent& eval) const;
  std::string Result(const lemo::v1::ResultEvent& result) const;
  std::string Error(const lemo::v1::ErrorEvent& error) const;
  std::string Paint(const char* code, const std::string& text) const;

  PrettyOptions options_;
  bool progress_shown_ = false;  // the cursor stands at the end of a progress line
  double last_step_time_ = 0;
  bool any_step_ = false;
};

}  // namespace lemo::train
