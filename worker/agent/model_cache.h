// Base models on this machine: found where the coordinator has them, or fetched.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "lemo/v1/model_service.grpc.pb.h"
#include "lemo/v1/worker_service.pb.h"
#include "worker/agent/known_hashes.h"
#include "worker/agent/uplink.h"

namespace lemo::agent {

// A directory that holds a model. While a copy of the pointer lives, a fetched model is not
// removed.
using ModelDirectory = std::shared_ptr<const std::filesystem::path>;

// DIR/models: known.json, and {fingerprint}/ of every model that was fetched. When the disk gets
// full, those that no attempt uses go, the least recently used first. Thread-safe: several
// transfers may want models at once, and one model is looked at or fetched by one of them only.
// Outlives every ModelDirectory.
class ModelCache {
 public:
  struct Space {
    int64_t bytes = 0;
    int64_t free = 0;
  };
  using MeasureSpace = std::function<Space(const std::filesystem::path&)>;

  // Of the file system of a directory, as far as this user may fill it.
  static Space SpaceOf(const std::filesystem::path& directory);

  ModelCache(std::filesystem::path directory, std::shared_ptr<grpc::Channel> channel,
             MeasureSpace measure = &SpaceOf);

  // A directory with exactly the assignment's model_files: `model_path` when it is one on this
  // machine too, which is found out by reading it once; else the model is fetched. InvalidArgument
  // when names or checksums are no proper ones; FailedPrecondition when the disk has no room;
  // otherwise as FetchFile. Blocks.
  absl::StatusOr<ModelDirectory> Prepare(const lemo::v1::Assignment& assignment,
                                         Canceller* canceller);

 private:
  absl::StatusOr<bool> IsFile(const std::filesystem::path& path, const lemo::v1::ModelFile& file,
                              Canceller* canceller);
  absl::StatusOr<bool> IsModel(const std::filesystem::path& directory,
                               const lemo::v1::Assignment& assignment, Canceller* canceller);
  absl::Status Fetch(const lemo::v1::Assignment& assignment, const std::filesystem::path& directory,
                     Canceller* canceller);
  absl::Status MakeRoom(int64_t bytes);
  bool RemoveOne();

  const std::filesystem::path directory_;
  const std::unique_ptr<lemo::v1::ModelService::Stub> stub_;
  const MeasureSpace measure_;
  KnownHashes hashes_;

  std::mutex mutex_;
  std::set<std::string> busy_;        // fingerprints that a thread works on
  std::map<std::string, int> users_;  // of fetched models
};

}  // namespace lemo::agent
