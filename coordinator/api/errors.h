// Errors of the API as google.rpc.Status, with the details that programs read.
//
// Every error has an ErrorInfo of domain `lemo`; its reason is stable: INVALID_ARGUMENT, JOB_STATE,
// ...
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/violations.h"

namespace lemo::coordinator {

// The code and message of `status`. RESOURCE_EXHAUSTED and UNAVAILABLE carry a RetryInfo.
grpc::Status ToGrpc(const absl::Status& status);

// INVALID_ARGUMENT with a BadRequest: one field violation a fault, the whole number in the message.
grpc::Status InvalidArgument(const Violations& violations);

// FAILED_PRECONDITION with a PreconditionFailure of one violation.
grpc::Status PreconditionFailed(const std::string& type, const std::string& subject,
                                const std::string& description);

}  // namespace lemo::coordinator
