// How the budget of a run is changed while it runs: a file that a driver or the agent writes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "absl/status/statusor.h"

namespace lemo::train {

// In `output.dir`. To be written beside and moved into place, so that no half of it is read.
inline constexpr const char* kBudgetFile = "budget";

// The bytes that the file says, a decimal number with white space around it; nothing when there is
// no file. InvalidArgument for any other content, and for 0.
absl::StatusOr<std::optional<int64_t>> ReadBudgetFile(const std::filesystem::path& path);

}  // namespace lemo::train
