// Tokenised documents of one file, in a memory-mapped file of our own.
//
// Layout, native byte order: a header (magic, version, key, sizes, counts, checksum of the payload,
// checksum of the header), then the payload: token ids (int32), one byte a token that says whether
// it is trained, and one record a document. Files are written beside and renamed, so a whole one is
// the rule; a torn, altered or foreign one is found by its checksums and treated as absent.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/files.h"
#include "worker/train/data/content_hash.h"
#include "worker/train/data/counts.h"

namespace lemo::train {

// One document, in the cache's own memory.
struct DocumentRecord {
  int64_t begin = 0;   // first token
  int64_t line = 0;    // in the source file, from 1
  int32_t length = 0;  // tokens
  int32_t labels = 0;  // positions that carry loss: trained tokens, without the first
};

// Writes a cache; memory does not grow with it. Not thread-safe.
class CacheWriter {
 public:
  // `key` is 64 hex digits that name everything the contents depend on. Scratch files are made in
  // `path`'s folder, which must exist, and are gone when the object is.
  static absl::StatusOr<std::unique_ptr<CacheWriter>> Create(const std::filesystem::path& path,
                                                             const std::string& key);
  virtual ~CacheWriter() = default;

  virtual absl::Status Add(std::span<const int32_t> tokens, std::span<const uint8_t> trained,
                           int64_t line, int32_t labels) = 0;
  // Completes the file, syncs it and gives it its name.
  virtual absl::Status Finish(const DataCounts& counts) = 0;
};

// A whole cache, mapped. Views live as long as the object, also when it is moved.
class TokenCache {
 public:
  // NotFound when there is none; DataLoss when it is torn, altered, of another version or of
  // another key. Reads the file once to check it.
  static absl::StatusOr<TokenCache> Open(const std::filesystem::path& path, const std::string& key);

  int64_t documents() const { return static_cast<int64_t>(records_.size()); }
  const DocumentRecord& record(int64_t i) const { return records_[static_cast<size_t>(i)]; }
  std::span<const int32_t> tokens(int64_t i) const;
  std::span<const uint8_t> trained(int64_t i) const;
  const DataCounts& counts() const { return counts_; }

 private:
  MappedFile file_;
  std::span<const DocumentRecord> records_;
  const int32_t* tokens_ = nullptr;
  const uint8_t* trained_ = nullptr;
  DataCounts counts_;
};

}  // namespace lemo::train
