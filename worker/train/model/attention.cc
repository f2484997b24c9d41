#include "worker/train/model/attention.h"

#include <ATen/ATen.h>

namespace lemo::train {
namespace {

// The CPU kernel takes [batch, heads, rows, D] with any strides, so grouped heads become a batch of
// G groups whose one key head is expanded without a copy.
struct CpuView {
  int64_t heads, groups, width;

  at::Tensor Query(const at::Tensor& rows) const {  // [n, A, D] -> [G, A / G, n, D]
    return rows.view({rows.size(0), groups, heads / groups, width}).permute({1, 2, 0, 3});
  }
  at::Tensor Key(const at::Tensor& rows) const {  // [n, G, D] -> [G, A / G, n, D]
    return rows.permute({1, 0, 2}).unsqueeze(1).expand(
        {groups, heads / groups, rows.size(0), width});
  }
  at::Tensor Rows(const at::Tensor& view) const {  // [G, A / G, n, D] -> [n, G, A / G, D]
    return view.permute({2, 0, 1, 3});
  }
};

AttentionResult CpuForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const Segments& segments) {
  const int64_t rows = q.size(0), heads = q.size(1), width = q.size(2);
  const CpuView view{heads, k.size(1), width};
  const auto statistics = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  AttentionResult result{at::empty({rows, heads, width}, q.options()),
                         at::empty({heads, rows}, q.options().dtype(statistics))};
  for (size_t i = 0; i + 1 < segments.starts.size(); ++i) {
    const int64_t first = segments.starts[i], count = segments.starts[i + 1] - first;
    if (count == 0) continue;
    const auto [o, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
        view.Query(q.narrow(0, first, count)), view.Key(k.narrow(0, first, count)),
        view.Key(v.narrow(0, first, count)), /*dropout_p=*/0.0, /*is_causal=*/true);
    result.o.narrow(0, first, count)
        .view({count, view.groups, heads / view.groups, width})
        .copy_(view.Rows(o));
    result.lse.narrow(1, first, count).copy_(lse.reshape({heads, count}));
  }
  return result;
}

AttentionGradients CpuBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                               const Segments& segments) {
  const int64_t heads = q.size(1), width = q.size(2);
  const CpuView view{heads, k.size(1), width};
  AttentionGradients grads{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  for (size_t i = 0; i + 1 < segments.starts.size(); ++i) {
    const int64_t first = segments.starts[i], count = segments.starts[i + 1] - first;
    if (count == 0) continue;
    const auto part = [first, count](const at::Tensor& all) { return all.narrow(0, first, count); };
    const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        view.Query(part(dout)), view.Query(part(q)), view.Key(part(k)), view.Key(part(v)),
        view.Query(part(o)),
        lse.narrow(1, first, count).reshape({view.groups, heads / view.groups, count}).contiguous(),
        /*dropout_p=*/0.0, /*is_causal=*/true);
    part(grads.q).view({count, view.groups, heads / view.groups, width}).copy_(view.Rows(dq));
    // Heads of a group share a key head: their gradients add up, in the statistics' precision.
    const auto type = lse.scalar_type();
    part(grads.k).copy_(dk.sum(1, false, type).permute({1, 0, 2}));
    part(grads.v).copy_(dv.sum(1, false, type).permute({1, 0, 2}));
  }
  return grads;
}

}  // namespace

AttentionResult AttentionForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const Segments& segments) {
  if (q.is_cpu()) return CpuForward(q, k, v, segments);
  auto result = at::_flash_attention_forward(
      q, k, v, segments.cumulative, segments.cumulative, segments.longest, segments.longest,
      /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false);
  return {std::get<0>(result), std::get<1>(result)};
}

AttentionGradients AttentionBackward(const at::Tensor& dout, const at::Tensor& q,
                                     const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
                                     const at::Tensor& lse, const Segments& segments) {
  if (q.is_cpu()) return CpuBackward(dout, q, k, v, o, lse, segments);
  // Without dropout the kernel never reads the generator's state.
  const at::Tensor unused = at::empty({2}, q.options().dtype(at::kUInt64));
  auto [dq, dk, dv] = at::_flash_attention_backward(
      dout.contiguous(), q, k, v, o, lse, segments.cumulative, segments.cumulative,
      segments.longest, segments.longest, /*dropout_p=*/0.0, /*is_causal=*/true, unused, unused);
  return {dq, dk, dv};
}

}  // namespace lemo::train
