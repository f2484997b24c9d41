#include "kernels/rms_norm/rms_norm.h"

#include "kernels/rms_norm/rms_norm_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

constexpr double kEps = 1e-5;

void CompareShape(at::IntArrayRef shape, at::ScalarType type, Random& random) {
  const auto width = static_cast<double>(shape.back());
  const at::Tensor x = random.Normal(shape, type, 3);
  const at::Tensor dy = random.Normal(shape, type);
  const at::Tensor weight = random.Normal({shape.back()}, type);
  auto [want_y, want_rstd] = reference::RmsNorm(x, weight, kEps);
  auto [want_dx, want_dweight] = reference::RmsNormBackward(dy, x, want_rstd, weight, true);
  const auto tolerance = ToleranceFor(type, width, 16);
  for (const bool aligned : {true, false}) {
    const auto move = [&](const at::Tensor& t) { return aligned ? Gpu(t) : Unaligned(t); };
    auto [y, rstd] = RmsNormForward(move(x), move(weight), kEps);
    CHECK_TENSOR(y, want_y.to(at::kCUDA), tolerance, type << shape << aligned);
    CHECK_TENSOR(rstd, want_rstd.to(at::kCUDA), ToleranceFor(rstd.scalar_type(), width),
                 type << shape << aligned);
    auto [dx, dweight] = RmsNormBackward(move(dy), move(x), move(want_rstd), move(weight), true);
    CHECK_TENSOR(dx, want_dx.to(at::kCUDA), tolerance, type << shape << aligned);
    CHECK_TENSOR(dweight, want_dweight.to(at::kCUDA),
                 ToleranceFor(type, static_cast<double>(x.numel()), 64), type << shape << aligned);
    auto [again_dx, again_dweight] =
        RmsNormBackward(move(dy), move(x), move(want_rstd), move(weight), true);
    CHECK_TENSOR(again_dweight, dweight, Tolerance{}, "the same bits in every run");
  }
  auto [strided_y, strided_rstd] = RmsNormForward(Strided(Gpu(x)), Strided(Gpu(weight)), kEps);
  CHECK_TENSOR(strided_y, want_y.to(at::kCUDA), tolerance, type << shape << " strided");
}

GPU_TEST(RmsNormEqualsReference) {
  Random random(1);
  const std::vector<std::vector<int64_t>> shapes = {
      {0, 8},    {1, 1},    {1, 7},    {33, 64},    {5, 33},       {700, 128}, {3, 1024},
      {3, 1025}, {7, 4096}, {9, 5003}, {40, 8, 64}, {2, 3, 5, 31}, {9001, 96}};
  for (const at::ScalarType type : GpuTypes()) {
    for (const auto& shape : shapes) CompareShape(shape, type, random);
  }
}

GPU_TEST(RmsNormNanAndInf) {
  for (const at::ScalarType type : GpuTypes()) {
    at::Tensor x = at::ones({4, 70}, type);
    x[1][65] = NAN;
    x[2][3] = INFINITY;
    x[3].zero_();
    const at::Tensor weight = at::ones({70}, type);
    const at::Tensor y = std::get<0>(RmsNormForward(Gpu(x), Gpu(weight), kEps));
    CHECK_TENSOR(y, Gpu(std::get<0>(reference::RmsNorm(x, weight, kEps))), ToleranceFor(type),
                 type);
  }
}

}  // namespace
}  // namespace lemo::kernels
