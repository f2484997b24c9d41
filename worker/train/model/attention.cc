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

// One causal square, or (not causal) queries that see all of the keys. Both of any length above 0.
AttentionResult PartForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            bool causal) {
  const int64_t rows = q.size(0), heads = q.size(1), width = q.size(2);
  if (!q.is_cpu()) {
    auto result = at::_flash_attention_forward(
        q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), {}, {}, rows, k.size(0),
        /*dropout_p=*/0.0, causal, /*return_debug_mask=*/false);
    return {std::get<0>(result)[0], std::get<1>(result)[0]};
  }
  const CpuView view{heads, k.size(1), width};
  const auto [o, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
      view.Query(q), view.Key(k), view.Key(v), /*dropout_p=*/0.0, causal);
  return {view.Rows(o).reshape({rows, heads, width}), lse.reshape({heads, rows})};
}

// With the o and lse of all that the queries saw, of which this part may be some.
AttentionGradients PartBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                                bool causal) {
  const int64_t rows = q.size(0), heads = q.size(1), width = q.size(2);
  if (!q.is_cpu()) {
    const at::Tensor unused = at::empty({2}, q.options().dtype(at::kUInt64));
    const auto [dq, dk, dv] = at::_flash_attention_backward(
        dout.unsqueeze(0).contiguous(), q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0),
        o.unsqueeze(0), lse.unsqueeze(0).contiguous(), {}, {}, rows, k.size(0), /*dropout_p=*/0.0,
        causal, unused, unused);
    return {dq[0], dk[0], dv[0]};
  }
  const CpuView view{heads, k.size(1), width};
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      view.Query(dout), view.Query(q), view.Key(k), view.Key(v), view.Query(o),
      lse.reshape({view.groups, heads / view.groups, rows}).contiguous(), /*dropout_p=*/0.0,
      causal);
  // Heads of a group share a key head: their gradients add up, in the statistics' precision.
  const auto type = lse.scalar_type();
  return {view.Rows(dq).reshape({rows, heads, width}), dk.sum(1, false, type).permute({1, 0, 2}),
          dv.sum(1, false, type).permute({1, 0, 2})};
}

AttentionResult CpuForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const Segments& segments) {
  AttentionResult result{
      at::empty(q.sizes(), q.options()),
      at::empty({q.size(1), q.size(0)},
                q.options().dtype(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat))};
  for (size_t i = 0; i + 1 < segments.starts.size(); ++i) {
    const int64_t first = segments.starts[i], count = segments.starts[i + 1] - first;
    if (count == 0) continue;
    const auto part = [first, count](const at::Tensor& all) { return all.narrow(0, first, count); };
    const AttentionResult own = PartForward(part(q), part(k), part(v), /*causal=*/true);
    part(result.o).copy_(own.o);
    result.lse.narrow(1, first, count).copy_(own.lse);
  }
  return result;
}

AttentionGradients CpuBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& o, const at::Tensor& lse,
                               const Segments& segments) {
  AttentionGradients grads{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  for (size_t i = 0; i + 1 < segments.starts.size(); ++i) {
    const int64_t first = segments.starts[i], count = segments.starts[i + 1] - first;
    if (count == 0) continue;
    const auto part = [first, count](const at::Tensor& all) { return all.narrow(0, first, count); };
    const AttentionGradients own = PartBackward(part(dout), part(q), part(k), part(v), part(o),
                                                lse.narrow(1, first, count), /*causal=*/true);
    part(grads.q).copy_(own.q);
    part(grads.k).copy_(own.k);
    part(grads.v).copy_(own.v);
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

AttentionResult AttentionForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const std::vector<QueryRun>& runs) {
  const auto type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  AttentionResult result{at::empty(q.sizes(), q.options()),
                         at::empty({q.size(1), q.size(0)}, q.options().dtype(type))};
  for (const QueryRun& run : runs) {
    const at::Tensor asking = q.narrow(0, run.query, run.count);
    AttentionResult own = PartForward(asking, k.narrow(0, run.key, run.count),
                                      v.narrow(0, run.key, run.count), /*causal=*/true);
    if (const int64_t before = run.key - run.document; before > 0) {
      const AttentionResult earlier =
          PartForward(asking, k.narrow(0, run.document, before), v.narrow(0, run.document, before),
                      /*causal=*/false);
      const at::Tensor lse = at::logaddexp(own.lse, earlier.lse);
      // [A, K] -> [K, A, 1]
      const auto weight = [&lse](const AttentionResult& part) {
        return (part.lse - lse).exp().t().unsqueeze(2);
      };
      own = {own.o * weight(own) + earlier.o * weight(earlier), lse};
    }
    result.o.narrow(0, run.query, run.count).copy_(own.o);
    result.lse.narrow(1, run.query, run.count).copy_(own.lse);
  }
  return result;
}

AttentionGradients AttentionBackward(const at::Tensor& dout, const at::Tensor& q,
                                     const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
                                     const at::Tensor& lse, const std::vector<QueryRun>& runs) {
  // Many runs add to one key: their sum is rounded once.
  AttentionGradients grads{at::empty_like(q), at::zeros(k.sizes(), lse.options()),
                           at::zeros(v.sizes(), lse.options())};
  for (const QueryRun& run : runs) {
    const auto asking = [&run](const at::Tensor& rows) {
      return rows.narrow(0, run.query, run.count);
    };
    const auto against = [&](int64_t first, int64_t count, bool causal) {
      const AttentionGradients part = PartBackward(
          asking(dout), asking(q), k.narrow(0, first, count), v.narrow(0, first, count), asking(o),
          lse.narrow(1, run.query, run.count), causal);
      grads.k.narrow(0, first, count).add_(part.k);
      grads.v.narrow(0, first, count).add_(part.v);
      return part.q;
    };
    at::Tensor dq = against(run.key, run.count, /*causal=*/true);
    if (run.key > run.document) {
      dq = dq + against(run.document, run.key - run.document, /*causal=*/false);
    }
    asking(grads.q).copy_(dq);
  }
  return {grads.q, grads.k.to(k.scalar_type()), grads.v.to(v.scalar_type())};
}

}  // namespace lemo::train
