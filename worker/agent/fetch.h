// Bringing one file from the coordinator to the disk, whole or not at all.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {

struct FetchRequest {
  std::string name;  // for messages
  int64_t bytes = 0;
  std::string sha256;
  std::filesystem::path path;  // where it is to lie; `path`.part is the part that is there
  // Begins a call that streams the content from an offset on.
  std::function<std::unique_ptr<grpc::ClientReader<lemo::v1::DataChunk>>(grpc::ClientContext*,
                                                                         int64_t offset)>
      open;
};

// 64 lower-case hexadecimal digits.
bool IsSha256(const std::string& text);

// Written beside, checked, synced, renamed. A download that breaks off goes on from where it was,
// also one of an earlier agent's, as often as it takes, until `canceller` says no (Cancelled).
// DataLoss when what came is not what was promised; the coordinator's own code when it refuses.
// Blocks. Of one path only one thread may fetch at a time.
absl::Status FetchFile(const FetchRequest& request, Canceller* canceller);

}  // namespace lemo::agent
