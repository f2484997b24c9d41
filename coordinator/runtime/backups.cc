#include "coordinator/runtime/backups.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "coordinator/artifacts/local_upload.h"
#include "coordinator/core/timestamp.h"
#include "google/protobuf/util/json_util.h"

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr char kFolder[] = "backups", kHalfMade[] = ".tmp", kManifest[] = "backup.json";
// Missing contents that an error names.
constexpr size_t kNamed = 10;

absl::Status CheckGoOn(const std::function<bool()>& go_on) {
  return go_on() ? absl::OkStatus() : absl::CancelledError("the backup was given up");
}

// NOT_FOUND when `from` is gone. A file that is at `to` already is taken for the same one.
absl::Status LinkOrCopy(const fs::path& from, const fs::path& to) {
  if (::link(from.c_str(), to.c_str()) == 0 || errno == EEXIST) return absl::OkStatus();
  if (errno == ENOENT) return absl::NotFoundError(from.string());
  // Another file system, one without links, or too many of them.
  std::error_code error;
  fs::copy_file(from, to, error);
  return error ? DiskStatus(error.value(), "copy to", to) : absl::OkStatus();
}

absl::Status SyncFileSystem(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return DiskStatus(errno, "open", path);
  const absl::Cleanup close = [fd] { ::close(fd); };
  return ::syncfs(fd) == 0 ? absl::OkStatus() : DiskStatus(errno, "sync", path);
}

absl::Status WriteManifest(const lemo::v1::Backup& backup, const fs::path& path) {
  std::string text;
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  if (!google::protobuf::util::MessageToJsonString(backup, &text, options).ok()) {
    return absl::InternalError("the backup cannot be described");
  }
  return WriteFileAtomic(path, text);
}

}  // namespace

Backups::Backups(fs::path directory, Store* store, ArtifactStore* artifacts,
                 ArtifactStore* checkpoints, Janitor* janitor)
    : directory_(std::move(directory)),
      store_(store),
      artifacts_(artifacts),
      checkpoints_(checkpoints),
      janitor_(janitor) {}

absl::StatusOr<std::unique_ptr<Backups>> Backups::Open(fs::path directory, Store* store,
                                                       ArtifactStore* artifacts,
                                                       ArtifactStore* checkpoints,
                                                       Janitor* janitor) {
  std::error_code error;
  directory = fs::absolute(directory, error).lexically_normal();
  for (const fs::directory_entry& entry : fs::directory_iterator(directory / kFolder, error)) {
    std::error_code ignored;
    if (absl::EndsWith(entry.path().string(), kHalfMade)) fs::remove_all(entry.path(), ignored);
  }
  return std::unique_ptr<Backups>(
      new Backups(std::move(directory), store, artifacts, checkpoints, janitor));
}

absl::StatusOr<fs::path> Backups::Place(const NamedContent& content, const fs::path& to) const {
  ArtifactStore* const contents = content.checkpoint ? checkpoints_ : artifacts_;
  LEMO_ASSIGN_OR_RETURN(const std::string path, contents->LocalPath(content.sha256));
  std::error_code error;
  return to / fs::absolute(path, error).lexically_relative(directory_);
}

absl::Status Backups::CopyLogs(const fs::path& to, const std::function<bool()>& go_on,
                               lemo::v1::Backup* backup) const {
  std::error_code error;
  fs::recursive_directory_iterator entry(directory_ / "logs", error), end;
  for (; !error && entry != end; entry.increment(error)) {
    LEMO_RETURN_IF_ERROR(CheckGoOn(go_on));
    if (!fs::is_regular_file(entry->symlink_status(error))) continue;
    const fs::path copy = to / entry->path().lexically_relative(directory_);
    LEMO_RETURN_IF_ERROR(MakeDirectories(copy.parent_path()));
    fs::copy_file(entry->path(), copy, error);
    // Logs of an old job may be removed meanwhile.
    if (error == std::errc::no_such_file_or_directory) continue;
    if (error) return DiskStatus(error.value(), "copy to", copy);
    backup->set_bytes(backup->bytes() + static_cast<int64_t>(fs::file_size(copy, error)));
  }
  return absl::OkStatus();
}

absl::Status Backups::Fill(const fs::path& to, const std::function<bool()>& go_on,
                           lemo::v1::Backup* backup) {
  const std::unique_lock hold = janitor_->HoldContent();
  const std::string database = (to / "lemo.db").string();
  LEMO_RETURN_IF_ERROR(store_->Backup(database));
  const auto copy = [&](const NamedContent& content) -> absl::Status {
    LEMO_RETURN_IF_ERROR(CheckGoOn(go_on));
    const absl::StatusOr<fs::path> place = Place(content, to);
    if (absl::IsNotFound(place.status())) return absl::OkStatus();  // the check below names it
    LEMO_RETURN_IF_ERROR(place.status());
    std::error_code error;
    if (fs::exists(*place, error)) return absl::OkStatus();  // several may name it
    LEMO_RETURN_IF_ERROR(MakeDirectories(place->parent_path()));
    const absl::Status linked = LinkOrCopy(directory_ / place->lexically_relative(to), *place);
    if (!linked.ok() && !absl::IsNotFound(linked)) return linked;
    backup->set_files(backup->files() + 1);
    backup->set_bytes(backup->bytes() + static_cast<int64_t>(fs::file_size(*place, error)));
    return absl::OkStatus();
  };
  LEMO_RETURN_IF_ERROR(VisitContents(database, copy).status());
  LEMO_RETURN_IF_ERROR(CopyLogs(to, go_on, backup));

  size_t missing = 0;
  std::string names;
  const auto check = [&](const NamedContent& content) -> absl::Status {
    LEMO_RETURN_IF_ERROR(CheckGoOn(go_on));
    const absl::StatusOr<fs::path> place = Place(content, to);
    std::error_code error;
    if (place.ok() && fs::is_regular_file(*place, error)) return absl::OkStatus();
    if (++missing <= kNamed) {
      absl::StrAppend(&names, "\n", content.owner, ": SHA-256 ", content.sha256);
    }
    return absl::OkStatus();
  };
  LEMO_ASSIGN_OR_RETURN(const int64_t jobs, VisitContents(database, check));
  if (missing > 0) {
    return absl::DataLossError(absl::StrCat("content is missing from ", directory_.string(), ", ",
                                            missing, " in all:", names));
  }
  std::error_code error;
  backup->set_jobs(jobs);
  backup->set_bytes(backup->bytes() + static_cast<int64_t>(fs::file_size(database, error)));
  return absl::OkStatus();
}

absl::StatusOr<lemo::v1::Backup> Backups::Create(const std::string& id, absl::Time now,
                                                 const std::function<bool()>& go_on) {
  const std::unique_lock one(one_at_a_time_, std::try_to_lock);
  if (!one) return absl::AbortedError("another backup is being made; try again when it is done");
  const std::string name =
      id.empty() ? absl::FormatTime("%Y%m%d-%H%M%E3S", now, absl::UTCTimeZone()) : id;
  const fs::path folder = directory_ / kFolder, to = folder / name;
  const fs::path beside = folder / (name + kHalfMade);
  std::error_code error;
  if (fs::exists(fs::symlink_status(to, error))) {
    return absl::AlreadyExistsError(absl::StrCat("backups/", name, " is there already"));
  }
  if (const absl::Status made = MakeDirectories(beside); !made.ok()) {
    return absl::IsFailedPrecondition(made) ? absl::ResourceExhaustedError(made.message()) : made;
  }
  absl::Cleanup discard = [&beside] {
    std::error_code ignored;
    fs::remove_all(beside, ignored);
  };
  lemo::v1::Backup backup;
  backup.set_name("backups/" + name);
  *backup.mutable_create_time() = ToTimestamp(now);
  const auto write = [&]() -> absl::Status {
    LEMO_RETURN_IF_ERROR(Fill(beside, go_on, &backup));
    LEMO_RETURN_IF_ERROR(WriteManifest(backup, beside / kManifest));
    LEMO_RETURN_IF_ERROR(SyncFileSystem(beside));
    if (::rename(beside.c_str(), to.c_str()) != 0) return DiskStatus(errno, "rename to", to);
    return SyncPath(folder);
  };
  if (const absl::Status written = write(); !written.ok()) {
    // Of the codes of common/files.h this one is a full disk.
    return absl::IsFailedPrecondition(written) ? absl::ResourceExhaustedError(written.message())
                                               : written;
  }
  std::move(discard).Cancel();
  backup.set_path(to.string());
  return backup;
}

absl::StatusOr<std::vector<lemo::v1::Backup>> Backups::List() const {
  std::vector<lemo::v1::Backup> backups;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory_ / kFolder, error)) {
    const absl::StatusOr<std::string> text = ReadFile(entry.path() / kManifest, 1 << 20);
    lemo::v1::Backup backup;
    // A folder without a manifest was not made here.
    if (!text.ok() || absl::EndsWith(entry.path().string(), kHalfMade) ||
        !google::protobuf::util::JsonStringToMessage(*text, &backup).ok()) {
      continue;
    }
    backup.set_name("backups/" + entry.path().filename().string());
    backup.set_path(entry.path().string());
    backups.push_back(std::move(backup));
  }
  std::sort(backups.begin(), backups.end(), [](const auto& a, const auto& b) {
    const auto key = [](const lemo::v1::Backup& backup) {
      return std::make_pair(backup.create_time().seconds(), backup.create_time().nanos());
    };
    return key(a) > key(b);
  });
  return backups;
}

}  // namespace lemo::coordinator
