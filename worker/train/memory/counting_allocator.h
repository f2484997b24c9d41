// Exact tensor memory on a CPU: an allocator that counts every byte by category, and refuses those
// beyond a limit.
//
// Freed blocks of some size stay with the process for the next ones (BlockCache): up to 128 MiB,
// under a limit up to a sixteenth of it. They are in no count.
//
// The problem: resident set size depends on the C library, the page size and what was freed when.
// The bytes of live tensors do not, so their peak is a figure that a test may assert and a budget
// may be proved by.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

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

// The highest total since this was called last (or since start): of a part of a run, whatever the
// run's peak was. For one caller.
int64_t TakeWindowPeak();

// Counts memory that the allocator does not see: weights that are mapped from a file. Throws
// MemoryLimitError, and counts nothing, where that would pass the limit.
void CountExternalMemory(MemoryCategory category, int64_t bytes);

const char* MemoryCategoryName(MemoryCategory category);  // `weights`, `saved activations`

// What the limit did not allow. It says all four numbers.
class MemoryLimitError : public std::runtime_error {
 public:
  MemoryLimitError(MemoryCategory category, int64_t asked_bytes, int64_t held_bytes,
                   int64_t limit_bytes);
  MemoryCategory category() const { return category_; }
  int64_t asked_bytes() const { return asked_bytes_; }
  int64_t held_bytes() const { return held_bytes_; }  // of all categories, at that moment
  int64_t limit_bytes() const { return limit_bytes_; }

 private:
  MemoryCategory category_;
  int64_t asked_bytes_, held_bytes_, limit_bytes_;
};

// From now on no allocation takes the total above `bytes`: it throws MemoryLimitError instead, asks
// nothing of the operating system and leaves every count as it was. A limit below what is held lets
// nothing be allocated until enough was freed. 0 for none, which is how it begins. Any thread.
void SetMemoryLimit(int64_t bytes);
int64_t MemoryLimit();

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
