#include "worker/agent/model_cache.h"

#include <algorithm>
#include <iostream>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/model_files.h"
#include "common/status_macros.h"
#include "worker/agent/fetch.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

// Kept free by removing models: so much, or a twentieth of the file system if that is less.
constexpr int64_t kReserveBytes = int64_t{2} << 30;
constexpr int64_t kReserveShare = 20;
constexpr double kGiB = 1 << 30;

// A relative path that stays where it begins, of a file in the directory or in a folder of it.
bool IsProperPath(const std::string& path) {
  const std::vector<std::string> parts = absl::StrSplit(path, '/');
  return parts.size() <= 2 && path.size() <= 255 &&
         std::all_of(parts.begin(), parts.end(), [](const std::string& part) {
           return !part.empty() && part[0] != '.' && part.find('\0') == std::string::npos;
         });
}

absl::Status CheckProper(const lemo::v1::Assignment& assignment) {
  if (!IsSha256(assignment.model_fingerprint())) {
    return absl::InvalidArgumentError("model_fingerprint: is no proper checksum");
  }
  for (const lemo::v1::ModelFile& file : assignment.model_files()) {
    if (!IsProperPath(file.path()) || !IsSha256(file.sha256()) || file.bytes() < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("model_files: ", file.path(), " has no proper path, size or checksum"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

ModelCache::Space ModelCache::SpaceOf(const fs::path& directory) {
  std::error_code error;
  const fs::space_info space = fs::space(directory, error);
  if (error) return {};
  return {static_cast<int64_t>(space.capacity), static_cast<int64_t>(space.available)};
}

ModelCache::ModelCache(fs::path directory, std::shared_ptr<grpc::Channel> channel,
                       MeasureSpace measure)
    : directory_(std::move(directory)),
      stub_(lemo::v1::ModelService::NewStub(std::move(channel))),
      measure_(std::move(measure)),
      hashes_(directory_ / "known.json") {}

absl::StatusOr<ModelDirectory> ModelCache::Prepare(const lemo::v1::Assignment& assignment,
                                                   Canceller* canceller) {
  LEMO_RETURN_IF_ERROR(CheckProper(assignment));
  const std::string& fingerprint = assignment.model_fingerprint();
  for (;;) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (busy_.insert(fingerprint).second) break;
    }
    if (!canceller->Sleep(std::chrono::milliseconds(50))) {
      return absl::CancelledError("the attempt was ended");
    }
  }
  absl::Cleanup release = [&] {
    std::lock_guard<std::mutex> lock(mutex_);
    busy_.erase(fingerprint);
  };
  const fs::path there = fs::path(assignment.model_path()).lexically_normal();
  if (there.is_absolute()) {
    LEMO_ASSIGN_OR_RETURN(const bool is_model, IsModel(there, assignment, canceller));
    if (is_model) return std::make_shared<const fs::path>(there);
  }
  const fs::path own = directory_ / fingerprint;
  LEMO_RETURN_IF_ERROR(Fetch(assignment, own, canceller));
  std::error_code ignored;
  fs::last_write_time(own, fs::file_time_type::clock::now(), ignored);  // when it was used
  std::lock_guard<std::mutex> lock(mutex_);
  ++users_[fingerprint];
  return ModelDirectory(new fs::path(own), [this, fingerprint](const fs::path* path) {
    delete path;
    std::lock_guard<std::mutex> last(mutex_);
    if (--users_[fingerprint] == 0) users_.erase(fingerprint);
  });
}

absl::StatusOr<bool> ModelCache::IsFile(const fs::path& path, const lemo::v1::ModelFile& file,
                                        Canceller* canceller) {
  std::error_code error;
  if (!fs::is_regular_file(path, error) ||
      fs::file_size(path, error) != static_cast<uintmax_t>(file.bytes())) {
    return false;
  }
  const absl::StatusOr<std::string> sha256 = hashes_.Sha256(path, canceller);
  if (absl::IsCancelled(sha256.status())) return absl::CancelledError("the attempt was ended");
  return sha256.ok() && *sha256 == file.sha256();
}

absl::StatusOr<bool> ModelCache::IsModel(const fs::path& directory,
                                         const lemo::v1::Assignment& assignment,
                                         Canceller* canceller) {
  const absl::StatusOr<std::vector<std::string>> here = ListModelFiles(directory);
  // One file more, a chat template for instance, and the run would be another.
  if (!here.ok() || static_cast<int>(here->size()) != assignment.model_files_size()) return false;
  for (const lemo::v1::ModelFile& file : assignment.model_files()) {
    if (!std::binary_search(here->begin(), here->end(), file.path())) return false;
    LEMO_ASSIGN_OR_RETURN(const bool same, IsFile(directory / file.path(), file, canceller));
    if (!same) return false;
  }
  return true;
}

absl::Status ModelCache::Fetch(const lemo::v1::Assignment& assignment, const fs::path& directory,
                               Canceller* canceller) {
  std::vector<const lemo::v1::ModelFile*> missing;
  int64_t bytes = 0;
  for (const lemo::v1::ModelFile& file : assignment.model_files()) {
    const fs::path path = directory / file.path();
    LEMO_ASSIGN_OR_RETURN(const bool here, IsFile(path, file, canceller));
    if (here) continue;
    missing.push_back(&file);
    std::error_code error;
    const uintmax_t part = fs::file_size(path.string() + ".part", error);
    bytes += file.bytes() - (error ? 0 : static_cast<int64_t>(part));
  }
  if (missing.empty()) return absl::OkStatus();
  const std::string& name = assignment.run().model().path();
  std::cerr << absl::StrFormat("lemo-worker: %s: fetching %s (%.2f GiB)\n", assignment.id().job(),
                               name, bytes / kGiB);
  LEMO_RETURN_IF_ERROR(MakeRoom(bytes));
  for (const lemo::v1::ModelFile* file : missing) {
    FetchRequest fetch{.name = name + "/" + file->path(),
                       .bytes = file->bytes(),
                       .sha256 = file->sha256(),
                       .path = directory / file->path(),
                       .open = nullptr};
    LEMO_RETURN_IF_ERROR(MakeDirectories(fetch.path.parent_path()));
    fetch.open = [this, file, &name](grpc::ClientContext* context, int64_t offset) {
      lemo::v1::DownloadModelFileRequest request;
      request.set_name(name);
      request.set_path(file->path());
      request.set_offset(offset);
      return stub_->DownloadModelFile(context, request);
    };
    LEMO_RETURN_IF_ERROR(FetchFile(fetch, canceller));
    hashes_.Remember(fetch.path, file->sha256());
  }
  return absl::OkStatus();
}

absl::Status ModelCache::MakeRoom(int64_t bytes) {
  for (;;) {
    const Space space = measure_(directory_);
    const int64_t reserve = std::min(kReserveBytes, space.bytes / kReserveShare);
    if (space.free - bytes >= reserve) return absl::OkStatus();
    if (RemoveOne()) continue;
    if (space.free >= bytes) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrFormat(
        "the model needs %.2f GiB in %s, which has %.2f GiB left, and no other model there is out "
        "of use",
        bytes / kGiB, directory_.string(), space.free / kGiB));
  }
}

// The model that was not used for longest; false when all are in use.
bool ModelCache::RemoveOne() {
  std::string oldest;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    fs::file_time_type oldest_used{};
    std::error_code error;
    for (fs::directory_iterator entry(directory_, error), end; !error && entry != end;
         entry.increment(error)) {
      const std::string fingerprint = entry->path().filename().string();
      if (!IsSha256(fingerprint) || busy_.contains(fingerprint) || users_.contains(fingerprint)) {
        continue;
      }
      std::error_code ignored;
      const auto used = fs::last_write_time(entry->path(), ignored);
      if (!oldest.empty() && used >= oldest_used) continue;
      oldest = fingerprint;
      oldest_used = used;
    }
    if (oldest.empty()) return false;
    busy_.insert(oldest);
  }
  std::error_code error;
  fs::remove_all(directory_ / oldest, error);
  std::cerr << "lemo-worker: removed the model " << oldest << " to make room\n";
  std::lock_guard<std::mutex> lock(mutex_);
  busy_.erase(oldest);
  return !error;
}

}  // namespace lemo::agent
