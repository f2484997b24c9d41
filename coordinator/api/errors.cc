#include "coordinator/api/errors.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace lemo::coordinator {
namespace {

constexpr int kRetrySeconds = 1;

// The message goes out twice: as text with escapes, and in the details, which are in base64.
// Together they stay below the 8 KiB that clients take.
constexpr size_t kMessageBytes = 2300, kStatusBytes = 4000, kDescriptionBytes = 1000;

bool IsPlain(unsigned char c) { return c >= 0x20 && c <= 0x7e && c != 0x25; }

// Of a text as it is written in a header.
size_t EscapedBytes(const std::string& text) {
  const auto plain =
      std::count_if(text.begin(), text.end(), [](unsigned char c) { return IsPlain(c); });
  return 3 * text.size() - 2 * static_cast<size_t>(plain);
}

// The beginning of a text in UTF-8, at most that many bytes of it as written, no half character.
std::string Start(const std::string& text, size_t bytes) {
  if (EscapedBytes(text) <= bytes) return text;
  size_t end = 0, written = 0;
  for (size_t i = 0; i < text.size() && written <= bytes; ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if ((c & 0xc0) != 0x80) end = i;
    written += IsPlain(c) ? 1 : 3;
  }
  return text.substr(0, end) + "...";
}

// As many lines as there is room for, and how many are left out.
std::string Shortened(const std::string& message) {
  if (EscapedBytes(message) <= kMessageBytes) return message;
  std::vector<std::string> lines = absl::StrSplit(message, '\n');
  int64_t left = 0;
  const std::string last = lines.back();
  if (absl::StartsWith(last, "... and ") &&
      absl::SimpleAtoi(last.substr(8, last.find(' ', 8) - 8), &left)) {
    lines.pop_back();
  }
  std::string shortened;
  size_t shown = 0;
  for (; shown < lines.size(); ++shown) {
    if (EscapedBytes(shortened) + EscapedBytes(lines[shown]) + 40 > kMessageBytes) break;
    absl::StrAppend(&shortened, lines[shown], "\n");
  }
  if (shown == 0) return Start(message, kMessageBytes);
  left += static_cast<int64_t>(lines.size() - shown);
  return absl::StrCat(shortened, "... and ", left, " more");
}

google::rpc::Status MakeStatus(absl::StatusCode code, const std::string& message) {
  google::rpc::Status status;
  status.set_code(static_cast<int>(code));
  status.set_message(Shortened(message));
  google::rpc::ErrorInfo info;
  info.set_reason(absl::StatusCodeToString(code));
  info.set_domain("lemo");
  status.add_details()->PackFrom(info);
  return status;
}

grpc::Status Wrap(const google::rpc::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), status.message(),
                      status.SerializeAsString());
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    return PreconditionFailed("STATE", "", std::string(status.message()));
  }
  google::rpc::Status made = MakeStatus(status.code(), std::string(status.message()));
  if (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(kRetrySeconds);
    made.add_details()->PackFrom(retry);
  }
  return Wrap(made);
}

grpc::Status InvalidArgument(const Violations& violations, std::string message) {
  if (message.empty()) message = std::string(violations.ToStatus().message());
  google::rpc::Status status = MakeStatus(absl::StatusCode::kInvalidArgument, message);
  google::rpc::BadRequest bad_request;
  for (const Violation& violation : violations.kept()) {
    const std::string description = Start(violation.reason, kDescriptionBytes);
    const size_t bytes = violation.field.size() + description.size();
    if (status.ByteSizeLong() + bad_request.ByteSizeLong() + bytes + 80 > kStatusBytes) break;
    google::rpc::BadRequest::FieldViolation* field = bad_request.add_field_violations();
    field->set_field(violation.field);
    field->set_description(description);
  }
  status.add_details()->PackFrom(bad_request);
  return Wrap(status);
}

grpc::Status PreconditionFailed(const std::string& type, const std::string& subject,
                                const std::string& description) {
  google::rpc::Status status = MakeStatus(absl::StatusCode::kFailedPrecondition, description);
  google::rpc::PreconditionFailure failure;
  google::rpc::PreconditionFailure::Violation* violation = failure.add_violations();
  violation->set_type(type);
  violation->set_subject(subject);
  violation->set_description(Start(description, kDescriptionBytes));
  status.add_details()->PackFrom(failure);
  return Wrap(status);
}

}  // namespace lemo::coordinator
