#include "worker/train/model/random_tensor.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace lemo::train {
namespace {

// SplitMix64 (Steele, Lea and Flood 2014): a bijection that scrambles counters well enough to be
// used as a counter-based generator.
uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

uint64_t Key(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return Mix(hash ^ Mix(seed));
}

// In [0, 1), 53 bits.
double Unit(uint64_t key, uint64_t counter) {
  return static_cast<double>(Mix(key + counter * 0x9e3779b97f4a7c15u) >> 11) * 0x1.0p-53;
}

// A standard normal number as a sum of twelve uniform ones (deviation 1, at most 6 away from 0).
// The textbook formulas take logarithms and cosines, which differ between C libraries and
// processors in the last place; this is integer arithmetic up to one product.
double Normal(uint64_t key, uint64_t element) {
  constexpr int64_t kFieldsMean = 12 * 65535;  // twice the mean of twelve 16-bit fields
  constexpr double kUnit = 0.5 / 65536;        // 65536 is their deviation, to ten digits
  int64_t sum = 0;
  for (uint64_t i = 0; i < 3; ++i) {
    const uint64_t bits = Mix(key + (3 * element + i) * 0x9e3779b97f4a7c15u);
    sum += static_cast<int64_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) +
                                (bits >> 48));
  }
  return static_cast<double>(2 * sum - kFieldsMean) * kUnit;
}

}  // namespace

at::Tensor UniformTensor(at::IntArrayRef shape, double bound, uint64_t seed,
                         std::string_view name) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  const uint64_t key = Key(seed, name);
  float* out = tensor.mutable_data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    out[i] = static_cast<float>((2.0 * Unit(key, i) - 1.0) * bound);
  }
  return tensor;
}

at::Tensor NormalTensor(at::IntArrayRef shape, double deviation, uint64_t seed,
                        std::string_view name, const Shard& part, at::ScalarType type) {
  // The part is stretches of `length` neighbours, one in every `stride` of the whole.
  int64_t length = c10::multiply_integers(shape), stride = length, start = 0;
  std::vector<int64_t> part_shape = shape.vec();
  if (part.cut()) {
    const int64_t inner = c10::multiply_integers(shape.slice(part.dim + 1));
    length = part.size * inner;
    stride = part.full * inner;
    start = part.first * inner;
    part_shape[part.dim] = part.size;
  }
  at::Tensor tensor = at::empty(part_shape, type);
  const uint64_t key = Key(seed, name);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "NormalTensor", [&] {
    scalar_t* out = tensor.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, tensor.numel(), 1 << 16, [=](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t stretch = begin / length, offset = begin % length;
        const int64_t count = std::min(end - begin, length - offset);
        const int64_t element = stretch * stride + start + offset;
        for (int64_t i = 0; i < count; ++i) {
          const double value = deviation * Normal(key, static_cast<uint64_t>(element + i));
          out[begin + i] = static_cast<scalar_t>(static_cast<float>(value));
        }
        begin += count;
      }
    });
  });
  return tensor;
}

}  // namespace lemo::train
