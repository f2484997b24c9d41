// Content by checksum in a local directory: uploaded files and the results of jobs. An object-store
// backend will stand behind the same interface.
//
// Content is written beside (`incoming/`), synced, and renamed to `sha256/ab/abcdef...` when its
// size and checksum are right; a half-written one is never seen. Thread-safe; one upload has one
// writer at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lemo::coordinator {

class Upload {
 public:
  virtual ~Upload() = default;  // without Finish what was received stays, to go on with
  // Bytes received so far.
  virtual int64_t offset() const = 0;
  // OUT_OF_RANGE when `offset` is not offset() or the announced size is exceeded;
  // RESOURCE_EXHAUSTED when the disk is full.
  virtual absl::Status Write(int64_t offset, std::string_view data) = 0;
  // Checks and publishes. DATA_LOSS when the checksum is another (what was received is dropped);
  // OUT_OF_RANGE when bytes are missing.
  virtual absl::Status Finish() = 0;
};

class ArtifactStore {
 public:
  virtual ~ArtifactStore() = default;

  // Opens, or goes on with, the upload `id` (any text: it is hashed) of `bytes` bytes with this
  // checksum (64 hexadecimal digits). ABORTED while another writer has it; INVALID_ARGUMENT for a
  // bad checksum, or another size or checksum than the upload began with.
  virtual absl::StatusOr<std::unique_ptr<Upload>> BeginUpload(const std::string& id, int64_t bytes,
                                                              const std::string& sha256) = 0;
  // 0 for one that never began.
  virtual absl::StatusOr<int64_t> ReceivedBytes(const std::string& id) = 0;
  // Whether content with this checksum is there.
  virtual bool Has(const std::string& sha256) const = 0;
  // Reads from `offset` on in pieces of at most 1 MiB, checking the whole content's checksum when
  // all of it is read from 0. NOT_FOUND; DATA_LOSS when the content is damaged, before the last
  // piece is given. Stops early when `consume` answers false.
  virtual absl::Status Read(
      const std::string& sha256, int64_t offset,
      const std::function<bool(int64_t offset, std::string_view data)>& consume) = 0;
  // For children on this host that read a file by path (validation). Do not write to it.
  virtual absl::StatusOr<std::string> LocalPath(const std::string& sha256) = 0;
  virtual absl::Status Remove(const std::string& sha256) = 0;

  virtual absl::StatusOr<int64_t> Size(const std::string& sha256) const = 0;  // NOT_FOUND
  // As Has, and the content is then as young as new content is.
  virtual bool Refresh(const std::string& sha256) = 0;
  // Calls `visit` for all content that is older than `before`; stops at its first error.
  virtual absl::Status VisitOld(
      absl::Time before, const std::function<absl::Status(const std::string& sha256)>& visit) = 0;
  // Removes the content if it is older than `before`. Whether it did.
  virtual bool RemoveIfOld(const std::string& sha256, absl::Time before) = 0;
  // Removes uploads that have no writer and had none since `before`. Answers how many.
  virtual absl::StatusOr<int64_t> RemoveOldUploads(absl::Time before) = 0;
};

absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenLocalArtifactStore(const std::string& directory);

}  // namespace lemo::coordinator
