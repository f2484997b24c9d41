#include "worker/agent/event_reader.h"

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/io/coded_stream.h"

namespace lemo::agent {

absl::StatusOr<std::vector<lemo::v1::RunEvent>> EventReader::Read(int fd) {
  std::vector<lemo::v1::RunEvent> events;
  char buffer[1 << 16];
  const ssize_t got = ::read(fd, buffer, sizeof(buffer));
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) return events;
    return absl::InternalError(absl::StrCat("cannot read events: ", std::strerror(errno)));
  }
  if (got == 0) {
    ended_ = true;
    return events;
  }
  pending_.append(buffer, static_cast<size_t>(got));
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(pending_.data()),
                                            static_cast<int>(pending_.size()));
  int taken = 0;
  for (;;) {
    uint32_t length = 0;
    if (!in.ReadVarint32(&length)) {
      // The longest varint of a length has five bytes; more that are no varint will never be one.
      if (pending_.size() - taken >= 10) return absl::InvalidArgumentError("events: bad length");
      break;
    }
    if (length > kEventBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("events: one of ", length, " bytes; at most ",
                                                     kEventBytesMax, " are allowed"));
    }
    const int start = in.CurrentPosition();
    if (pending_.size() - start < length) break;
    lemo::v1::RunEvent event;
    if (!event.ParseFromArray(pending_.data() + start, static_cast<int>(length))) {
      return absl::InvalidArgumentError("events: bytes that are not a RunEvent");
    }
    events.push_back(std::move(event));
    in.Skip(static_cast<int>(length));
    taken = start + static_cast<int>(length);
  }
  pending_.erase(0, static_cast<size_t>(taken));
  return events;
}

}  // namespace lemo::agent
