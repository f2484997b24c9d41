// Calls of the service that several fixtures make; a test fails where one of them does.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "common/files.h"
#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"

namespace lemo::service_calls {

inline lemo::v1::Job SubmitJob(lemo::v1::JobService::StubInterface& jobs,
                               grpc::ClientContext* context, const lemo::v1::JobSpec& spec) {
  lemo::v1::SubmitJobRequest request;
  *request.mutable_spec() = spec;
  lemo::v1::Job job;
  const grpc::Status status = jobs.SubmitJob(context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return job;
}

inline lemo::v1::Job GetJob(lemo::v1::JobService::StubInterface& jobs, grpc::ClientContext* context,
                            const std::string& name) {
  lemo::v1::GetJobRequest request;
  request.set_name(name);
  lemo::v1::Job job;
  const grpc::Status status = jobs.GetJob(context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return job;
}

// The name that a spec has it by. `name` also marks the upload.
inline std::string UploadFile(lemo::v1::FileService::StubInterface& files,
                              grpc::ClientContext* context, const std::string& name,
                              const std::string& data) {
  lemo::v1::File made;
  const auto writer = files.UploadFile(context, &made);
  lemo::v1::UploadFileRequest request;
  request.mutable_start()->set_upload_id(name);
  request.mutable_start()->set_display_name(name);
  request.mutable_start()->set_bytes(static_cast<int64_t>(data.size()));
  request.mutable_start()->set_sha256(Sha256Hex(data));
  writer->Write(request);
  request.mutable_chunk()->set_data(data);
  writer->Write(request);
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  return made.name();
}

}  // namespace lemo::service_calls
