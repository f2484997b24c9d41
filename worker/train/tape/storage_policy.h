// Which boundary tensors of a layer the forward pass keeps for the backward pass (design section
// 4).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/train/model/family/decoder_config.h"

namespace lemo::train {

// Boundaries of a layer, in order: x (its input), q, k, v (after rope), o, lse (attention), x2 (the
// stream between attention and MLP), gate, up. Backward replays the stages between kept ones. A
// ReLU MLP has no gate, and of up the signs are enough where nothing that trains reads the
// activations.
//
// A post-norm layer keeps, under every policy and for all rows of its stream, the two sums that its
// norms were taken of: the norm of the first is x2, which is then not kept besides.
struct StoragePolicy {
  enum class Keep {
    kInput,         // x
    kAttentionOut,  // x, o, lse: attention is never replayed
    kMlp,           // x, q, k, v, o, lse, x2: only gate and up are replayed
    kAll,           // and gate, up: only elementwise work is replayed
  };
  Keep keep = Keep::kAttentionOut;
  bool offload = false;  // kept in host memory, copied back for backward

  bool KeepsAttention() const { return keep >= Keep::kAttentionOut; }
  bool KeepsQkv() const { return keep >= Keep::kMlp; }
  bool KeepsX2() const { return keep >= Keep::kMlp; }
  bool KeepsGateUp() const { return keep == Keep::kAll; }
};

// `all`, `mlp`, `attn_out`, `input`, each with an optional `+offload`. InvalidArgument otherwise.
absl::StatusOr<StoragePolicy> ParseStoragePolicy(const std::string& name);
std::string StoragePolicyName(const StoragePolicy& policy);

// Rows of a layer's two sub-blocks.
struct LayerRowCounts {
  int64_t attention = 0;
  int64_t mlp = 0;
  // The MLP computes other rows than attention; x2 is then always kept, since it cannot be rebuilt
  // from attention's.
  bool separate = false;
  // Rows that attention only sees: their keys and values are always kept, since their x is not.
  int64_t seen = 0;
  // Rows of the stream; only post-norm layers keep something of all of them.
  int64_t stream = 0;
  // Of attention's and the MLP's rows those that this rank has, where ranks share the rows of the
  // stream; of what is read from it, no others are kept. Absent: all.
  std::optional<int64_t> own_attention, own_mlp;
};

// Bytes that one layer keeps, with activations of `element_bytes` and softmax statistics of
// `statistic_bytes` an element, each boundary rounded up to the arena's alignment. `down_trains`:
// the MLP's last projection trains or has an adapter (else signs are enough for a ReLU).
int64_t SavedBytes(const StoragePolicy& policy, const DecoderConfig& config,
                   const LayerRowCounts& rows, int64_t element_bytes, int64_t statistic_bytes,
                   bool down_trains = false);

}  // namespace lemo::train
