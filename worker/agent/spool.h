// An attempt's events on disk, from when a rank said them until the coordinator has forgotten the
// attempt.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lemo/v1/run_event.pb.h"

namespace lemo::agent {

// A file of records: u32 length, u32 CRC-32 of the bytes (both little-endian), the serialized
// event. The first record is sequence 1. Memory stays small whatever the file's size. Not
// thread-safe. Movable.
class Spool {
 public:
  // Opens or makes the file. What does not read as whole records at its end, as after a power cut,
  // is cut off.
  static absl::StatusOr<Spool> Open(const std::filesystem::path& path);
  Spool(Spool&& other) noexcept;
  Spool& operator=(Spool&& other) = delete;
  ~Spool();

  // Numbers the events from last() + 1 and writes them; on failure (a full disk) none is added.
  // Survives the agent; survives the machine after Sync.
  absl::Status Append(std::vector<lemo::v1::RunEvent> events);
  absl::Status Sync();

  // Sequence of the last event, 0 when there is none.
  int64_t last() const { return last_; }
  // Size of the file.
  int64_t bytes() const { return bytes_; }

  // Events from sequence `first` (at least 1) on, as many as are within the bounds, but one at
  // least if there is one.
  absl::StatusOr<std::vector<lemo::v1::RunEvent>> Read(int64_t first, size_t count_max,
                                                       size_t bytes_max) const;

 private:
  // One offset is kept in memory for so many records.
  static constexpr int64_t kStride = 128;

  Spool(std::filesystem::path path, int fd) : path_(std::move(path)), fd_(fd) {}
  // The record at `offset`, and the offset behind it. NotFound at a torn or missing one.
  absl::StatusOr<std::string> ReadRecord(int64_t* offset) const;
  void Count(int64_t offset);

  std::filesystem::path path_;
  int fd_ = -1;
  int64_t last_ = 0;
  int64_t bytes_ = 0;
  std::vector<int64_t> offsets_;  // of sequences 1, 1 + kStride, ...
};

}  // namespace lemo::agent
