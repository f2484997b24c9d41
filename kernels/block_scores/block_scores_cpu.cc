// Adds to the reference: tiles of pairs of at most kTileRows x kTileRows, small enough for a core's
// L2 cache; the products of a tile and head by BLAS, then one vector pass that scales, drops
// negative ones and sums; threads over tiles. A tile holds whole blocks, or a part of one pair of
// long blocks; in either case an entry of the result belongs to one task, so threads never meet.
#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cmath>

#include "kernels/block_scores/block_scores_internal.h"
#include "kernels/cpu_simd.h"

namespace lemo::kernels::cpu {
namespace {

constexpr int64_t kTileRows = 256;

// Sums of heads are not negative, so their bits order as integers; and NaN, its sign dropped, is
// above Inf. So one integer max takes NaN along, which a comparison of numbers would not.
template <typename T>
using Bits = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;
template <typename T>
constexpr Bits<T> kNoSign = std::numeric_limits<Bits<T>>::max();

template <typename T>
LEMO_INLINE void AddPositiveElements(const T* product, T scale, int64_t count, T* sum) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T score = scale * product[i];
    sum[i] += score < 0 ? T{0} : score;  // keeps NaN
  }
}

template <typename T>
LEMO_INLINE Bits<T> GreatestElement(const T* sum, int64_t count) {
  Bits<T> best = 0;
#pragma omp simd reduction(max : best)
  for (int64_t i = 0; i < count; ++i) {
    const Bits<T> bits = std::bit_cast<Bits<T>>(sum[i]) & kNoSign<T>;
    best = bits > best ? bits : best;
  }
  return best;
}

#define LEMO_BLOCK_SCORES_CLONES(T)                                                     \
  LEMO_SIMD_CLONES void AddPositive(const T* product, T scale, int64_t count, T* sum) { \
    AddPositiveElements<T>(product, scale, count, sum);                                 \
  }                                                                                     \
  LEMO_SIMD_CLONES Bits<T> Greatest(const T* sum, int64_t count) {                      \
    return GreatestElement<T>(sum, count);                                              \
  }
LEMO_BLOCK_SCORES_CLONES(double)
LEMO_BLOCK_SCORES_CLONES(float)
#undef LEMO_BLOCK_SCORES_CLONES
LEMO_SIMD_CLONES void Widen(const c10::BFloat16* from, int64_t count, float* to) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = Load(from[i]);
}

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// One thread's scratch, and what it computes with it.
template <typename T>
class TileScorer {
 public:
  TileScorer(const at::Tensor& q, const at::Tensor& k, int64_t block_rows, double scale,
             at::Tensor* maxima)
      : q_(q),
        k_(k),
        block_rows_(block_rows),
        scale_(static_cast<Wide<T>>(scale)),
        blocks_(maxima->size(0)),
        maxima_(maxima->mutable_data_ptr<Wide<T>>()) {
    const auto options = maxima->options();
    const int64_t rows = std::min(kTileRows, q.size(0));
    products_ = at::empty({rows * rows}, options);
    sums_ = at::empty({rows * rows}, options);
    if constexpr (!std::is_same_v<T, Wide<T>>) {
      query_scratch_ = at::empty({rows * q.size(1) * q.size(2)}, options);
      key_scratch_ = at::empty({rows * k.size(1) * k.size(2)}, options);
    }
  }

  // Raises the entries of the result that the pairs queries x keys belong to. Each range is at most
  // kTileRows long.
  void Add(Range queries, Range keys) {
    const int64_t pairs = queries.size() * keys.size();
    const int64_t group = q_.size(1) / k_.size(1);
    at::Tensor products = products_.narrow(0, 0, pairs).view({queries.size(), keys.size()});
    if (queries_.begin != queries.begin || queries_.end != queries.end) {
      wide_queries_ = Widened(q_, queries, query_scratch_);
      queries_ = queries;
    }
    const at::Tensor wide_keys = Widened(k_, keys, key_scratch_);
    auto* sums = sums_.mutable_data_ptr<Wide<T>>();
    std::fill(sums, sums + pairs, Wide<T>{0});
    for (int64_t g = 0; g < k_.size(1); ++g) {
      const at::Tensor key = wide_keys.select(1, g).t();
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        at::mm_out(products, wide_queries_.select(1, h), key);
        AddPositive(products.const_data_ptr<Wide<T>>(), scale_, pairs, sums);
      }
    }
    for (int64_t i = queries.begin; i < queries.end; ++i, sums += keys.size()) {
      Wide<T>* row = maxima_ + i / block_rows_ * blocks_;
      const int64_t last = std::min(keys.end, i + 1);  // later keys are masked
      for (int64_t j = keys.begin; j < last;) {
        const int64_t n = j / block_rows_;
        const int64_t end = std::min(last, (n + 1) * block_rows_);
        const Bits<Wide<T>> best = Greatest(sums + (j - keys.begin), end - j);
        if (best > std::bit_cast<Bits<Wide<T>>>(row[n])) row[n] = std::bit_cast<Wide<T>>(best);
        j = end;
      }
    }
  }

 private:
  // Rows of q or k in the wide type: for bf16 a copy in `scratch`. Tasks of a thread go along a row
  // of the triangle, so queries are widened once a row and keys once a tile.
  static at::Tensor Widened(const at::Tensor& all, Range rows, const at::Tensor& scratch) {
    const at::Tensor view = all.narrow(0, rows.begin, rows.size());
    if constexpr (std::is_same_v<T, Wide<T>>) {
      return view;
    } else {
      at::Tensor wide = scratch.narrow(0, 0, view.numel()).view(view.sizes());
      Widen(view.const_data_ptr<T>(), view.numel(), wide.mutable_data_ptr<Wide<T>>());
      return wide;
    }
  }

  const at::Tensor& q_;
  const at::Tensor& k_;
  const int64_t block_rows_;
  const Wide<T> scale_;
  const int64_t blocks_;
  Wide<T>* const maxima_;
  at::Tensor products_, sums_, query_scratch_, key_scratch_;
  Range queries_;  // of wide_queries_
  at::Tensor wide_queries_;
};

// The parts of `rows` that a tile takes at a time.
template <typename F>
void ForParts(Range rows, F&& call) {
  for (int64_t begin = rows.begin; begin < rows.end; begin += kTileRows) {
    call(Range{begin, std::min(rows.end, begin + kTileRows)});
  }
}

}  // namespace

at::Tensor BlockScores(const at::Tensor& q_any, const at::Tensor& k_any, int64_t block_rows,
                       double scale) {
  CheckBlockScores(q_any, k_any, block_rows, scale);
  const at::Tensor q = q_any.contiguous();
  const at::Tensor k = k_any.contiguous();
  const int64_t rows = q.size(0);
  const int64_t blocks = BlockCount(rows, block_rows);
  at::Tensor maxima = at::zeros({blocks, blocks}, q.options().dtype(WideType(q.scalar_type())));
  // A task is a pair of runs of whole blocks, numbered along the rows of the lower triangle.
  const int64_t run_rows = std::max<int64_t>(1, kTileRows / block_rows) *
                           std::min(block_rows, std::max<int64_t>(rows, 1));
  const int64_t runs = BlockCount(rows, run_rows);
  const auto run = [&](int64_t r) {
    return Range{r * run_rows, std::min(rows, (r + 1) * run_rows)};
  };
  DispatchType(q.scalar_type(), [&](auto element) {
    using T = decltype(element);
    at::parallel_for(0, runs * (runs + 1) / 2, 1, [&](int64_t begin, int64_t end) {
      const at::AutoDispatchBelowAutograd guard;  // this thread's
      TileScorer<T> scorer(q, k, block_rows, scale, &maxima);
      auto m = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(begin) + 1) - 1) / 2);
      while (m * (m + 1) / 2 > begin) --m;
      while ((m + 1) * (m + 2) / 2 <= begin) ++m;
      int64_t n = begin - m * (m + 1) / 2;
      for (int64_t task = begin; task < end; ++task) {
        ForParts(run(m), [&](Range queries) {
          ForParts(run(n), [&](Range keys) {
            if (keys.begin < queries.end) scorer.Add(queries, keys);
          });
        });
        if (++n > m) {
          ++m;
          n = 0;
        }
      }
    });
  });
  return maxima.div_(static_cast<double>(q.size(1)));
}

}  // namespace lemo::kernels::cpu
