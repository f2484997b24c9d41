// Adds to the reference: whole rows copied, vector loops, threads over rows. No row occurs twice,
// so threads never meet in a row.
#include <ATen/ATen.h>

#include <cstring>

#include "kernels/cpu_simd.h"
#include "kernels/rows/rows_internal.h"

namespace lemo::kernels::cpu {
namespace {

template <typename T>
LEMO_INLINE void AddRow(T* dst, const T* delta, int64_t width) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) dst[j] = Round<T>(Load(dst[j]) + Load(delta[j]));
}

LEMO_SIMD_CLONES void Add(double* dst, const double* delta, int64_t width) {
  AddRow(dst, delta, width);
}
LEMO_SIMD_CLONES void Add(float* dst, const float* delta, int64_t width) {
  AddRow(dst, delta, width);
}
LEMO_SIMD_CLONES void Add(c10::BFloat16* dst, const c10::BFloat16* delta, int64_t width) {
  AddRow(dst, delta, width);
}

}  // namespace

at::Tensor GatherRows(const at::Tensor& src_any, const std::optional<at::Tensor>& idx_any) {
  CheckGatherRows(src_any, idx_any);
  if (!idx_any) return src_any.clone(at::MemoryFormat::Contiguous);
  const at::Tensor src = src_any.contiguous();
  const at::Tensor idx = idx_any->contiguous();
  const int64_t count = idx.numel();
  const int64_t row_bytes = src.size(1) * static_cast<int64_t>(src.element_size());
  at::Tensor out = at::empty({count, src.size(1)}, src.options());
  DispatchIndex(idx.scalar_type(), [&](auto element) {
    using Index = decltype(element);
    const auto* rows = idx.const_data_ptr<Index>();
    CheckRowList("gather_rows", rows, count, src.size(0));
    if (row_bytes == 0) return;
    const auto* from = static_cast<const char*>(src.const_data_ptr());
    auto* to = static_cast<char*>(out.mutable_data_ptr());
    at::parallel_for(0, count, GrainRows(src.size(1)), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        std::memcpy(to + k * row_bytes, from + rows[k] * row_bytes, row_bytes);
      }
    });
  });
  return out;
}

void ScatterAddRows(const at::Tensor& dst, const std::optional<at::Tensor>& idx_any,
                    const at::Tensor& delta_any) {
  CheckScatterAddRows(dst, idx_any, delta_any);
  const at::Tensor delta = delta_any.contiguous();
  const at::Tensor idx = idx_any ? idx_any->contiguous() : at::Tensor();
  const int64_t count = delta.size(0);
  const int64_t width = dst.size(1);
  DispatchIndex(idx.defined() ? idx.scalar_type() : at::kLong, [&](auto index_element) {
    using Index = decltype(index_element);
    const Index* rows = idx.defined() ? idx.const_data_ptr<Index>() : nullptr;
    if (rows != nullptr) CheckRowList("scatter_add_rows_", rows, count, dst.size(0));
    DispatchType(dst.scalar_type(), [&](auto element) {
      using T = decltype(element);
      T* to = dst.mutable_data_ptr<T>();
      const T* from = delta.const_data_ptr<T>();
      at::parallel_for(0, count, GrainRows(width), [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t row = rows != nullptr ? static_cast<int64_t>(rows[k]) : k;
          Add(to + row * width, from + k * width, width);
        }
      });
    });
  });
}

}  // namespace lemo::kernels::cpu
