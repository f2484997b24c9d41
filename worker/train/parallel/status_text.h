// A status as ranks send it to one another.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace lemo::train {

// "" for OK.
std::string StatusToText(const absl::Status& status);
// The other way; the message begins with the rank that it is from.
absl::Status StatusFromText(const std::string& text, int rank);
// Whether StatusFromText made it: the rank that it is from has told it itself.
bool IsFromAnotherRank(const absl::Status& status);

}  // namespace lemo::train
