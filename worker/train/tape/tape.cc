#include "worker/train/tape/tape.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/rows/rows.h"

namespace lemo::train {
namespace {

constexpr Stage kLayerStages[] = {Stage::kQkv, Stage::kOutput, Stage::kMlp};

// Three tensors of width I live at a time in a tile; more rows than this gain no speed.
int64_t ChooseTileRows(int64_t wanted, bool cpu) {
  if (wanted > 0) return wanted;
  return cpu ? 1024 : 4096;
}

int64_t StatisticBytes(at::ScalarType type) { return type == at::kDouble ? 8 : 4; }

int64_t StreamBytes(const Decoder& decoder, int64_t rows) {
  return Arena::Rounded(rows * decoder.config.hidden *
                        static_cast<int64_t>(c10::elementSize(decoder.type)));
}

int64_t SumSavedBytes(const Decoder& decoder, const TapeOptions& options, int64_t horizon,
                      int64_t rows, bool offload) {
  const auto element = static_cast<int64_t>(c10::elementSize(decoder.type));
  int64_t bytes = 0;
  for (int64_t i = horizon; i < decoder.config.layers; ++i) {
    const StoragePolicy& policy = options.policies[i];
    if (policy.offload == offload) {
      bytes += SavedBytes(policy, decoder.config, rows, element, StatisticBytes(decoder.type));
    }
    if (options.separate_mlp_rows && !policy.KeepsX2() && policy.offload == offload) {
      bytes += StreamBytes(decoder, rows);
    }
  }
  return bytes;
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

RowPlan RowPlan::Dense(const DecoderConfig& config, std::shared_ptr<const RowSet> rows) {
  RowPlan plan;
  plan.attention.assign(config.layers, rows);
  plan.mlp = plan.attention;
  return plan;
}

Tape::Tape(const Decoder& decoder, Trainables& trainables, TapeOptions options, int64_t max_rows)
    : decoder_(decoder),
      trainables_(trainables),
      options_(std::move(options)),
      tile_rows_(ChooseTileRows(options_.mlp_tile_rows, decoder.device.is_cpu())),
      parameters_(decoder.config.layers,
                  std::vector<std::vector<Trainable*>>(std::size(kLayerStages))),
      horizon_(LowestLayer(trainables, decoder.config.layers)),
      arena_(StreamBytes(decoder, max_rows) +
                 SumSavedBytes(decoder, options_, horizon_, max_rows, /*offload=*/false),
             decoder.device) {
  for (Trainable& trainable : trainables_) {
    if (trainable.stage == Stage::kEmbedding) {
      embedding_ = &trainable;
    } else if (trainable.stage != Stage::kHead) {
      ParametersOf(trainable.layer, trainable.stage).push_back(&trainable);
    }
  }
  if (horizon_ < decoder.config.layers && embedding_ == nullptr) {
    for (const Stage stage : {Stage::kMlp, Stage::kOutput, Stage::kQkv}) {
      if (!ParametersOf(horizon_, stage).empty()) horizon_stage_ = stage;
    }
  }
  const int64_t host = SumSavedBytes(decoder, options_, horizon_, max_rows, /*offload=*/true);
  if (host > 0)
    host_ = std::make_unique<Arena>(host, at::kCPU, /*pinned=*/!decoder.device.is_cpu());
}

std::vector<Trainable*>& Tape::ParametersOf(int64_t layer, Stage stage) {
  return parameters_[layer][static_cast<int>(stage) - static_cast<int>(Stage::kQkv)];
}

bool Tape::NeedsGradientBelow(int64_t layer, Stage stage) const {
  return embedding_ != nullptr || std::pair(horizon_, horizon_stage_) < std::pair(layer, stage);
}

StageContext Tape::Context(const RowSet& rows) const {
  return {dropout_seed_, training_ ? rows.row_ids : at::Tensor()};
}

at::Tensor Tape::Forward(const at::Tensor& tokens, const RowPlan& plan, const Options& options,
                         bool for_backward) {
  const at::NoGradGuard no_grad;
  arena_.Reset();
  if (host_) host_->Reset();
  tokens_ = tokens;
  plan_ = plan;
  dropout_seed_ = options.dropout_seed;
  training_ = for_backward;
  first_bad_.clear();
  saved_.assign(decoder_.config.layers, Boundaries());

  at::Tensor stream = arena_.Take({tokens.size(0), decoder_.config.hidden}, decoder_.type);
  const int64_t stream_bytes = arena_.used();
  at::index_select_out(stream, decoder_.embedding, 0, tokens);
  const auto finite = [&](const std::string& name) {
    if (!options.check_finite || stream.isfinite().all().item<bool>()) return true;
    first_bad_ = name;
    return false;
  };
  if (!finite("model.embed_tokens")) return stream;
  for (int64_t i = 0; i < decoder_.config.layers; ++i) {
    ForwardLayer(i, stream, for_backward && i >= horizon_);
    if (!finite(absl::StrCat("model.layers.", i))) return stream;
  }
  saved_bytes_ = arena_.used() - stream_bytes + (host_ ? host_->used() : 0);
  return stream;
}

void Tape::ForwardLayer(int64_t index, const at::Tensor& stream, bool keep) {
  const DecoderLayer& layer = decoder_.layers[index];
  const RowSet& rows = *plan_.attention[index];
  const RowSet& mlp_rows = *plan_.mlp[index];
  const StoragePolicy& policy = options_.policies[index];
  // Where only the MLP trains, backward ends at x2 and nothing of attention is wanted.
  const bool only_mlp = index == horizon_ && horizon_stage_ == Stage::kMlp && embedding_ == nullptr;
  const bool keep_attention = keep && !only_mlp;
  Boundaries& saved = saved_[index];

  // Copies a boundary to its slot and returns the tensor to go on with.
  const auto kept = [&](at::Tensor& slot, bool wanted, const at::Tensor& value) {
    if (!wanted) return value;
    slot = (policy.offload ? *host_ : arena_).Take(value.sizes(), value.scalar_type());
    slot.copy_(value, /*non_blocking=*/true);
    return policy.offload ? value : slot;
  };

  {
    const at::Tensor x = kept(saved.x, keep_attention, TakeRows(stream, rows, 0, rows.count));
    const StageContext context = Context(rows);
    Qkv qkv = QkvStage(decoder_, layer, x, rows.rope, context, {});
    const bool keep_qkv = keep_attention && policy.KeepsQkv();
    qkv.q = kept(saved.q, keep_qkv, qkv.q);
    qkv.k = kept(saved.k, keep_qkv, qkv.k);
    qkv.v = kept(saved.v, keep_qkv, qkv.v);
    AttentionResult result = AttentionForward(qkv.q, qkv.k, qkv.v, rows.segments);
    qkv = {};
    const bool keep_out = keep_attention && policy.KeepsAttention();
    result.o = kept(saved.o, keep_out, result.o);
    result.lse = kept(saved.lse, keep_out, result.lse);
    AddRows(stream, rows, 0, rows.count, OutputStage(layer, result.o, context, Output::Compute()));
  }

  // x2 is rebuilt from x and o only where the MLP reads the same rows.
  const bool keep_x2 = keep && (policy.KeepsX2() || only_mlp || &rows != &mlp_rows);
  if (keep_x2) kept(saved.x2, true, TakeRows(stream, mlp_rows, 0, mlp_rows.count));
  if (keep && policy.KeepsGateUp()) {
    Arena& arena = policy.offload ? *host_ : arena_;
    saved.gate = arena.Take({mlp_rows.count, decoder_.config.intermediate}, decoder_.type);
    saved.up = arena.Take({mlp_rows.count, decoder_.config.intermediate}, decoder_.type);
  }
  const StageContext context = Context(mlp_rows);
  for (int64_t first = 0; first < mlp_rows.count; first += tile_rows_) {
    const int64_t count = std::min(tile_rows_, mlp_rows.count - first);
    GateUp made;
    const at::Tensor delta =
        MlpStage(decoder_, layer, TakeRows(stream, mlp_rows, first, count),
                 TileContext(context, first, count), {}, Output::Compute(), &made);
    if (saved.gate.defined()) {
      saved.gate.narrow(0, first, count).copy_(made.gate, /*non_blocking=*/true);
      saved.up.narrow(0, first, count).copy_(made.up, /*non_blocking=*/true);
    }
    AddRows(stream, mlp_rows, first, count, delta);
  }
}

void Tape::Backward(const at::Tensor& stream) {
  const at::NoGradGuard no_grad;
  for (int64_t i = decoder_.config.layers - 1; i >= horizon_; --i) {
    BackwardLayer(i, stream);
    saved_[i] = {};
  }
  if (embedding_ != nullptr) {
    embedding_->grad.index_add_(0, tokens_, stream.to(embedding_->grad.scalar_type()));
  }
}

void Tape::BackwardLayer(int64_t index, const at::Tensor& stream) {
  const DecoderLayer& layer = decoder_.layers[index];
  const RowSet& rows = *plan_.attention[index];
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
      AttentionResult result = AttentionForward(kept.q, kept.k, kept.v, rows.segments);
      kept.o = result.o;
      kept.lse = result.lse;
    }
    replay_output(Output::Compute());
    // One rounding of an exact sum, as when the sub-block was added to the stream: bit-equal.
    kept.x2 = kept.x + delta.detach();
  }
  BackwardMlp(index, stream, kept);
  kept.x2 = kept.gate = kept.up = at::Tensor();
  if (!into_attention) return;

  if (!kept.o.defined()) {
    replay_qkv();
    AttentionResult result = AttentionForward(kept.q, kept.k, kept.v, rows.segments);
    kept.o = result.o;
    kept.lse = result.lse;
  }
  if (!o.defined()) replay_output(Output::Skip());
  const at::Tensor dout = Backpropagate({delta}, {TakeRows(stream, rows, 0, rows.count)}, {o},
                                        ParametersOf(index, Stage::kOutput))[0];
  o = delta = at::Tensor();
  if (!into_qkv) return;

  if (!graph.q.defined()) replay_qkv();
  AttentionGradients grads = AttentionBackward(dout.view(kept.o.sizes()), kept.q, kept.k, kept.v,
                                               kept.o, kept.lse, rows.segments);
  kept = {};
  const at::Tensor dx = Backpropagate({graph.q, graph.k, graph.v}, {grads.q, grads.k, grads.v}, {x},
                                      qkv_parameters)[0];
  if (into_x) AddRows(stream, rows, 0, rows.count, dx);
}

void Tape::BackwardMlp(int64_t index, const at::Tensor& stream, const Boundaries& kept) {
  const DecoderLayer& layer = decoder_.layers[index];
  const RowSet& rows = *plan_.mlp[index];
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
    at::Tensor delta;
    {
      const at::AutoGradMode grad_mode(true);
      delta = MlpStage(decoder_, layer, x2, TileContext(context, first, count),
                       {tile(kept.gate), tile(kept.up)}, Output::Skip(), nullptr);
    }
    const at::Tensor dx2 =
        Backpropagate({delta}, {TakeRows(stream, rows, first, count)}, {x2}, parameters)[0];
    if (into_x2) AddRows(stream, rows, first, count, dx2);
  }
}

}  // namespace lemo::train
