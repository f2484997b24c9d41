// A test harness of one page, because a GPU host has Python's torch and nvcc but not GoogleTest.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/tensor_compare.h"

namespace lemo::testing {

struct GpuTest {
  const char* name;
  std::function<void()> body;
};
inline std::vector<GpuTest>& GpuTests() {
  static std::vector<GpuTest> tests;
  return tests;
}
inline int& Failures() {
  static int failures = 0;
  return failures;
}
struct GpuTestRegistration {
  GpuTestRegistration(const char* name, std::function<void()> body) {
    GpuTests().push_back({name, std::move(body)});
  }
};

inline void Report(const char* file, int line, const std::string& what, const std::string& fault) {
  if (fault.empty()) return;
  ++Failures();
  std::cerr << file << ":" << line << ": " << what << ": " << fault << "\n";
}

#define GPU_TEST(name)                                                                \
  static void name();                                                                 \
  static const ::lemo::testing::GpuTestRegistration registration_##name(#name, name); \
  static void name()

// `context` is streamed: a type, a shape.
#define CHECK_TENSOR(actual, expected, tolerance, context)                           \
  do {                                                                               \
    std::ostringstream what_;                                                        \
    what_ << #actual << " for " << context;                                          \
    ::lemo::testing::Report(__FILE__, __LINE__, what_.str(),                         \
                            ::lemo::testing::Mismatch(actual, expected, tolerance)); \
  } while (false)
#define CHECK_TRUE(condition, context)                                                       \
  do {                                                                                       \
    std::ostringstream what_;                                                                \
    what_ << #condition << " for " << context;                                               \
    ::lemo::testing::Report(__FILE__, __LINE__, what_.str(), (condition) ? "" : "is false"); \
  } while (false)

inline std::vector<at::ScalarType> GpuTypes() {
  return {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};
}

// Seeded values of the same kind in every run, made on the CPU.
class Random {
 public:
  explicit Random(uint64_t seed) : generator_(at::detail::createCPUGenerator(seed)) {}
  at::Tensor Normal(at::IntArrayRef shape, at::ScalarType type, double scale = 1) {
    return (at::randn(shape, generator_, at::TensorOptions(at::kDouble)) * scale).to(type);
  }
  at::Tensor Integers(int64_t low, int64_t high, at::IntArrayRef shape) {
    return at::randint(low, high, shape, generator_, at::TensorOptions(at::kLong));
  }
  at::Tensor RowList(int64_t rows) { return at::nonzero(Integers(0, 2, {rows})).flatten(); }

 private:
  at::Generator generator_;
};

inline at::Tensor Gpu(const at::Tensor& tensor) { return tensor.to(at::kCUDA); }

// On the GPU, contiguous, but one element past an aligned address: packed loads would fault.
inline at::Tensor Unaligned(const at::Tensor& tensor) {
  at::Tensor room = at::empty({tensor.numel() + 1}, tensor.options().device(at::kCUDA));
  at::Tensor view = room.slice(0, 1).view(tensor.sizes());
  view.copy_(tensor);
  return view;
}

// Whether the device has this much memory free; says so where a test leaves something out for it.
bool HasFreeMemory(int64_t bytes, const char* test);

}  // namespace lemo::testing
