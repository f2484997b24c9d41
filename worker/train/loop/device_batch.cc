#include "worker/train/loop/device_batch.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "worker/train/model/rope.h"

namespace lemo::train {
namespace {

at::Tensor Integers(const std::vector<int32_t>& values, at::ScalarType type, at::Device device) {
  return at::tensor(at::ArrayRef<int32_t>(values), at::kInt).to(device, type);
}

RopeTables MakeRopeTables(const MicroBatch& batch, const Decoder& decoder) {
  const DecoderConfig& config = decoder.config;
  const auto type = decoder.type == at::kDouble ? at::kDouble : at::kFloat;
  RopeTables tables;
  tables.cos = at::empty({batch.rows(), config.head_dim / 2}, type);
  tables.sin = at::empty_like(tables.cos);
  if (type == at::kDouble) {
    FillRopeTables(config.rope, config.head_dim, batch.positions, batch.document_starts,
                   tables.cos.mutable_data_ptr<double>(), tables.sin.mutable_data_ptr<double>());
  } else {
    FillRopeTables(config.rope, config.head_dim, batch.positions, batch.document_starts,
                   tables.cos.mutable_data_ptr<float>(), tables.sin.mutable_data_ptr<float>());
  }
  tables.cos = tables.cos.to(decoder.device);
  tables.sin = tables.sin.to(decoder.device);
  return tables;
}

}  // namespace

DeviceBatch ToDevice(const MicroBatch& batch, const Decoder& decoder) {
  auto rows = std::make_shared<RowSet>();
  rows->count = batch.rows();
  rows->row_ids = at::arange(rows->count, at::TensorOptions().dtype(at::kInt)).to(decoder.device);
  rows->rope = MakeRopeTables(batch, decoder);
  rows->segments.starts.assign(batch.document_starts.begin(), batch.document_starts.end());
  for (size_t i = 0; i + 1 < rows->segments.starts.size(); ++i) {
    rows->segments.longest =
        std::max(rows->segments.longest, rows->segments.starts[i + 1] - rows->segments.starts[i]);
  }
  rows->segments.cumulative = Integers(batch.document_starts, at::kInt, decoder.device);
  return {Integers(batch.tokens, at::kLong, decoder.device),
          Integers(batch.labels, at::kLong, decoder.device), rows};
}

}  // namespace lemo::train
