// The tape: a decoder as a list of residual sub-blocks over one stream, run forward and backward
// with as little kept as the storage policy says (design section 4).
//
// A sub-block sees only its rows T: forward x = R[T]; R[T] += f(x), backward g = G[T]; G[T] +=
// vjp(f, x, g). Rows outside T pass through both ways: nothing of them is computed or stored. Rows
// that do not come back leave the stream: it is partitioned in place into those that stay and those
// that left, and put back in order on the way down (lemo-spec sections 7 and 19).
//
// In post-norm models the norm that follows a sub-block changes every row of the stream, also those
// that the sub-block passed by. A row that left the stream has its last state: it is not normalised
// any more, and was when it left.
//
// What a pass keeps of a choice of rows is its mask of blocks; the row lists are made from it again
// on the way down. Nothing is chosen twice.
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
#include "worker/train/tokens/row_space.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

// Blocks of the stream at hand; null for all of them.
using BlocksKept = std::shared_ptr<const BlockMask>;

// Chooses the rows of every sub-block while a forward pass goes on. The calls come in the order of
// the layers, for each Stay, Attention, Mlp. `stream` [rows of space, H] is the stream as the
// sub-block would read it; it must not be changed or kept.
class RowSource {
 public:
  virtual ~RowSource() = default;

  // Blocks that are in the stream from this layer on.
  virtual BlocksKept Stay(int64_t layer, const RowSpace& space, const at::Tensor& stream) = 0;
  virtual BlocksKept Attention(int64_t layer, const RowSpace& space, const at::Tensor& stream) = 0;
  // The very object that Attention gave for this layer where the rows are the same.
  virtual BlocksKept Mlp(int64_t layer, const RowSpace& space, const at::Tensor& stream) = 0;
};

// How many rows a pass can have: what its buffers are sized for.
struct RowBounds {
  int64_t stream = 0;
  std::vector<LayerRowCounts> layers;

  // Every sub-block computes all of `rows` rows.
  static RowBounds Dense(int64_t layers, int64_t rows);
};

struct TapeOptions {
  std::vector<StoragePolicy> policies;  // one a layer
  int64_t mlp_tile_rows = 0;            // 0: chosen from the device
};

class Tape {
 public:
  // `decoder` and `trainables` outlive the tape. Allocates buffers for passes within `bounds`.
  Tape(const Decoder& decoder, Trainables& trainables, TapeOptions options,
       const RowBounds& bounds);

  // Makes the buffers large enough for a pass within `bounds`. Between passes only.
  void Reserve(const RowBounds& bounds);

  struct Options {
    int64_t dropout_seed = 0;
    // Rows that left the stream are behind those that stayed in what Forward returns; else they are
    // gone, and get no gradient from the loss.
    bool keep_left_rows = true;
    // Rows that attention leaves out stay visible to the others as keys and values, without
    // gradient (lemo-spec 18.6).
    bool kv_all = false;
    // Stops at the first sub-block whose output is not finite; its name is then in `first_bad`.
    bool check_finite = false;
  };

  // Embeds `tokens` (int64, one a row of `space`) and runs all layers on the rows that `source`
  // chooses (null: all). Returns the stream R [rows, H], a slice of the buffers that is valid until
  // the next call; row i of it is row order()[i] of `space`. With `for_backward` keeps what
  // backward needs.
  at::Tensor Forward(const at::Tensor& tokens, std::shared_ptr<const RowSpace> space,
                     RowSource* source, const Options& options, bool for_backward);

  // int64 [rows of the last Forward's result], or nothing when they are those of its space in
  // order.
  const std::optional<at::Tensor>& order() const { return order_; }

  // `stream` is what Forward returned, turned into G. Adds to the gradients of all trainables below
  // the head.
  void Backward(const at::Tensor& stream);

  // After Forward with check_finite: "model.layers.3.mlp", or "" when all was finite.
  const std::string& first_bad() const { return first_bad_; }

  // Bytes of the arena (device) and of the host ring.
  int64_t arena_bytes() const { return arena_.capacity(); }
  int64_t host_bytes() const { return host_.capacity(); }
  // Bytes that the last forward kept for backward, without the stream.
  int64_t saved_bytes() const { return saved_bytes_; }
  // First layer that keeps anything: nothing below it trains.
  int64_t horizon() const { return horizon_; }
  int64_t mlp_tile_rows() const { return tile_rows_; }

 private:
  struct Boundaries {
    at::Tensor x, q, k, v, o, lse, x2, gate, up;  // up may be its signs, uint8 (sign_bits.h)
    at::Tensor seen_k, seen_v;                    // of the rows that attention only sees
    at::Tensor attention_sum, mlp_sum;  // post-norm: what the norms were taken of, all rows
    std::vector<at::Tensor*> All() {
      return {&x,      &q, &k, &v, &o, &lse, &x2, &gate, &up, &seen_k, &seen_v, &attention_sum,
              &mlp_sum};
    }
  };
  // The rows of one layer.
  struct LayerRows {
    std::shared_ptr<const RowSpace> space;
    BlocksKept attention, mlp;
    bool shared() const { return attention == mlp; }
    std::shared_ptr<const RowSet> AttentionRows() const;
    std::shared_ptr<const RowSet> MlpRows() const;
  };
  // Rows that left the stream before `layer`.
  struct Departure {
    int64_t layer;
    int64_t rows;           // of the stream before
    at::Tensor stay, left;  // int64: rows of the stream before
  };
  // Trainables of one stage of one layer.
  std::vector<Trainable*>& ParametersOf(int64_t layer, Stage stage);
  bool NeedsGradientBelow(int64_t layer, Stage stage) const;

  void Shrink(int64_t layer, const BlockMask& stay, const at::Tensor& stream);
  void Grow(const Departure& departure, const at::Tensor& stream) const;
  void ForwardLayer(int64_t index, const at::Tensor& stream, RowSource* source, bool keep);
  // Whether rows that a layer's attention leaves out are seen by the others.
  bool SeesOthers(const LayerRows& rows) const { return kv_all_ && rows.attention != nullptr; }
  // Attention of a layer's own q, k, v, over the rows it sees.
  AttentionResult Attend(const LayerRows& rows, const RowSet& own, const Boundaries& values) const;
  void BackwardLayer(int64_t index, const at::Tensor& stream);
  void BackwardMlp(int64_t index, const at::Tensor& stream, const RowSet& rows,
                   const Boundaries& kept);
  void BackwardEmbedding(const at::Tensor& stream);
  StageContext Context(const RowSet& rows) const;

  const Decoder& decoder_;
  Trainables& trainables_;
  TapeOptions options_;
  int64_t tile_rows_;
  // [layer][stage]
  std::vector<std::vector<std::vector<Trainable*>>> parameters_;
  std::vector<Trainable*> embedding_;  // of everything in front of the first layer
  int64_t horizon_ = 0;
  Stage horizon_stage_ = Stage::kQkv;
  Arena arena_;
  Arena host_;  // for offloaded layers

  // Of the micro-batch between Forward and Backward.
  at::Tensor tokens_, positions_;
  std::shared_ptr<const RowSpace> space_;  // of the stream as it is
  std::vector<LayerRows> rows_;
  std::vector<Departure> departures_;
  std::optional<at::Tensor> order_;
  bool keep_left_rows_ = true;
  bool kv_all_ = false;
  int64_t dropout_seed_ = 0;
  bool training_ = false;
  std::vector<Boundaries> saved_;
  int64_t saved_bytes_ = 0;
  std::string first_bad_;
};

}  // namespace lemo::train
