// How a tensor group shares a model: which part of every tensor each of its ranks has.
//
//   q, k, v, gate, up   rows, with their biases: heads, or entries of the MLP  (column parallel)
//   o, down             columns: the same heads and entries                    (row parallel)
//   embedding, head     rows: words, as evenly as they divide, perhaps none
//   all others          whole
//
// With fewer key heads than ranks, neighbouring ranks have the same one, that of their query heads.
//
// The rows of the residual stream are on all ranks, or shared as well.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/train/model/family/decoder_config.h"
#include "worker/train/parallel/shards.h"

namespace lemo::train {

struct ModelSplit {
  int rank = 0;
  int ranks = 1;
  DecoderConfig whole;
  // What this rank computes with: its heads and its share of the MLP's width. The vocabulary is the
  // whole one.
  DecoderConfig local;
  // Each rank holds its part of the rows alone (RowParts), and normalises those.
  bool shares_rows = false;

  // InvalidArgument as CheckSplit.
  static absl::StatusOr<ModelSplit> Make(const DecoderConfig& config, int rank, int ranks);

  // Of a tensor by its Hugging Face name.
  Shard ShardOf(std::string_view tensor) const;

  int64_t vocabulary_first() const { return whole.vocabulary * rank / ranks; }
  int64_t vocabulary_rows() const {
    return whole.vocabulary * (rank + 1) / ranks - vocabulary_first();
  }
  // Ranks that have the same key head.
  int kv_copies() const { return static_cast<int>(ranks * local.kv_heads / whole.kv_heads); }
};

// That `ranks` ranks can share the model. InvalidArgument names parallel.tensor and the sizes that
// would do.
absl::Status CheckSplit(const DecoderConfig& config, int ranks);

}  // namespace lemo::train
