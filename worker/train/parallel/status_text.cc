#include "worker/train/parallel/status_text.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace lemo::train {
namespace {

constexpr char kFromAnother[] = "lemo.from_another_rank";

}  // namespace

std::string StatusToText(const absl::Status& status) {
  if (status.ok()) return "";
  return absl::StrCat(static_cast<int>(status.code()), " ", status.message());
}

absl::Status StatusFromText(const std::string& text, int rank) {
  if (text.empty()) return absl::OkStatus();
  int code = static_cast<int>(absl::StatusCode::kInternal);
  const size_t space = text.find(' ');
  (void)absl::SimpleAtoi(text.substr(0, space), &code);
  absl::Status status(static_cast<absl::StatusCode>(code),
                      absl::StrCat("rank ", rank, ": ", text.substr(space + 1)));
  status.SetPayload(kFromAnother, absl::Cord());
  return status;
}

bool IsFromAnotherRank(const absl::Status& status) {
  return status.GetPayload(kFromAnother).has_value();
}

}  // namespace lemo::train
