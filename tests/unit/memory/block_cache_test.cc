#include "worker/train/memory/block_cache.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace lemo::train {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(BlockCache, WhatWasGivenIsTakenAgain) {
  BlockCache cache(8 * kMiB);
  const BlockCache::Block first = cache.Take(kMiB);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.data) % 64, 0);
  cache.Give(first);
  EXPECT_EQ(cache.kept_bytes(), kMiB);
  // A little less fits, and has the room that there is.
  const BlockCache::Block again = cache.Take(kMiB - 1000);
  EXPECT_EQ(again.data, first.data);
  EXPECT_EQ(again.capacity, kMiB);
  EXPECT_EQ(cache.kept_bytes(), 0);
  cache.Give(again);
}

TEST(BlockCache, NeitherTooSmallNorMuchTooLargeOnesAreTaken) {
  for (const size_t bytes : {kMiB + 1, kMiB / 2}) {
    BlockCache cache(8 * kMiB);
    cache.Give(cache.Take(kMiB));
    const BlockCache::Block other = cache.Take(bytes);
    EXPECT_EQ(other.capacity, bytes);
    EXPECT_EQ(cache.kept_bytes(), kMiB);
    cache.Give(other);
  }
}

TEST(BlockCache, TheSmallestThatFitsIsTaken) {
  BlockCache cache(8 * kMiB);
  const BlockCache::Block larger = cache.Take(kMiB + 4096), smaller = cache.Take(kMiB);
  cache.Give(larger);
  cache.Give(smaller);
  const BlockCache::Block taken = cache.Take(kMiB);
  EXPECT_EQ(taken.data, smaller.data);
  cache.Give(taken);
}

TEST(BlockCache, TheOldestGoBeyondTheBound) {
  BlockCache cache(3 * kMiB);
  const BlockCache::Block a = cache.Take(kMiB), b = cache.Take(2 * kMiB), c = cache.Take(kMiB);
  cache.Give(a);
  cache.Give(b);
  EXPECT_EQ(cache.kept_bytes(), 3 * kMiB);
  cache.Give(c);
  EXPECT_EQ(cache.kept_bytes(), 3 * kMiB);
  const BlockCache::Block taken = cache.Take(kMiB);
  EXPECT_EQ(taken.data, c.data);  // `a` went
  cache.Give(taken);
  cache.SetMost(kMiB);
  EXPECT_LE(cache.kept_bytes(), kMiB);
  // One that is larger than the bound goes at once, and takes none with it.
  const int64_t kept = cache.kept_bytes();
  cache.Give(cache.Take(4 * kMiB));
  EXPECT_EQ(cache.kept_bytes(), kept);
}

TEST(BlockCache, SmallBlocksAreNotKept) {
  BlockCache cache(kMiB);
  cache.Give(cache.Take(1000));
  EXPECT_EQ(cache.kept_bytes(), 0);
}

}  // namespace
}  // namespace lemo::train
