// Resource names: `jobs/{id}`, `files/{id}`, `models/{id}`, `workers/{id}`.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace lemo::coordinator {

// A fresh id: 16 letters and digits from the system's random source, the first a letter.
std::string NewId();

// INVALID_ARGUMENT unless `name` is `collection/` and an id of 1 to 63 letters, digits, `-`, `_`,
// `.` that begins with a letter or digit. `field` is what the message names.
absl::Status CheckName(std::string_view collection, const std::string& name,
                       const std::string& field);
bool IsId(std::string_view id);

}  // namespace lemo::coordinator
