// Causal attention over documents that lie one after another (varlen), by libtorch's flash kernels.
//
// Not recorded by autograd: the tape calls forward and backward itself, because what it keeps
// between the two (q, k, v, o, lse) is the storage policy's choice.
//
// A = query heads, G = key/value heads (A a multiple of G; query head a uses key head a / (A / G)),
// D = head width, N = rows of all documents.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lemo::train {

// Documents as row ranges: starts[i] .. starts[i + 1], starts.front() = 0, starts.back() = N.
struct Segments {
  std::vector<int64_t> starts;
  int64_t longest = 0;
  at::Tensor cumulative;  // int32 [documents + 1] on the device; only CUDA reads it
};

struct AttentionResult {
  at::Tensor o;    // [N, A, D]
  at::Tensor lse;  // [A, N], log-sum-exp of the scaled scores; fp32, fp64 for fp64 input
};

// q [N, A, D], k and v [N, G, D], contiguous; scale is 1 / sqrt(D).
AttentionResult AttentionForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const Segments& segments);

struct AttentionGradients {
  at::Tensor q, k, v;  // shapes of the inputs
};

AttentionGradients AttentionBackward(const at::Tensor& dout, const at::Tensor& q,
                                     const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
                                     const at::Tensor& lse, const Segments& segments);

// Neighbouring rows that ask, among the rows that can be seen.
struct QueryRun {
  int64_t query = 0;     // their first row in q
  int64_t count = 0;     // rows
  int64_t key = 0;       // their first row in k and v
  int64_t document = 0;  // first row of their document in k and v
};

// The same where only some rows ask (q [K, A, D]) but all can be seen (k and v [N, G, D]): row i of
// k is seen by queries from row i of its document on. `runs` cover q in order. A run asks the rows
// before it and itself apart; the two are put together by their statistics, exactly.
AttentionResult AttentionForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const std::vector<QueryRun>& runs);
AttentionGradients AttentionBackward(const at::Tensor& dout, const at::Tensor& q,
                                     const at::Tensor& k, const at::Tensor& v, const at::Tensor& o,
                                     const at::Tensor& lse, const std::vector<QueryRun>& runs);

}  // namespace lemo::train
