#include "common/violations.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace lemo {

std::string Violation::ToString() const {
  std::string out;
  auto part = [&out](const std::string& text) {
    if (!text.empty()) absl::StrAppend(&out, out.empty() ? "" : ": ", text);
  };
  part(field);
  part(line > 0 ? absl::StrCat(file, ":", line) : file);
  part(json_path);
  part(reason);
  return out;
}

void Violations::Add(Violation violation) {
  ++total_;
  if (kept_.size() < kKept) kept_.push_back(std::move(violation));
}

void Violations::Add(std::string field, std::string reason) {
  Add(Violation{.field = std::move(field), .reason = std::move(reason)});
}

void Violations::Append(const Violations& other) {
  for (const Violation& violation : other.kept_) {
    if (kept_.size() < kKept) kept_.push_back(violation);
  }
  total_ += other.total_;
}

absl::Status Violations::ToStatus() const {
  if (empty()) return absl::OkStatus();
  std::string message;
  for (const Violation& violation : kept_) {
    absl::StrAppend(&message, message.empty() ? "" : "\n", violation.ToString());
  }
  if (total_ > static_cast<int64_t>(kept_.size())) {
    absl::StrAppend(&message, "\n... and ", total_ - kept_.size(), " more");
  }
  return absl::InvalidArgumentError(message);
}

namespace {

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string NearestName(const std::string& name, const std::vector<std::string>& candidates) {
  std::string best;
  // Beyond a third of the name a suggestion confuses more than it helps.
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace lemo
