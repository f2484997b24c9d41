// Reads what a rank writes to its event descriptor.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lemo/v1/run_event.pb.h"

namespace lemo::agent {

// Varint-length-delimited RunEvents from a non-blocking descriptor. Holds at most one incomplete
// event. Not thread-safe.
class EventReader {
 public:
  // Longest event; one that claims to be longer is a fault.
  static constexpr size_t kEventBytesMax = 1 << 20;

  // What has come, up to some 64 KiB. InvalidArgument when it is not events; nothing is to be read
  // after that.
  absl::StatusOr<std::vector<lemo::v1::RunEvent>> Read(int fd);
  // The other end is closed. An incomplete event at the end is dropped: its rank died writing it.
  bool ended() const { return ended_; }

 private:
  std::string pending_;
  bool ended_ = false;
};

}  // namespace lemo::agent
