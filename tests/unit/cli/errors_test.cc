#include "cli/errors.h"

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace lemo::cli {
namespace {

grpc::Status Detailed(grpc::StatusCode code, const std::string& message,
                      const google::protobuf::Message& detail) {
  google::rpc::Status status;
  status.set_code(code);
  status.add_details()->PackFrom(detail);
  return grpc::Status(code, message, status.SerializeAsString());
}

TEST(RpcError, SaysOneLineAViolation) {
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field("run.train.steps");
  violation->set_description("must be positive\x1b[2J");
  violation = bad_request.add_field_violations();
  violation->set_field("run.model.path");
  violation->set_description("is missing");
  const absl::Status status =
      RpcError("submit the job", "h:1",
               Detailed(grpc::StatusCode::INVALID_ARGUMENT, "2 faults", bad_request));
  EXPECT_EQ(std::string(status.message()),
            "cannot submit the job: 2 faults\n"
            "  run.train.steps: must be positive?[2J\n"
            "  run.model.path: is missing");
  EXPECT_EQ(ExitCode(status), kExitUserFault);
}

TEST(RpcError, DoesNotRepeatWhatTheMessageSays) {
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field("run.data");
  violation->set_description("no rows");
  const absl::Status status = RpcError(
      "submit the job", "h:1",
      Detailed(grpc::StatusCode::INVALID_ARGUMENT, "run.data: a.jsonl:3: no rows", bad_request));
  EXPECT_EQ(std::string(status.message()), "cannot submit the job: run.data: a.jsonl:3: no rows");
}

TEST(RpcError, TellsThePreconditionAndWhenToTryAgain) {
  google::rpc::PreconditionFailure failure;
  failure.add_violations()->set_subject("jobs/a");
  failure.mutable_violations(0)->set_description("it has ended");
  EXPECT_EQ(std::string(RpcError("pause jobs/a", "h:1",
                                 Detailed(grpc::StatusCode::FAILED_PRECONDITION, "no", failure))
                            .message()),
            "cannot pause jobs/a: no\n  jobs/a: it has ended");
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(2);
  const absl::Status status =
      RpcError("list jobs", "h:1", Detailed(grpc::StatusCode::RESOURCE_EXHAUSTED, "busy", retry));
  EXPECT_EQ(std::string(status.message()), "cannot list jobs: busy\nTry again in 2.0 s.");
  EXPECT_EQ(ExitCode(status), kExitServiceFault);
}

TEST(RpcError, UnreachableSaysWhereAndWhatToDo) {
  const absl::Status status = RpcError(
      "list jobs", "h:1",
      grpc::Status(grpc::StatusCode::UNAVAILABLE,
                   "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
                   "Failed to connect to remote host: Connection refused"));
  EXPECT_THAT(std::string(status.message()),
              testing::StartsWith("cannot list jobs, coordinator h:1: Connection refused\n"
                                  "Is the coordinator running? `lemo up` starts one"));
  EXPECT_EQ(ExitCode(status), kExitServiceFault);
}

}  // namespace
}  // namespace lemo::cli
