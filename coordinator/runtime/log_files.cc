#include "coordinator/runtime/log_files.h"

#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = size_t{64} << 10;

}  // namespace

LogFiles::LogFiles(std::string directory, int64_t limit)
    : directory_(std::move(directory)), limit_(limit) {}

std::string LogFiles::PathOf(const std::string& job, int attempt, int rank) const {
  const std::string id(absl::StripPrefix(job, "jobs/"));
  return (fs::path(directory_) / id / absl::StrCat(attempt, "-", rank, ".log")).string();
}

void LogFiles::Append(const std::string& job, const lemo::v1::LogChunk& chunk) {
  const std::lock_guard lock(mutex_);
  const std::string path = PathOf(job, chunk.attempt(), chunk.rank());
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  int64_t size = static_cast<int64_t>(fs::file_size(path, error));
  if (error) size = 0;
  const int64_t seen = size - chunk.offset();  // bytes of the chunk that are here already
  if (size >= limit_ || chunk.offset() > limit_ ||
      seen >= static_cast<int64_t>(chunk.data().size()))
    return;
  std::ofstream out(path, std::ios::app | std::ios::binary);
  if (seen < 0) {
    // Offsets are those of the rank's own file: the filling has the length of the gap.
    std::string filling = absl::StrCat("\n[", -seen, " bytes of this log were lost]\n");
    filling.resize(static_cast<size_t>(-seen), ' ');
    out << filling << chunk.data();
  } else {
    out << chunk.data().substr(static_cast<size_t>(seen));
  }
}

absl::StatusOr<std::string> LogFiles::Read(const std::string& job, int attempt, int rank,
                                           int64_t offset) const {
  std::ifstream in(PathOf(job, attempt, rank), std::ios::binary);
  if (!in) return std::string();
  in.seekg(offset);
  std::string data(kReadBytes, '\0');
  in.read(data.data(), static_cast<std::streamsize>(data.size()));
  data.resize(static_cast<size_t>(std::max<std::streamsize>(in.gcount(), 0)));
  return data;
}

std::vector<std::string> LogFiles::Jobs() const {
  std::vector<std::string> jobs;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory_, error)) {
    jobs.push_back("jobs/" + entry.path().filename().string());
  }
  return jobs;
}

void LogFiles::Remove(const std::string& job) {
  const std::lock_guard lock(mutex_);
  std::error_code ignored;
  fs::remove_all(fs::path(directory_) / std::string(absl::StripPrefix(job, "jobs/")), ignored);
}

}  // namespace lemo::coordinator
