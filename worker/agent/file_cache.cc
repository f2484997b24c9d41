#include "worker/agent/file_cache.h"

#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/job_files.h"
#include "common/status_macros.h"

namespace lemo::agent {

namespace fs = std::filesystem;

FileCache::FileCache(fs::path directory, const std::shared_ptr<grpc::Channel>& channel)
    : directory_(std::move(directory)),
      files_(lemo::v1::FileService::NewStub(channel)),
      jobs_(lemo::v1::JobService::NewStub(channel)) {}

absl::StatusOr<fs::path> FileCache::Fetch(const lemo::v1::InputFile& file, Canceller* canceller) {
  if (!IsSha256(file.sha256()) || file.bytes() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("files: ", file.name(), " has no proper checksum and size"));
  }
  const fs::path path = directory_ / file.sha256();
  bool check_first = false;
  for (;;) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (busy_.insert(file.sha256()).second) {
      check_first = !checked_.contains(file.sha256());
      break;
    }
    lock.unlock();
    if (!canceller->Sleep(std::chrono::milliseconds(50))) {
      return absl::CancelledError("the attempt was ended");
    }
  }
  absl::Cleanup release = [&] {
    std::lock_guard<std::mutex> lock(mutex_);
    busy_.erase(file.sha256());
  };
  std::error_code error;
  bool here = fs::is_regular_file(path, error) &&
              fs::file_size(path, error) == static_cast<uintmax_t>(file.bytes());
  // A disk may have lost what was written before this agent's life.
  if (here && check_first) here = Sha256HexOfFile(path).value_or("") == file.sha256();
  if (!here) LEMO_RETURN_IF_ERROR(FetchAlone(file, path, canceller));
  fs::last_write_time(path, fs::file_time_type::clock::now(), error);
  std::lock_guard<std::mutex> lock(mutex_);
  checked_.insert(file.sha256());
  return path;
}

absl::Status FileCache::FetchAlone(const lemo::v1::InputFile& file, const fs::path& path,
                                   Canceller* canceller) {
  FetchRequest fetch{.name = file.name(),
                     .bytes = file.bytes(),
                     .sha256 = file.sha256(),
                     .path = path,
                     .open = nullptr};
  const std::optional<JobFile> of_job = JobFileNamed(file.name());
  fetch.open = [this, &file, &of_job](grpc::ClientContext* context, int64_t offset) {
    if (of_job) {
      lemo::v1::DownloadArtifactRequest request;
      request.set_name(of_job->job);
      request.set_path(of_job->path);
      request.set_offset(offset);
      return jobs_->DownloadArtifact(context, request);
    }
    lemo::v1::DownloadFileRequest request;
    request.set_name(file.name());
    request.set_offset(offset);
    return files_->DownloadFile(context, request);
  };
  return FetchFile(fetch, canceller);
}

void FileCache::RemoveUnused(std::chrono::hours age) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::error_code error;
  for (fs::directory_iterator entry(directory_, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    const std::string sha256 = entry->path().stem().string();
    const auto used = fs::last_write_time(entry->path(), ignored);
    if (ignored || busy_.contains(sha256) || fs::file_time_type::clock::now() - used < age)
      continue;
    fs::remove(entry->path(), ignored);
    checked_.erase(sha256);
  }
}

}  // namespace lemo::agent
