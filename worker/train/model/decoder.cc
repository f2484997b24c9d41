#include "worker/train/model/decoder.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "absl/strings/str_cat.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/swiglu/swiglu.h"

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

// Projects, normalises per head where the family does, rotates. `norm` may be undefined.
at::Tensor RotatedHeads(const Projection& projection, const at::Tensor& norm, double eps,
                        const at::Tensor& a, int64_t heads, const RopeTables& rope,
                        const StageContext& context, const at::Tensor& known) {
  // The norm's backward reads the projection's value; a bare rotation's does not.
  const bool skip = known.defined() && !norm.defined();
  at::Tensor y = projection(a, context, skip ? Output::Skip() : Output::Compute());
  y = y.view({a.size(0), heads, -1});
  if (norm.defined()) y = kernels::RmsNorm(y, norm, eps);
  if (known.defined()) return KnownRopeFunction::apply(y, rope.cos, rope.sin, known);
  return kernels::Rope(y, rope.cos, rope.sin);
}

}  // namespace

Decoder::Decoder(DecoderConfig decoder_config, const ModelWeights& weights)
    : config(std::move(decoder_config)), type(weights.type()), device(weights.device()) {
  const auto projection = [&weights](const std::string& name, bool biased) {
    Projection made;
    made.name = name;
    made.weight = weights.at(name + ".weight");
    if (biased) made.bias = weights.at(name + ".bias");
    return made;
  };
  embedding = weights.at("model.embed_tokens.weight");
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    const std::string attention = prefix + "self_attn.";
    DecoderLayer layer;
    layer.attention_norm = weights.at(prefix + "input_layernorm.weight");
    layer.q = projection(attention + "q_proj", config.qkv_bias);
    layer.k = projection(attention + "k_proj", config.qkv_bias);
    layer.v = projection(attention + "v_proj", config.qkv_bias);
    layer.o = projection(attention + "o_proj", config.o_bias);
    if (config.qk_norm) {
      layer.q_norm = weights.at(attention + "q_norm.weight");
      layer.k_norm = weights.at(attention + "k_norm.weight");
    }
    layer.mlp_norm = weights.at(prefix + "post_attention_layernorm.weight");
    layer.gate = projection(prefix + "mlp.gate_proj", config.mlp_bias);
    layer.up = projection(prefix + "mlp.up_proj", config.mlp_bias);
    layer.down = projection(prefix + "mlp.down_proj", config.mlp_bias);
    layers.push_back(std::move(layer));
  }
  final_norm = weights.at("model.norm.weight");
  head = config.tied_embeddings ? embedding : weights.at("lm_head.weight");
}

void Decoder::VisitParameters(
    const std::function<void(const std::string&, int64_t, Stage, at::Tensor&)>& visit) {
  visit("model.embed_tokens.weight", -1, Stage::kEmbedding, embedding);
  if (config.tied_embeddings) head = embedding;
  for (int64_t i = 0; i < config.layers; ++i) {
    DecoderLayer& layer = layers[i];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    const auto projection = [&](Projection& p, Stage stage) {
      visit(p.name + ".weight", i, stage, p.weight);
      if (p.bias.defined()) visit(p.name + ".bias", i, stage, p.bias);
    };
    visit(prefix + "input_layernorm.weight", i, Stage::kQkv, layer.attention_norm);
    for (Projection* p : {&layer.q, &layer.k, &layer.v}) projection(*p, Stage::kQkv);
    if (layer.q_norm.defined()) {
      visit(prefix + "self_attn.q_norm.weight", i, Stage::kQkv, layer.q_norm);
      visit(prefix + "self_attn.k_norm.weight", i, Stage::kQkv, layer.k_norm);
    }
    projection(layer.o, Stage::kOutput);
    visit(prefix + "post_attention_layernorm.weight", i, Stage::kMlp, layer.mlp_norm);
    for (Projection* p : {&layer.gate, &layer.up, &layer.down}) projection(*p, Stage::kMlp);
  }
  visit("model.norm.weight", config.layers, Stage::kHead, final_norm);
  if (!config.tied_embeddings) visit("lm_head.weight", config.layers, Stage::kHead, head);
}

Qkv QkvStage(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x,
             const RopeTables& rope, const StageContext& context, const Qkv& known, bool want_q) {
  const DecoderConfig& config = decoder.config;
  const double eps = config.rms_norm_eps;
  const at::Tensor a = kernels::RmsNorm(x, layer.attention_norm, eps);
  const auto rotated = [&](const Projection& p, const at::Tensor& norm, int64_t heads,
                           const at::Tensor& value) {
    return RotatedHeads(p, norm, eps, a, heads, rope, context, value);
  };
  Qkv out;
  if (want_q) out.q = rotated(layer.q, layer.q_norm, config.heads, known.q);
  out.k = rotated(layer.k, layer.k_norm, config.kv_heads, known.k);
  const int64_t rows = x.size(0);
  out.v = layer
              .v(a, context,
                 known.v.defined() ? Output::Known(known.v.view({rows, -1})) : Output::Compute())
              .view({rows, config.kv_heads, config.head_dim});
  return out;
}

at::Tensor OutputStage(const DecoderLayer& layer, const at::Tensor& o, const StageContext& context,
                       const Output& output) {
  return layer.o(o.reshape({o.size(0), -1}), context, output);
}

at::Tensor MlpStage(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x2,
                    const StageContext& context, const GateUp& known, const Output& output,
                    GateUp* keep) {
  const at::Tensor a = kernels::RmsNorm(x2, layer.mlp_norm, decoder.config.rms_norm_eps);
  const auto value = [](const at::Tensor& tensor) {
    return tensor.defined() ? Output::Known(tensor) : Output::Compute();
  };
  const at::Tensor gate = layer.gate(a, context, value(known.gate));
  const at::Tensor up = layer.up(a, context, value(known.up));
  if (keep != nullptr) *keep = {gate, up};
  return layer.down(kernels::SwiGlu(gate, up), context, output);
}

at::Tensor FinalNorm(const Decoder& decoder, const at::Tensor& x) {
  return kernels::RmsNorm(x, decoder.final_norm, decoder.config.rms_norm_eps);
}

}  // namespace lemo::train
