// A decoder-only transformer as the tape sees it: an embedding, layers of two residual sub-blocks
// (attention, MLP), each a short chain of stages, and a head.
//
//   x --qkv--> q,k,v --attention--> o,lse --output, residual--> x2 --mlp, residual--> next x
//
// Letters in shapes: N rows, H hidden, A query heads, G key/value heads, D head width, I
// intermediate, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "worker/train/model/family/decoder_config.h"
#include "worker/train/model/projection.h"
#include "worker/train/model/weights.h"

namespace lemo::train {

// Where a parameter takes part. Within a layer, in forward order.
enum class Stage { kEmbedding, kQkv, kOutput, kMlp, kHead };

struct DecoderLayer {
  at::Tensor attention_norm;  // [H]
  Projection q, k, v, o;      // [A*D, H], [G*D, H], [G*D, H], [H, A*D]
  at::Tensor q_norm, k_norm;  // [D], undefined without QK norm
  at::Tensor mlp_norm;        // [H]
  Projection gate, up, down;  // [I, H], [I, H], [H, I]

  std::vector<Projection*> Projections() { return {&q, &k, &v, &o, &gate, &up, &down}; }
};

// Tensors share storage with the weights it was made from until a tuner replaces them.
struct Decoder {
  DecoderConfig config;
  at::ScalarType type = at::kFloat;  // of weights and activations
  at::Device device = at::kCPU;
  at::Tensor embedding;  // [V, H]
  std::vector<DecoderLayer> layers;
  at::Tensor final_norm;  // [H]
  at::Tensor head;        // [V, H]; the embedding itself when tied

  Decoder(DecoderConfig config, const ModelWeights& weights);

  // Calls `visit` with the Hugging Face name, the place and the slot of every parameter, in forward
  // order. A tied head is visited once, as the embedding.
  void VisitParameters(const std::function<void(const std::string& name, int64_t layer, Stage stage,
                                                at::Tensor&)>& visit);
};

// Rotation tables of the rows of one sub-block, [N, D / 2].
struct RopeTables {
  at::Tensor cos, sin;
};

struct Qkv {
  at::Tensor q;  // [N, A, D], rotated
  at::Tensor k;  // [N, G, D], rotated
  at::Tensor v;  // [N, G, D]
};

// The stages. Each records its graph when grad mode is on. `known` holds values kept from the
// forward pass (undefined members are computed). Without `want_q`, for rows that are only seen, q
// stays undefined.
Qkv QkvStage(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x,
             const RopeTables& rope, const StageContext& context, const Qkv& known,
             bool want_q = true);

// o [N, A, D] -> [N, H], to be added to the stream.
at::Tensor OutputStage(const DecoderLayer& layer, const at::Tensor& o, const StageContext& context,
                       const Output& output);

struct GateUp {
  at::Tensor gate, up;  // [N, I]
};

// x2 [N, H] -> [N, H], to be added to the stream. `keep` (may be null) receives gate and up.
at::Tensor MlpStage(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x2,
                    const StageContext& context, const GateUp& known, const Output& output,
                    GateUp* keep);

// Rows of the last stream [N, H] -> normalised rows that the head multiplies.
at::Tensor FinalNorm(const Decoder& decoder, const at::Tensor& x);

}  // namespace lemo::train
