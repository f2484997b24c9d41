#include "worker/train/memory/block_cache.h"

#include <c10/core/impl/alloc_cpu.h>

#include <exception>

namespace lemo::train {
namespace {

// What is smaller the C library keeps itself (M_MMAP_THRESHOLD begins at 128 KiB).
constexpr size_t kLeastBytes = size_t{128} << 10;

}  // namespace

BlockCache::Block BlockCache::Take(size_t bytes) {
  if (bytes >= kLeastBytes) {
    const std::lock_guard lock(mutex_);
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      const bool fits = block->capacity >= bytes && block->capacity <= bytes + bytes / 8;
      if (fits && (best == blocks_.end() || block->capacity < best->capacity)) best = block;
    }
    if (best != blocks_.end()) {
      const Block found = *best;
      kept_ -= static_cast<int64_t>(found.capacity);
      blocks_.erase(best);
      return found;
    }
  }
  try {
    return {c10::alloc_cpu(bytes), bytes};
  } catch (const std::exception&) {
    const std::lock_guard lock(mutex_);
    if (blocks_.empty()) throw;
    Trim(0);
  }
  return {c10::alloc_cpu(bytes), bytes};
}

void BlockCache::Give(Block block) {
  const std::lock_guard lock(mutex_);
  if (block.capacity < kLeastBytes || static_cast<int64_t>(block.capacity) > most_) {
    c10::free_cpu(block.data);
    return;
  }
  blocks_.push_back(block);
  kept_ += static_cast<int64_t>(block.capacity);
  Trim(most_);
}

void BlockCache::SetMost(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  most_ = bytes;
  Trim(most_);
}

int64_t BlockCache::kept_bytes() const {
  const std::lock_guard lock(mutex_);
  return kept_;
}

void BlockCache::Trim(int64_t most) {
  auto end = blocks_.begin();
  for (; kept_ > most; ++end) {
    c10::free_cpu(end->data);
    kept_ -= static_cast<int64_t>(end->capacity);
  }
  blocks_.erase(blocks_.begin(), end);
}

}  // namespace lemo::train
