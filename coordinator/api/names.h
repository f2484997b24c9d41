// Resource names: `jobs/{id}`, `files/{id}`, `models/{id}`, `workers/{id}`.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace lemo::coordinator {

// What the paths of a job's checkpoint begin with, among those of its artifacts.
inline constexpr std::string_view kCheckpointPrefix = "checkpoint/";

// A fresh id: 16 letters and digits from the system's random source, the first a letter.
std::string NewId();

// INVALID_ARGUMENT unless `name` is `collection/` and an id of 1 to 63 letters, digits, `-`, `_`,
// `.` that begins with a letter or digit. `field` is what the message names.
absl::Status CheckName(std::string_view collection, const std::string& name,
                       const std::string& field);
bool IsId(std::string_view id);

// What a message quotes of what somebody sent: at most so many bytes, and whole characters, since
// half a character cannot be sent back.
std::string Shortened(const std::string& text, size_t most = 80);

}  // namespace lemo::coordinator
