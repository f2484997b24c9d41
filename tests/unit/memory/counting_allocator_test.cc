#include "worker/train/memory/counting_allocator.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <thread>

#include "worker/train/memory/arena.h"

namespace lemo::train {
namespace {

using Category = MemoryCategory;

class CountingAllocator : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { InstallCountingAllocator(); }

  void TearDown() override { SetMemoryLimit(0); }

  void SetUp() override {
    ResetPeakMemory();
    TakeWindowPeak();
    start_ = CurrentMemory();
  }

  // Since the start of the test.
  int64_t Live(Category category) const { return CurrentMemory()[category] - start_[category]; }
  int64_t Peak(Category category) const { return PeakMemory()[category] - start_[category]; }
  int64_t LiveTotal() const { return CurrentMemory().total - start_.total; }
  int64_t PeakTotal() const { return PeakMemory().total - start_.total; }

  MemoryUsage start_;
};

at::Tensor Bytes(int64_t count) { return at::empty({count}, at::kByte); }

TEST_F(CountingAllocator, CountsLiveAndPeakBytesExactly) {
  at::Tensor a = at::empty({10, 3}, at::kFloat);  // 120
  EXPECT_EQ(LiveTotal(), 120);
  {
    const at::Tensor b = at::empty({7}, at::kDouble);  // 56
    EXPECT_EQ(LiveTotal(), 176);
    const at::Tensor view = a.view({3, 10}).narrow(0, 1, 1);  // no memory of its own
    EXPECT_EQ(LiveTotal(), 176);
  }
  EXPECT_EQ(LiveTotal(), 120);
  const at::Tensor c = Bytes(1);
  EXPECT_EQ(LiveTotal(), 121);
  EXPECT_EQ(PeakTotal(), 176);
  a = at::Tensor();
  EXPECT_EQ(LiveTotal(), 1);
  EXPECT_EQ(Live(Category::kTransient), 1);
  EXPECT_EQ(Peak(Category::kTransient), 176);
  EXPECT_EQ(Peak(Category::kWeights), 0);
}

TEST_F(CountingAllocator, AnEmptyTensorHasNoBytes) {
  const at::Tensor empty = Bytes(0);
  EXPECT_EQ(LiveTotal(), 0);
}

TEST_F(CountingAllocator, BytesBelongToTheScopeThatMadeThem) {
  at::Tensor weights, saved, loss, plain;
  {
    const ScopedMemoryCategory outer(Category::kWeights);
    weights = Bytes(100);
    {
      const ScopedMemoryCategory inner(Category::kLoss);
      loss = Bytes(10);
    }
    saved = Bytes(1000);
  }
  plain = Bytes(1);
  EXPECT_EQ(Live(Category::kWeights), 1100);
  EXPECT_EQ(Live(Category::kLoss), 10);
  EXPECT_EQ(Live(Category::kTransient), 1);
  EXPECT_EQ(LiveTotal(), 1111);
  {
    // Freed under another scope: still taken from its own.
    const ScopedMemoryCategory other(Category::kTrainable);
    loss = at::Tensor();
  }
  EXPECT_EQ(Live(Category::kLoss), 0);
  EXPECT_EQ(Live(Category::kTrainable), 0);
  EXPECT_EQ(Peak(Category::kLoss), 10);
}

TEST_F(CountingAllocator, PeaksOfCategoriesNeedNotMeet) {
  {
    const ScopedMemoryCategory scope(Category::kLoss);
    Bytes(300);
  }
  Bytes(200);
  EXPECT_EQ(Peak(Category::kLoss), 300);
  EXPECT_EQ(Peak(Category::kTransient), 200);
  EXPECT_EQ(PeakTotal(), 300);
}

TEST_F(CountingAllocator, ResetStartsFromWhatIsAlive) {
  const at::Tensor kept = Bytes(50);
  Bytes(500);
  EXPECT_EQ(PeakTotal(), 550);
  ResetPeakMemory();
  EXPECT_EQ(PeakTotal(), 50);
  EXPECT_EQ(Peak(Category::kTransient), 50);
  Bytes(20);
  EXPECT_EQ(PeakTotal(), 70);
}

TEST_F(CountingAllocator, CountsTheTemporariesOfOperations) {
  const at::Tensor a = at::ones({100}, at::kFloat);
  ResetPeakMemory();
  const at::Tensor b = (a + a).mul(a);  // one temporary of 400 bytes beside a and b
  EXPECT_EQ(LiveTotal(), 800);
  EXPECT_EQ(PeakTotal(), 1200);
}

TEST_F(CountingAllocator, KeepsTheAlignmentOfLibtorch) {
  std::vector<at::Tensor> alive;
  for (const int64_t size : {1, 3, 63, 64, 65, 1000, 4097}) {
    alive.push_back(Bytes(size));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(alive.back().const_data_ptr()) % 64, 0) << size;
  }
}

TEST_F(CountingAllocator, WorksThroughRawPointers) {
  c10::Allocator* allocator = c10::GetCPUAllocator();
  void* data = allocator->raw_allocate(33);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0);
  EXPECT_EQ(LiveTotal(), 33);
  allocator->raw_deallocate(data);
  EXPECT_EQ(LiveTotal(), 0);
}

TEST_F(CountingAllocator, CountsWhatItIsTold) {
  CountExternalMemory(Category::kWeights, 12345);
  EXPECT_EQ(Live(Category::kWeights), 12345);
  EXPECT_EQ(PeakTotal(), 12345);
  CountExternalMemory(Category::kWeights, -12345);
  EXPECT_EQ(LiveTotal(), 0);
  EXPECT_EQ(Peak(Category::kWeights), 12345);
}

TEST_F(CountingAllocator, AddsUpAllThreads) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int round = 0; round < 1000; ++round) Bytes(64);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(LiveTotal(), 0);
  EXPECT_GE(PeakTotal(), 64);
  EXPECT_LE(PeakTotal(), 4 * 64);
}

TEST_F(CountingAllocator, AWindowHasItsOwnPeak) {
  Bytes(500);
  EXPECT_EQ(TakeWindowPeak() - start_.total, 500);
  const at::Tensor kept = Bytes(20);
  EXPECT_EQ(TakeWindowPeak() - start_.total, 20);
  EXPECT_EQ(TakeWindowPeak() - start_.total, 20);
  EXPECT_EQ(PeakTotal(), 500);
}

TEST_F(CountingAllocator, WhatPassesTheLimitIsRefusedAndLeavesNoTrace) {
  const at::Tensor held = Bytes(100);
  SetMemoryLimit(start_.total + 160);
  EXPECT_EQ(MemoryLimit(), start_.total + 160);
  const at::Tensor to_the_last_byte = Bytes(60);
  const MemoryUsage before = CurrentMemory(), peak = PeakMemory();
  try {
    const ScopedMemoryCategory scope(Category::kLoss);
    Bytes(1);
    FAIL() << "one byte too many was given";
  } catch (const MemoryLimitError& error) {
    EXPECT_EQ(error.category(), Category::kLoss);
    EXPECT_EQ(error.asked_bytes(), 1);
    EXPECT_EQ(error.held_bytes(), start_.total + 160);
    EXPECT_EQ(error.limit_bytes(), start_.total + 160);
    EXPECT_NE(std::string(error.what()).find("1 bytes (1 B) for loss was refused"),
              std::string::npos)
        << error.what();
  }
  for (int i = 0; i < kMemoryCategories; ++i) {
    EXPECT_EQ(CurrentMemory().bytes[i], before.bytes[i]);
    EXPECT_EQ(PeakMemory().bytes[i], peak.bytes[i]);
  }
  EXPECT_EQ(PeakTotal(), 160);
}

TEST_F(CountingAllocator, ALimitBelowWhatIsHeldLetsThingsGo) {
  at::Tensor held = Bytes(1000);
  SetMemoryLimit(start_.total + 10);
  EXPECT_THROW(Bytes(1), MemoryLimitError);
  held = at::Tensor();
  EXPECT_NO_THROW(Bytes(10));
  SetMemoryLimit(0);
  EXPECT_NO_THROW(Bytes(5000));
}

TEST_F(CountingAllocator, OperationsAndMappedFilesAreRefusedToo) {
  const at::Tensor a = at::ones({100}, at::kFloat);
  SetMemoryLimit(CurrentMemory().total + 399);
  EXPECT_THROW(a + a, MemoryLimitError);
  EXPECT_THROW(CountExternalMemory(Category::kWeights, 400), MemoryLimitError);
  EXPECT_EQ(LiveTotal(), 400);
  EXPECT_TRUE(a.eq(1).all().item<bool>());
}

TEST_F(CountingAllocator, ThreadsNeverPassTheLimitTogether) {
  SetMemoryLimit(start_.total + 3 * 64);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int round = 0; round < 1000; ++round) {
        try {
          Bytes(64);
        } catch (const MemoryLimitError&) {
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(LiveTotal(), 0);
  EXPECT_LE(PeakTotal(), 3 * 64);
}

TEST_F(CountingAllocator, AnArenaIsSavedActivations) {
  Arena arena(1000, at::kCPU);
  EXPECT_EQ(Live(Category::kSavedActivations), 1024);
  const at::Tensor slice = arena.Take({100}, at::kByte);
  EXPECT_EQ(LiveTotal(), 1024);
}

}  // namespace
}  // namespace lemo::train
