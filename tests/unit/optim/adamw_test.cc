#include "worker/train/optim/adamw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace lemo::train {
namespace {

constexpr uint64_t kSeed = 20261121;

Trainable MakeTrainable(const std::string& name, const std::vector<double>& values, bool decay,
                        at::ScalarType master_type, at::ScalarType value_type) {
  Trainable trainable;
  trainable.name = name;
  trainable.decay = decay;
  trainable.master = at::tensor(values, at::kDouble).to(master_type);
  trainable.value = value_type == master_type ? trainable.master : trainable.master.to(value_type);
  trainable.grad = at::zeros_like(trainable.master);
  return trainable;
}

// One number, by the formulas of the paper (algorithm 2) as torch.optim.AdamW orders them.
struct ScalarAdamW {
  double weight, first = 0, second = 0;
  int steps = 0;

  void Step(double grad, double rate, double decay, const AdamWOptions& o) {
    ++steps;
    weight -= rate * decay * weight;
    first = o.beta1 * first + (1 - o.beta1) * grad;
    second = o.beta2 * second + (1 - o.beta2) * grad * grad;
    const double first_hat = first / (1 - std::pow(o.beta1, steps));
    const double second_hat = second / (1 - std::pow(o.beta2, steps));
    weight -= rate * first_hat / (std::sqrt(second_hat) + o.epsilon);
  }
};

std::vector<double> Draw(std::mt19937_64& random, size_t count, double scale) {
  std::vector<double> values;
  for (size_t i = 0; i < count; ++i) {
    values.push_back(scale * (static_cast<double>(random() % 20001) / 10000.0 - 1.0));
  }
  return values;
}

class AdamWSteps : public ::testing::TestWithParam<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(Types, AdamWSteps, ::testing::Values(at::kDouble, at::kFloat));

// Twenty steps with rates, clipping factors and gradients of several magnitudes, one tensor with
// and one without weight decay.
TEST_P(AdamWSteps, EqualAScalarTranscription) {
  const AdamWOptions options{.beta1 = 0.85, .beta2 = 0.97, .epsilon = 1e-6, .weight_decay = 0.3};
  std::mt19937_64 random(kSeed);
  const size_t count = 5;
  std::vector<std::vector<ScalarAdamW>> expected(2);
  Trainables trainables;
  for (const bool decay : {true, false}) {
    const std::vector<double> values = Draw(random, count, 1.0);
    trainables.push_back(
        MakeTrainable(decay ? "matrix" : "norm", values, decay, GetParam(), GetParam()));
    for (const double value : values) expected[decay ? 0 : 1].push_back({value});
  }
  AdamW optimizer(PiecesOf(trainables), options);
  for (int step = 0; step < 20; ++step) {
    const double rate = step == 0 ? 0.0 : 0.02 / step;
    const double grad_scale = step % 3 == 0 ? 1.0 : 0.25;
    for (size_t i = 0; i < trainables.size(); ++i) {
      const std::vector<double> grads = Draw(random, count, std::pow(10.0, step % 4 - 3));
      trainables[i].grad.copy_(at::tensor(grads, at::kDouble));
      for (size_t j = 0; j < count; ++j) {
        expected[i][j].Step(grads[j] * grad_scale, rate, i == 0 ? 0.3 : 0.0, options);
      }
    }
    optimizer.Step(rate, grad_scale);
    EXPECT_EQ(optimizer.steps(), step + 1);
    for (size_t i = 0; i < trainables.size(); ++i) {
      const at::Tensor weight = trainables[i].master.to(at::kDouble);
      const at::Tensor first = optimizer.first_moments()[i].to(at::kDouble);
      const at::Tensor second = optimizer.second_moments()[i].to(at::kDouble);
      // Weights are near 1; moments are compared with the size of the gradients, up to 1.
      const double bound = GetParam() == at::kDouble ? 1e-14 : 2e-6;
      for (size_t j = 0; j < count; ++j) {
        const int64_t at = static_cast<int64_t>(j);
        EXPECT_NEAR(weight[at].item<double>(), expected[i][j].weight, bound) << step;
        EXPECT_NEAR(first[at].item<double>(), expected[i][j].first, bound) << step;
        EXPECT_NEAR(second[at].item<double>(), expected[i][j].second, bound) << step;
      }
    }
  }
}

TEST(AdamW, FirstStepByHand) {
  Trainables trainables;
  trainables.push_back(MakeTrainable("a", {1.0, -2.0}, true, at::kDouble, at::kDouble));
  AdamW optimizer(PiecesOf(trainables), {.epsilon = 0.0, .weight_decay = 0.5});
  trainables[0].grad.copy_(at::tensor({4.0, -0.1}, at::kDouble));
  optimizer.Step(0.01, 1.0);
  // Bias correction makes the first step the sign of the gradient; decay takes 0.01 * 0.5 of the
  // weight.
  EXPECT_NEAR(trainables[0].master[0].item<double>(), 1.0 * 0.995 - 0.01, 1e-15);
  EXPECT_NEAR(trainables[0].master[1].item<double>(), -2.0 * 0.995 + 0.01, 1e-15);
}

TEST(AdamW, ValuesFollowTheirMasters) {
  Trainables trainables;
  trainables.push_back(MakeTrainable("a", {1.0, -2.0, 0.3}, true, at::kFloat, at::kBFloat16));
  const at::Tensor before = trainables[0].value.clone();
  AdamW optimizer(PiecesOf(trainables), {});
  trainables[0].grad.fill_(1.0);
  optimizer.Step(0.1, 1.0);
  RefreshValues(trainables);
  EXPECT_FALSE(at::equal(trainables[0].value, before));
  EXPECT_TRUE(at::equal(trainables[0].value, trainables[0].master.to(at::kBFloat16)));
  // Steps that bfloat16 cannot show add up in the master.
  const at::Tensor master = trainables[0].master.clone();
  optimizer.Step(1e-5, 1.0);
  EXPECT_FALSE(at::equal(trainables[0].master, master));
}

TEST(AdamW, GoesOnFromRestoredState) {
  const auto run = [](bool interrupted) {
    Trainables trainables;
    trainables.push_back(MakeTrainable("a", {0.5, -0.25}, true, at::kFloat, at::kFloat));
    const AdamWOptions options{.weight_decay = 0.1};
    auto optimizer = std::make_unique<AdamW>(PiecesOf(trainables), options);
    for (int step = 0; step < 6; ++step) {
      if (interrupted && step == 3) {
        auto resumed = std::make_unique<AdamW>(PiecesOf(trainables), options);
        resumed->first_moments()[0].copy_(optimizer->first_moments()[0]);
        resumed->second_moments()[0].copy_(optimizer->second_moments()[0]);
        resumed->Restore(optimizer->steps());
        optimizer = std::move(resumed);
      }
      trainables[0].grad.fill_(0.1 * (step + 1));
      optimizer->Step(0.01, 1.0);
    }
    return trainables[0].master;
  };
  EXPECT_TRUE(at::equal(run(true), run(false)));
}

Trainables WithGradients(const std::vector<std::vector<double>>& grads) {
  Trainables trainables;
  for (const std::vector<double>& grad : grads) {
    trainables.push_back(MakeTrainable("tensor" + std::to_string(trainables.size()), grad, true,
                                       at::kFloat, at::kFloat));
    trainables.back().grad.copy_(trainables.back().master);
  }
  return trainables;
}

TEST(GlobalGradientNorm, IsThatOfAllTensorsTogether) {
  EXPECT_EQ(GlobalGradientNorm({}), 0.0);
  EXPECT_DOUBLE_EQ(GlobalGradientNorm(WithGradients({{1, 2}, {-2}, {4, 0, 0}})), 5.0);
  // Squares that overflow and vanish in fp32.
  EXPECT_NEAR(GlobalGradientNorm(WithGradients({{3e30}, {-4e30}})) / 5e30, 1.0, 1e-7);
  EXPECT_NEAR(GlobalGradientNorm(WithGradients({{3e-30}, {-4e-30}})) / 5e-30, 1.0, 1e-7);
  const double infinite = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(std::isfinite(GlobalGradientNorm(WithGradients({{1.0}, {infinite}}))));
}

TEST(FirstBadGradient, NamesTheTensor) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinite = std::numeric_limits<double>::infinity();
  EXPECT_EQ(FirstBadGradient({}), "");
  EXPECT_EQ(FirstBadGradient(WithGradients({{1, 2}, {3}})), "");
  EXPECT_EQ(FirstBadGradient(WithGradients({{1, 2}, {3, nan, 1}, {infinite}})), "tensor1");
  EXPECT_EQ(FirstBadGradient(WithGradients({{1, -infinite}, {nan}})), "tensor0");
}

}  // namespace
}  // namespace lemo::train
