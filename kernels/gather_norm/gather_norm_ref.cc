#include "kernels/gather_norm/gather_norm_internal.h"
#include "kernels/rms_norm/rms_norm_internal.h"
#include "kernels/rows/rows_internal.h"

namespace lemo::kernels::reference {

std::tuple<at::Tensor, at::Tensor> GatherRmsNorm(const at::Tensor& src,
                                                 const std::optional<at::Tensor>& idx,
                                                 const at::Tensor& weight, double eps,
                                                 const at::Tensor& x) {
  CheckGatherRmsNorm(src, idx, weight, x);
  x.copy_(GatherRows(src, idx));
  return RmsNorm(x, weight, eps);
}

}  // namespace lemo::kernels::reference
