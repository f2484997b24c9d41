// Where the coordinator is, when no flag says so.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"

namespace lemo::cli {

inline constexpr char kDefaultCoordinator[] = "127.0.0.1:7410";

// $XDG_CONFIG_HOME/lemo/config.yaml, or ~/.config/lemo/config.yaml; empty when neither is known.
std::filesystem::path ConfigPath();

struct CoordinatorAddress {
  std::string address;  // HOST:PORT
  std::string source;   // for people: "--coordinator", "LEMO_COORDINATOR", a path, "default"
};

// The first of: `flag` if not empty, LEMO_COORDINATOR, `coordinator:` of the file at `config`
// (which need not exist), the default. INVALID_ARGUMENT when it is not HOST:PORT or the file is
// not as it should be.
absl::StatusOr<CoordinatorAddress> FindCoordinator(const std::string& flag,
                                                   const std::filesystem::path& config);

}  // namespace lemo::cli
