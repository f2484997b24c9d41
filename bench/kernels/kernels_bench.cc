// CPU kernels against the memory they must move. Each line's bytes_per_second counts the bytes that
// the op's header says it moves (its paper arithmetic); the memcpy line is the ceiling. `Plain`
// lines are the same mathematics as ATen ops, the version before these on the ladder, with the same
// byte count, so the ratio of the lines is the ratio of the times.
//
//   lemo_kernels_bench [--benchmark_filter=...]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <cstring>

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/dropout/dropout.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/rows/rows.h"
#include "kernels/swiglu/swiglu.h"

namespace lemo::kernels {
namespace {

using benchmark::DoNotOptimize;
using benchmark::State;

constexpr int64_t kRows = 2048;
constexpr int64_t kHidden = 2048;
constexpr int64_t kHeads = 16;
constexpr int64_t kVocabulary = 32000;
constexpr int64_t kSegment = 256;
constexpr double kEps = 1e-5;

at::ScalarType TypeOf(const State& state) {
  return state.range(0) == 4 ? at::kFloat : at::kBFloat16;
}

at::Tensor Normal(const State& state, int64_t rows, int64_t width) {
  return at::randn({rows, width}).to(TypeOf(state));
}

void Count(State& state, double elements) {
  state.SetBytesProcessed(static_cast<int64_t>(static_cast<double>(state.iterations()) * elements *
                                               static_cast<double>(state.range(0))));
}

void Memcpy(State& state) {
  const at::Tensor from = Normal(state, kRows, kHidden);
  const at::Tensor to = at::empty_like(from);
  const auto bytes = static_cast<int64_t>(from.nbytes());
  for (auto _ : state) {
    at::parallel_for(0, bytes, 1 << 16, [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(to.mutable_data_ptr()) + begin,
                  static_cast<const char*>(from.const_data_ptr()) + begin, end - begin);
    });
    benchmark::ClobberMemory();
  }
  Count(state, 2.0 * kRows * kHidden);
}

void RmsNormOurs(State& state) {
  const at::Tensor x = Normal(state, kRows, kHidden);
  const at::Tensor weight = at::ones({kHidden}, TypeOf(state));
  for (auto _ : state) DoNotOptimize(RmsNormForward(x, weight, kEps));
  Count(state, 2.0 * kRows * kHidden);
}

void RmsNormPlain(State& state) {
  const at::Tensor x = Normal(state, kRows, kHidden);
  const at::Tensor weight = at::ones({kHidden}, TypeOf(state));
  for (auto _ : state) {
    const at::Tensor wide = x.to(at::kFloat);
    DoNotOptimize(weight * (wide * at::rsqrt(wide.pow(2).mean(-1, true) + kEps)).to(TypeOf(state)));
  }
  Count(state, 2.0 * kRows * kHidden);
}

void RmsNormBackwardOurs(State& state) {
  const at::Tensor x = Normal(state, kRows, kHidden);
  const at::Tensor weight = at::ones({kHidden}, TypeOf(state));
  const at::Tensor rstd = std::get<1>(RmsNormForward(x, weight, kEps));
  for (auto _ : state) DoNotOptimize(RmsNormBackward(x, x, rstd, weight, state.range(1) != 0));
  Count(state, 3.0 * kRows * kHidden);
}

void GatherRowsOurs(State& state) {
  const at::Tensor src = Normal(state, 2 * kRows, kHidden);
  const at::Tensor idx = at::arange(0, 2 * kRows, 2, at::kLong);
  for (auto _ : state) DoNotOptimize(GatherRows(src, idx));
  Count(state, 2.0 * kRows * kHidden);
}

void GatherRowsPlain(State& state) {
  const at::Tensor src = Normal(state, 2 * kRows, kHidden);
  const at::Tensor idx = at::arange(0, 2 * kRows, 2, at::kLong);
  for (auto _ : state) DoNotOptimize(src.index_select(0, idx));
  Count(state, 2.0 * kRows * kHidden);
}

void ScatterAddRowsOurs(State& state) {
  const at::Tensor dst = Normal(state, 2 * kRows, kHidden);
  const at::Tensor idx = at::arange(0, 2 * kRows, 2, at::kLong);
  const at::Tensor delta = at::zeros({kRows, kHidden}, TypeOf(state));
  for (auto _ : state) ScatterAddRows(dst, idx, delta);
  Count(state, 3.0 * kRows * kHidden);
}

void ScatterAddRowsPlain(State& state) {
  const at::Tensor dst = Normal(state, 2 * kRows, kHidden);
  const at::Tensor idx = at::arange(0, 2 * kRows, 2, at::kLong);
  const at::Tensor delta = at::zeros({kRows, kHidden}, TypeOf(state));
  for (auto _ : state) dst.index_add_(0, idx, delta);
  Count(state, 3.0 * kRows * kHidden);
}

void RopeOurs(State& state) {
  const at::Tensor x = Normal(state, kRows, kHidden).view({kRows, kHeads, kHidden / kHeads});
  const at::Tensor angle = at::randn({kRows, kHidden / kHeads / 2});
  const at::Tensor cos = angle.cos();
  const at::Tensor sin = angle.sin();
  for (auto _ : state) DoNotOptimize(RopeForward(x, cos, sin, false));
  Count(state, 2.0 * kRows * kHidden);
}

void SwiGluOurs(State& state) {
  const at::Tensor gate = Normal(state, kRows, kHidden);
  const at::Tensor up = Normal(state, kRows, kHidden);
  for (auto _ : state) DoNotOptimize(SwiGluForward(gate, up));
  Count(state, 3.0 * kRows * kHidden);
}

void SwiGluPlain(State& state) {
  const at::Tensor gate = Normal(state, kRows, kHidden);
  const at::Tensor up = Normal(state, kRows, kHidden);
  for (auto _ : state) DoNotOptimize(at::silu(gate) * up);
  Count(state, 3.0 * kRows * kHidden);
}

void SwiGluBackwardOurs(State& state) {
  const at::Tensor gate = Normal(state, kRows, kHidden);
  const at::Tensor up = Normal(state, kRows, kHidden);
  for (auto _ : state) DoNotOptimize(SwiGluBackward(up, gate, up));
  Count(state, 5.0 * kRows * kHidden);
}

void CrossEntropyOurs(State& state) {
  const at::Tensor logits = Normal(state, kSegment, kVocabulary);
  const at::Tensor labels = at::randint(0, kVocabulary, {kSegment}, at::kLong);
  for (auto _ : state) DoNotOptimize(CrossEntropyInPlace(logits, labels, {}));
  Count(state, 3.0 * kSegment * kVocabulary);
}

void CrossEntropyPlain(State& state) {
  const at::Tensor logits = Normal(state, kSegment, kVocabulary);
  const at::Tensor labels = at::randint(0, kVocabulary, {kSegment}, at::kLong);
  for (auto _ : state) {
    const at::Tensor log_probabilities = at::log_softmax(logits, -1, at::kFloat);
    DoNotOptimize(at::nll_loss(log_probabilities, labels));
    const at::Tensor gradient = log_probabilities.exp();
    gradient.scatter_add_(1, labels.unsqueeze(1), at::full({kSegment, 1}, -1.0f));
    DoNotOptimize(gradient.to(TypeOf(state)));
  }
  Count(state, 3.0 * kSegment * kVocabulary);
}

void DropoutOurs(State& state) {
  const at::Tensor x = Normal(state, kRows, kHidden);
  const at::Tensor ids = at::arange(kRows, at::kLong);
  for (auto _ : state) DoNotOptimize(Dropout(x, 0.1, {.seed = 1, .stream = 2}, ids));
  Count(state, 2.0 * kRows * kHidden);
}

void DropoutPlain(State& state) {
  const at::Tensor x = Normal(state, kRows, kHidden);
  for (auto _ : state) DoNotOptimize(at::dropout(x, 0.1, true));
  Count(state, 2.0 * kRows * kHidden);
}

// range(0): bytes an element. Wall time, since the work is threaded.
#define LEMO_BENCH(name) BENCHMARK(name)->ArgName("bytes")->Arg(4)->Arg(2)->UseRealTime()
LEMO_BENCH(Memcpy);
LEMO_BENCH(RmsNormOurs);
LEMO_BENCH(RmsNormPlain);
BENCHMARK(RmsNormBackwardOurs)
    ->ArgNames({"bytes", "dweight"})
    ->ArgsProduct({{4, 2}, {0, 1}})
    ->UseRealTime();
LEMO_BENCH(GatherRowsOurs);
LEMO_BENCH(GatherRowsPlain);
LEMO_BENCH(ScatterAddRowsOurs);
LEMO_BENCH(ScatterAddRowsPlain);
LEMO_BENCH(RopeOurs);
LEMO_BENCH(SwiGluOurs);
LEMO_BENCH(SwiGluPlain);
LEMO_BENCH(SwiGluBackwardOurs);
LEMO_BENCH(CrossEntropyOurs);
LEMO_BENCH(CrossEntropyPlain);
LEMO_BENCH(DropoutOurs);
LEMO_BENCH(DropoutPlain);

}  // namespace
}  // namespace lemo::kernels

int main(int argc, char** argv) {
  const at::NoGradGuard no_grad;
  // Keep freed memory: otherwise results above 32 MiB pay a page fault every 4 KiB in each
  // iteration.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  benchmark::Initialize(&argc, argv);
  benchmark::AddCustomContext("threads", std::to_string(at::get_num_threads()));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
