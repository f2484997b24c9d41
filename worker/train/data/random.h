// Random numbers that are the same with every compiler and library, unlike those of <random>'s
// distributions and std::shuffle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace lemo::train {

// A bijection of 64-bit words that looks random (splitmix64's finaliser).
inline uint64_t MixBits(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// One key from several numbers.
inline uint64_t MixKeys(uint64_t a, uint64_t b, uint64_t c) {
  return MixBits(MixBits(MixBits(a) ^ b) ^ c);
}

// What the order of training and its positions draw from train.seed, kept apart.
enum SeedUse : uint64_t {
  kDocumentOrder = 1,
  kWindowOrder = 2,
  kSequenceOrder = 3,
  kPositionSkips = 4
};

// A number in [0, size) from random bits: the high word of a product, biased below size / 2^64.
inline uint64_t DrawBelow(uint64_t size, uint64_t bits) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(bits) * size) >> 64);
}

// Shuffles in place (Fisher-Yates).
template <typename T>
void Shuffle(uint64_t key, std::vector<T>* values) {
  for (size_t i = values->size(); i > 1; --i) {
    std::swap((*values)[i - 1], (*values)[DrawBelow(i, MixBits(key ^ MixBits(i)))]);
  }
}

// A permutation of [0, size) that takes no memory: a Feistel network on the next power of four,
// walked until it lands inside.
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t key) : size_(size), key_(key) {
    while (half_bits_ < 32 && (uint64_t{1} << (2 * half_bits_)) < size) ++half_bits_;
  }

  // `i` must be below size.
  uint64_t operator()(uint64_t i) const {
    do {
      i = Encrypt(i);
    } while (i >= size_);
    return i;
  }

 private:
  static constexpr int kRounds = 6;

  uint64_t Encrypt(uint64_t i) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    uint64_t left = i >> half_bits_;
    uint64_t right = i & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (MixKeys(key_, round, right) & mask);
      left = right;
      right = next;
    }
    return (left << half_bits_) | right;
  }

  uint64_t size_;
  uint64_t key_;
  int half_bits_ = 1;
};

}  // namespace lemo::train
