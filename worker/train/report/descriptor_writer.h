// Writes to a descriptor whose reader may go away.
#pragma once

#include <string_view>

namespace lemo::train {

// Not thread-safe. Does not own the descriptor.
class DescriptorWriter {
 public:
  explicit DescriptorWriter(int fd) : fd_(fd) {}

  // Writes all of `data`, waiting for a slow reader. After the first failure nothing is written any
  // more, so that a reader never sees half a record followed by another. Never raises SIGPIPE.
  void Write(std::string_view data);

  bool failed() const { return failed_; }

 private:
  int fd_;
  bool failed_ = false;
};

}  // namespace lemo::train
