// Where the events of a run go: a person's terminal, a line of JSON, or a descriptor.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/violations.h"
#include "google/protobuf/message.h"
#include "lemo/v1/run_event.pb.h"
#include "nlohmann/json.hpp"

namespace lemo::train {

// Numbers and stamps each event and hands it on. Not thread-safe. Emitting never fails the run:
// when the reader is gone (EPIPE), later events are dropped. A reader that is slow holds the run
// up.
//
// A number of an event that was not measured (the loss of an evaluation that did not take place) is
// NaN.
//
// A descriptor is not given SelectionEvents of more than 512 KiB: its reader keeps a bound on what
// one event may be (the agent 1 MiB), and the report has the picture. They take no number.
class EventSink {
 public:
  virtual ~EventSink() = default;
  // Fills `sequence` and `unix_seconds`. The event as written is returned, for the report; one that
  // is not written has no sequence.
  lemo::v1::RunEvent Emit(lemo::v1::RunEvent event);

 protected:
  virtual void Write(const lemo::v1::RunEvent& event) = 0;
  virtual bool Takes(const lemo::v1::RunEvent& /*event*/) const { return true; }

 private:
  int64_t sequence_ = 0;
};

// `format` is `pretty`, `json` or `fd:N` (length-delimited protobuf to descriptor N). `pretty` and
// `json` write to `output_fd`: `pretty` on a terminal one progress line that is redrawn, otherwise
// a line a step at most once a second. InvalidArgument for anything else or when N is not open for
// writing.
absl::StatusOr<std::unique_ptr<EventSink>> MakeEventSink(const std::string& format, int output_fd);

// For the ranks of a gang that do not speak.
std::unique_ptr<EventSink> MakeNullSink();

// The object that `--events json` prints for one event: flat, `type` first, every field of the
// event, numbers as numbers, and null for a number that is not finite. Without what only runs that
// drop rows, or have a budget, or gangs, have, where it is absent.
std::string EventToJson(const lemo::v1::RunEvent& event);

// Takes out of `json`, made of `message` with every field, what of a StepEvent or EvalEvent is
// absent because all rows took part, one rank trained or nothing bounds the memory: as zeros it
// would say something else.
void EraseAbsent(const google::protobuf::Message& message, nlohmann::ordered_json* json);

// The last event of a run that failed. `violations` may be empty; how many were left out of it is
// told. `advice` says what to do; when empty, a general advice for `exit_code` (2, 3 or 4) takes
// its place.
lemo::v1::RunEvent MakeErrorEvent(const std::string& message, const Violations& violations,
                                  int exit_code, const std::string& advice = "");

}  // namespace lemo::train
