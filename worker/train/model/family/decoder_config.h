// The shape of a decoder-only transformer, whatever its family: what a config.json comes down to.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lemo::train {

// Rotary position embedding. Field names and formulas as in Hugging Face transformers,
// modeling_rope_utils.py.
struct RopeConfig {
  enum class Scaling { kNone, kLinear, kDynamic, kLlama3, kYarn };
  Scaling scaling = Scaling::kNone;
  double theta = 10000.0;
  double factor = 1.0;
  // Length the model was first trained for (llama3, yarn, dynamic).
  int64_t original_max_positions = 0;
  // llama3
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  // yarn
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  std::optional<double> attention_factor;
  std::optional<double> mscale;
  std::optional<double> mscale_all_dim;
  bool truncate = true;
};

struct DecoderConfig {
  enum class Norm { kRms, kLayer };        // RMSNorm; LayerNorm, which has a bias
  enum class Mlp { kSwiGlu, kRelu };       // silu(gate) * up; max(0, up), without a gate
  enum class Positions { kRope, kTable };  // q and k are rotated; a learned row joins the embedding

  std::string family;        // registry key, `llama`
  std::string architecture;  // `LlamaForCausalLM`
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // need not be hidden / heads
  int64_t intermediate = 0;
  int64_t vocabulary = 0;
  int64_t max_positions = 0;
  // Width of the rows of embedding and head; 0 for `hidden`. Otherwise one matrix leads from the
  // embedding to the stream and one from the stream to the head.
  int64_t embedding_width = 0;
  Norm norm = Norm::kRms;
  double rms_norm_eps = 1e-6;  // of either norm
  // Norms follow the residual additions, x = norm(x + f(x)), and do not precede the sub-blocks.
  bool post_norm = false;
  bool final_norm = true;  // a norm between the last layer and the head
  Mlp mlp = Mlp::kSwiGlu;
  Positions positions = Positions::kRope;
  int64_t position_offset = 0;  // kTable: the row of position 0
  RopeConfig rope;
  bool qkv_bias = false;  // q_proj, k_proj, v_proj
  bool o_bias = false;    // o_proj
  bool mlp_bias = false;  // all projections of the MLP
  bool qk_norm = false;   // RMSNorm over head_dim on q and k, before rope
  bool tied_embeddings = false;
  // Attention sees at most this many positions back in these layers; 0 for no window. One entry a
  // layer.
  std::vector<int64_t> sliding_window;
  std::string weights_type = "float32";  // config's dtype, informative
  double initializer_range = 0.02;

  bool projected_embedding() const { return embedding_width > 0 && embedding_width != hidden; }
  int64_t EmbeddingWidth() const { return embedding_width > 0 ? embedding_width : hidden; }
};

}  // namespace lemo::train
