// Handing over files that an attempt has made.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lemo/v1/worker_service.grpc.pb.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {

// Uploads one file as the attempt's artifact `name`, again from its start when the connection
// breaks, until `canceller` says no (Cancelled). The coordinator's own code when it refuses;
// DataLoss when it stored something else than was sent. Blocks.
absl::StatusOr<lemo::v1::Artifact> UploadFile(const lemo::v1::AttemptId& id,
                                              const std::filesystem::path& path,
                                              const std::string& name,
                                              lemo::v1::WorkerService::Stub* stub,
                                              Canceller* canceller);

// Paths, relative to the output directory, of what belongs to a result: everything under
// adapter/, model/ and predictor/, and the reports. Sorted. Links are left out: a result holds
// files only.
std::vector<std::string> ResultFiles(const std::filesystem::path& out);

// Uploads them one after another, as UploadFile. NotFound when there is nothing to hand over.
absl::StatusOr<std::vector<lemo::v1::Artifact>> UploadResult(const lemo::v1::AttemptId& id,
                                                             const std::filesystem::path& out,
                                                             lemo::v1::WorkerService::Stub* stub,
                                                             Canceller* canceller);

}  // namespace lemo::agent
