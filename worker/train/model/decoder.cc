#include "worker/train/model/decoder.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "absl/strings/str_cat.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/swiglu/swiglu.h"
#include "worker/train/model/family/family.h"

namespace lemo::train {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The graph of a rotation whose result is known: nothing is rotated forward.
class KnownRopeFunction : public torch::autograd::Function<KnownRopeFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor&, const at::Tensor& cos,
                            const at::Tensor& sin, const at::Tensor& rotated) {
    context->save_for_backward({cos, sin});
    return rotated.alias();
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    return {kernels::RopeForward(grads[0].contiguous(), saved[0], saved[1], /*inverse=*/true),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// One of the model's norms over rows [N, H]. LayerNorm as in torch: statistics in fp32 (fp64).
at::Tensor Norm(const DecoderConfig& config, const at::Tensor& x, const at::Tensor& weight,
                const at::Tensor& bias) {
  if (config.norm == DecoderConfig::Norm::kRms) {
    return kernels::RmsNorm(x, weight, config.rms_norm_eps);
  }
  return at::layer_norm(x, {x.size(1)}, weight, bias, config.rms_norm_eps);
}

// What a sub-block's first projections read of its rows x.
at::Tensor StageInput(const DecoderConfig& config, const at::Tensor& x, const at::Tensor& weight,
                      const at::Tensor& bias, const at::Tensor& normed) {
  if (normed.defined()) return normed;
  return config.post_norm ? x : Norm(config, x, weight, bias);
}

Output ValueOf(const at::Tensor& known) {
  return known.defined() ? Output::Known(known) : Output::Compute();
}

// [N, heads * D] -> [N, heads, D]; N may be 0.
at::Tensor SplitHeads(const at::Tensor& flat, int64_t heads) {
  return flat.view({flat.size(0), heads, flat.size(1) / heads});
}

// Projects into heads. `known` [N, heads, D] or undefined.
at::Tensor Heads(const Projection& projection, const at::Tensor& a, int64_t heads,
                 const StageContext& context, const at::Tensor& known) {
  const at::Tensor flat = known.defined() ? known.flatten(1) : known;
  return SplitHeads(projection(a, context, ValueOf(flat)), heads);
}

// Projects, normalises per head where the family does, rotates. `norm` may be undefined.
at::Tensor RotatedHeads(const Projection& projection, const at::Tensor& norm, double eps,
                        const at::Tensor& a, int64_t heads, const RopeTables& rope,
                        const StageContext& context, const at::Tensor& known) {
  // The norm's backward reads the projection's value; a bare rotation's does not.
  const bool skip = known.defined() && !norm.defined();
  at::Tensor y =
      SplitHeads(projection(a, context, skip ? Output::Skip() : Output::Compute()), heads);
  if (norm.defined()) y = kernels::RmsNorm(y, norm, eps);
  if (known.defined()) return KnownRopeFunction::apply(y, rope.cos, rope.sin, known);
  return kernels::Rope(y, rope.cos, rope.sin);
}

}  // namespace

std::vector<Projection*> DecoderLayer::Projections() {
  std::vector<Projection*> all;
  for (Projection* projection : {&q, &k, &v, &o, &gate, &up, &down}) {
    if (projection->weight.defined()) all.push_back(projection);
  }
  return all;
}

Decoder::Decoder(DecoderConfig decoder_config, const ModelWeights& weights)
    : config(std::move(decoder_config)), type(weights.type()), device(weights.device()) {
  const ModuleNames& names = NamesOf(config);
  const auto weight = [&weights](const std::string& name) { return weights.at(name + ".weight"); };
  const auto projection = [&](const std::string& name, bool biased) {
    Projection made;
    made.name = name;
    made.weight = weight(name);
    if (biased) made.bias = weights.at(name + ".bias");
    return made;
  };
  const auto norm_bias = [&](const std::string& name) {
    return config.norm == DecoderConfig::Norm::kLayer ? weights.at(name + ".bias") : at::Tensor();
  };
  embedding = weight(names.embedding);
  if (config.projected_embedding()) {
    project_in = weight(names.project_in);
    project_out = weight(names.project_out);
  }
  if (config.positions == DecoderConfig::Positions::kTable) positions = weight(names.positions);
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string prefix = absl::StrCat(names.layers, i, ".");
    DecoderLayer layer;
    layer.attention_norm = weight(prefix + names.attention_norm);
    layer.attention_norm_bias = norm_bias(prefix + names.attention_norm);
    layer.q = projection(prefix + names.q, config.qkv_bias);
    layer.k = projection(prefix + names.k, config.qkv_bias);
    layer.v = projection(prefix + names.v, config.qkv_bias);
    layer.o = projection(prefix + names.o, config.o_bias);
    if (config.qk_norm) {
      layer.q_norm = weight(prefix + names.q_norm);
      layer.k_norm = weight(prefix + names.k_norm);
    }
    layer.mlp_norm = weight(prefix + names.mlp_norm);
    layer.mlp_norm_bias = norm_bias(prefix + names.mlp_norm);
    if (config.mlp == DecoderConfig::Mlp::kSwiGlu) {
      layer.gate = projection(prefix + names.gate, config.mlp_bias);
    }
    layer.up = projection(prefix + names.up, config.mlp_bias);
    layer.down = projection(prefix + names.down, config.mlp_bias);
    layers.push_back(std::move(layer));
  }
  if (config.final_norm) {
    final_norm = weight(names.final_norm);
    final_norm_bias = norm_bias(names.final_norm);
  }
  head = config.tied_embeddings ? embedding : weight(names.head);
}

Decoder::Decoder(const ModelSplit& part, const ModelWeights& weights, Communicator& group)
    : Decoder(part.local, weights) {
  split = part;
  tensor = &group;
  for (DecoderLayer& layer : layers) {
    layer.o.adds_bias = layer.down.adds_bias = part.rank == 0;
  }
  if (part.kv_copies() > 1) key_sharers = group.Split(part.rank / part.kv_copies(), part.rank);
}

void Decoder::VisitParameters(
    const std::function<void(const std::string&, int64_t, Stage, at::Tensor&)>& visit) {
  const ModuleNames& names = NamesOf(config);
  // A module's tensors, those that the model has.
  const auto module = [&visit](const std::string& name, int64_t layer, Stage stage,
                               at::Tensor* weight, at::Tensor* bias = nullptr) {
    if (weight->defined()) visit(name + ".weight", layer, stage, *weight);
    if (bias != nullptr && bias->defined()) visit(name + ".bias", layer, stage, *bias);
  };
  module(names.embedding, -1, Stage::kEmbedding, &embedding);
  if (config.tied_embeddings) head = embedding;
  module(names.project_in, -1, Stage::kEmbedding, &project_in);
  module(names.positions, -1, Stage::kEmbedding, &positions);
  for (int64_t i = 0; i < config.layers; ++i) {
    DecoderLayer& layer = layers[i];
    const std::string prefix = absl::StrCat(names.layers, i, ".");
    const auto norm = [&](const char* name, Stage stage, at::Tensor* weight, at::Tensor* bias) {
      module(prefix + name, i, stage, weight, bias);
    };
    const auto projection = [&](Projection& p, Stage stage) {
      module(p.name, i, stage, &p.weight, &p.bias);
    };
    const bool before = !config.post_norm;
    if (before) {
      norm(names.attention_norm, Stage::kQkv, &layer.attention_norm, &layer.attention_norm_bias);
    }
    for (Projection* p : {&layer.q, &layer.k, &layer.v}) projection(*p, Stage::kQkv);
    module(prefix + names.q_norm, i, Stage::kQkv, &layer.q_norm);
    module(prefix + names.k_norm, i, Stage::kQkv, &layer.k_norm);
    projection(layer.o, Stage::kOutput);
    if (before) {
      norm(names.mlp_norm, Stage::kMlp, &layer.mlp_norm, &layer.mlp_norm_bias);
    } else {
      norm(names.attention_norm, Stage::kOutput, &layer.attention_norm, &layer.attention_norm_bias);
    }
    for (Projection* p : {&layer.gate, &layer.up, &layer.down}) projection(*p, Stage::kMlp);
    if (!before) norm(names.mlp_norm, Stage::kMlp, &layer.mlp_norm, &layer.mlp_norm_bias);
  }
  module(names.final_norm, config.layers, Stage::kHead, &final_norm, &final_norm_bias);
  module(names.project_out, config.layers, Stage::kHead, &project_out);
  if (!config.tied_embeddings) module(names.head, config.layers, Stage::kHead, &head);
}

RowParts Decoder::RowsWith(int64_t own) const {
  if (!shares_rows()) return Rows(own);
  const auto ranks = static_cast<size_t>(tensor->size());
  const at::TensorOptions integers = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor all = at::empty({tensor->size()}, integers);
  tensor->AllGather(at::full({1}, own, integers), all, std::vector<int64_t>(ranks, 1)).Wait();
  const at::Tensor here = all.cpu();
  const int64_t* counts = here.const_data_ptr<int64_t>();
  return RowParts::Shared(tensor, std::vector<int64_t>(counts, counts + ranks));
}

void Embed(const Decoder& decoder, const at::Tensor& tokens, const at::Tensor& positions,
           const RowParts& rows, const at::Tensor& x) {
  const at::NoGradGuard no_grad;
  at::Tensor out = x;
  if (decoder.tensor != nullptr) {
    // Every row from the one rank that has its word.
    const at::Tensor local = LocalWords(decoder, tokens);
    const at::Tensor here =
        local.ge(0).logical_and(local.lt(decoder.embedding.size(0))).nonzero().view(-1);
    const at::Tensor all =
        rows.shared() ? at::empty({rows.rows(), decoder.config.hidden}, out.options()) : out;
    all.zero_();
    all.index_copy_(0, here, decoder.embedding.index_select(0, local.index_select(0, here)));
    const at::Tensor sum = rows.Sum(all).Wait();
    if (rows.shared()) out.copy_(sum);
  } else if (decoder.project_in.defined()) {
    out.copy_(at::linear(decoder.embedding.index_select(0, tokens), decoder.project_in));
  } else {
    at::index_select_out(out, decoder.embedding, 0, tokens);
  }
  if (decoder.positions.defined()) {
    out.add_(
        decoder.positions.index_select(0, rows.Own(positions) + decoder.config.position_offset));
  }
}

at::Tensor LocalWords(const Decoder& decoder, const at::Tensor& words) {
  return decoder.split ? words - decoder.split->vocabulary_first() : words;
}

Qkv QkvStage(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x,
             const RopeTables& rope, const StageContext& context, const Qkv& known, bool want_q,
             const at::Tensor& normed) {
  const DecoderConfig& config = decoder.config;
  const at::Tensor a =
      StageInput(config, x, layer.attention_norm, layer.attention_norm_bias, normed);
  const auto rotated = [&](const Projection& p, const at::Tensor& norm, int64_t heads,
                           const at::Tensor& value) {
    if (config.positions != DecoderConfig::Positions::kRope) {
      return Heads(p, a, heads, context, value);
    }
    return RotatedHeads(p, norm, config.rms_norm_eps, a, heads, rope, context, value);
  };
  Qkv out;
  if (want_q) out.q = rotated(layer.q, layer.q_norm, config.heads, known.q);
  out.k = rotated(layer.k, layer.k_norm, config.kv_heads, known.k);
  out.v = Heads(layer.v, a, config.kv_heads, context, known.v);
  return out;
}

at::Tensor OutputStage(const DecoderLayer& layer, const at::Tensor& o, const StageContext& context,
                       const Output& output) {
  return layer.o(o.flatten(1), context, output);
}

at::Tensor MlpStage(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x2,
                    const StageContext& context, const GateUp& known, const Output& output,
                    GateUp* keep, const at::Tensor& normed) {
  const DecoderConfig& config = decoder.config;
  const at::Tensor a = StageInput(config, x2, layer.mlp_norm, layer.mlp_norm_bias, normed);
  if (config.mlp == DecoderConfig::Mlp::kRelu) {
    const at::Tensor up = layer.up(a, context, ValueOf(known.up));
    if (keep != nullptr) *keep = {at::Tensor(), up};
    return layer.down(at::relu(up), context, output);
  }
  const at::Tensor gate = layer.gate(a, context, ValueOf(known.gate));
  const at::Tensor up = layer.up(a, context, ValueOf(known.up));
  if (keep != nullptr) *keep = {gate, up};
  return layer.down(kernels::SwiGlu(gate, up), context, output);
}

bool OnlySignsMatter(const Decoder& decoder, const DecoderLayer& layer) {
  return decoder.config.mlp == DecoderConfig::Mlp::kRelu && !layer.down.branch &&
         !layer.down.weight.requires_grad();
}

at::Tensor AttentionNorm(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x) {
  return Norm(decoder.config, x, layer.attention_norm, layer.attention_norm_bias);
}

at::Tensor MlpNorm(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x) {
  return Norm(decoder.config, x, layer.mlp_norm, layer.mlp_norm_bias);
}

at::Tensor FinalNorm(const Decoder& decoder, const at::Tensor& x) {
  at::Tensor rows = x;
  if (decoder.config.final_norm) {
    rows = Norm(decoder.config, x, decoder.final_norm, decoder.final_norm_bias);
  }
  if (!decoder.project_out.defined()) return rows;
  return LinearGraph(rows, decoder.project_out, {}, Output::Compute());
}

}  // namespace lemo::train
