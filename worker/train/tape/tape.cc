#include "worker/train/tape/tape.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/gather_norm/gather_norm.h"
#include "kernels/rows/rows.h"
#include "worker/train/model/family/family.h"
#include "worker/train/model/sign_bits.h"
#include "worker/train/model/tile_rows.h"

namespace lemo::train {
namespace {

constexpr Stage kLayerStages[] = {Stage::kQkv, Stage::kOutput, Stage::kMlp};

int64_t StatisticBytes(at::ScalarType type) { return type == at::kDouble ? 8 : 4; }

int64_t StreamBytes(const Decoder& decoder, int64_t rows) {
  return Arena::Rounded(decoder.Rows(rows).count() * decoder.config.hidden *
                        static_cast<int64_t>(c10::elementSize(decoder.type)));
}

// With this rank's own rows, at most, where a stream of so many is shared.
LayerRowCounts OwnCounts(const Decoder& decoder, LayerRowCounts counts) {
  if (!decoder.shares_rows()) return counts;
  const int64_t own = decoder.Rows(counts.stream).count();
  counts.own_attention = std::min(counts.attention, own);
  counts.own_mlp = std::min(counts.mlp, own);
  return counts;
}

int64_t LowestLayer(const Trainables& trainables, int64_t layers) {
  int64_t lowest = layers;
  for (const Trainable& trainable : trainables) lowest = std::min(lowest, trainable.layer);
  return std::max<int64_t>(lowest, 0);
}

// Rows of a rank's stream, nullopt for all.
using OwnRowList = std::optional<at::Tensor>;

// `first` .. `first + count` of such rows, read from and added to the stream.
at::Tensor TakeRows(const at::Tensor& stream, const OwnRowList& rows, int64_t first,
                    int64_t count) {
  if (!rows) return stream.narrow(0, first, count);
  return kernels::GatherRows(stream, rows->narrow(0, first, count));
}

void AddRows(const at::Tensor& stream, const OwnRowList& rows, int64_t first, int64_t count,
             const at::Tensor& delta) {
  if (!rows) {
    kernels::ScatterAddRows(stream.narrow(0, first, count), std::nullopt, delta);
  } else {
    kernels::ScatterAddRows(stream, rows->narrow(0, first, count), delta);
  }
}

// This rank's of rows that lie on the ranks as `from` says, where `to` wants them.
at::Tensor Moved(const at::Tensor& own, const RowParts& from, const RowParts& to) {
  return to.Own(from.Gather(own));
}

// Adds what a sub-block makes of its rows, or what its backward does, to the stream. In a tensor
// group that is a part of a sum, which is added up while the next rows are computed.
class RowAdder {
 public:
  // The way from a sum to what is added, or to nothing.
  using Way = std::function<at::Tensor(const at::Tensor& sum)>;

  RowAdder(const Decoder& decoder, const at::Tensor& stream, const OwnRowList& own)
      : alone_(decoder.tensor == nullptr), stream_(stream), own_(own) {}

  // `delta` [rows of the tile, H] belongs to the adder from here on.
  void Add(const RowTile& tile, const at::Tensor& delta, Way way = nullptr) {
    Finish();
    sum_ = tile.parts.Sum(delta.detach());
    first_ = tile.own_first;
    way_ = std::move(way);
    if (alone_) Finish();
  }
  // To be called after the last rows.
  void Finish() {
    if (!sum_.rows.defined()) return;
    const at::Tensor sum = std::exchange(sum_, {}).Wait();
    const at::Tensor rows = way_ ? std::exchange(way_, nullptr)(sum) : sum;
    if (rows.defined()) AddRows(stream_, own_, first_, rows.size(0), rows);
  }

 private:
  const bool alone_;
  const at::Tensor& stream_;
  const OwnRowList& own_;
  RowSum sum_;  // under way
  int64_t first_ = 0;
  Way way_;
};

StageContext TileContext(const StageContext& context, const RowTile& tile) {
  StageContext result = context;
  if (result.row_ids.defined()) result.row_ids = tile.Of(result.row_ids);
  return result;
}

// Rows of two complementary sets, put together in the order of the stream.
at::Tensor Together(const at::Tensor& own, const at::Tensor& own_rows, const at::Tensor& seen,
                    const at::Tensor& seen_rows) {
  std::vector<int64_t> shape = own.sizes().vec();
  shape[0] += seen.size(0);
  at::Tensor all = at::empty(shape, own.options());
  all.index_copy_(0, own_rows, own);
  all.index_copy_(0, seen_rows, seen);
  return all;
}

// The input of a replayed stage, as a leaf of its graph.
at::Tensor Leaf(const at::Tensor& value, bool requires_grad) {
  return value.detach().requires_grad_(requires_grad);
}

// Backpropagates through one stage: adds to the gradients of `parameters` and returns those of
// `leaves` (undefined for a leaf that wants none). `sharers` have the same parts of parameters with
// copies.
std::vector<at::Tensor> Backpropagate(const std::vector<at::Tensor>& outputs,
                                      const std::vector<at::Tensor>& output_grads,
                                      const std::vector<at::Tensor>& leaves,
                                      const std::vector<Trainable*>& parameters,
                                      Communicator* sharers = nullptr) {
  std::vector<at::Tensor> roots, root_grads, inputs;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].requires_grad()) continue;
    roots.push_back(outputs[i]);
    root_grads.push_back(output_grads[i]);
  }
  std::vector<at::Tensor> result(leaves.size());
  for (const at::Tensor& leaf : leaves) {
    if (leaf.requires_grad()) inputs.push_back(leaf);
  }
  for (const Trainable* parameter : parameters) inputs.push_back(parameter->value);
  if (roots.empty() || inputs.empty()) return result;
  const std::vector<at::Tensor> grads =
      torch::autograd::grad(roots, inputs, root_grads, /*retain_graph=*/false,
                            /*create_graph=*/false, /*allow_unused=*/true);
  size_t next = 0;
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (leaves[i].requires_grad()) result[i] = grads[next++];
  }
  for (Trainable* parameter : parameters) {
    at::Tensor grad = grads[next++];
    if (!grad.defined()) continue;
    if (parameter->shard.copies > 1) {
      grad = grad.contiguous();
      sharers->AllReduce(grad, ReduceOp::kSum).Wait();
    }
    parameter->grad.add_(grad);
  }
  return result;
}

using SubBlockNorm = at::Tensor (*)(const Decoder&, const DecoderLayer&, const at::Tensor&);

// What the first projections of a sub-block are replayed on, and the way from there to the stream.
// Where a rank has all rows these are x, and the stage makes the norm. Where it has some, their
// norm is a graph of its own; what the stage reads, and its graph begins at, is gathered.
class ReplayedInput {
 public:
  // `x`: this rank's rows. Records the norm's graph when grad mode is on.
  ReplayedInput(const Decoder& decoder, const DecoderLayer& layer, SubBlockNorm norm,
                const RowParts& parts, const at::Tensor& x, bool into_x)
      : leaf_(Leaf(x, into_x)) {
    if (!parts.shared()) return;
    x_ = leaf_;
    own_normed_ = norm(decoder, layer, x_);
    leaf_ = normed_ = Leaf(parts.Gather(own_normed_.detach()), own_normed_.requires_grad());
  }

  // For the stage: its rows, and what they are behind the norm, or nothing.
  const at::Tensor& leaf() const { return leaf_; }
  const at::Tensor& normed() const { return normed_; }

  // From the leaf's gradient, added up over the ranks, to that of x: undefined where none is
  // wanted.
  RowAdder::Way Back(const std::vector<Trainable*>& parameters) const {
    if (!own_normed_.defined()) return nullptr;
    return [x = x_, normed = own_normed_, &parameters](const at::Tensor& gradient) {
      return Backpropagate({normed}, {gradient}, {x}, parameters)[0];
    };
  }

 private:
  at::Tensor leaf_, normed_;
  at::Tensor x_, own_normed_;  // of this rank
};

}  // namespace

RowBounds RowBounds::Dense(int64_t layers, int64_t rows) {
  return {rows,
          std::vector<LayerRowCounts>(layers, {.attention = rows, .mlp = rows, .stream = rows})};
}

Tape::Tape(const Decoder& decoder, Trainables& trainables, TapeOptions options,
           const RowBounds& bounds)
    : decoder_(decoder),
      trainables_(trainables),
      options_(std::move(options)),
      tile_rows_(ChooseTileRows(options_.mlp_tile_rows, decoder.device)),
      parameters_(decoder.config.layers,
                  std::vector<std::vector<Trainable*>>(std::size(kLayerStages))),
      horizon_(LowestLayer(trainables, decoder.config.layers)),
      arena_(0, decoder.device),
      host_(0, at::kCPU, /*pinned=*/!decoder.device.is_cpu()) {
  for (Trainable& trainable : trainables_) {
    if (trainable.stage == Stage::kEmbedding) {
      embedding_.push_back(&trainable);
    } else if (trainable.stage != Stage::kHead) {
      ParametersOf(trainable.layer, trainable.stage).push_back(&trainable);
    }
  }
  if (horizon_ < decoder.config.layers && embedding_.empty()) {
    for (const Stage stage : {Stage::kMlp, Stage::kOutput, Stage::kQkv}) {
      if (!ParametersOf(horizon_, stage).empty()) horizon_stage_ = stage;
    }
  }
  Reserve(bounds);
}

void Tape::Reserve(const RowBounds& bounds) {
  int64_t device = StreamBytes(decoder_, bounds.stream), host = 0;
  for (int64_t i = horizon_; i < decoder_.config.layers; ++i) {
    const StoragePolicy& policy = options_.policies[i];
    (policy.offload ? host : device) += SavedBytes(
        policy, decoder_.config, OwnCounts(decoder_, bounds.layers[i]),
        static_cast<int64_t>(c10::elementSize(decoder_.type)), StatisticBytes(decoder_.type),
        /*down_trains=*/!OnlySignsMatter(decoder_, decoder_.layers[i]));
  }
  arena_.Reserve(device);
  host_.Reserve(host);
}

void Tape::Release(bool buffers) {
  tokens_ = positions_ = at::Tensor();
  space_.reset();
  rows_.clear();
  departures_.clear();
  space_order_ = left_order_ = at::Tensor();
  order_.reset();
  saved_.clear();
  arena_.Reset();
  host_.Reset();
  if (!buffers) return;
  arena_.Release();
  host_.Release();
}

RowParts Tape::PartsOf(const RowSpace& space, const BlockMask* kept) const {
  const RowParts all = decoder_.Rows(space.rows());
  if (kept == nullptr) return all;
  if (!all.shared()) return decoder_.Rows(CountRows(space.blocks(), *kept));
  return RowParts::Shared(decoder_.tensor, CountRows(space.blocks(), *kept, all.starts()));
}

at::Tensor Tape::OwnRows(const RowSpace& space, const RowParts& parts,
                         const at::Tensor& rows) const {
  return parts.shared() ? parts.Own(rows) - decoder_.Rows(space.rows()).first() : rows;
}

Tape::SubBlockRows Tape::RowsOf(const RowSpace& space, const BlockMask* kept) const {
  SubBlockRows rows{kept != nullptr ? space.Rows(*kept) : space.all(), PartsOf(space, kept), {}};
  if (rows.set->indices) rows.own = OwnRows(space, rows.parts, *rows.set->indices);
  return rows;
}

std::vector<Trainable*>& Tape::ParametersOf(int64_t layer, Stage stage) {
  return parameters_[layer][static_cast<int>(stage) - static_cast<int>(Stage::kQkv)];
}

bool Tape::NeedsGradientBelow(int64_t layer, Stage stage) const {
  return !embedding_.empty() || std::pair(horizon_, horizon_stage_) < std::pair(layer, stage);
}

StageContext Tape::Context(const RowSet& rows) const {
  return {dropout_seed_, training_ ? rows.row_ids : at::Tensor()};
}

at::Tensor Tape::Forward(const at::Tensor& tokens, std::shared_ptr<const RowSpace> space,
                         RowSource* source, const Options& options, bool for_backward) {
  const at::NoGradGuard no_grad;
  arena_.Reset();
  host_.Reset();
  tokens_ = tokens;
  positions_ = space->positions();
  space_ = std::move(space);
  rows_.clear();
  departures_.clear();
  space_order_ = left_order_ = at::Tensor();
  order_.reset();
  keep_left_rows_ = options.keep_left_rows;
  kv_all_ = options.kv_all;
  dropout_seed_ = options.dropout_seed;
  training_ = for_backward;
  first_bad_.clear();
  saved_.assign(decoder_.config.layers, Boundaries());

  at::Tensor whole = arena_.Take({StreamRows(*space_), decoder_.config.hidden}, decoder_.type);
  const int64_t stream_bytes = arena_.used();
  Embed(decoder_, tokens_, positions_, decoder_.Rows(space_->rows()), whole);
  const auto finite = [&](const at::Tensor& stream, const std::string& name) {
    if (!options.check_finite || stream.isfinite().all().item<bool>()) return true;
    first_bad_ = name;
    return false;
  };
  const ModuleNames& names = NamesOf(decoder_.config);
  if (!finite(whole, names.embedding)) return whole;
  at::Tensor stream = whole;
  for (int64_t i = 0; i < decoder_.config.layers; ++i) {
    if (source != nullptr) {
      if (const BlocksKept stay = source->Stay(i, *space_, stream)) {
        Shrink(i, *stay, stream);
        stream = whole.narrow(0, 0, StreamRows(*space_));
      }
    }
    ForwardLayer(i, stream, source, for_backward && i >= horizon_);
    if (!finite(stream, absl::StrCat(names.layers, i))) return stream;
  }
  saved_bytes_ = arena_.used() - stream_bytes + host_.used();
  if (space_order_.defined() || decoder_.shares_rows()) {
    if (!space_order_.defined()) space_order_ = at::arange(tokens_.size(0), tokens_.options());
    order_ = decoder_.Rows(space_->rows()).Own(space_order_);
    if (left_order_.defined()) order_ = at::cat({*order_, left_order_});
    space_order_ = left_order_ = at::Tensor();
  }
  return keep_left_rows_ ? whole : stream;
}

// Partitions the stream: rows that stay to the front, those that leave behind them, each in order.
void Tape::Shrink(int64_t layer, const BlockMask& stay, const at::Tensor& stream) {
  const BlockMask leave = Others(stay);
  const at::Tensor staying = space_->Indices(stay), leaving = space_->Indices(leave);
  if (leaving.size(0) == 0) return;
  const auto move = [this](const BlockMask& kept, const at::Tensor& rows, const RowParts& after) {
    const RowParts before = PartsOf(*space_, &kept);
    return Move{OwnRows(*space_, before, rows), before, after};
  };
  const RowParts all = decoder_.Rows(space_->rows()), front = decoder_.Rows(staying.size(0));
  Departure departure{layer, stream.size(0), move(stay, staying, front),
                      move(leave, leaving, all.Without(front))};
  const int64_t in_front = front.count();
  const at::Tensor stay_rows = kernels::GatherRows(stream, departure.stay.own);
  const at::Tensor left_rows =
      keep_left_rows_ ? kernels::GatherRows(stream, departure.left.own) : at::Tensor();
  stream.narrow(0, 0, in_front)
      .copy_(Moved(stay_rows, departure.stay.before, departure.stay.after));
  if (keep_left_rows_) {
    stream.narrow(0, in_front, departure.rows - in_front)
        .copy_(Moved(left_rows, departure.left.before, departure.left.after));
  }

  if (!space_order_.defined()) space_order_ = at::arange(tokens_.size(0), tokens_.options());
  if (keep_left_rows_) {
    const at::Tensor left = departure.left.after.Own(space_order_.index_select(0, leaving));
    left_order_ = left_order_.defined() ? at::cat({left, left_order_}) : left;
  }
  space_order_ = space_order_.index_select(0, staying);
  space_ = space_->Shrunk(stay);
  departures_.push_back(std::move(departure));
}

// Undoes Shrink for the gradient: `stream` has the rows before the departure.
void Tape::Grow(const Departure& departure, const at::Tensor& stream) const {
  const Move &stay = departure.stay, &left = departure.left;
  const int64_t in_front = stay.after.count();
  const at::Tensor front = stream.narrow(0, 0, in_front).clone();
  const at::Tensor back = keep_left_rows_
                              ? stream.narrow(0, in_front, departure.rows - in_front).clone()
                              : at::Tensor();
  stream.index_copy_(0, stay.own, Moved(front, stay.after, stay.before));
  if (keep_left_rows_) {
    stream.index_copy_(0, left.own, Moved(back, left.after, left.before));
  } else {
    stream.index_fill_(0, left.own, 0);
  }
}

AttentionResult Tape::Attend(const LayerRows& rows, const RowSet& own,
                             const Boundaries& values) const {
  if (!SeesOthers(rows)) return AttentionForward(values.q, values.k, values.v, own.segments);
  const at::Tensor others = rows.space->Indices(Others(*rows.attention));
  return AttentionForward(values.q, Together(values.k, *own.indices, values.seen_k, others),
                          Together(values.v, *own.indices, values.seen_v, others),
                          rows.space->Runs(*rows.attention));
}

void Tape::ForwardLayer(int64_t index, const at::Tensor& stream, RowSource* source, bool keep) {
  const DecoderLayer& layer = decoder_.layers[index];
  const StoragePolicy& policy = options_.policies[index];
  // Where only the MLP trains, backward ends at x2 and nothing of attention is wanted.
  const bool only_mlp = index == horizon_ && horizon_stage_ == Stage::kMlp && embedding_.empty();
  const bool keep_attention = keep && !only_mlp;
  Boundaries& saved = saved_[index];
  Enter(index, SubBlock::kAttention, /*backward=*/false);
  LayerRows& chosen = rows_.emplace_back(LayerRows{space_, nullptr, nullptr});
  if (source != nullptr) chosen.attention = source->Attention(index, *space_, stream);

  Arena& arena = policy.offload ? host_ : arena_;
  // Copies a boundary to its slot and returns the tensor to go on with.
  const auto kept = [&](at::Tensor& slot, bool wanted, const at::Tensor& value) {
    if (!wanted) return value;
    slot = arena.Take(value.sizes(), value.scalar_type());
    slot.copy_(value, /*non_blocking=*/true);
    return policy.offload ? value : slot;
  };
  const DecoderConfig& config = decoder_.config;
  const bool post_norm = config.post_norm;
  const bool fuses_norm = config.norm == DecoderConfig::Norm::kRms && !post_norm;
  // What the ranks have of a norm between them, made from x where it is not there yet; nothing
  // where each has all rows, and the stage makes what is not there.
  const auto gathered = [&](const RowParts& parts, SubBlockNorm norm, const at::Tensor& x,
                            const at::Tensor& normed) {
    if (!parts.shared()) return normed;
    return parts.Gather(normed.defined() ? normed : norm(decoder_, layer, x));
  };
  // This rank's rows of the stream as a sub-block reads them, and the norm of all rows where one
  // pass over the stream makes both or the ranks share them. `slot` is undefined or takes the rows.
  const auto read = [&](const SubBlockRows& rows, const RowTile& tile, SubBlockNorm norm,
                        const at::Tensor& weight,
                        const at::Tensor& slot) -> std::pair<at::Tensor, at::Tensor> {
    const int64_t first = tile.own_first, count = tile.parts.count();
    if (rows.own && fuses_norm && (!slot.defined() || slot.device() == stream.device())) {
      kernels::NormedRows made = kernels::GatherRmsNorm(
          stream, rows.own->narrow(0, first, count), weight, config.rms_norm_eps,
          slot.defined() ? std::optional(slot) : std::nullopt);
      return {made.x, gathered(tile.parts, norm, made.x, made.y)};
    }
    at::Tensor x = TakeRows(stream, rows.own, first, count);
    if (slot.defined()) {
      slot.copy_(x, /*non_blocking=*/true);
      if (!policy.offload) x = slot;
    }
    return {x, gathered(tile.parts, norm, x, at::Tensor())};
  };
  const auto normalise = [&](at::Tensor& slot, const auto& norm) {
    kept(slot, keep, stream);
    at::Tensor rows = stream;
    rows.copy_(norm(decoder_, layer, stream));
  };

  SubBlockRows rows = RowsOf(*space_, chosen.attention.get());
  {
    const RowTile all = rows.parts.All();
    if (keep_attention) saved.x = arena.Take({rows.parts.count(), config.hidden}, decoder_.type);
    const StageContext context = Context(*rows.set);
    Qkv qkv;
    {
      const auto [x, normed] = read(rows, all, AttentionNorm, layer.attention_norm, saved.x);
      qkv = QkvStage(decoder_, layer, x, rows.set->rope, context, {}, /*want_q=*/true, normed);
    }
    const bool keep_qkv = keep_attention && policy.KeepsQkv();
    Boundaries values;
    values.q = kept(saved.q, keep_qkv, qkv.q);
    values.k = kept(saved.k, keep_qkv, qkv.k);
    values.v = kept(saved.v, keep_qkv, qkv.v);
    qkv = {};
    if (SeesOthers(chosen)) {
      const BlockMask left_out = Others(*chosen.attention);
      const SubBlockRows others = RowsOf(*space_, &left_out);
      const at::Tensor x = TakeRows(stream, others.own, 0, others.parts.count());
      const Qkv seen = QkvStage(decoder_, layer, x, others.set->rope, Context(*others.set), {},
                                /*want_q=*/false, gathered(others.parts, AttentionNorm, x, {}));
      values.seen_k = kept(saved.seen_k, keep_attention, seen.k);
      values.seen_v = kept(saved.seen_v, keep_attention, seen.v);
    }
    AttentionResult result = Attend(chosen, *rows.set, values);
    values = {};
    const bool keep_out = keep_attention && policy.KeepsAttention();
    result.o = kept(saved.o, keep_out, result.o);
    result.lse = kept(saved.lse, keep_out, result.lse);
    RowAdder adder(decoder_, stream, rows.own);
    adder.Add(all, OutputStage(layer, result.o, context, Output::Compute()));
    adder.Finish();
  }
  if (post_norm) normalise(saved.attention_sum, AttentionNorm);
  Leave(index, SubBlock::kAttention, /*backward=*/false);

  Enter(index, SubBlock::kMlp, /*backward=*/false);
  chosen.mlp = source != nullptr ? source->Mlp(index, *space_, stream) : nullptr;
  if (!chosen.shared()) rows = RowsOf(*space_, chosen.mlp.get());
  // x2 is rebuilt from x and o only where the MLP reads the same rows; in post-norm models from the
  // sum that it is the norm of.
  const bool keep_x2 = keep && !post_norm && (policy.KeepsX2() || only_mlp || !chosen.shared());
  if (keep_x2) saved.x2 = arena.Take({rows.parts.count(), config.hidden}, decoder_.type);
  // In the order of the tiles, as these rows are for this layer's backward alone.
  if (keep && policy.KeepsGateUp()) {
    const int64_t width = config.intermediate, count = rows.set->count;
    if (layer.gate.weight.defined()) saved.gate = arena.Take({count, width}, decoder_.type);
    saved.up = OnlySignsMatter(decoder_, layer) ? arena.Take({count, SignBytes(width)}, at::kByte)
                                                : arena.Take({count, width}, decoder_.type);
  }
  const StageContext context = Context(*rows.set);
  RowAdder adder(decoder_, stream, rows.own);
  for (const RowTile& tile : rows.parts.Tiles(tile_rows_)) {
    const int64_t first = tile.first, count = tile.parts.rows();
    GateUp made;
    const auto [x2, normed] = read(
        rows, tile, MlpNorm, layer.mlp_norm,
        saved.x2.defined() ? saved.x2.narrow(0, tile.own_first, tile.parts.count()) : at::Tensor());
    const at::Tensor delta = MlpStage(decoder_, layer, x2, TileContext(context, tile), {},
                                      Output::Compute(), &made, normed);
    if (saved.gate.defined()) {
      saved.gate.narrow(0, first, count).copy_(made.gate, /*non_blocking=*/true);
    }
    if (saved.up.defined()) {
      const bool signs = saved.up.scalar_type() == at::kByte;
      saved.up.narrow(0, first, count)
          .copy_(signs ? PackSigns(made.up) : made.up, /*non_blocking=*/true);
    }
    adder.Add(tile, delta);
  }
  adder.Finish();
  if (post_norm) normalise(saved.mlp_sum, MlpNorm);
  Leave(index, SubBlock::kMlp, /*backward=*/false);
}

void Tape::Backward(const at::Tensor& stream) {
  const at::NoGradGuard no_grad;
  // Rows that left for good are behind the end of `stream`, in the same buffer.
  const at::Tensor whole =
      stream.as_strided({decoder_.Rows(tokens_.size(0)).count(), decoder_.config.hidden},
                        {decoder_.config.hidden, 1});
  for (int64_t i = decoder_.config.layers - 1; i >= horizon_; --i) {
    Enter(i, SubBlock::kMlp, /*backward=*/true);
    Enter(i, SubBlock::kAttention, /*backward=*/true);
    BackwardLayer(i, whole.narrow(0, 0, StreamRows(*rows_[i].space)));
    Leave(i, SubBlock::kAttention, /*backward=*/true);
    saved_[i] = {};
    while (!departures_.empty() && departures_.back().layer == i) {
      Grow(departures_.back(), whole.narrow(0, 0, departures_.back().rows));
      departures_.pop_back();
    }
  }
  BackwardEmbedding(whole);
  if (observer_ != nullptr) observer_->LeaveEmbedding();
}

void Tape::BackwardEmbedding(const at::Tensor& stream) {
  const RowParts parts = decoder_.Rows(tokens_.size(0));
  for (Trainable* trainable : embedding_) {
    at::Tensor& grad = trainable->grad;
    if (trainable->value.is_same(decoder_.embedding)) {
      const at::Tensor& in = decoder_.project_in;
      at::Tensor rows = in.defined() ? stream.matmul(in) : parts.Gather(stream);
      at::Tensor words = tokens_;
      if (decoder_.tensor != nullptr) {
        const at::Tensor local = LocalWords(decoder_, tokens_);
        const at::Tensor here = local.ge(0).logical_and(local.lt(grad.size(0))).nonzero().view(-1);
        rows = rows.index_select(0, here);
        words = local.index_select(0, here);
      }
      grad.index_add_(0, words, rows.to(grad.scalar_type()));
    } else if (trainable->value.is_same(decoder_.positions)) {
      // A whole tensor: a part of its gradient comes of every rank's rows, or of one that has them
      // all.
      if (decoder_.split && !parts.shared() && decoder_.split->rank != 0) continue;
      grad.index_add_(0, parts.Own(positions_) + decoder_.config.position_offset,
                      stream.to(grad.scalar_type()));
    } else {
      grad.add_(stream.t().matmul(decoder_.embedding.index_select(0, tokens_)));
    }
  }
}

void Tape::BackwardLayer(int64_t index, const at::Tensor& stream) {
  const DecoderLayer& layer = decoder_.layers[index];
  const LayerRows& chosen = rows_[index];
  const SubBlockRows rows = RowsOf(*chosen.space, chosen.attention.get());
  const StageContext context = Context(*rows.set);
  const std::vector<Trainable*>& qkv_parameters = ParametersOf(index, Stage::kQkv);
  const bool into_x = NeedsGradientBelow(index, Stage::kQkv);
  const bool into_qkv = into_x || !qkv_parameters.empty();
  const bool into_attention = into_qkv || !ParametersOf(index, Stage::kOutput).empty();

  Boundaries kept = saved_[index];
  if (options_.policies[index].offload) {
    for (at::Tensor* tensor : kept.All()) {
      if (tensor->defined()) *tensor = tensor->to(decoder_.device, /*non_blocking=*/true);
    }
  }

  const bool post_norm = decoder_.config.post_norm;
  // The gradient of the stream, from behind a norm of `sum` to in front of it.
  const auto through_norm = [&](const at::Tensor& sum, const auto& norm, Stage stage) {
    const at::Tensor leaf = Leaf(sum, true);
    at::Tensor normed;
    {
      const at::AutoGradMode grad_mode(true);
      normed = norm(decoder_, layer, leaf);
    }
    at::Tensor gradient = stream;
    gradient.copy_(Backpropagate({normed}, {stream}, {leaf}, ParametersOf(index, stage))[0]);
  };
  const SubBlockRows mlp_rows = chosen.shared() ? rows : RowsOf(*chosen.space, chosen.mlp.get());
  if (post_norm) {
    through_norm(kept.mlp_sum, MlpNorm, Stage::kMlp);
    kept.mlp_sum = at::Tensor();
    kept.x2 = AttentionNorm(decoder_, layer,
                            TakeRows(kept.attention_sum, mlp_rows.own, 0, mlp_rows.set->count));
  }

  // Replays the projections with their graph if it will be walked.
  Qkv graph;
  std::optional<ReplayedInput> x;
  const auto replay_qkv = [&] {
    const at::AutoGradMode grad_mode(into_qkv);
    x.emplace(decoder_, layer, AttentionNorm, rows.parts, kept.x, into_x);
    graph = QkvStage(decoder_, layer, x->leaf(), rows.set->rope, context, {kept.q, kept.k, kept.v},
                     /*want_q=*/true, x->normed());
    if (!kept.q.defined()) kept.q = graph.q.detach();
    if (!kept.k.defined()) kept.k = graph.k.detach();
    if (!kept.v.defined()) kept.v = graph.v.detach();
  };
  at::Tensor o, delta;
  const auto replay_output = [&](const Output& output) {
    const at::AutoGradMode grad_mode(into_attention);
    o = Leaf(kept.o, into_qkv);
    delta = OutputStage(layer, o, context, output);
  };

  if (!kept.x2.defined()) {
    if (!kept.o.defined()) {
      replay_qkv();
      AttentionResult result = Attend(chosen, *rows.set, kept);
      kept.o = result.o;
      kept.lse = result.lse;
    }
    replay_output(Output::Compute());
    // One rounding of an exact sum, as when the sub-block was added to the stream: bit-equal.
    kept.x2 = kept.x + rows.parts.Sum(delta.detach()).Wait();
  }
  BackwardMlp(index, stream, mlp_rows, kept);
  Leave(index, SubBlock::kMlp, /*backward=*/true);
  kept.x2 = kept.gate = kept.up = at::Tensor();
  if (!into_attention) return;
  if (post_norm) through_norm(kept.attention_sum, AttentionNorm, Stage::kOutput);

  if (!kept.o.defined()) {
    replay_qkv();
    AttentionResult result = Attend(chosen, *rows.set, kept);
    kept.o = result.o;
    kept.lse = result.lse;
  }
  if (!o.defined()) replay_output(Output::Skip());
  const at::Tensor dout =
      Backpropagate({delta}, {rows.parts.Gather(TakeRows(stream, rows.own, 0, rows.parts.count()))},
                    {o}, ParametersOf(index, Stage::kOutput))[0];
  o = delta = at::Tensor();
  if (!into_qkv) return;

  if (!graph.q.defined()) replay_qkv();
  AttentionGradients grads;
  if (SeesOthers(chosen)) {
    const at::Tensor& asking = *rows.set->indices;
    const at::Tensor others = chosen.space->Indices(Others(*chosen.attention));
    grads = AttentionBackward(dout.view(kept.o.sizes()), kept.q,
                              Together(kept.k, asking, kept.seen_k, others),
                              Together(kept.v, asking, kept.seen_v, others), kept.o, kept.lse,
                              chosen.space->Runs(*chosen.attention));
    grads.k = grads.k.index_select(0, asking);
    grads.v = grads.v.index_select(0, asking);
  } else {
    grads = AttentionBackward(dout.view(kept.o.sizes()), kept.q, kept.k, kept.v, kept.o, kept.lse,
                              rows.set->segments);
  }
  kept = {};
  const at::Tensor dx = Backpropagate({graph.q, graph.k, graph.v}, {grads.q, grads.k, grads.v},
                                      {x->leaf()}, qkv_parameters, decoder_.key_sharers.get())[0];
  if (!dx.defined()) return;
  RowAdder adder(decoder_, stream, rows.own);
  adder.Add(rows.parts.All(), dx, x->Back(qkv_parameters));
  adder.Finish();
}

void Tape::BackwardMlp(int64_t index, const at::Tensor& stream, const SubBlockRows& rows,
                       const Boundaries& kept) {
  const DecoderLayer& layer = decoder_.layers[index];
  const StageContext context = Context(*rows.set);
  const std::vector<Trainable*>& parameters = ParametersOf(index, Stage::kMlp);
  const bool into_x2 = NeedsGradientBelow(index, Stage::kMlp);
  if (!into_x2 && parameters.empty()) return;
  RowAdder adder(decoder_, stream, rows.own);
  for (const RowTile& tile : rows.parts.Tiles(tile_rows_)) {
    const int64_t own_first = tile.own_first, own_count = tile.parts.count();
    const auto in_tile = [&tile](const at::Tensor& all) {
      return all.defined() ? all.narrow(0, tile.first, tile.parts.rows()) : at::Tensor();
    };
    at::Tensor up = in_tile(kept.up);
    if (up.defined() && up.scalar_type() == at::kByte) {
      up = UnpackSigns(up, decoder_.config.intermediate, decoder_.type);
    }
    std::optional<ReplayedInput> x2;
    at::Tensor delta;
    {
      const at::AutoGradMode grad_mode(true);
      x2.emplace(decoder_, layer, MlpNorm, tile.parts, kept.x2.narrow(0, own_first, own_count),
                 into_x2);
      delta = MlpStage(decoder_, layer, x2->leaf(), TileContext(context, tile),
                       {in_tile(kept.gate), up}, Output::Skip(), nullptr, x2->normed());
    }
    const at::Tensor dx2 = Backpropagate(
        {delta}, {tile.parts.Gather(TakeRows(stream, rows.own, own_first, own_count))},
        {x2->leaf()}, parameters)[0];
    if (!dx2.defined()) continue;
    adder.Add(tile, dx2, x2->Back(parameters));
  }
  adder.Finish();
}

}  // namespace lemo::train
