// Content as a stream of DataChunk, and page sizes: what several services share.
#pragma once

#include <grpcpp/support/sync_stream.h>

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/artifacts/artifacts.h"
#include "lemo/v1/job_service.pb.h"

namespace lemo::coordinator {

// Sends the content from `offset` on; the last chunk has the checksum of all of it.
grpc::Status SendContent(ArtifactStore* artifacts, const std::string& sha256, int64_t offset,
                         grpc::ServerWriter<lemo::v1::DataChunk>* writer);

// 50 for 0, at most 1000; INVALID_ARGUMENT when negative.
absl::StatusOr<int> PageSize(int requested);

}  // namespace lemo::coordinator
