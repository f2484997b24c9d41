// Attention over documents against a softmax that is written out with a mask.
#include "worker/train/model/attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/tiny_model.h"
#include "worker/train/model/random_tensor.h"

namespace lemo::train {
namespace {

using testing::RelativeError;

constexpr uint64_t kSeed = 20261121;

Segments Documents(const std::vector<int64_t>& lengths) {
  Segments segments;
  segments.starts.push_back(0);
  for (const int64_t length : lengths) {
    segments.starts.push_back(segments.starts.back() + length);
    segments.longest = std::max(segments.longest, length);
  }
  return segments;
}

struct Inputs {
  at::Tensor q, k, v, dout;
};

struct Naive {
  at::Tensor o, lse, dq, dk, dv;
};

// In fp64 from the inputs' values.
Naive NaiveAttention(const Inputs& in, const Segments& segments) {
  const auto leaf = [](const at::Tensor& t) {
    return t.detach().to(at::kDouble).clone().requires_grad_(true);
  };
  const at::Tensor q = leaf(in.q), k = leaf(in.k), v = leaf(in.v);
  const int64_t rows = q.size(0), group = q.size(1) / k.size(1);
  at::Tensor visible = at::zeros({rows, rows}, at::kBool);
  for (size_t i = 0; i + 1 < segments.starts.size(); ++i) {
    const int64_t first = segments.starts[i], count = segments.starts[i + 1] - first;
    visible.narrow(0, first, count).narrow(1, first, count).fill_(true);
  }
  const auto heads = [group](const at::Tensor& t) {
    return t.repeat_interleave(group, 1).transpose(0, 1);
  };
  const at::Tensor scores =
      (at::matmul(q.transpose(0, 1), heads(k).transpose(1, 2)) /
       std::sqrt(static_cast<double>(q.size(2))))
          .masked_fill(visible.tril().logical_not(), -std::numeric_limits<double>::infinity());
  const at::Tensor o = at::matmul(at::softmax(scores, -1), heads(v)).transpose(0, 1);
  const auto grads = torch::autograd::grad({o}, {q, k, v}, {in.dout.to(at::kDouble)});
  return {o.detach(), scores.logsumexp(-1).detach(), grads[0], grads[1], grads[2]};
}

struct Case {
  std::string name;
  int64_t heads, groups, width;
  std::vector<int64_t> lengths;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class Attention : public ::testing::TestWithParam<Case> {
 protected:
  Inputs Make(at::ScalarType type) const {
    const Case& c = GetParam();
    int64_t rows = 0;
    for (const int64_t length : c.lengths) rows += length;
    const auto random = [&](const std::string& name, int64_t heads) {
      return NormalTensor({rows, heads, c.width}, 1.0, kSeed, name).to(type);
    };
    return {random("q", c.heads), random("k", c.groups), random("v", c.groups),
            random("dout", c.heads)};
  }

  void ExpectNaive(at::ScalarType type, double bound) const {
    const Segments segments = Documents(GetParam().lengths);
    const Inputs in = Make(type);
    const Naive naive = NaiveAttention(in, segments);
    const AttentionResult result = AttentionForward(in.q, in.k, in.v, segments);
    EXPECT_EQ(result.o.sizes(), in.q.sizes());
    EXPECT_EQ(result.o.scalar_type(), type);
    EXPECT_EQ(result.lse.scalar_type(), type == at::kDouble ? at::kDouble : at::kFloat);
    EXPECT_LE(RelativeError(result.o, naive.o), bound);
    EXPECT_LE(RelativeError(result.lse, naive.lse), bound);
    const AttentionGradients grads =
        AttentionBackward(in.dout, in.q, in.k, in.v, result.o, result.lse, segments);
    EXPECT_EQ(grads.q.scalar_type(), type);
    EXPECT_EQ(grads.k.sizes(), in.k.sizes());
    EXPECT_EQ(grads.v.sizes(), in.v.sizes());
    // Where every document has one row the weights are 1 whatever q and k are: their gradients are
    // 0.
    const bool moves = segments.longest > 1;
    EXPECT_LE(RelativeError(grads.q, naive.dq), moves ? bound : 10 * bound);
    EXPECT_LE(RelativeError(grads.k, naive.dk), moves ? bound : 10 * bound);
    EXPECT_LE(RelativeError(grads.v, naive.dv), bound);
  }
};

INSTANTIATE_TEST_SUITE_P(
    Shapes, Attention,
    ::testing::Values(Case{"mha", 4, 4, 8, {19}}, Case{"mha_documents", 4, 4, 8, {7, 1, 12, 3}},
                      Case{"gqa", 6, 2, 8, {19}}, Case{"gqa_documents", 6, 2, 8, {1, 9, 1, 5, 4}},
                      Case{"one_key_head", 5, 1, 16, {6, 11}},
                      Case{
                          "long", 2, 1, 16, {1, 700, 130}},  // more rows than a block of the kernel
                      Case{"single_rows", 4, 2, 8, {1, 1, 1}},
                      Case{"empty_document", 4, 2, 8, {3, 0, 5}}));

TEST_P(Attention, EqualsAMaskedSoftmaxInFloat64) { ExpectNaive(at::kDouble, 1e-13); }
TEST_P(Attention, EqualsAMaskedSoftmaxInFloat32) { ExpectNaive(at::kFloat, 2e-6); }
// Probabilities and results are rounded to 8 bits: 2^-8 each, a few of them.
TEST_P(Attention, IsNearAMaskedSoftmaxInBFloat16) { ExpectNaive(at::kBFloat16, 2e-2); }

TEST_P(Attention, DocumentsDoNotSeeEachOther) {
  const Segments segments = Documents(GetParam().lengths);
  const Inputs in = Make(at::kFloat);
  const AttentionResult all = AttentionForward(in.q, in.k, in.v, segments);
  const AttentionGradients grads =
      AttentionBackward(in.dout, in.q, in.k, in.v, all.o, all.lse, segments);
  for (size_t i = 0; i + 1 < segments.starts.size(); ++i) {
    const int64_t first = segments.starts[i], count = segments.starts[i + 1] - first;
    if (count == 0) continue;
    const auto part = [&](const at::Tensor& t) { return t.narrow(0, first, count).contiguous(); };
    const Segments alone = Documents({count});
    const AttentionResult own = AttentionForward(part(in.q), part(in.k), part(in.v), alone);
    EXPECT_TRUE(at::equal(part(all.o), own.o)) << i;
    const AttentionGradients own_grads =
        AttentionBackward(part(in.dout), part(in.q), part(in.k), part(in.v), own.o, own.lse, alone);
    EXPECT_TRUE(at::equal(part(grads.q), own_grads.q)) << i;
    EXPECT_TRUE(at::equal(part(grads.k), own_grads.k)) << i;
    EXPECT_TRUE(at::equal(part(grads.v), own_grads.v)) << i;
  }
}

}  // namespace
}  // namespace lemo::train
