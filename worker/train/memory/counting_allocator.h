// Exact tensor memory on a CPU: an allocator that counts every byte by category.
//
// The problem: resident set size depends on the C library, the page size and what was freed when.
// The bytes of live tensors do not, so their peak is a figure that a test may assert and a budget
// may be proved by.
#pragma once

#include <cstdint>

namespace lemo::train {

enum class MemoryCategory {
  kTransient,         // temporaries; the default
  kWeights,           // frozen parameters
  kTrainable,         // trainable parameters, gradients, optimizer state
  kSavedActivations,  // the residual stream and what forward keeps for backward
  kLoss,              // loss segments
};
inline constexpr int kMemoryCategories = 5;

struct MemoryUsage {
  int64_t bytes[kMemoryCategories] = {};
  int64_t total = 0;

  int64_t operator[](MemoryCategory category) const { return bytes[static_cast<int>(category)]; }
};

// Replaces libtorch's CPU allocator. Call once, before the first tensor.
void InstallCountingAllocator();

MemoryUsage CurrentMemory();
// Highest value of each category, and of the total, since start or the last reset. The peaks need
// not have come at the same time, so they may add up to more than `total`.
MemoryUsage PeakMemory();
void ResetPeakMemory();

// Counts memory that the allocator does not see: weights that are mapped from a file.
void CountExternalMemory(MemoryCategory category, int64_t bytes);

// While alive, new tensors of any thread count under `category`. Nests; one thread opens scopes.
class ScopedMemoryCategory {
 public:
  explicit ScopedMemoryCategory(MemoryCategory category);
  ~ScopedMemoryCategory();
  ScopedMemoryCategory(const ScopedMemoryCategory&) = delete;
  ScopedMemoryCategory& operator=(const ScopedMemoryCategory&) = delete;

 private:
  MemoryCategory former_;
};

}  // namespace lemo::train
