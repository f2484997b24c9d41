#include "worker/train/publish/output_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/train/publish/json_file.h"

namespace lemo::train {
namespace {

namespace fs = std::filesystem;
// Members in the order of their names: equal identities have equal text.
using SortedJson = nlohmann::json;

constexpr const char* kFormat = "lemo.run_identity";
constexpr size_t kDifferencesShown = 5;

std::string ShortText(const SortedJson& value) {
  std::string text = value.dump(-1, ' ', false, SortedJson::error_handler_t::replace);
  if (text.size() > 60) text = absl::StrCat(text.substr(0, 57), "...");
  return text;
}

// "train.learning_rate is 0.001 there and 0.002 here; ..."
std::string Differences(const SortedJson& there, const SortedJson& here) {
  const SortedJson flat_there = there.flatten(), flat_here = here.flatten();
  std::set<std::string> pointers;
  for (const SortedJson* flat : {&flat_there, &flat_here}) {
    if (!flat->is_object()) continue;
    for (const auto& [pointer, value] : flat->items()) pointers.insert(pointer);
  }
  std::vector<std::string> lines;
  size_t dropped = 0;
  for (const std::string& pointer : pointers) {
    const auto text = [&pointer](const SortedJson& flat) {
      const auto found = flat.find(pointer);
      return found == flat.end() ? std::string("absent") : ShortText(*found);
    };
    const std::string text_there = text(flat_there), text_here = text(flat_here);
    if (text_there == text_here) continue;
    if (lines.size() == kDifferencesShown) {
      ++dropped;
      continue;
    }
    const std::string field = absl::StrReplaceAll(pointer.substr(1), {{"/", "."}});
    lines.push_back(absl::StrCat(field, " is ", text_there, " there and ", text_here, " here"));
  }
  if (dropped > 0) lines.push_back(absl::StrCat(dropped, " more fields differ"));
  return absl::StrJoin(lines, "; ");
}

bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found && !error;
}

// Whether the same run was here; an error for another run or for files in the way. Writes nothing.
absl::StatusOr<bool> Inspect(const fs::path& dir, const SortedJson& identity,
                             const OutputClaim& claim) {
  const fs::path marker = dir / OutputDirectory::kMarkerName;
  absl::StatusOr<OrderedJson> read = ReadJsonObject(marker);
  if (absl::IsNotFound(read.status())) {
    for (const std::string& name : claim.names_written) {
      if (!Exists(dir / name)) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "output.dir: ", dir.string(), " holds ", name,
          ", which this run would write over, and no ", OutputDirectory::kMarkerName,
          " that says it is this run's; choose another output.dir, or move ", name, " away"));
    }
    return false;
  }
  if (absl::IsPermissionDenied(read.status())) return read.status();
  if (!read.ok() || read->value("format", OrderedJson()) != kFormat) {
    return absl::FailedPreconditionError(absl::StrCat(
        "output.dir: ", marker.string(), " is not the marker of a run",
        read.ok() ? "" : absl::StrCat(" (", read.status().message(), ")"),
        "; choose another output.dir, or remove that file to let this run have the directory"));
  }
  const SortedJson there = SortedJson(read->value("identity", OrderedJson::object()));
  if (there == identity) return true;
  // A run that stopped before its first result, perhaps for a fault of the data that is mended now.
  if (std::none_of(claim.names_written.begin(), claim.names_written.end(),
                   [&dir](const std::string& name) { return Exists(dir / name); })) {
    return false;
  }
  const std::string differences = Differences(there, identity);
  return absl::FailedPreconditionError(
      absl::StrCat("output.dir: ", dir.string(), " holds another run",
                   differences.empty() ? "" : " (", differences, differences.empty() ? "" : ")",
                   "; choose another output.dir, or go on with that run by giving its own spec "
                   "and --resume"));
}

struct Lock {
  int fd = -1;
  bool locked = false;
};

absl::StatusOr<Lock> TakeLock(const fs::path& dir) {
  const fs::path path = dir / OutputDirectory::kLockName;
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "create", path);
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) {
    // For the message that the next process shows; the lock does not depend on it.
    const std::string owner = absl::StrCat(::getpid(), "\n");
    if (::ftruncate(fd, 0) != 0 ||
        ::pwrite(fd, owner.data(), owner.size(), 0) != static_cast<ssize_t>(owner.size())) {
      const int error = errno;
      ::close(fd);
      return ErrnoStatus(error, "write", path);
    }
    return Lock{.fd = fd, .locked = true};
  }
  if (errno != EWOULDBLOCK) return Lock{.fd = fd, .locked = false};
  char owner[32] = {};
  const ssize_t got = ::pread(fd, owner, sizeof(owner) - 1, 0);
  ::close(fd);
  const std::string text(owner, got > 0 ? static_cast<size_t>(got) : 0);
  return absl::FailedPreconditionError(
      absl::StrCat("output.dir: ", dir.string(), " is used by a process that still runs",
                   text.empty() ? "" : absl::StrCat(" (pid ", text.substr(0, text.find('\n')), ")"),
                   "; wait for it to end, or choose another output.dir"));
}

}  // namespace

absl::StatusOr<OutputDirectory> OutputDirectory::Claim(const fs::path& dir,
                                                       const OutputClaim& claim) {
  LEMO_ASSIGN_OR_RETURN(const OrderedJson ordered,
                        ParseJsonObject(claim.identity_json, "the run's identity"));
  const SortedJson identity = SortedJson(ordered);
  std::error_code error;
  if (fs::exists(dir, error) && !fs::is_directory(dir, error)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "output.dir: ", dir.string(), " is a file; choose another output.dir, or remove it"));
  }
  // Once before anything is written, and once more when no other process can be writing.
  LEMO_RETURN_IF_ERROR(Inspect(dir, identity, claim).status());
  OutputDirectory output;
  output.made_ = !fs::exists(dir, error);
  LEMO_RETURN_IF_ERROR(MakeDirectories(dir));
  LEMO_ASSIGN_OR_RETURN(const Lock lock, TakeLock(dir));
  output.lock_fd_ = lock.fd;
  output.locked_ = lock.locked;
  LEMO_ASSIGN_OR_RETURN(output.had_run_, Inspect(dir, identity, claim));
  output.path_ = dir;
  output.fingerprint_ =
      Sha256Hex(identity.dump(-1, ' ', false, SortedJson::error_handler_t::replace));
  if (!output.had_run_) {
    const OrderedJson marker = {
        {"format", kFormat},
        {"version", 1},
        {"created", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone())},
        {"fingerprint", output.fingerprint_},
        {"identity", ordered}};
    if (absl::Status status = WriteJson(dir / kMarkerName, marker); !status.ok()) {
      output.Withdraw();
      return status;
    }
  }
  return output;
}

OutputDirectory::OutputDirectory(OutputDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      fingerprint_(std::move(other.fingerprint_)),
      had_run_(other.had_run_),
      made_(other.made_),
      locked_(other.locked_),
      lock_fd_(std::exchange(other.lock_fd_, -1)) {}

OutputDirectory& OutputDirectory::operator=(OutputDirectory&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fingerprint_, other.fingerprint_);
  std::swap(had_run_, other.had_run_);
  std::swap(made_, other.made_);
  std::swap(locked_, other.locked_);
  std::swap(lock_fd_, other.lock_fd_);
  return *this;
}

void OutputDirectory::Withdraw() {
  if (!made_) return;
  std::error_code ignored;
  fs::remove(path_ / kMarkerName, ignored);
  fs::remove(path_ / kLockName, ignored);
  fs::remove(path_, ignored);  // fails where something else lies in it
}

OutputDirectory::~OutputDirectory() {
  if (lock_fd_ >= 0)
    ::close(lock_fd_);  // releases the lock; the file stays, so that no two locks exist
}

}  // namespace lemo::train
