#include "kernels/swiglu/swiglu.h"

#include "kernels/swiglu/swiglu_internal.h"
#include "tests/gpu/check.h"

namespace lemo::kernels {
namespace {

using namespace ::lemo::testing;  // NOLINT: the harness's vocabulary

void Compare(const at::Tensor& dh, const at::Tensor& gate, const at::Tensor& up) {
  const at::ScalarType type = gate.scalar_type();
  const auto tolerance = ToleranceFor(type, 2, 1);
  const at::Tensor want_h = Gpu(reference::SwiGlu(gate, up));
  auto [want_dgate, want_dup] = reference::SwiGluBackward(dh, gate, up);
  for (const auto& move : {Gpu, Unaligned}) {
    CHECK_TENSOR(SwiGluForward(move(gate), move(up)), want_h, tolerance, type << gate.sizes());
    auto [dgate, dup] = SwiGluBackward(move(dh), move(gate), move(up));
    CHECK_TENSOR(dgate, Gpu(want_dgate), tolerance, type << gate.sizes());
    CHECK_TENSOR(dup, Gpu(want_dup), tolerance, type << gate.sizes());
  }
  CHECK_TENSOR(SwiGluForward(Strided(Gpu(gate)), Strided(Gpu(up))), want_h, tolerance, "strided");
}

GPU_TEST(SwiGluEqualsReference) {
  Random random(4);
  const std::vector<std::vector<int64_t>> shapes = {{0, 8}, {1, 1}, {3, 7}, {50, 3331}, {2, 3, 17}};
  for (const at::ScalarType type : GpuTypes()) {
    for (const auto& shape : shapes) {
      Compare(random.Normal(shape, type), random.Normal(shape, type, 4),
              random.Normal(shape, type));
    }
  }
}

GPU_TEST(SwiGluExtremeGates) {
  for (const at::ScalarType type : GpuTypes()) {
    const at::Tensor gate = at::tensor({-1e4, -1000.0, -89.0, -88.0, -20.0, 0.0, 20.0, 88.5, 1000.0,
                                        static_cast<double>(INFINITY), static_cast<double>(NAN)},
                                       at::kDouble)
                                .to(type);
    const at::Tensor ones = at::ones_like(gate);
    CHECK_TENSOR(SwiGluForward(Gpu(gate), Gpu(ones)), Gpu(reference::SwiGlu(gate, ones)),
                 ToleranceFor(type), type);
  }
}

GPU_TEST(SwiGluBeyond32BitOffsets) {
  if (!HasFreeMemory(int64_t{16} << 30, "SwiGluBeyond32BitOffsets")) return;
  constexpr int64_t kCount = (int64_t{1} << 31) + 11;
  const at::Tensor gate = at::ones({kCount}, at::TensorOptions(at::kCUDA).dtype(at::kHalf));
  const at::Tensor h = SwiGluForward(gate, gate);
  CHECK_TRUE(h.slice(0, kCount - 20).eq(h[0]).all().item<bool>(), "the last elements");
}

}  // namespace
}  // namespace lemo::kernels
