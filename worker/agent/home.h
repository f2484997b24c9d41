// The agent's directory: its lock, its name, and where things lie in it.
//
//   id                    `workers/{id}`, made once
//   lock                  held by the agent that lives here
//   files/{sha256}        input files
//   bases/                frozen weights that ranks share (common/shared_files.h)
//   predictors/           that jobs with tokens.predictor `auto` trained, for later ones
//   models/               known.json, and {fingerprint}/ of models that were fetched
//   jobs/{id}/            of one job: attempt.json, run.json, events-N, ended-N, rank-R-N.log, out/
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace lemo::agent {

// Movable. The lock is held while it lives.
class Home {
 public:
  // Makes the directory if need be. FailedPrecondition when another agent has it.
  static absl::StatusOr<Home> Open(const std::filesystem::path& directory);
  Home(Home&& other) noexcept;
  Home& operator=(Home&& other) = delete;
  ~Home();

  const std::string& worker() const { return worker_; }  // `workers/{id}`
  std::filesystem::path files() const { return directory_ / "files"; }
  std::filesystem::path models() const { return directory_ / "models"; }
  std::filesystem::path jobs() const { return directory_ / "jobs"; }
  // Of `jobs/{id}`; nullopt when the name is not of that form, so that no name leaves the
  // directory.
  std::optional<std::filesystem::path> JobDirectory(const std::string& job) const;

 private:
  Home(std::filesystem::path directory, std::string worker, int lock)
      : directory_(std::move(directory)), worker_(std::move(worker)), lock_(lock) {}

  std::filesystem::path directory_;
  std::string worker_;
  int lock_ = -1;
};

}  // namespace lemo::agent
