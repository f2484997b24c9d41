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
//
// Where the ranks of a tensor group share the rows (Decoder::shares_rows), a rank has its part of R
// and G, of x and of x2, and normalises that. What the projections multiply is gathered from all
// ranks, forward and again on the way down; what they add to the stream is a sum that is scattered
// to the ranks. All else has the rows of all. When rows leave, those that stay and those that left
// are dealt out anew: a rank has as many rows of the stream as any other, but for one, and as many
// in all as at the beginning.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "worker/train/memory/arena.h"
#include "worker/train/model/attention.h"
#include "worker/train/model/decoder.h"
#include "worker/train/parallel/row_parts.h"
#include "worker/train/tape/storage_policy.h"
#include "worker/train/tape/sub_block_observer.h"
#include "worker/train/tokens/row_space.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

// Blocks of the stream at hand; null for all of them.
using BlocksKept = std::shared_ptr<const BlockMask>;

// Chooses the rows of every sub-block while a forward pass goes on. The calls come in the order of
// the layers, for each Stay, Attention, Mlp. `stream` [rows of space, H] is the stream as the
// sub-block would read it, this rank's rows of it where they are shared; it must not be changed or
// kept.
class RowSource {
 public:
  virtual ~RowSource() = default;

  // Blocks that are in the stream from this layer on.
  virtual BlocksKept Stay(int64_t layer, const RowSpace& space, const at::Tensor& stream) = 0;
  virtual BlocksKept Attention(int64_t layer, const RowSpace& space, const at::Tensor& stream) = 0;
  // The very object that Attention gave for this layer where the rows are the same.
  virtual BlocksKept Mlp(int64_t layer, const RowSpace& space, const at::Tensor& stream) = 0;
};

// How many rows a pass can have, on all ranks that share them: what its buffers are sized for.
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

  // `observer` outlives the tape, or null. The objective's gradients come before the first layer of
  // backward.
  void SetObserver(SubBlockObserver* observer) { observer_ = observer; }

  // Makes the buffers large enough for a pass within `bounds`. Between passes only.
  void Reserve(const RowBounds& bounds);

  // What layers keep from the next forward pass on, one policy a layer. Between passes only.
  void SetPolicies(std::vector<StoragePolicy> policies) { options_.policies = std::move(policies); }
  const std::vector<StoragePolicy>& policies() const { return options_.policies; }

  // Lets go of what the last pass left (tokens, lists of rows, whatever an exception kept it from
  // freeing) and, with `buffers`, of the buffers, which the next Reserve makes anew.
  void Release(bool buffers);

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
  // the next call; row i of it is row order()[i] of `space`. Of shared rows those of this rank.
  // With `for_backward` keeps what backward needs. All ranks of a tensor group call.
  at::Tensor Forward(const at::Tensor& tokens, std::shared_ptr<const RowSpace> space,
                     RowSource* source, const Options& options, bool for_backward);

  // int64 [rows of the last Forward's result], or nothing when they are those of its space in
  // order.
  const std::optional<at::Tensor>& order() const { return order_; }

  // `stream` is what Forward returned, turned into G. Adds to the gradients of all trainables below
  // the head.
  void Backward(const at::Tensor& stream);

  // After Forward with check_finite: "model.layers.3.mlp", or "" when all was finite. For a rank
  // that is alone.
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
  };
  // The rows of one sub-block, and those of them that this rank has.
  struct SubBlockRows {
    std::shared_ptr<const RowSet> set;
    RowParts parts;
    std::optional<at::Tensor> own;  // int64 [parts.count()]: rows of its stream; nullopt for all
  };
  // Rows of the stream that lie in one place before a departure, and in another after it.
  struct Move {
    at::Tensor own;  // int64: rows of this rank's stream before
    RowParts before, after;
  };
  // Rows that left the stream before `layer`.
  struct Departure {
    int64_t layer;
    int64_t rows;  // of this rank's stream before
    Move stay, left;
  };
  // Trainables of one stage of one layer.
  std::vector<Trainable*>& ParametersOf(int64_t layer, Stage stage);
  bool NeedsGradientBelow(int64_t layer, Stage stage) const;

  // Of the kept blocks of a space (null: of all), how the ranks have their rows, and where this
  // rank's lie in its stream.
  RowParts PartsOf(const RowSpace& space, const BlockMask* kept) const;
  at::Tensor OwnRows(const RowSpace& space, const RowParts& parts, const at::Tensor& rows) const;
  SubBlockRows RowsOf(const RowSpace& space, const BlockMask* kept) const;
  // Rows of this rank's stream of a space.
  int64_t StreamRows(const RowSpace& space) const { return decoder_.Rows(space.rows()).count(); }

  void Shrink(int64_t layer, const BlockMask& stay, const at::Tensor& stream);
  void Grow(const Departure& departure, const at::Tensor& stream) const;
  void ForwardLayer(int64_t index, const at::Tensor& stream, RowSource* source, bool keep);
  // Whether rows that a layer's attention leaves out are seen by the others.
  bool SeesOthers(const LayerRows& rows) const { return kv_all_ && rows.attention != nullptr; }
  // Attention of a layer's own q, k, v, over the rows it sees.
  AttentionResult Attend(const LayerRows& rows, const RowSet& own, const Boundaries& values) const;
  void BackwardLayer(int64_t index, const at::Tensor& stream);
  void BackwardMlp(int64_t index, const at::Tensor& stream, const SubBlockRows& rows,
                   const Boundaries& kept);
  void BackwardEmbedding(const at::Tensor& stream);
  StageContext Context(const RowSet& rows) const;

  void Enter(int64_t layer, SubBlock part, bool backward) const {
    if (observer_ != nullptr) observer_->Enter(layer, part, backward);
  }
  void Leave(int64_t layer, SubBlock part, bool backward) const {
    if (observer_ != nullptr) observer_->Leave(layer, part, backward);
  }

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
  SubBlockObserver* observer_ = nullptr;

  // Of the micro-batch between Forward and Backward.
  at::Tensor tokens_, positions_;
  std::shared_ptr<const RowSpace> space_;  // of the stream as it is
  std::vector<LayerRows> rows_;
  std::vector<Departure> departures_;
  // What order_ is made of: rows of all ranks' stream as it is, undefined while none has left, and
  // of those that left those of this rank.
  at::Tensor space_order_, left_order_;
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
