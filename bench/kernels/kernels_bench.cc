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

#include "kernels/block_pool/block_pool.h"
#include "kernels/block_scan/block_scan.h"
#include "kernels/block_scores/block_scores.h"
#include "kernels/block_select/block_select.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/dropout/dropout.h"
#include "kernels/gather_norm/gather_norm.h"
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
// Of the scores: a document of 4096 rows, 8 heads on 2 kv heads, blocks of 64.
constexpr int64_t kScoreRows = 4096;
constexpr int64_t kScoreHeads = 8;
constexpr int64_t kScoreKvHeads = 2;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kBlockRows = 64;

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

void GatherNormOurs(State& state) {
  const at::Tensor src = Normal(state, 2 * kRows, kHidden);
  const at::Tensor idx = at::arange(0, 2 * kRows, 2, at::kLong);
  const at::Tensor weight = at::ones({kHidden}, TypeOf(state));
  const at::Tensor slot = at::empty({kRows, kHidden}, TypeOf(state));
  for (auto _ : state) DoNotOptimize(GatherRmsNorm(src, idx, weight, kEps, slot));
  Count(state, 3.0 * kRows * kHidden);
}

// The two ops in its place.
void GatherNormPlain(State& state) {
  const at::Tensor src = Normal(state, 2 * kRows, kHidden);
  const at::Tensor idx = at::arange(0, 2 * kRows, 2, at::kLong);
  const at::Tensor weight = at::ones({kHidden}, TypeOf(state));
  for (auto _ : state) {
    const at::Tensor x = GatherRows(src, idx);
    DoNotOptimize(RmsNormForward(x, weight, kEps));
    DoNotOptimize(x);
  }
  Count(state, 3.0 * kRows * kHidden);
}

// items_per_second of the score lines: FLOP of the causal half of the products.
void CountScores(State& state) {
  state.SetItemsProcessed(state.iterations() * kScoreHeads * kHeadDim * kScoreRows * kScoreRows);
}

// The ceiling of the scores: the same products as one fp32 (bf16) matrix product, and nothing else.
void ScoreProducts(State& state) {
  const at::Tensor q = Normal(state, kScoreRows, kHeadDim);
  const at::Tensor k = Normal(state, kScoreHeads * kScoreRows / 2, kHeadDim);
  at::Tensor out = at::empty({kScoreRows, k.size(0)}, TypeOf(state));
  for (auto _ : state) {
    at::mm_out(out, q, k.t());
    benchmark::ClobberMemory();
  }
  CountScores(state);
}

void BlockScoresOurs(State& state) {
  const at::Tensor q =
      Normal(state, kScoreRows, kScoreHeads * kHeadDim).view({kScoreRows, kScoreHeads, kHeadDim});
  const at::Tensor k = Normal(state, kScoreRows, kScoreKvHeads * kHeadDim)
                           .view({kScoreRows, kScoreKvHeads, kHeadDim});
  for (auto _ : state) DoNotOptimize(BlockScores(q, k, kBlockRows, 0.125));
  CountScores(state);
}

// Panels of 512 queries, as section 3.1 writes it.
void BlockScoresPlain(State& state) {
  constexpr int64_t kPanel = 512;
  const at::Tensor q =
      Normal(state, kScoreRows, kScoreHeads * kHeadDim).view({kScoreRows, kScoreHeads, kHeadDim});
  const at::Tensor k = Normal(state, kScoreRows, kScoreKvHeads * kHeadDim)
                           .view({kScoreRows, kScoreKvHeads, kHeadDim});
  for (auto _ : state) {
    for (int64_t begin = 0; begin < kScoreRows; begin += kPanel) {
      const int64_t seen = begin + kPanel;
      at::Tensor sum = at::zeros({kPanel, seen});
      for (int64_t h = 0; h < kScoreHeads; ++h) {
        const at::Tensor query = q.select(1, h).narrow(0, begin, kPanel).to(at::kFloat);
        const at::Tensor key =
            k.select(1, h / (kScoreHeads / kScoreKvHeads)).narrow(0, 0, seen).to(at::kFloat);
        sum.add_(query.mm(key.t()).mul_(0.125).relu_());
      }
      sum.tril_(begin);
      DoNotOptimize(
          sum.view({kPanel / kBlockRows, kBlockRows, seen / kBlockRows, kBlockRows}).amax({1, 3}));
    }
  }
  CountScores(state);
}

void BlockMeanMaxOurs(State& state) {
  const at::Tensor u = Normal(state, kRows, kHidden);
  const at::Tensor starts = at::arange(0, kRows + 1, kBlockRows, at::kInt);
  const at::Tensor scale = at::ones({kRows});
  for (auto _ : state) DoNotOptimize(BlockMeanMaxForward(u, starts, scale));
  Count(state, 1.0 * kRows * kHidden);
}

void BlockMeanMaxPlain(State& state) {
  const at::Tensor u = Normal(state, kRows, kHidden);
  const at::Tensor scale = at::ones({kRows, 1});
  for (auto _ : state) {
    const at::Tensor v =
        (u * scale).relu_().view({kRows / kBlockRows, kBlockRows, kHidden}).to(at::kFloat);
    DoNotOptimize(at::cat({v.mean(1), v.amax(1)}, 1));
  }
  Count(state, 1.0 * kRows * kHidden);
}

// Informativeness, choice and rows for 128K rows in blocks of 64: what a layer pays besides its
// predictor.
void ChoiceOfBlocks(State& state) {
  constexpr int64_t kBlocks = 2048;
  const at::Tensor q = Normal(state, kBlocks, kHeadDim);
  const at::Tensor k = Normal(state, kBlocks, kHeadDim);
  const at::Tensor documents = at::tensor({int64_t{0}, kBlocks}, at::kInt);
  const at::Tensor counts = at::tensor({kBlocks / 2}, at::kInt);
  const at::Tensor starts = at::arange(0, kBlocks * kBlockRows + 1, kBlockRows, at::kInt);
  const at::Tensor none = at::zeros({kBlocks}, at::kByte);
  for (auto _ : state) {
    const at::Tensor scores = BlockInformativenessForward(q, k, documents, Combine::kSymmetric);
    const at::Tensor mask = SelectTopBlocks(scores, none, documents, counts);
    DoNotOptimize(RowsOfBlocks(starts, mask, kBlocks * kBlockRows / 2, at::kInt));
  }
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
LEMO_BENCH(GatherNormOurs);
LEMO_BENCH(GatherNormPlain);
LEMO_BENCH(ScoreProducts);
LEMO_BENCH(BlockScoresOurs);
LEMO_BENCH(BlockScoresPlain);
LEMO_BENCH(BlockMeanMaxOurs);
LEMO_BENCH(BlockMeanMaxPlain);
LEMO_BENCH(ChoiceOfBlocks);
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
