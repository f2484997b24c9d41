#include "worker/train/model/sign_bits.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "worker/train/model/random_tensor.h"

namespace lemo::train {
namespace {

TEST(SignBits, EveryWidthAndType) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const int64_t columns : {1, 7, 8, 9, 64, 83}) {
      at::Tensor x = NormalTensor({5, columns}, 1.0, 3, "x").to(type);
      x[2].zero_();
      x[3][0] = -0.0;
      x[4][0] = std::numeric_limits<double>::quiet_NaN();
      const at::Tensor bits = PackSigns(x);
      EXPECT_EQ(bits.scalar_type(), at::kByte);
      EXPECT_EQ(bits.sizes(), (std::vector<int64_t>{5, (columns + 7) / 8}));
      const at::Tensor back = UnpackSigns(bits, columns, type);
      EXPECT_EQ(back.scalar_type(), type);
      EXPECT_TRUE(at::equal(back, x.gt(0).to(type))) << columns;
    }
  }
}

TEST(SignBits, TheLayout) {
  at::Tensor x = at::full({1, 10}, -1.0);
  x[0][0] = x[0][3] = x[0][9] = 2.0;
  EXPECT_TRUE(at::equal(PackSigns(x), at::tensor({9, 2}, at::kByte).view({1, 2})));
}

// What replaces the activations must have the gradient of ReLU, at zero too.
TEST(SignBits, StandForTheArgumentOfRelu) {
  at::Tensor x = NormalTensor({6, 21}, 1.0, 5, "x");
  x[1].zero_();
  const at::Tensor dy = NormalTensor({6, 21}, 1.0, 5, "dy");
  const auto gradient = [&dy](at::Tensor argument) {
    argument = argument.detach().requires_grad_(true);
    at::relu(argument).backward(dy);
    return argument.grad();
  };
  EXPECT_TRUE(at::equal(gradient(UnpackSigns(PackSigns(x), 21, at::kFloat)), gradient(x)));
}

TEST(SignBits, NoRows) {
  EXPECT_EQ(UnpackSigns(PackSigns(at::empty({0, 9})), 9, at::kFloat).sizes(),
            (std::vector<int64_t>{0, 9}));
}

}  // namespace
}  // namespace lemo::train
