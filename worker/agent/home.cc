#include "worker/agent/home.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <string_view>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::agent {
namespace {

namespace fs = std::filesystem;

constexpr size_t kIdMax = 128;
constexpr std::string_view kWorkers = "workers/";
constexpr std::string_view kJobs = "jobs/";

bool IsId(std::string_view id) {
  return !id.empty() && id.size() <= kIdMax && std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '_';
  });
}

std::string RandomId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

}  // namespace

absl::StatusOr<Home> Home::Open(const fs::path& directory) {
  for (const char* folder : {"files", "jobs", "models"}) {
    LEMO_RETURN_IF_ERROR(MakeDirectories(directory / folder));
  }
  const fs::path lock_path = directory / "lock";
  const int lock = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock < 0) return ErrnoStatus(errno, "open", lock_path);
  absl::Cleanup close = [lock] { ::close(lock); };
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "lock", lock_path);
    return absl::FailedPreconditionError(absl::StrCat("--dir: another lemo-worker uses ",
                                                      directory.string(),
                                                      "; give each agent a directory of its own"));
  }
  const fs::path id_path = directory / "id";
  std::error_code ignored;
  if (!fs::exists(id_path, ignored)) {
    LEMO_RETURN_IF_ERROR(WriteFileAtomic(id_path, absl::StrCat(std::string(kWorkers), RandomId())));
  }
  LEMO_ASSIGN_OR_RETURN(std::string worker, ReadFile(id_path, 1024));
  absl::StripAsciiWhitespace(&worker);
  if (!worker.starts_with(kWorkers) || !IsId(std::string_view(worker).substr(kWorkers.size()))) {
    return absl::FailedPreconditionError(
        absl::StrCat(id_path.string(), ": \"", worker, "\" is not of the form workers/ID"));
  }
  std::move(close).Cancel();
  return Home(directory, std::move(worker), lock);
}

Home::Home(Home&& other) noexcept
    : directory_(std::move(other.directory_)),
      worker_(std::move(other.worker_)),
      lock_(std::exchange(other.lock_, -1)) {}

Home::~Home() {
  if (lock_ >= 0) ::close(lock_);
}

std::optional<fs::path> Home::JobDirectory(const std::string& job) const {
  if (!job.starts_with(kJobs)) return std::nullopt;
  const std::string id = job.substr(kJobs.size());
  if (!IsId(id)) return std::nullopt;
  return jobs() / id;
}

}  // namespace lemo::agent
