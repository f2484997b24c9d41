// Input files of jobs, by checksum.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "lemo/v1/file_service.grpc.pb.h"
#include "lemo/v1/job_service.grpc.pb.h"
#include "lemo/v1/worker_service.pb.h"
#include "worker/agent/fetch.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {

// A directory of files named by their SHA-256; a file under its final name is whole and was
// checked. Thread-safe: several transfers may fetch at once, and of one file only one does.
class FileCache {
 public:
  FileCache(std::filesystem::path directory, const std::shared_ptr<grpc::Channel>& channel);

  // Where the file, an uploaded one or another job's (common/job_files.h), lies, after fetching it
  // if need be: written beside, checked, synced, renamed. A
  // download that breaks off goes on from where it was, as often as it takes, until `canceller`
  // says no (Cancelled). DataLoss when what came is not what was promised; the coordinator's own
  // code when it refuses.
  absl::StatusOr<std::filesystem::path> Fetch(const lemo::v1::InputFile& file,
                                              Canceller* canceller);

  // Removes files that were not used for so long, except those half fetched now.
  void RemoveUnused(std::chrono::hours age);

 private:
  absl::Status FetchAlone(const lemo::v1::InputFile& file, const std::filesystem::path& path,
                          Canceller* canceller);

  const std::filesystem::path directory_;
  const std::unique_ptr<lemo::v1::FileService::Stub> files_;
  const std::unique_ptr<lemo::v1::JobService::Stub> jobs_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> busy_;     // checksums that a thread is fetching
  std::set<std::string> checked_;  // files read again in the life of this agent
};

}  // namespace lemo::agent
