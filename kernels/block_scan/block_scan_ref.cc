// The sums over pairs as they are written down, quadratic in the blocks.
#include "kernels/block_scan/block_scan_internal.h"
#include "kernels/ref.h"

namespace lemo::kernels::reference {
namespace {

// Calls `call(n, m, l, factor)` for every term M_ml of I_n: block numbers in [0, B).
template <typename F>
void ForTerms(const std::vector<int64_t>& documents, int64_t combine, F&& call) {
  for (size_t d = 0; d + 1 < documents.size(); ++d) {
    const int64_t first = documents[d];
    const int64_t last = documents[d + 1];
    for (int64_t n = first; n < last; ++n) {
      const double factor = CombineFactor(combine, n - first, last - first);
      for (int64_t m = n; m < last; ++m) call(n, m, n, factor);
      if (static_cast<Combine>(combine) != Combine::kSymmetric) continue;
      for (int64_t m = first; m < n; ++m) call(n, n, m, factor);
    }
  }
}

std::vector<int64_t> Documents(const at::Tensor& documents, int64_t blocks) {
  auto list = Indices(documents);
  CheckDocuments("block_informativeness", list.data(), static_cast<int64_t>(list.size()) - 1,
                 blocks);
  return list;
}

}  // namespace

at::Tensor BlockInformativeness(const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& documents, int64_t combine) {
  CheckBlockInformativeness(q, k, documents, combine);
  const int64_t width = q.size(1);
  const auto queries = Values(q);
  const auto keys = Values(k);
  std::vector<double> sums(q.size(0));
  ForTerms(Documents(documents, q.size(0)), combine,
           [&](int64_t n, int64_t m, int64_t l, double factor) {
             for (int64_t j = 0; j < width; ++j) {
               sums[n] += factor * queries[m * width + j] * keys[l * width + j];
             }
           });
  return FromValues(sums, {q.size(0)}, WideType(q.scalar_type()));
}

std::tuple<at::Tensor, at::Tensor> BlockInformativenessBackward(const at::Tensor& di,
                                                                const at::Tensor& q,
                                                                const at::Tensor& k,
                                                                const at::Tensor& documents,
                                                                int64_t combine) {
  CheckBlockInformativenessBackward(di, q, k, documents, combine);
  const int64_t width = q.size(1);
  const auto grads = Values(di);
  const auto queries = Values(q);
  const auto keys = Values(k);
  std::vector<double> dq(q.numel());
  std::vector<double> dk(k.numel());
  ForTerms(Documents(documents, q.size(0)), combine,
           [&](int64_t n, int64_t m, int64_t l, double factor) {
             for (int64_t j = 0; j < width; ++j) {
               dq[m * width + j] += grads[n] * factor * keys[l * width + j];
               dk[l * width + j] += grads[n] * factor * queries[m * width + j];
             }
           });
  return {FromValues(dq, q.sizes(), q.scalar_type()), FromValues(dk, k.sizes(), k.scalar_type())};
}

at::Tensor CombineBlockScores(const at::Tensor& scores, int64_t combine) {
  CheckCombineBlockScores(scores, combine);
  const int64_t count = scores.size(0);
  const auto values = Values(scores);
  std::vector<double> sums(count);
  ForTerms({0, count}, combine, [&](int64_t n, int64_t m, int64_t l, double factor) {
    sums[n] += factor * values[m * count + l];
  });
  return FromValues(sums, {count}, scores.scalar_type());
}

}  // namespace lemo::kernels::reference
