#include "worker/train/model/projection.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <optional>

#include "worker/train/model/random_tensor.h"

namespace lemo::train {
namespace {

constexpr uint64_t kSeed = 20261121;

at::Tensor Random(at::IntArrayRef shape, at::ScalarType type, const std::string& name,
                  bool requires_grad = true) {
  return NormalTensor(shape, 1.0, kSeed, name).to(type).requires_grad_(requires_grad);
}

using Graph = std::function<at::Tensor(const Output&)>;

std::vector<at::Tensor> Gradients(const at::Tensor& y, const std::vector<at::Tensor>& inputs) {
  const at::Tensor dy = NormalTensor(y.sizes(), 1.0, kSeed, "dy").to(y.scalar_type());
  return torch::autograd::grad({y}, inputs, {dy});
}

// Skip and Known must give the shape, Known the value, and both the gradients of Compute, bit for
// bit.
void ExpectOneGraph(const Graph& graph, const std::vector<at::Tensor>& inputs) {
  const at::Tensor computed = graph(Output::Compute());
  const at::Tensor value = computed.detach().clone();
  const std::vector<at::Tensor> expected = Gradients(computed, inputs);

  const at::Tensor skipped = graph(Output::Skip());
  EXPECT_EQ(skipped.sizes(), value.sizes());
  EXPECT_EQ(skipped.scalar_type(), value.scalar_type());
  const at::Tensor known = graph(Output::Known(value));
  EXPECT_TRUE(at::equal(known, value));
  EXPECT_EQ(known.const_data_ptr(), value.const_data_ptr()) << "a known value was copied";
  for (const at::Tensor& y : {skipped, known}) {
    EXPECT_TRUE(y.requires_grad());
    const std::vector<at::Tensor> grads = Gradients(y, inputs);
    for (size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_TRUE(at::equal(grads[i], expected[i])) << i;
    }
  }
  EXPECT_FALSE(value.requires_grad());
}

class Projections : public ::testing::TestWithParam<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(Types, Projections,
                         ::testing::Values(at::kDouble, at::kFloat, at::kBFloat16));

TEST_P(Projections, LinearGraphIsTheSameHoweverItsValueComes) {
  const at::Tensor x = Random({5, 4}, GetParam(), "x");
  const at::Tensor weight = Random({3, 4}, GetParam(), "weight");
  const at::Tensor bias = Random({3}, GetParam(), "bias");
  const auto graph = [&](const Output& output) { return LinearGraph(x, weight, bias, output); };
  ExpectOneGraph(graph, {x, weight, bias});
  ExpectOneGraph([&](const Output& output) { return LinearGraph(x, weight, {}, output); },
                 {x, weight});
}

TEST_P(Projections, AddGraphIsTheSameHoweverItsValueComes) {
  const at::Tensor a = Random({5, 4}, GetParam(), "a"), b = Random({5, 4}, GetParam(), "b");
  ExpectOneGraph([&](const Output& output) { return AddGraph(a, b, output); }, {a, b});
}

TEST_P(Projections, AProjectionWithABranchIsTheSameHoweverItsValueComes) {
  const at::Tensor x = Random({5, 4}, GetParam(), "x");
  const at::Tensor low = Random({2, 4}, GetParam(), "low");
  const at::Tensor high = Random({3, 2}, GetParam(), "high");
  Projection projection;
  projection.weight = Random({3, 4}, GetParam(), "weight", /*requires_grad=*/false);
  projection.branch = [&](const at::Tensor& in, const StageContext&, const Output& output) {
    return LinearGraph(LinearGraph(in, low, {}, Output::Compute()), high, {}, output);
  };
  ExpectOneGraph([&](const Output& output) { return projection(x, {}, output); }, {x, low, high});
  const at::Tensor plain = at::linear(x, projection.weight) + at::linear(at::linear(x, low), high);
  EXPECT_TRUE(at::equal(projection(x, {}, Output::Compute()), plain));
}

TEST(LinearGraph, HasTheGradientsOfLinear) {
  const at::Tensor x = Random({5, 4}, at::kDouble, "x");
  const at::Tensor weight = Random({3, 4}, at::kDouble, "weight");
  const at::Tensor bias = Random({3}, at::kDouble, "bias");
  const auto expected = Gradients(at::linear(x, weight, bias), {x, weight, bias});
  const auto actual = Gradients(LinearGraph(x, weight, bias, Output::Skip()), {x, weight, bias});
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(at::allclose(actual[i], expected[i], 1e-14, 1e-14)) << i;
  }
}

TEST(LinearGraph, OnlyWhatTrainsGetsAGradient) {
  const at::Tensor frozen = Random({3, 4}, at::kFloat, "weight", false);
  const at::Tensor x = Random({5, 4}, at::kFloat, "x");
  EXPECT_TRUE(Gradients(LinearGraph(x, frozen, {}, Output::Skip()), {x})[0].defined());
  const at::Tensor data = Random({5, 4}, at::kFloat, "x", false);
  const at::Tensor weight = Random({3, 4}, at::kFloat, "weight");
  const at::Tensor y = LinearGraph(data, weight, {}, Output::Skip());
  EXPECT_TRUE(
      at::allclose(Gradients(y, {weight})[0], Gradients(at::linear(data, weight), {weight})[0]));
  EXPECT_FALSE(LinearGraph(data, frozen, {}, Output::Compute()).requires_grad());
}

// A frozen weight's gradient would need x; not keeping it is what the engine's memory rests on.
TEST(LinearGraph, KeepsItsInputOnlyForAWeightThatTrains) {
  for (const bool trains : {false, true}) {
    const at::Tensor weight = Random({3, 4}, at::kFloat, "weight", trains);
    at::Tensor y;
    std::optional<c10::weak_intrusive_ptr<c10::StorageImpl>> storage;
    {
      const at::Tensor leaf = Random({5, 4}, at::kFloat, "x");
      const at::Tensor x = leaf * 2;
      storage.emplace(
          c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(x.storage().unsafeGetStorageImpl()));
      y = LinearGraph(x, weight, {}, Output::Compute());
    }
    EXPECT_EQ(!storage->expired(), trains);
  }
}

TEST(LinearGraph, SkippingComputesNothingThatGrowsWithTheRows) {
  const at::Tensor x = Random({1000, 4}, at::kFloat, "x");
  const at::Tensor weight = Random({3, 4}, at::kFloat, "weight");
  const at::Tensor y = LinearGraph(x, weight, {}, Output::Skip());
  EXPECT_EQ(y.storage().nbytes(), sizeof(float));
}

TEST(Projection, RecordsNothingWithoutGradMode) {
  const at::NoGradGuard no_grad;
  Projection projection;
  projection.weight = Random({3, 4}, at::kFloat, "weight");
  projection.bias = Random({3}, at::kFloat, "bias");
  const at::Tensor x = Random({5, 4}, at::kFloat, "x");
  const at::Tensor y = projection(x, {}, Output::Compute());
  EXPECT_FALSE(y.requires_grad());
  EXPECT_TRUE(at::equal(y, at::linear(x, projection.weight, projection.bias)));
}

}  // namespace
}  // namespace lemo::train
