// A micro-batch on the device, as the tape and the objective take it.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "worker/train/data/batch.h"
#include "worker/train/model/decoder.h"
#include "worker/train/tokens/row_space.h"

namespace lemo::train {

struct DeviceBatch {
  at::Tensor tokens;                      // int64 [rows]
  at::Tensor labels;                      // int64 [rows], -100 for none
  std::shared_ptr<const RowSpace> space;  // all rows
};

DeviceBatch ToDevice(const MicroBatch& batch, const Decoder& decoder, int64_t block_rows = 64);

}  // namespace lemo::train
