// Adds to the reference: rows read in order with vector loops over columns, threads over blocks.
#include <ATen/ATen.h>

#include "kernels/block_pool/block_pool_internal.h"
#include "kernels/cpu_simd.h"

namespace lemo::kernels::cpu {
namespace {

// Values after ReLU order by their bits, NaN above Inf: see block_scores_cpu.cc.
template <typename T>
using Bits = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

template <typename T>
LEMO_INLINE Bits<Wide<T>> RectifiedBits(T u, Wide<T> scale) {
  const Wide<T> scaled = scale * Load(u);
  const Wide<T> rectified = scaled < 0 ? Wide<T>{0} : scaled;
  return std::bit_cast<Bits<Wide<T>>>(rectified) & std::numeric_limits<Bits<Wide<T>>>::max();
}

// z [2 * width] of one block. `scales` may be null.
template <typename T>
LEMO_INLINE void ForwardBlock(const T* u, const Wide<T>* scales, int64_t rows, int64_t width,
                              Wide<T>* z) {
  using B = Bits<Wide<T>>;
  std::fill(z, z + 2 * width, Wide<T>{0});
  for (int64_t i = 0; i < rows; ++i, u += width) {
    const Wide<T> scale = scales != nullptr ? scales[i] : 1;
    Wide<T>* greatest = z + width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const B bits = RectifiedBits<T>(u[j], scale);
      const B best = std::bit_cast<B>(greatest[j]);
      z[j] += std::bit_cast<Wide<T>>(bits);
      greatest[j] = std::bit_cast<Wide<T>>(bits > best ? bits : best);
    }
  }
  for (int64_t j = 0; j < width; ++j) z[j] /= static_cast<Wide<T>>(rows);
}

// du of one block; best [width] and row [width] are scratch.
template <typename T>
LEMO_INLINE void BackwardBlock(const Wide<T>* dz, const T* u, const Wide<T>* scales, int64_t rows,
                               int64_t width, Bits<Wide<T>>* best, Bits<Wide<T>>* row, T* du) {
  using B = Bits<Wide<T>>;
  std::fill(best, best + width, B{-1});
  for (int64_t i = 0; i < rows; ++i) {
    const Wide<T> scale = scales != nullptr ? scales[i] : 1;
    const T* from = u + i * width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const B bits = RectifiedBits<T>(from[j], scale);
      row[j] = bits > best[j] ? static_cast<B>(i) : row[j];
      best[j] = bits > best[j] ? bits : best[j];
    }
  }
  const Wide<T> share = Wide<T>{1} / static_cast<Wide<T>>(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const Wide<T> scale = scales != nullptr ? scales[i] : 1;
    const T* from = u + i * width;
    T* to = du + i * width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const Wide<T> grad =
          dz[j] * share + (row[j] == static_cast<B>(i) ? dz[width + j] : Wide<T>{0});
      to[j] = Round<T>(scale * Load(from[j]) > 0 ? scale * grad : Wide<T>{0});
    }
  }
}

#define LEMO_BLOCK_POOL_CLONES(T)                                                               \
  LEMO_SIMD_CLONES void Forward(const T* u, const Wide<T>* scales, int64_t rows, int64_t width, \
                                Wide<T>* z) {                                                   \
    ForwardBlock<T>(u, scales, rows, width, z);                                                 \
  }                                                                                             \
  LEMO_SIMD_CLONES void Backward(const Wide<T>* dz, const T* u, const Wide<T>* scales,          \
                                 int64_t rows, int64_t width, Bits<Wide<T>>* best,              \
                                 Bits<Wide<T>>* row, T* du) {                                   \
    BackwardBlock<T>(dz, u, scales, rows, width, best, row, du);                                \
  }
LEMO_BLOCK_POOL_CLONES(double)
LEMO_BLOCK_POOL_CLONES(float)
LEMO_BLOCK_POOL_CLONES(c10::BFloat16)
#undef LEMO_BLOCK_POOL_CLONES

// Calls `call(starts, element, scales)` with the types resolved; scales null where there are none.
template <typename F>
void Dispatch(const char* op, const at::Tensor& u, const at::Tensor& starts,
              const at::Tensor& row_scale, F&& call) {
  DispatchIndex(starts.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    const auto* first = starts.const_data_ptr<Index>();
    CheckStarts(op, first, starts.size(0) - 1, u.size(0));
    DispatchType(u.scalar_type(), [&](auto element) {
      using T = decltype(element);
      call(first, element, row_scale.defined() ? row_scale.const_data_ptr<Wide<T>>() : nullptr);
    });
  });
}

int64_t GrainBlocks(const at::Tensor& u, int64_t blocks) {
  return std::max<int64_t>(1, GrainRows(u.numel() / std::max<int64_t>(1, blocks)));
}

}  // namespace

at::Tensor BlockMeanMax(const at::Tensor& u_any, const at::Tensor& starts_any,
                        const std::optional<at::Tensor>& row_scale_any) {
  CheckBlockMeanMax(u_any, starts_any, row_scale_any);
  const at::Tensor u = u_any.contiguous();
  const at::Tensor starts = starts_any.contiguous();
  const at::Tensor row_scale = row_scale_any ? row_scale_any->contiguous() : at::Tensor();
  const int64_t blocks = starts.size(0) - 1;
  const int64_t width = u.size(1);
  at::Tensor z = at::empty({blocks, 2 * width}, u.options().dtype(WideType(u.scalar_type())));
  Dispatch("block_mean_max", u, starts, row_scale,
           [&](const auto* first, auto element, const auto* scales) {
             using T = decltype(element);
             const T* from = u.const_data_ptr<T>();
             auto* to = z.mutable_data_ptr<Wide<T>>();
             at::parallel_for(0, blocks, GrainBlocks(u, blocks), [&](int64_t begin, int64_t end) {
               for (int64_t b = begin; b < end; ++b) {
                 const auto row = static_cast<int64_t>(first[b]);
                 Forward(from + row * width, scales != nullptr ? scales + row : nullptr,
                         first[b + 1] - row, width, to + b * 2 * width);
               }
             });
           });
  return z;
}

at::Tensor BlockMeanMaxBackward(const at::Tensor& dz_any, const at::Tensor& u_any,
                                const at::Tensor& starts_any,
                                const std::optional<at::Tensor>& row_scale_any) {
  CheckBlockMeanMaxBackward(dz_any, u_any, starts_any, row_scale_any);
  const at::Tensor dz = dz_any.contiguous();
  const at::Tensor u = u_any.contiguous();
  const at::Tensor starts = starts_any.contiguous();
  const at::Tensor row_scale = row_scale_any ? row_scale_any->contiguous() : at::Tensor();
  const int64_t blocks = starts.size(0) - 1;
  const int64_t width = u.size(1);
  at::Tensor du = at::empty(u.sizes(), u.options());
  Dispatch("block_mean_max_backward", u, starts, row_scale,
           [&](const auto* first, auto element, const auto* scales) {
             using T = decltype(element);
             const auto* grads = dz.const_data_ptr<Wide<T>>();
             const T* from = u.const_data_ptr<T>();
             T* to = du.mutable_data_ptr<T>();
             at::parallel_for(0, blocks, GrainBlocks(u, blocks), [&](int64_t begin, int64_t end) {
               std::vector<Bits<Wide<T>>> scratch(2 * width);
               for (int64_t b = begin; b < end; ++b) {
                 const auto row = static_cast<int64_t>(first[b]);
                 Backward(grads + b * 2 * width, from + row * width,
                          scales != nullptr ? scales + row : nullptr, first[b + 1] - row, width,
                          scratch.data(), scratch.data() + width, to + row * width);
               }
             });
           });
  return du;
}

}  // namespace lemo::kernels::cpu
