// What went wrong, as text for a person and as an exit code for a script.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace lemo::cli {

// Part of the contract with scripts; listed by `lemo --help`.
inline constexpr int kExitOk = 0;
inline constexpr int kExitJobFailed = 1;
inline constexpr int kExitUserFault = 2;
inline constexpr int kExitJobCancelled = 3;
inline constexpr int kExitServiceFault = 4;
inline constexpr int kExitInterrupted = 130;

// `status` of a call with its details (google.rpc BadRequest, PreconditionFailure, RetryInfo) spelt
// out: the first line says what was attempted and why it failed, then comes one line a violation,
// then what to do next. `what` continues "cannot ..."; `address` is the coordinator's. OK stays OK.
absl::Status RpcError(std::string_view what, const std::string& address,
                      const grpc::Status& status);

// The message of `status`; of a connection that failed only the reason ("Connection refused").
std::string Reason(const grpc::Status& status);

// Whether the same call may succeed a moment later: the service is away or restarting.
bool IsTransient(grpc::StatusCode code);

int ExitCode(const absl::Status& status);

}  // namespace lemo::cli
