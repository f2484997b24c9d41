// Large blocks that were freed and will be wanted again.
//
// The C library gives a block of megabytes back to the operating system as soon as it is freed, and
// the next one of that size comes page by page, each zeroed first: a quarter of a step's time where
// temporaries are large. A step asks for the same sizes again and again, so a bounded number of
// bytes is kept for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace lemo::train {

// Thread-safe.
class BlockCache {
 public:
  // `most_bytes`: kept at any time.
  explicit BlockCache(int64_t most_bytes) : most_(most_bytes) {}
  ~BlockCache() { SetMost(0); }
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  struct Block {
    void* data = nullptr;
    size_t capacity = 0;  // bytes
  };
  // Of at least `bytes`, aligned as libtorch's are: a kept one that is at most an eighth larger, or
  // a new one. Throws as c10::alloc_cpu, once nothing more is kept.
  Block Take(size_t bytes);
  // Keeps it, and lets the oldest go beyond the bound; or frees it, where it is small or larger
  // than the bound.
  void Give(Block block);

  void SetMost(int64_t bytes);
  int64_t kept_bytes() const;

 private:
  void Trim(int64_t most);  // under the lock

  mutable std::mutex mutex_;
  int64_t most_;
  int64_t kept_ = 0;
  std::vector<Block> blocks_;  // oldest first
};

}  // namespace lemo::train
