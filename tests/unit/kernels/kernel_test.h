// What the kernels' tests share: seeded inputs, a comparing matcher, finite differences.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <iostream>
#include <vector>

#include "tests/support/tensor_compare.h"

namespace lemo::testing {

#define EXPECT_TENSOR(actual, expected, tolerance) \
  EXPECT_EQ(::lemo::testing::Mismatch(actual, expected, tolerance), "")

// Equal in every bit, but for which NaN it is.
#define EXPECT_SAME(actual, expected) EXPECT_EQ(::lemo::testing::Mismatch(actual, expected), "")

class Random {
 public:
  explicit Random(uint64_t seed) : generator_(at::detail::createCPUGenerator(seed)) {
    std::cout << "seed " << seed << "\n";
  }

  at::Tensor Normal(at::IntArrayRef shape, at::ScalarType type, double scale = 1) {
    return (at::randn(shape, generator_, at::TensorOptions(at::kDouble)) * scale).to(type);
  }

  at::Tensor Integers(int64_t low, int64_t high, at::IntArrayRef shape) {
    return at::randint(low, high, shape, generator_, at::TensorOptions(at::kLong));
  }

  // About half of the rows, ascending.
  at::Tensor RowList(int64_t rows, at::ScalarType type = at::kLong) {
    return at::nonzero(Integers(0, 2, {rows})).flatten().to(type);
  }

 private:
  at::Generator generator_;
};

inline std::vector<at::ScalarType> CpuTypes() { return {at::kDouble, at::kFloat, at::kBFloat16}; }

// d(loss)/d(input) by central differences; `loss` maps fp64 input to a scalar. The step balances
// its square (the truncated term) against u/step (cancellation): 1e-10 either way, for inputs
// near 1.
inline at::Tensor FiniteDifference(const std::function<at::Tensor(const at::Tensor&)>& loss,
                                   const at::Tensor& input) {
  constexpr double kStep = 1e-5;
  at::Tensor gradient = at::empty_like(input, input.options(), at::MemoryFormat::Contiguous);
  at::Tensor moved = input.detach().clone(at::MemoryFormat::Contiguous);
  double* values = moved.mutable_data_ptr<double>();
  for (int64_t i = 0; i < moved.numel(); ++i) {
    const double value = values[i];
    values[i] = value + kStep;
    const double above = loss(moved).item<double>();
    values[i] = value - kStep;
    const double below = loss(moved).item<double>();
    values[i] = value;
    gradient.mutable_data_ptr<double>()[i] = (above - below) / (2 * kStep);
  }
  return gradient;
}

inline Tolerance FiniteDifferenceTolerance() { return {1e-7, 1e-8}; }

// Whether the tensor that `make` builds from a leaf dies once `use` has consumed it: true when
// autograd saved nothing that keeps it.
inline bool IsReleasedBy(const std::function<at::Tensor(const at::Tensor&)>& use,
                         at::IntArrayRef shape) {
  const at::Tensor leaf = at::ones(shape).requires_grad_();
  at::Tensor input = leaf * 2;
  const c10::weak_intrusive_ptr<at::TensorImpl> watched(input.getIntrusivePtr());
  const at::Tensor output = use(input);
  input.reset();
  return output.requires_grad() && watched.expired();
}

// Runs `body` with `threads` threads, then with as many as before.
inline void WithThreads(int threads, const std::function<void()>& body) {
  const int before = at::get_num_threads();
  at::set_num_threads(threads);
  body();
  at::set_num_threads(before);
}

}  // namespace lemo::testing
