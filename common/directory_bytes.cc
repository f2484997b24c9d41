#include "common/directory_bytes.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace lemo::metrics {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

DirectoryBytes::DirectoryBytes(fs::path path) : path_(std::move(path)) {}

int64_t DirectoryBytes::Get() {
  const std::lock_guard lock(mutex_);
  const Clock::time_point begin = Clock::now();
  if (begin < due_) return bytes_;
  bytes_ = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(path_, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code gone;
    if (!entry->is_regular_file(gone) || entry->is_symlink(gone)) continue;
    const uintmax_t size = entry->file_size(gone);
    if (!gone) bytes_ += static_cast<int64_t>(size);
  }
  const Clock::time_point end = Clock::now();
  due_ = end + std::max<Clock::duration>(std::chrono::minutes(1), (end - begin) * 100);
  return bytes_;
}

}  // namespace lemo::metrics
