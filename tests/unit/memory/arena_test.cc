#include "worker/train/memory/arena.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>

namespace lemo::train {
namespace {

uintptr_t Address(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
}

TEST(Arena, RoundsUpToTheAlignment) {
  EXPECT_EQ(Arena::Rounded(0), 0);
  EXPECT_EQ(Arena::Rounded(1), 64);
  EXPECT_EQ(Arena::Rounded(64), 64);
  EXPECT_EQ(Arena::Rounded(65), 128);
}

TEST(Arena, SlicesAreAlignedAndApart) {
  Arena arena(4 * 64, at::kCPU);
  const at::Tensor a = arena.Take({3, 1}, at::kBFloat16);   // 6 bytes
  const at::Tensor b = arena.Take({9, 2}, at::kFloat);      // 72 bytes
  const at::Tensor c = arena.Take({2, 2, 2}, at::kDouble);  // 64 bytes
  EXPECT_EQ(a.sizes(), at::IntArrayRef({3, 1}));
  EXPECT_EQ(b.scalar_type(), at::kFloat);
  EXPECT_EQ(c.sizes(), at::IntArrayRef({2, 2, 2}));
  for (const at::Tensor& slice : {a, b, c}) {
    EXPECT_TRUE(slice.is_contiguous());
    EXPECT_EQ(Address(slice) % Arena::kAlignment, 0);
  }
  EXPECT_EQ(Address(b) - Address(a), 64);
  EXPECT_EQ(Address(c) - Address(b), 128);
  EXPECT_EQ(arena.used(), 256);
  EXPECT_EQ(arena.capacity(), 256);
  a.fill_(1);
  b.fill_(2);
  c.fill_(3);
  EXPECT_TRUE(a.eq(1).all().item<bool>());
  EXPECT_TRUE(b.eq(2).all().item<bool>());
  EXPECT_TRUE(c.eq(3).all().item<bool>());
}

TEST(Arena, ResetGivesEverythingBack) {
  Arena arena(100, at::kCPU);
  EXPECT_EQ(arena.capacity(), 128);
  const at::Tensor first = arena.Take({25}, at::kFloat);
  EXPECT_EQ(arena.used(), 128);
  arena.Reset();
  EXPECT_EQ(arena.used(), 0);
  const at::Tensor second = arena.Take({8}, at::kDouble);
  EXPECT_EQ(Address(second), Address(first));
}

TEST(Arena, RunningOverThrowsAndTakesNothing) {
  Arena arena(128, at::kCPU);
  arena.Take({1}, at::kFloat);
  EXPECT_THROW(arena.Take({17}, at::kFloat), c10::Error);
  EXPECT_EQ(arena.used(), 64);
  EXPECT_EQ(arena.Take({16}, at::kFloat).numel(), 16);
  EXPECT_THROW(arena.Take({1}, at::kByte), c10::Error);
}

TEST(Arena, NothingTakesNoRoom) {
  Arena arena(64, at::kCPU);
  EXPECT_EQ(arena.Take({0, 7}, at::kFloat).sizes(), at::IntArrayRef({0, 7}));
  EXPECT_EQ(arena.used(), 0);
  Arena empty(0, at::kCPU);
  EXPECT_EQ(empty.Take({0}, at::kDouble).numel(), 0);
}

}  // namespace
}  // namespace lemo::train
