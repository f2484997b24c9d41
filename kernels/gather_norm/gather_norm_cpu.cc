// Adds to the reference: a row is normed while its copy is in the nearest cache. The norm is
// rms_norm's own function, so its bits are.
#include <ATen/ATen.h>

#include <cstring>

#include "kernels/cpu_simd.h"
#include "kernels/gather_norm/gather_norm_internal.h"
#include "kernels/rms_norm/rms_norm_internal.h"
#include "kernels/rows/rows_internal.h"

namespace lemo::kernels::cpu {

std::tuple<at::Tensor, at::Tensor> GatherRmsNorm(const at::Tensor& src_any,
                                                 const std::optional<at::Tensor>& idx_any,
                                                 const at::Tensor& weight_any, double eps,
                                                 const at::Tensor& x) {
  CheckGatherRmsNorm(src_any, idx_any, weight_any, x);
  const at::Tensor src = src_any.contiguous();
  const at::Tensor weight = weight_any.contiguous();
  const at::Tensor idx = idx_any ? idx_any->contiguous() : at::Tensor();
  const int64_t count = x.size(0);
  const int64_t width = x.size(1);
  at::Tensor y = at::empty(x.sizes(), x.options());
  at::Tensor rstd = at::empty({count}, x.options().dtype(WideType(x.scalar_type())));
  DispatchIndex(idx.defined() ? idx.scalar_type() : at::kLong, [&](auto index_element) {
    using Index = decltype(index_element);
    const Index* rows = idx.defined() ? idx.const_data_ptr<Index>() : nullptr;
    if (rows != nullptr) CheckRowList("gather_rms_norm", rows, count, src.size(0));
    DispatchType(x.scalar_type(), [&](auto element) {
      using T = decltype(element);
      const T* from = src.const_data_ptr<T>();
      const T* weights = weight.const_data_ptr<T>();
      T* copy = x.mutable_data_ptr<T>();
      T* to = y.mutable_data_ptr<T>();
      auto* scale = rstd.mutable_data_ptr<Wide<T>>();
      at::parallel_for(0, count, GrainRows(width), [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t row = rows != nullptr ? static_cast<int64_t>(rows[k]) : k;
          T* own = copy + k * width;
          std::memcpy(own, from + row * width, width * sizeof(T));
          RmsNormRows(own, weights, eps, 1, width, to + k * width, scale + k);
        }
      });
    });
  });
  return {y, rstd};
}

}  // namespace lemo::kernels::cpu
