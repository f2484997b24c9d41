#include "worker/train/memory/counting_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <atomic>
#include <cstring>

namespace lemo::train {
namespace {

std::atomic<MemoryCategory> current_category{MemoryCategory::kTransient};

// One slot a category and one for the total.
std::atomic<int64_t> live[kMemoryCategories + 1];
std::atomic<int64_t> peak[kMemoryCategories + 1];

void Raise(std::atomic<int64_t>* peak, int64_t value) {
  int64_t seen = peak->load(std::memory_order_relaxed);
  while (seen < value && !peak->compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

void Count(MemoryCategory category, int64_t bytes) {
  for (const int slot : {static_cast<int>(category), kMemoryCategories}) {
    const int64_t now = live[slot].fetch_add(bytes, std::memory_order_relaxed) + bytes;
    if (bytes > 0) Raise(&peak[slot], now);
  }
}

// Lies in front of every block. 64 bytes keep libtorch's alignment for the block itself.
struct alignas(64) Header {
  int64_t bytes;
  MemoryCategory category;
};

void Free(void* data) {
  if (data == nullptr) return;
  Header* header = static_cast<Header*>(data) - 1;
  Count(header->category, -header->bytes);
  c10::free_cpu(header);
}

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &Free, cpu};
    auto* header = static_cast<Header*>(c10::alloc_cpu(bytes + sizeof(Header)));
    header->bytes = static_cast<int64_t>(bytes);
    header->category = current_category.load(std::memory_order_relaxed);
    Count(header->category, header->bytes);
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

void CountExternalMemory(MemoryCategory category, int64_t bytes) { Count(category, bytes); }

ScopedMemoryCategory::ScopedMemoryCategory(MemoryCategory category)
    : former_(current_category.exchange(category)) {}

ScopedMemoryCategory::~ScopedMemoryCategory() { current_category.store(former_); }

}  // namespace lemo::train
