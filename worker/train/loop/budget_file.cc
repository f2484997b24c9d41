#include "worker/train/loop/budget_file.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace lemo::train {

absl::StatusOr<std::optional<int64_t>> ReadBudgetFile(const std::filesystem::path& path) {
  constexpr int64_t kBytesMax = 64;
  const absl::StatusOr<std::string> text = ReadFile(path, kBytesMax);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  if (!text.ok()) return text.status();
  int64_t bytes = 0;
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &bytes) || bytes < 1) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(),
                                                   ": expected a number of bytes above 0, got \"",
                                                   absl::CHexEscape(*text), "\""));
  }
  return bytes;
}

}  // namespace lemo::train
