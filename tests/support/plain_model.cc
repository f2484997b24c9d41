#include "tests/support/plain_model.h"

#include <cmath>
#include <limits>

#include "worker/train/model/rope.h"

namespace lemo::train::testing {
namespace {

// Names of OPT's modules and of everybody else's.
struct Names {
  explicit Names(const DecoderConfig& config) {
    if (config.family != "opt") return;
    model = "model.decoder.";
    attention_norm = "self_attn_layer_norm";
    output = "self_attn.out_proj";
    mlp_norm = final_norm = "final_layer_norm";
    up = "fc1";
    down = "fc2";
  }
  std::string model = "model.", attention_norm = "input_layernorm", output = "self_attn.o_proj",
              mlp_norm = "post_attention_layernorm", up = "mlp.up_proj", down = "mlp.down_proj",
              final_norm = "norm";
};

struct Builder {
  const DecoderConfig& config;
  const Parameters& parameters;
  const PlainOptions& options;

  at::Tensor Norm(const at::Tensor& x, const std::string& name) const {
    const at::Tensor& weight = parameters.at(name + ".weight");
    if (config.norm == DecoderConfig::Norm::kLayer) {
      const at::Tensor centred = x - x.mean(-1, true);
      return weight * (centred * at::rsqrt(centred.pow(2).mean(-1, true) + config.rms_norm_eps)) +
             parameters.at(name + ".bias");
    }
    return weight * (x * at::rsqrt(x.pow(2).mean(-1, true) + config.rms_norm_eps));
  }

  at::Tensor Linear(const at::Tensor& x, const std::string& name) const {
    const auto bias = parameters.find(name + ".bias");
    at::Tensor y = at::matmul(x, parameters.at(name + ".weight").t());
    if (bias != parameters.end()) y = y + bias->second;
    const std::string key = "base_model.model." + name + ".lora_";
    if (const auto a = parameters.find(key + "A.weight"); a != parameters.end()) {
      y = y + options.lora_scale *
                  at::matmul(at::matmul(x, a->second.t()), parameters.at(key + "B.weight").t());
    }
    return y;
  }
};

// x [N, heads, D], angles of each row.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(2) / 2;
  const at::Tensor a = x.narrow(2, 0, half), b = x.narrow(2, half, half);
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  return at::cat({a * c - b * s, b * c + a * s}, 2);
}

// True where row i may see row j.
at::Tensor Visible(const MicroBatch& batch) {
  at::Tensor visible = at::zeros({batch.rows(), batch.rows()}, at::kBool);
  for (size_t i = 0; i + 1 < batch.document_starts.size(); ++i) {
    const int64_t first = batch.document_starts[i], end = batch.document_starts[i + 1];
    visible.narrow(0, first, end - first).narrow(1, first, end - first).fill_(true);
  }
  return visible.tril();
}

}  // namespace

at::Tensor PlainHidden(const DecoderConfig& config, const Parameters& parameters,
                       const MicroBatch& batch, const PlainOptions& options) {
  const Builder model{config, parameters, options};
  const Names names(config);
  const int64_t rows = batch.rows();
  const at::Tensor tokens = at::tensor(at::ArrayRef<int32_t>(batch.tokens), at::kLong);
  const at::Tensor positions = at::tensor(at::ArrayRef<int32_t>(batch.positions), at::kLong);
  const at::Tensor& embedding = parameters.at(names.model + "embed_tokens.weight");
  const bool rotates = config.positions == DecoderConfig::Positions::kRope;
  const auto type = embedding.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor cos = at::empty({rows, config.head_dim / 2}, type), sin = at::empty_like(cos);
  if (type == at::kDouble) {
    FillRopeTables(config.rope, config.head_dim, batch.positions, batch.document_starts,
                   cos.data_ptr<double>(), sin.data_ptr<double>());
  } else {
    FillRopeTables(config.rope, config.head_dim, batch.positions, batch.document_starts,
                   cos.data_ptr<float>(), sin.data_ptr<float>());
  }
  at::Tensor x = embedding.index_select(0, tokens);
  if (config.projected_embedding()) x = model.Linear(x, names.model + "project_in");
  if (!rotates) {
    x = x + parameters.at(names.model + "embed_positions.weight")
                .index_select(0, positions + config.position_offset);
  }
  const at::Tensor visible = Visible(batch);
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string prefix = names.model + "layers." + std::to_string(i) + ".";
    // f(x) into the stream, for the rows that compute it.
    const auto add = [&](const at::Tensor& f, const std::vector<at::Tensor>& computed,
                         const std::string& norm) {
      at::Tensor sum =
          x + (computed.empty() ? f : at::where(computed[i].unsqueeze(1), f, at::zeros_like(f)));
      if (!config.post_norm) return sum;
      const at::Tensor normed = model.Norm(sum, prefix + norm);
      if (options.stream_rows.empty()) return normed;
      return at::where(options.stream_rows[i].unsqueeze(1), normed, sum);
    };
    const auto before = [&](const std::string& norm) {
      return config.post_norm ? x : model.Norm(x, prefix + norm);
    };
    at::Tensor a = before(names.attention_norm);
    at::Tensor q = model.Linear(a, prefix + "self_attn.q_proj").view({rows, config.heads, -1});
    at::Tensor k = model.Linear(a, prefix + "self_attn.k_proj").view({rows, config.kv_heads, -1});
    at::Tensor v = model.Linear(a, prefix + "self_attn.v_proj").view({rows, config.kv_heads, -1});
    if (config.qk_norm) {
      q = model.Norm(q, prefix + "self_attn.q_norm");
      k = model.Norm(k, prefix + "self_attn.k_norm");
    }
    if (rotates) {
      q = Rotate(q, cos, sin);
      k = Rotate(k, cos, sin);
    }
    if (options.kv_all) {
      const at::Tensor kept = options.attention_rows[i].view({rows, 1, 1});
      k = at::where(kept, k, k.detach());
      v = at::where(kept, v, v.detach());
    }
    q = q.transpose(0, 1);
    const int64_t group = config.heads / config.kv_heads;
    k = k.repeat_interleave(group, 1).transpose(0, 1);
    v = v.repeat_interleave(group, 1).transpose(0, 1);
    at::Tensor mask = visible;
    if (!options.attention_rows.empty() && !options.kv_all) {
      // Eliminated rows drop out as keys. As queries their output is dropped below; they keep their
      // own keys here only so that no softmax is empty.
      const at::Tensor& kept = options.attention_rows[i];
      mask = mask & (kept.unsqueeze(0) | kept.logical_not().unsqueeze(1));
    }
    at::Tensor scores = at::matmul(q, k.transpose(1, 2)) / std::sqrt(double(config.head_dim));
    scores = scores.masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
    const at::Tensor o = at::matmul(at::softmax(scores, -1), v);
    x = add(model.Linear(o.transpose(0, 1).reshape({rows, -1}), prefix + names.output),
            options.attention_rows, names.attention_norm);
    a = before(names.mlp_norm);
    at::Tensor h = model.Linear(a, prefix + names.up);
    h = config.mlp == DecoderConfig::Mlp::kRelu
            ? at::relu(h)
            : at::silu(model.Linear(a, prefix + "mlp.gate_proj")) * h;
    x = add(model.Linear(h, prefix + names.down), options.mlp_rows, names.mlp_norm);
  }
  return x;
}

at::Tensor PlainLogits(const DecoderConfig& config, const Parameters& parameters,
                       const MicroBatch& batch, const PlainOptions& options) {
  const Builder model{config, parameters, options};
  const Names names(config);
  at::Tensor x = PlainHidden(config, parameters, batch, options);
  if (config.final_norm) x = model.Norm(x, names.model + names.final_norm);
  if (config.projected_embedding()) x = model.Linear(x, names.model + "project_out");
  const at::Tensor& head = parameters.at(
      config.tied_embeddings ? names.model + "embed_tokens.weight" : "lm_head.weight");
  return at::matmul(x, head.t());
}

at::Tensor PlainLabels(const MicroBatch& batch, const PlainOptions& options) {
  const at::Tensor labels = at::tensor(at::ArrayRef<int32_t>(batch.labels), at::kLong);
  if (!options.loss_rows.defined()) return labels;
  return labels.masked_fill(options.loss_rows.logical_not(), kIgnoreLabel);
}

at::Tensor PlainLoss(const DecoderConfig& config, const Parameters& parameters,
                     const MicroBatch& batch, const PlainOptions& options) {
  return at::nll_loss(at::log_softmax(PlainLogits(config, parameters, batch, options), -1),
                      PlainLabels(batch, options), {}, at::Reduction::Sum, kIgnoreLabel);
}

}  // namespace lemo::train::testing
