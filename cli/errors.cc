#include "cli/errors.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/format.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace lemo::cli {
namespace {

// Whether a line of `text` names both.
bool SaysBoth(const std::string& text, const std::string& where, const std::string& why) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::StrContains(line, where) && absl::StrContains(line, why)) return true;
  }
  return false;
}

// The lines that the details add. A message may repeat its violations, and then with file and line;
// those are not said twice.
void AppendDetails(const grpc::Status& status, std::string* text, bool* has_advice) {
  google::rpc::Status rpc;
  if (!rpc.ParseFromString(status.error_details())) return;
  auto line = [&](const std::string& where, const std::string& why) {
    if (SaysBoth(*text, Printable(where), Printable(why))) return;
    absl::StrAppend(text, "\n  ", Printable(where.empty() ? why : absl::StrCat(where, ": ", why)));
  };
  for (const google::protobuf::Any& detail : rpc.details()) {
    google::rpc::BadRequest bad_request;
    google::rpc::PreconditionFailure precondition;
    google::rpc::QuotaFailure quota;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&bad_request)) {
      for (const auto& violation : bad_request.field_violations()) {
        line(violation.field(), violation.description());
      }
    } else if (detail.UnpackTo(&precondition)) {
      for (const auto& violation : precondition.violations()) {
        // The message is about the subject as a rule, whether or not it names it.
        if (absl::StrContains(*text, Printable(violation.description()))) continue;
        line(violation.subject(), violation.description());
      }
    } else if (detail.UnpackTo(&quota)) {
      for (const auto& violation : quota.violations()) {
        line(violation.subject(), violation.description());
      }
    } else if (detail.UnpackTo(&retry)) {
      const double seconds = retry.retry_delay().seconds() + retry.retry_delay().nanos() * 1e-9;
      absl::StrAppend(text, "\nTry again in ", HumanDuration(seconds), ".");
      *has_advice = true;
    }
  }
}

std::string Advice(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::UNAVAILABLE:
      return "Is the coordinator running? `lemo up` starts one on this machine, --coordinator "
             "HOST:PORT names another, `lemo doctor` looks closer.";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "Nothing was answered in time; --timeout SECONDS allows more.";
    case grpc::StatusCode::UNIMPLEMENTED:
      return "The coordinator is of another version, or something else listens there; compare "
             "with `lemo version`.";
    case grpc::StatusCode::ABORTED:
      return "Something else changed it at the same time; look again and repeat.";
    default:
      return "";
  }
}

}  // namespace

std::string Reason(const grpc::Status& status) {
  std::string message = Printable(status.error_message());
  while (!message.empty() && message.back() == '\n') message.pop_back();
  if (absl::StartsWith(message, "failed to connect to all addresses")) {
    const size_t last = message.rfind(": ");
    if (last != message.npos) message.erase(0, last + 2);
  }
  return message.empty() ? "no reason given" : message;
}

absl::Status RpcError(std::string_view what, const std::string& address,
                      const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const bool unreachable = status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                           status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
                           status.error_code() == grpc::StatusCode::UNIMPLEMENTED;
  std::string text = absl::StrCat("cannot ", std::string(what));
  if (unreachable) absl::StrAppend(&text, ", coordinator ", address);
  absl::StrAppend(&text, ": ", Reason(status));
  bool has_advice = false;
  AppendDetails(status, &text, &has_advice);
  const std::string advice = Advice(status.error_code());
  if (!has_advice && !advice.empty()) absl::StrAppend(&text, "\n", advice);
  // The numbers of gRPC and of abseil are the same.
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), text);
}

bool IsTransient(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::INTERNAL:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return true;
    default:
      return false;
  }
}

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kAborted:
      return kExitUserFault;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitServiceFault;
  }
}

}  // namespace lemo::cli
