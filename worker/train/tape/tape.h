// The tape: a decoder as a list of residual sub-blocks over one stream, run forward and backward
// with as little kept as the storage policy says (design section 4).
//
// A sub-block sees only its rows T: forward x = R[T]; R[T] += f(x), backward g = G[T]; G[T] +=
// vjp(f, x, g). Rows outside T pass through both ways: nothing of them is computed or stored.
//
// The simpler idea, autograd over the whole stack with checkpointed layers, was rejected: it keeps
// dense copies of the stream, replays the last product of each sub-block and attention although
// nobody reads them, and cannot say how many bytes it will keep.
//
// R and G share one buffer: backward never reads R (each layer kept or rebuilds what it needs), so
// the objective turns R into G in place.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "worker/train/memory/arena.h"
#include "worker/train/model/attention.h"
#include "worker/train/model/decoder.h"
#include "worker/train/tape/storage_policy.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

// The rows that a sub-block computes, in the order of the stream.
struct RowSet {
  std::optional<at::Tensor> indices;  // int64 [count], strictly ascending; nullopt for all rows
  int64_t count = 0;
  at::Tensor row_ids;  // int32 [count]: numbers of the rows in the micro-batch
  RopeTables rope;     // [count, D / 2], by original position
  Segments segments;   // documents, in kept rows
};

// Which rows each sub-block computes. One entry a layer; layers may share a set. In one layer the
// MLP either has the same set as attention (the same object) or its own.
struct RowPlan {
  std::vector<std::shared_ptr<const RowSet>> attention, mlp;

  // Every sub-block computes all rows of `rows`.
  static RowPlan Dense(const DecoderConfig& config, std::shared_ptr<const RowSet> rows);
};

struct TapeOptions {
  std::vector<StoragePolicy> policies;  // one a layer
  int64_t mlp_tile_rows = 0;            // 0: chosen from the device
  // Plans may give a layer's MLP other rows than its attention; x2 is then always kept.
  bool separate_mlp_rows = false;
};

class Tape {
 public:
  // `decoder` and `trainables` outlive the tape; `max_rows` bounds the rows of a micro-batch.
  // Allocates the arena.
  Tape(const Decoder& decoder, Trainables& trainables, TapeOptions options, int64_t max_rows);

  struct Options {
    int64_t dropout_seed = 0;
    // Stops at the first sub-block whose output is not finite; its name is then in `first_bad`.
    bool check_finite = false;
  };

  // Embeds `tokens` (int64 [rows]) and runs all layers. Returns the stream R [rows, H], a slice of
  // the arena that is valid until the next call. With `for_backward` keeps what backward needs.
  at::Tensor Forward(const at::Tensor& tokens, const RowPlan& plan, const Options& options,
                     bool for_backward);

  // `stream` is what Forward returned, turned into G. Adds to the gradients of all trainables below
  // the head.
  void Backward(const at::Tensor& stream);

  // After Forward with check_finite: "model.layers.3.mlp", or "" when all was finite.
  const std::string& first_bad() const { return first_bad_; }

  // Bytes of the arena (device) and of the host ring, fixed at construction.
  int64_t arena_bytes() const { return arena_.capacity(); }
  int64_t host_bytes() const { return host_ ? host_->capacity() : 0; }
  // Bytes that the last forward kept for backward, without the stream.
  int64_t saved_bytes() const { return saved_bytes_; }
  // First layer that keeps anything: nothing below it trains.
  int64_t horizon() const { return horizon_; }
  int64_t mlp_tile_rows() const { return tile_rows_; }

 private:
  struct Boundaries {
    at::Tensor x, q, k, v, o, lse, x2, gate, up;
    std::vector<at::Tensor*> All() { return {&x, &q, &k, &v, &o, &lse, &x2, &gate, &up}; }
  };
  // Trainables of one stage of one layer.
  std::vector<Trainable*>& ParametersOf(int64_t layer, Stage stage);
  bool NeedsGradientBelow(int64_t layer, Stage stage) const;

  void ForwardLayer(int64_t index, const at::Tensor& stream, bool keep);
  void BackwardLayer(int64_t index, const at::Tensor& stream);
  void BackwardMlp(int64_t index, const at::Tensor& stream, const Boundaries& kept);
  StageContext Context(const RowSet& rows) const;

  const Decoder& decoder_;
  Trainables& trainables_;
  TapeOptions options_;
  int64_t tile_rows_;
  // [layer][stage]
  std::vector<std::vector<std::vector<Trainable*>>> parameters_;
  Trainable* embedding_ = nullptr;
  int64_t horizon_ = 0;
  Stage horizon_stage_ = Stage::kQkv;
  Arena arena_;
  std::unique_ptr<Arena> host_;  // for offloaded layers

  // Of the micro-batch between Forward and Backward.
  at::Tensor tokens_;
  RowPlan plan_;
  int64_t dropout_seed_ = 0;
  bool training_ = false;
  std::vector<Boundaries> saved_;
  int64_t saved_bytes_ = 0;
  std::string first_bad_;
};

}  // namespace lemo::train
