// The lines of a file, one after another, in memory that does not grow with the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lemo::train {

// Movable, not thread-safe.
class LineReader {
 public:
  enum class Result { kLine, kTooLong, kEnd };

  // `max_line_bytes` bounds the memory: a longer line is skipped and reported as kTooLong.
  // Errors: those of common/files.h; InvalidArgument for what is not a regular file.
  static absl::StatusOr<LineReader> Open(const std::filesystem::path& path, int64_t max_line_bytes);
  LineReader(LineReader&& other) noexcept;
  LineReader& operator=(LineReader&& other) noexcept;
  ~LineReader();

  // kLine: `line` is the next line without its '\n', valid until the next call. kTooLong: the line
  // was skipped. kEnd: there is no more. An empty last line (after a final '\n') is none.
  absl::StatusOr<Result> Next(std::string_view* line);

  // Of the line that the last call answered, from 1.
  int64_t line_number() const { return line_number_; }

 private:
  LineReader() = default;
  // Appends what is next in the file to the buffer; false at its end.
  absl::StatusOr<bool> Fill();

  std::filesystem::path path_;
  int fd_ = -1;
  int64_t max_line_bytes_ = 0;
  std::string buffer_;
  size_t begin_ = 0;  // of what was not given out
  int64_t line_number_ = 0;
};

}  // namespace lemo::train
