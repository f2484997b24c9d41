#include "coordinator/api/errors.h"

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace lemo::coordinator {
namespace {

constexpr int kRetrySeconds = 1;

google::rpc::Status MakeStatus(absl::StatusCode code, const std::string& message) {
  google::rpc::Status status;
  status.set_code(static_cast<int>(code));
  status.set_message(message);
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

grpc::Status InvalidArgument(const Violations& violations) {
  google::rpc::Status status =
      MakeStatus(absl::StatusCode::kInvalidArgument, std::string(violations.ToStatus().message()));
  google::rpc::BadRequest bad_request;
  for (const Violation& violation : violations.kept()) {
    google::rpc::BadRequest::FieldViolation* field = bad_request.add_field_violations();
    field->set_field(violation.field);
    field->set_description(violation.reason);
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
  violation->set_description(description);
  status.add_details()->PackFrom(failure);
  return Wrap(status);
}

}  // namespace lemo::coordinator
