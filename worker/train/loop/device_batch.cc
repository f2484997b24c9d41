#include "worker/train/loop/device_batch.h"

#include <ATen/ATen.h>

namespace lemo::train {
namespace {

at::Tensor Integers(const std::vector<int32_t>& values, at::Device device) {
  return at::tensor(at::ArrayRef<int32_t>(values), at::kInt).to(device, at::kLong);
}

}  // namespace

DeviceBatch ToDevice(const MicroBatch& batch, const Decoder& decoder, int64_t block_rows) {
  return {Integers(batch.tokens, decoder.device), Integers(batch.labels, decoder.device),
          RowSpace::Make(batch, decoder.config, decoder.type, decoder.device, block_rows)};
}

}  // namespace lemo::train
