// The definition of dropout's random numbers, shared by all versions.
//
// A row's state is a hash of (seed, stream, row id); column j takes half of the word that
// SplitMix64 gives as its (j / 2 + 1)th output from that state: the low half for even j, the high
// half for odd j. SplitMix64 passes BigCrush, and two rows share numbers only if their 64-bit
// states lie within a row's length of each other, which for 2^24 rows of 2^13 columns has a
// probability near 2^-4 for a single shared stretch anywhere. Philox was the other candidate:
// stronger, but four times the integer products.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define LEMO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LEMO_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace lemo::kernels {

inline constexpr uint64_t kSplitMixStep = 0x9e3779b97f4a7c15u;

LEMO_HOST_DEVICE uint64_t SplitMix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

LEMO_HOST_DEVICE uint64_t DropoutRowState(int64_t seed, int64_t stream, int64_t row_id) {
  uint64_t state = SplitMix(static_cast<uint64_t>(seed) + kSplitMixStep);
  state = SplitMix(state + static_cast<uint64_t>(stream) + kSplitMixStep);
  return SplitMix(state + static_cast<uint64_t>(row_id) + kSplitMixStep);
}

// The word of columns 2 * pair (low half) and 2 * pair + 1 (high half).
LEMO_HOST_DEVICE uint64_t DropoutWord(uint64_t row_state, int64_t pair) {
  return SplitMix(row_state + kSplitMixStep * (static_cast<uint64_t>(pair) + 1));
}

// A column is dropped when its 32 random bits are below this.
inline uint32_t DropoutThreshold(double p) {
  const double scaled = std::round(p * 4294967296.0);
  return scaled >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(scaled);
}

}  // namespace lemo::kernels
