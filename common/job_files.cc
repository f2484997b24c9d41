#include "common/job_files.h"

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kJobs = "jobs/";

}  // namespace

std::string NameOf(const JobFile& file) { return absl::StrCat(file.job, "/", file.path); }

std::optional<JobFile> JobFileNamed(const std::string& name) {
  if (!IsJobName(name)) return std::nullopt;
  const size_t slash = name.find('/', kJobs.size());
  if (slash == std::string::npos || slash + 1 == name.size()) return std::nullopt;
  return JobFile{name.substr(0, slash), name.substr(slash + 1)};
}

bool IsJobName(std::string_view text) { return text.starts_with(kJobs); }

absl::Status LinkPredictor(const std::string& job, const std::map<std::string, std::string>& files,
                           const fs::path& directory) {
  std::error_code error;
  fs::remove_all(directory, error);
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory));
  bool any = false;
  for (const auto& [name, path] : files) {
    const std::optional<JobFile> file = JobFileNamed(name);
    if (!file || file->job != job) continue;
    if (!file->path.starts_with(kPredictorPrefix)) continue;
    const std::string rest = file->path.substr(kPredictorPrefix.size());
    if (rest.empty() || rest.front() == '.' || rest.find('/') != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": no file of a predictor"));
    }
    fs::create_symlink(fs::absolute(path), directory / rest, error);
    if (error) {
      return absl::InternalError(
          absl::StrCat("cannot link ", (directory / rest).string(), ": ", error.message()));
    }
    any = true;
  }
  if (!any) return absl::NotFoundError(absl::StrCat(job, " has no predictor"));
  return absl::OkStatus();
}

}  // namespace lemo
