#include "worker/train/model/sign_bits.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>

namespace lemo::train {
namespace {

// Elements that one thread takes at least.
constexpr int64_t kGrain = 1 << 15;

at::Tensor PackOnCpu(const at::Tensor& x) {
  const int64_t columns = x.size(1), bytes = SignBytes(columns);
  at::Tensor bits = at::empty({x.size(0), bytes}, x.options().dtype(at::kByte));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "PackSigns", [&] {
    const scalar_t* in = x.const_data_ptr<scalar_t>();
    uint8_t* out = bits.mutable_data_ptr<uint8_t>();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(columns, 1));
    at::parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t b = 0; b < bytes; ++b) {
          const scalar_t* eight = in + row * columns + 8 * b;
          const int count = static_cast<int>(std::min<int64_t>(8, columns - 8 * b));
          uint8_t byte = 0;
          for (int i = 0; i < count; ++i) {
            byte |= static_cast<uint8_t>(eight[i] > scalar_t(0)) << i;
          }
          out[row * bytes + b] = byte;
        }
      }
    });
  });
  return bits;
}

at::Tensor UnpackOnCpu(const at::Tensor& bits, int64_t columns, at::ScalarType type) {
  const int64_t bytes = bits.size(1);
  at::Tensor x = at::empty({bits.size(0), columns}, bits.options().dtype(type));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "UnpackSigns", [&] {
    const uint8_t* in = bits.const_data_ptr<uint8_t>();
    scalar_t* out = x.mutable_data_ptr<scalar_t>();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(columns, 1));
    at::parallel_for(0, bits.size(0), grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t c = 0; c < columns; ++c) {
          out[row * columns + c] = scalar_t(in[row * bytes + c / 8] >> (c % 8) & 1);
        }
      }
    });
  });
  return x;
}

at::Tensor BitNumbers(at::Device device) {
  return at::arange(8, at::TensorOptions().dtype(at::kByte).device(device));
}

}  // namespace

at::Tensor PackSigns(const at::Tensor& x) {
  if (x.is_cpu()) return PackOnCpu(x.contiguous());
  const int64_t bytes = SignBytes(x.size(1));
  const at::Tensor positive =
      at::constant_pad_nd(x.gt(0).to(at::kByte), {0, 8 * bytes - x.size(1)});
  return positive.view({x.size(0), bytes, 8})
      .bitwise_left_shift(BitNumbers(x.device()))
      .sum(-1, /*keepdim=*/false, at::kByte);
}

at::Tensor UnpackSigns(const at::Tensor& bits, int64_t columns, at::ScalarType type) {
  if (bits.is_cpu()) return UnpackOnCpu(bits.contiguous(), columns, type);
  return bits.unsqueeze(2)
      .bitwise_right_shift(BitNumbers(bits.device()))
      .bitwise_and(1)
      .view({bits.size(0), -1})
      .narrow(1, 0, columns)
      .to(type);
}

}  // namespace lemo::train
