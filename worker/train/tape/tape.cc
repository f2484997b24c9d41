#include "worker/train/tape/tape.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
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
  return Arena::Rounded(rows * decoder.config.hidden *
                        static_cast<int64_t>(c10::elementSize(decoder.type)));
}

int64_t LowestLayer(const Trainables& trainables, int64_t layers) {
  int64_t lowest = layers;
  for (const Trainable& trainable : trainables) lowest = std::min(lowest, trainable.layer);
  return std::max<int64_t>(lowest, 0);
}

// Rows `first` .. `first + count` of a row set, read from and added to the stream.
at::Tensor TakeRows(const at::Tensor& stream, const RowSet& rows, int64_t first, int64_t count) {
  if (!rows.indices) return stream.narrow(0, first, count);
  return kernels::GatherRows(stream, rows.indices->narrow(0, first, count));
}

void AddRows(const at::Tensor& stream, const RowSet& rows, int64_t first, int64_t count,
             const at::Tensor& delta) {
  if (!rows.indices) {
    kernels::ScatterAddRows(stream.narrow(0, first, count), std::nullopt, delta);
  } else {
    kernels::ScatterAddRows(stream, rows.indices->narrow(0, first, count), delta);
  }
}

StageContext TileContext(const StageContext& context, int64_t first, int64_t count) {
  StageContext tile = context;
  if (tile.row_ids.defined()) tile.row_ids = tile.row_ids.narrow(0, first, count);
  return tile;
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
// `leaves` (undefined for a leaf that wants none).
std::vector<at::Tensor> Backpropagate(const std::vector<at::Tensor>& outputs,
                                      const std::vector<at::Tensor>& output_grads,
                                      const std::vector<at::Tensor>& leaves,
                                      const std::vector<Trainable*>& parameters) {
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
    if (const at::Tensor& grad = grads[next++]; grad.defined()) parameter->grad.add_(grad);
  }
  return result;
}

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
        policy, decoder_.config, bounds.layers[i],
        static_cast<int64_t>(c10::elementSize(decoder_.type)), StatisticBytes(decoder_.type),
        /*down_trains=*/!OnlySignsMatter(decoder_, decoder_.layers[i]));
  }
  arena_.Reserve(device);
  host_.Reserve(host);
}

std::shared_ptr<const RowSet> Tape::LayerRows::AttentionRows() const {
  return attention ? space->Rows(*attention) : space->all();
}

std::shared_ptr<const RowSet> Tape::LayerRows::MlpRows() const {
  return mlp ? space->Rows(*mlp) : space->all();
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
  order_.reset();
  keep_left_rows_ = options.keep_left_rows;
  kv_all_ = options.kv_all;
  dropout_seed_ = options.dropout_seed;
  training_ = for_backward;
  first_bad_.clear();
  saved_.assign(decoder_.config.layers, Boundaries());

  at::Tensor whole = arena_.Take({tokens.size(0), decoder_.config.hidden}, decoder_.type);
  const int64_t stream_bytes = arena_.used();
  Embed(decoder_, tokens_, positions_, whole);
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
        stream = whole.narrow(0, 0, space_->rows());
      }
    }
    ForwardLayer(i, stream, source, for_backward && i >= horizon_);
    if (!finite(stream, absl::StrCat(names.layers, i))) return stream;
  }
  saved_bytes_ = arena_.used() - stream_bytes + host_.used();
  return keep_left_rows_ ? whole : stream;
}

// Partitions the stream: rows that stay to the front, those that leave behind them, each in order.
void Tape::Shrink(int64_t layer, const BlockMask& stay, const at::Tensor& stream) {
  Departure departure{layer, stream.size(0), space_->Indices(stay), space_->Indices(Others(stay))};
  const int64_t staying = departure.stay.size(0), leaving = departure.left.size(0);
  if (leaving == 0) return;
  const at::Tensor front = kernels::GatherRows(stream, departure.stay);
  const at::Tensor back =
      keep_left_rows_ ? kernels::GatherRows(stream, departure.left) : at::Tensor();
  stream.narrow(0, 0, staying).copy_(front);
  if (keep_left_rows_) stream.narrow(0, staying, leaving).copy_(back);

  if (!order_) order_ = at::arange(tokens_.size(0), tokens_.options());
  const at::Tensor front_order = order_->narrow(0, 0, departure.rows);
  std::vector<at::Tensor> parts = {front_order.index_select(0, departure.stay)};
  if (keep_left_rows_) {
    parts.push_back(front_order.index_select(0, departure.left));
    parts.push_back(order_->narrow(0, departure.rows, order_->size(0) - departure.rows));
  }
  order_ = at::cat(parts);
  space_ = space_->Shrunk(stay);
  departures_.push_back(std::move(departure));
}

// Undoes Shrink for the gradient: `stream` has the rows before the departure.
void Tape::Grow(const Departure& departure, const at::Tensor& stream) const {
  const int64_t staying = departure.stay.size(0), leaving = departure.left.size(0);
  const at::Tensor front = stream.narrow(0, 0, staying).clone();
  const at::Tensor back =
      keep_left_rows_ ? stream.narrow(0, staying, leaving).clone() : at::Tensor();
  stream.index_copy_(0, departure.stay, front);
  if (keep_left_rows_) {
    stream.index_copy_(0, departure.left, back);
  } else {
    stream.index_fill_(0, departure.left, 0);
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
  // Rows of the stream as a sub-block reads them, and their norm where one pass over the stream
  // makes both. `slot` is undefined or takes the rows.
  const auto read = [&](const RowSet& rows, int64_t first, int64_t count, const at::Tensor& weight,
                        const at::Tensor& slot) -> std::pair<at::Tensor, at::Tensor> {
    if (rows.indices && fuses_norm && (!slot.defined() || slot.device() == stream.device())) {
      kernels::NormedRows made = kernels::GatherRmsNorm(
          stream, rows.indices->narrow(0, first, count), weight, config.rms_norm_eps,
          slot.defined() ? std::optional(slot) : std::nullopt);
      return {made.x, made.y};
    }
    const at::Tensor x = TakeRows(stream, rows, first, count);
    if (!slot.defined()) return {x, at::Tensor()};
    slot.copy_(x, /*non_blocking=*/true);
    return {policy.offload ? x : slot, at::Tensor()};
  };
  const auto normalise = [&](at::Tensor& slot, const auto& norm) {
    kept(slot, keep, stream);
    at::Tensor rows = stream;
    rows.copy_(norm(decoder_, layer, stream));
  };

  std::shared_ptr<const RowSet> row_set = chosen.AttentionRows();
  {
    const RowSet& rows = *row_set;
    if (keep_attention) saved.x = arena.Take({rows.count, config.hidden}, decoder_.type);
    const StageContext context = Context(rows);
    Qkv qkv;
    {
      const auto [x, normed] = read(rows, 0, rows.count, layer.attention_norm, saved.x);
      qkv = QkvStage(decoder_, layer, x, rows.rope, context, {}, /*want_q=*/true, normed);
    }
    const bool keep_qkv = keep_attention && policy.KeepsQkv();
    Boundaries values;
    values.q = kept(saved.q, keep_qkv, qkv.q);
    values.k = kept(saved.k, keep_qkv, qkv.k);
    values.v = kept(saved.v, keep_qkv, qkv.v);
    qkv = {};
    if (SeesOthers(chosen)) {
      const std::shared_ptr<const RowSet> others = space_->Rows(Others(*chosen.attention));
      const Qkv seen = QkvStage(decoder_, layer, TakeRows(stream, *others, 0, others->count),
                                others->rope, Context(*others), {}, /*want_q=*/false);
      values.seen_k = kept(saved.seen_k, keep_attention, seen.k);
      values.seen_v = kept(saved.seen_v, keep_attention, seen.v);
    }
    AttentionResult result = Attend(chosen, rows, values);
    values = {};
    const bool keep_out = keep_attention && policy.KeepsAttention();
    result.o = kept(saved.o, keep_out, result.o);
    result.lse = kept(saved.lse, keep_out, result.lse);
    AddRows(stream, rows, 0, rows.count, OutputStage(layer, result.o, context, Output::Compute()));
  }
  if (post_norm) normalise(saved.attention_sum, AttentionPostNorm);

  chosen.mlp = source != nullptr ? source->Mlp(index, *space_, stream) : nullptr;
  if (!chosen.shared()) row_set = chosen.MlpRows();
  const RowSet& mlp_rows = *row_set;
  // x2 is rebuilt from x and o only where the MLP reads the same rows; in post-norm models from the
  // sum that it is the norm of.
  const bool keep_x2 = keep && !post_norm && (policy.KeepsX2() || only_mlp || !chosen.shared());
  if (keep_x2) saved.x2 = arena.Take({mlp_rows.count, config.hidden}, decoder_.type);
  if (keep && policy.KeepsGateUp()) {
    const int64_t width = config.intermediate;
    if (layer.gate.weight.defined()) {
      saved.gate = arena.Take({mlp_rows.count, width}, decoder_.type);
    }
    saved.up = OnlySignsMatter(decoder_, layer)
                   ? arena.Take({mlp_rows.count, SignBytes(width)}, at::kByte)
                   : arena.Take({mlp_rows.count, width}, decoder_.type);
  }
  const StageContext context = Context(mlp_rows);
  for (int64_t first = 0; first < mlp_rows.count; first += tile_rows_) {
    const int64_t count = std::min(tile_rows_, mlp_rows.count - first);
    GateUp made;
    const auto [x2, normed] =
        read(mlp_rows, first, count, layer.mlp_norm,
             saved.x2.defined() ? saved.x2.narrow(0, first, count) : at::Tensor());
    const at::Tensor delta = MlpStage(decoder_, layer, x2, TileContext(context, first, count), {},
                                      Output::Compute(), &made, normed);
    if (saved.gate.defined()) {
      saved.gate.narrow(0, first, count).copy_(made.gate, /*non_blocking=*/true);
    }
    if (saved.up.defined()) {
      const bool signs = saved.up.scalar_type() == at::kByte;
      saved.up.narrow(0, first, count)
          .copy_(signs ? PackSigns(made.up) : made.up, /*non_blocking=*/true);
    }
    AddRows(stream, mlp_rows, first, count, delta);
  }
  if (post_norm) normalise(saved.mlp_sum, MlpPostNorm);
}

void Tape::Backward(const at::Tensor& stream) {
  const at::NoGradGuard no_grad;
  // Rows that left for good are behind the end of `stream`, in the same buffer.
  const at::Tensor whole =
      stream.as_strided({tokens_.size(0), decoder_.config.hidden}, {decoder_.config.hidden, 1});
  for (int64_t i = decoder_.config.layers - 1; i >= horizon_; --i) {
    BackwardLayer(i, whole.narrow(0, 0, rows_[i].space->rows()));
    saved_[i] = {};
    while (!departures_.empty() && departures_.back().layer == i) {
      Grow(departures_.back(), whole.narrow(0, 0, departures_.back().rows));
      departures_.pop_back();
    }
  }
  BackwardEmbedding(whole);
}

void Tape::BackwardEmbedding(const at::Tensor& stream) {
  for (Trainable* trainable : embedding_) {
    at::Tensor& grad = trainable->grad;
    if (trainable->value.is_same(decoder_.embedding)) {
      const at::Tensor& in = decoder_.project_in;
      const at::Tensor rows = in.defined() ? stream.matmul(in) : stream;
      grad.index_add_(0, tokens_, rows.to(grad.scalar_type()));
    } else if (trainable->value.is_same(decoder_.positions)) {
      grad.index_add_(0, positions_ + decoder_.config.position_offset,
                      stream.to(grad.scalar_type()));
    } else {
      grad.add_(stream.t().matmul(decoder_.embedding.index_select(0, tokens_)));
    }
  }
}

void Tape::BackwardLayer(int64_t index, const at::Tensor& stream) {
  const DecoderLayer& layer = decoder_.layers[index];
  const std::shared_ptr<const RowSet> row_set = rows_[index].AttentionRows();
  const RowSet& rows = *row_set;
  const StageContext context = Context(rows);
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
  const std::shared_ptr<const RowSet> mlp_rows =
      rows_[index].shared() ? row_set : rows_[index].MlpRows();
  if (post_norm) {
    through_norm(kept.mlp_sum, MlpPostNorm, Stage::kMlp);
    kept.mlp_sum = at::Tensor();
    kept.x2 = AttentionPostNorm(decoder_, layer,
                                TakeRows(kept.attention_sum, *mlp_rows, 0, mlp_rows->count));
  }

  // Replays the projections with their graph if it will be walked.
  Qkv graph;
  at::Tensor x;
  const auto replay_qkv = [&] {
    const at::AutoGradMode grad_mode(into_qkv);
    x = Leaf(kept.x, into_x);
    graph = QkvStage(decoder_, layer, x, rows.rope, context, {kept.q, kept.k, kept.v});
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
      AttentionResult result = Attend(rows_[index], rows, kept);
      kept.o = result.o;
      kept.lse = result.lse;
    }
    replay_output(Output::Compute());
    // One rounding of an exact sum, as when the sub-block was added to the stream: bit-equal.
    kept.x2 = kept.x + delta.detach();
  }
  BackwardMlp(index, stream, *mlp_rows, kept);
  kept.x2 = kept.gate = kept.up = at::Tensor();
  if (!into_attention) return;
  if (post_norm) through_norm(kept.attention_sum, AttentionPostNorm, Stage::kOutput);

  if (!kept.o.defined()) {
    replay_qkv();
    AttentionResult result = Attend(rows_[index], rows, kept);
    kept.o = result.o;
    kept.lse = result.lse;
  }
  if (!o.defined()) replay_output(Output::Skip());
  const at::Tensor dout = Backpropagate({delta}, {TakeRows(stream, rows, 0, rows.count)}, {o},
                                        ParametersOf(index, Stage::kOutput))[0];
  o = delta = at::Tensor();
  if (!into_qkv) return;

  if (!graph.q.defined()) replay_qkv();
  AttentionGradients grads;
  if (SeesOthers(rows_[index])) {
    const at::Tensor others = rows_[index].space->Indices(Others(*rows_[index].attention));
    grads = AttentionBackward(dout.view(kept.o.sizes()), kept.q,
                              Together(kept.k, *rows.indices, kept.seen_k, others),
                              Together(kept.v, *rows.indices, kept.seen_v, others), kept.o,
                              kept.lse, rows_[index].space->Runs(*rows_[index].attention));
    grads.k = grads.k.index_select(0, *rows.indices);
    grads.v = grads.v.index_select(0, *rows.indices);
  } else {
    grads = AttentionBackward(dout.view(kept.o.sizes()), kept.q, kept.k, kept.v, kept.o, kept.lse,
                              rows.segments);
  }
  kept = {};
  const at::Tensor dx = Backpropagate({graph.q, graph.k, graph.v}, {grads.q, grads.k, grads.v}, {x},
                                      qkv_parameters)[0];
  if (into_x) AddRows(stream, rows, 0, rows.count, dx);
}

void Tape::BackwardMlp(int64_t index, const at::Tensor& stream, const RowSet& rows,
                       const Boundaries& kept) {
  const DecoderLayer& layer = decoder_.layers[index];
  const StageContext context = Context(rows);
  const std::vector<Trainable*>& parameters = ParametersOf(index, Stage::kMlp);
  const bool into_x2 = NeedsGradientBelow(index, Stage::kMlp);
  if (!into_x2 && parameters.empty()) return;
  for (int64_t first = 0; first < rows.count; first += tile_rows_) {
    const int64_t count = std::min(tile_rows_, rows.count - first);
    const auto tile = [first, count](const at::Tensor& all) {
      return all.defined() ? all.narrow(0, first, count) : at::Tensor();
    };
    const at::Tensor x2 = Leaf(tile(kept.x2), into_x2);
    at::Tensor up = tile(kept.up);
    if (up.defined() && up.scalar_type() == at::kByte) {
      up = UnpackSigns(up, decoder_.config.intermediate, decoder_.type);
    }
    at::Tensor delta;
    {
      const at::AutoGradMode grad_mode(true);
      delta = MlpStage(decoder_, layer, x2, TileContext(context, first, count),
                       {tile(kept.gate), up}, Output::Skip(), nullptr);
    }
    const at::Tensor dx2 =
        Backpropagate({delta}, {TakeRows(stream, rows, first, count)}, {x2}, parameters)[0];
    if (into_x2) AddRows(stream, rows, first, count, dx2);
  }
}

}  // namespace lemo::train
