#include "worker/train/memory/counting_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/format.h"
#include "worker/train/memory/block_cache.h"

namespace lemo::train {
namespace {

std::atomic<MemoryCategory> current_category{MemoryCategory::kTransient};

// One slot a category and one for the total.
std::atomic<int64_t> live[kMemoryCategories + 1];
std::atomic<int64_t> peak[kMemoryCategories + 1];

std::atomic<int64_t> window_peak;
std::atomic<int64_t> limit;  // 0: none

void Raise(std::atomic<int64_t>* peak, int64_t value) {
  int64_t seen = peak->load(std::memory_order_relaxed);
  while (seen < value && !peak->compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

// Throws before anything is counted but the total, which it takes back: two threads that ask for
// the last bytes at once may both be refused, and never both get them.
void Count(MemoryCategory category, int64_t bytes) {
  std::atomic<int64_t>& total = live[kMemoryCategories];
  const int64_t now = total.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (bytes > 0) {
    const int64_t most = limit.load(std::memory_order_relaxed);
    if (most > 0 && now > most) {
      total.fetch_sub(bytes, std::memory_order_relaxed);
      throw MemoryLimitError(category, bytes, now - bytes, most);
    }
    Raise(&peak[kMemoryCategories], now);
    Raise(&window_peak, now);
  }
  std::atomic<int64_t>& own = live[static_cast<int>(category)];
  const int64_t of_category = own.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (bytes > 0) Raise(&peak[static_cast<int>(category)], of_category);
}

// Kept for reuse, beside what is counted: a constant, and under a limit a small part of it.
constexpr int64_t kMostKept = int64_t{128} << 20;
constexpr int64_t kKeptPart = 16;

// Never destroyed: tensors may outlive the end of main.
BlockCache& Blocks() {
  static auto* const cache = new BlockCache(kMostKept);
  return *cache;
}

// Lies in front of every block. 64 bytes keep libtorch's alignment for the block itself.
struct alignas(64) Header {
  int64_t bytes;
  size_t capacity;  // of the block
  MemoryCategory category;
};

void Free(void* data) {
  if (data == nullptr) return;
  Header* header = static_cast<Header*>(data) - 1;
  Count(header->category, -header->bytes);
  Blocks().Give({header, header->capacity});
}

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &Free, cpu};
    const MemoryCategory category = current_category.load(std::memory_order_relaxed);
    const auto count = static_cast<int64_t>(bytes);
    Count(category, count);
    BlockCache::Block block;
    try {
      block = Blocks().Take(bytes + sizeof(Header));
    } catch (...) {
      Count(category, -count);
      throw;
    }
    auto* header = static_cast<Header*>(block.data);
    header->bytes = count;
    header->capacity = block.capacity;
    header->category = category;
    void* data = header + 1;
    return {data, data, &Free, cpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

MemoryUsage Read(const std::atomic<int64_t>* counters) {
  MemoryUsage usage;
  for (int i = 0; i < kMemoryCategories; ++i) usage.bytes[i] = counters[i].load();
  usage.total = counters[kMemoryCategories].load();
  return usage;
}

}  // namespace

void InstallCountingAllocator() {
  static CountingAllocator allocator;
  c10::SetCPUAllocator(&allocator, /*priority=*/100);
}

MemoryUsage CurrentMemory() { return Read(live); }

MemoryUsage PeakMemory() { return Read(peak); }

void ResetPeakMemory() {
  for (int i = 0; i <= kMemoryCategories; ++i) peak[i].store(live[i].load());
}

int64_t TakeWindowPeak() { return window_peak.exchange(live[kMemoryCategories].load()); }

const char* MemoryCategoryName(MemoryCategory category) {
  switch (category) {
    case MemoryCategory::kTransient:
      return "transient";
    case MemoryCategory::kWeights:
      return "weights";
    case MemoryCategory::kTrainable:
      return "trainable";
    case MemoryCategory::kSavedActivations:
      return "saved activations";
    case MemoryCategory::kLoss:
      return "loss";
  }
  return "";
}

MemoryLimitError::MemoryLimitError(MemoryCategory category, int64_t asked_bytes, int64_t held_bytes,
                                   int64_t limit_bytes)
    : std::runtime_error(absl::StrCat("memory.budget_bytes: an allocation of ", asked_bytes,
                                      " bytes (", HumanBytes(asked_bytes), ") for ",
                                      MemoryCategoryName(category), " was refused: ", held_bytes,
                                      " bytes (", HumanBytes(held_bytes), ") are held of ",
                                      limit_bytes, " (", HumanBytes(limit_bytes), ")")),
      category_(category),
      asked_bytes_(asked_bytes),
      held_bytes_(held_bytes),
      limit_bytes_(limit_bytes) {}

void SetMemoryLimit(int64_t bytes) {
  limit.store(bytes);
  Blocks().SetMost(bytes > 0 ? std::min(kMostKept, bytes / kKeptPart) : kMostKept);
}

int64_t MemoryLimit() { return limit.load(); }

void CountExternalMemory(MemoryCategory category, int64_t bytes) { Count(category, bytes); }

ScopedMemoryCategory::ScopedMemoryCategory(MemoryCategory category)
    : former_(current_category.exchange(category)) {}

ScopedMemoryCategory::~ScopedMemoryCategory() { current_category.store(former_); }

}  // namespace lemo::train
