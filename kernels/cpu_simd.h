// What the CPU versions share: one source loop compiled for several instruction sets, element types
// as their accumulation type, and an exp that vectorises.
//
// Each kernel is a LEMO_SIMD_CLONES function over rows whose body is an always-inline template. GCC
// compiles the function once for each instruction set and the loader picks one, so the same program
// runs on any x86-64. (ATen's Vectorized needs one object file for each set and its dispatch
// stubs.) Sums that should vectorise say so with `omp simd reduction`; no -ffast-math, so NaN and
// Inf keep their meaning.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

// A build may define LEMO_SIMD_CLONES as __attribute__((target("..."))) to test one instruction
// set.
#if !defined(LEMO_SIMD_CLONES)
#if defined(__x86_64__)
#define LEMO_SIMD_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LEMO_SIMD_CLONES
#endif
#endif
#define LEMO_INLINE inline __attribute__((always_inline))

namespace lemo::kernels::cpu {

// The type that arithmetic on T is done in.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

LEMO_INLINE double Load(double x) { return x; }
LEMO_INLINE float Load(float x) { return x; }
LEMO_INLINE float Load(c10::BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16);
}

// To nearest even; written without branches so that it vectorises.
template <typename T>
LEMO_INLINE T Round(Wide<T> x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return c10::BFloat16(static_cast<uint16_t>(nan ? 0x7fc0u : rounded),
                         c10::BFloat16::from_bits());
  } else {
    return x;
  }
}

// exp(x) with x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial in r. Relative error: 2 units in
// the last place for both types. Below the smallest normal result: 0; where 2^n would overflow: Inf
// (for float above 88.37, which is 0.35 early). NaN gives NaN.
LEMO_INLINE float Exp(float x) {
  constexpr float kLow = -87.33f;
  constexpr float kHigh = 88.37f;
  constexpr float kMagic =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  float clamped = x < kLow ? kLow : x;
  clamped = clamped > kHigh ? kHigh : clamped;
  const float shifted = clamped * 1.44269504088896341f + kMagic;
  const float n = shifted - kMagic;
  float r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kMagic);
  const float power = std::bit_cast<float>((exponent + 127) << 23);
  const float result = p * power;
  return x < kLow ? 0.0f : (x > kHigh ? std::numeric_limits<float>::infinity() : result);
}

LEMO_INLINE double Exp(double x) {
  constexpr double kLow = -708.39;
  constexpr double kHigh = 709.4;
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  double clamped = x < kLow ? kLow : x;
  clamped = clamped > kHigh ? kHigh : clamped;
  const double shifted = clamped * 1.4426950408889634 + kMagic;
  const double n = shifted - kMagic;
  double r = clamped - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  // Taylor to the 13th power: the remainder is below 2^-56 for |r| <= ln 2 / 2.
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  const int64_t exponent = std::bit_cast<int64_t>(shifted) - std::bit_cast<int64_t>(kMagic);
  const double power = std::bit_cast<double>((exponent + 1023) << 52);
  const double result = p * power;
  return x < kLow ? 0.0 : (x > kHigh ? std::numeric_limits<double>::infinity() : result);
}

// Rows a thread should take at least, so that starting it pays: 32 KiB of elements.
inline int64_t GrainRows(int64_t row_elements) {
  return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, row_elements));
}

// Calls `call` with a value of the element type; `type` was checked against kTypes before.
template <typename F>
void DispatchType(at::ScalarType type, F&& call) {
  switch (type) {
    case at::kDouble:
      return call(double{});
    case at::kFloat:
      return call(float{});
    case at::kBFloat16:
      return call(c10::BFloat16{});
    default:
      TORCH_CHECK(false, "CPU kernels support Double, Float, BFloat16; got ", type);
  }
}

template <typename F>
void DispatchIndex(at::ScalarType type, F&& call) {
  if (type == at::kInt) return call(int32_t{});
  return call(int64_t{});
}

}  // namespace lemo::kernels::cpu
