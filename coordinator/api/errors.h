// Errors of the API as google.rpc.Status, with the details that programs read.
//
// Every error has an ErrorInfo of domain `lemo`; its reason is stable: INVALID_ARGUMENT, JOB_STATE,
// ...
//
// An error travels in headers, of which clients take 8 KiB: long texts and lists of faults are cut,
// and say so.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/violations.h"

namespace lemo::coordinator {

// The code and message of `status`. RESOURCE_EXHAUSTED and UNAVAILABLE carry a RetryInfo.
grpc::Status ToGrpc(const absl::Status& status);

// INVALID_ARGUMENT with a BadRequest: one field violation a fault. `message` has a fault a line and
// the number of those that are left out in its last one, as that of Violations, which is the
// default.
grpc::Status InvalidArgument(const Violations& violations, std::string message = "");

// FAILED_PRECONDITION with a PreconditionFailure of one violation.
grpc::Status PreconditionFailed(const std::string& type, const std::string& subject,
                                const std::string& description);

}  // namespace lemo::coordinator
