// A source of rows that draws blocks at random, and tells the dense oracle what it drew.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/support/taped_model.h"
#include "worker/train/tape/tape.h"

namespace lemo::train::testing {

// How the rows of a pass are drawn.
struct Scheme {
  enum class Scope { kLayer, kGroup, kNested, kStack };
  enum class Mlp { kShared, kOwn, kAll };
  std::string name;
  Scope scope = Scope::kLayer;
  Mlp mlp = Mlp::kShared;
  bool keep_left_rows = true;
  bool loss_through = false;  // only rows that every sub-block computed carry loss
  bool kv_all = false;
  double share = 0.5;  // of the blocks, about; 1 draws all of them
};

inline void PrintTo(const Scheme& scheme, std::ostream* out) { *out << scheme.name; }

inline const std::vector<Scheme> kSchemes = {
    {.name = "layer"},
    {.name = "layer_own", .mlp = Scheme::Mlp::kOwn},
    {.name = "layer_dense_mlp", .mlp = Scheme::Mlp::kAll},
    {.name = "layer_through", .mlp = Scheme::Mlp::kOwn, .loss_through = true, .share = 0.8},
    {.name = "group", .scope = Scheme::Scope::kGroup},
    {.name = "layer_kv_all", .mlp = Scheme::Mlp::kOwn, .kv_all = true},
    {.name = "group_kv_all", .scope = Scheme::Scope::kGroup, .kv_all = true},
    {.name = "nested", .scope = Scheme::Scope::kNested},
    {.name = "nested_through",
     .scope = Scheme::Scope::kNested,
     .keep_left_rows = false,
     .loss_through = true},
    {.name = "stack",
     .scope = Scheme::Scope::kStack,
     .keep_left_rows = false,
     .loss_through = true},
};

class RandomRows final : public RowSource {
 public:
  RandomRows(const Scheme& scheme, const MicroBatch& batch, const TapedModel& model, uint64_t seed)
      : scheme_(scheme),
        seed_(seed),
        space_(
            RowSpace::Make(batch, model.config, model.decoder.type, at::kCPU, model.block_rows)) {
    Restart();
    // Which rows carry loss may depend on every choice: a pass that only looks.
    for (int64_t i = 0; i < model.config.layers; ++i) {
      std::shared_ptr<const RowSpace> space = i == 0 ? space_ : looked_;
      if (i == 0 && entering_) space = space_->Shrunk(*entering_);
      if (const BlocksKept stay = Stay(i, *space, {})) space = space->Shrunk(*stay);
      Attention(i, *space, {});
      Mlp(i, *space, {});
      looked_ = space;
    }
    loss_rows_ = RowsIn(*looked_, nullptr);
    if (scheme_.loss_through) {
      for (const at::Tensor& rows : attention_) loss_rows_ = loss_rows_ & rows;
      for (const at::Tensor& rows : mlp_) loss_rows_ = loss_rows_ & rows;
    } else {
      loss_rows_.fill_(true);
    }
    Restart();
  }

  // Draws the same once more.
  void Restart() {
    random_.seed(seed_);
    calls_ = 0;
    attention_.clear();
    mlp_.clear();
    stream_rows_.clear();
    streams_.clear();
    entering_ = scheme_.scope == Scheme::Scope::kStack ? Draw(*space_) : nullptr;
  }

  // For one pass of the model.
  PassRows Rows() {
    Restart();
    return {.source = this,
            .entering = entering_,
            .keep_left_rows = scheme_.keep_left_rows,
            .kv_all = scheme_.kv_all,
            .loss_rows = loss_rows_};
  }
  PlainOptions Oracle() const {
    return {.attention_rows = attention_,
            .mlp_rows = mlp_,
            .kv_all = scheme_.kv_all,
            .stream_rows = stream_rows_,
            .loss_rows = loss_rows_};
  }

  BlocksKept Stay(int64_t layer, const RowSpace& space, const at::Tensor& stream) override {
    ++calls_;
    static_cast<void>(stream);
    if (scheme_.scope != Scheme::Scope::kNested || layer == 0) return nullptr;
    return Draw(space);
  }
  BlocksKept Attention(int64_t layer, const RowSpace& space, const at::Tensor& stream) override {
    ++calls_;
    if (scheme_.scope == Scheme::Scope::kLayer) {
      chosen_ = Draw(space);
    } else if (scheme_.scope == Scheme::Scope::kGroup) {
      if (layer == 1) chosen_ = Draw(space);
      if (layer == 0) chosen_ = nullptr;
    }
    stream_rows_.push_back(RowsIn(space, nullptr));
    Note(space, chosen_, stream, &attention_);
    return chosen_;
  }
  BlocksKept Mlp(int64_t, const RowSpace& space, const at::Tensor& stream) override {
    ++calls_;
    const BlocksKept kept = scheme_.mlp == Scheme::Mlp::kShared ? chosen_
                            : scheme_.mlp == Scheme::Mlp::kOwn  ? Draw(space)
                                                                : nullptr;
    Note(space, kept, stream, &mlp_);
    return kept;
  }

  // Bool [rows of the micro-batch], one a layer.
  const std::vector<at::Tensor>& attention() const { return attention_; }
  const std::vector<at::Tensor>& mlp() const { return mlp_; }
  const std::vector<at::Tensor>& stream_rows() const { return stream_rows_; }
  const at::Tensor& loss_rows() const { return loss_rows_; }
  // The stream before each attention and each MLP, with NaN for rows that are not in it.
  const std::vector<at::Tensor>& streams() const { return streams_; }
  int64_t calls() const { return calls_; }

 private:
  BlocksKept Draw(const RowSpace& space) {
    BlockMask kept(space.blocks().blocks(), 1);
    std::bernoulli_distribution chance(scheme_.share);
    for (uint8_t& block : kept) block = scheme_.share >= 1 || chance(random_);
    // Never none.
    kept[random_() % kept.size()] = 1;
    return std::make_shared<const BlockMask>(std::move(kept));
  }

  at::Tensor RowsIn(const RowSpace& space, const BlocksKept& kept) const {
    at::Tensor rows = space.row_ids().to(at::kLong);
    if (kept) rows = rows.index_select(0, space.Indices(*kept));
    return at::zeros({space_->rows()}, at::kBool).index_fill_(0, rows, true);
  }

  void Note(const RowSpace& space, const BlocksKept& kept, const at::Tensor& stream,
            std::vector<at::Tensor>* masks) {
    masks->push_back(RowsIn(space, kept));
    // Nor where ranks share the rows, and this is some of them.
    if (!stream.defined() || stream.size(0) != space.rows()) return;
    at::Tensor all = at::full({space_->rows(), stream.size(1)},
                              std::numeric_limits<double>::quiet_NaN(), stream.options());
    streams_.push_back(all.index_copy_(0, space.row_ids().to(at::kLong), stream));
  }

  const Scheme scheme_;
  const uint64_t seed_;
  const std::shared_ptr<const RowSpace> space_;
  std::shared_ptr<const RowSpace> looked_;
  std::mt19937_64 random_;
  BlocksKept entering_, chosen_;
  std::vector<at::Tensor> attention_, mlp_, stream_rows_, streams_;
  at::Tensor loss_rows_;
  int64_t calls_ = 0;
};

}  // namespace lemo::train::testing
