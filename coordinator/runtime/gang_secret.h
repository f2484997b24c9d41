// What only this coordinator knows, and makes tokens from.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"

namespace lemo::coordinator {

// The secret kept in `directory`, made on first use: 64 hex digits in a file that only its owner
// may read. One that was lost is made anew; that costs the gangs that are being placed one restart.
// DataLoss when the file holds something else.
absl::StatusOr<std::string> GangSecret(const std::filesystem::path& directory);

}  // namespace lemo::coordinator
