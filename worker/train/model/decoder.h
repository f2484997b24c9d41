// A decoder-only transformer as the tape sees it: an embedding, layers of two residual sub-blocks
// (attention, MLP), each a short chain of stages, and a head.
//
//   x --qkv--> q,k,v --attention--> o,lse --output, residual--> x2 --mlp, residual--> next x
//
// The norms stand before the sub-blocks, inside the first stage of each; in post-norm models they
// follow the residual additions and change the whole stream.
//
// Letters in shapes: N rows, H hidden, A query heads, G key/value heads, D head width, I
// intermediate, V vocabulary, E width of the embedding (H but in some models).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "worker/train/model/family/decoder_config.h"
#include "worker/train/model/model_split.h"
#include "worker/train/model/projection.h"
#include "worker/train/model/weights.h"
#include "worker/train/parallel/communicator.h"
#include "worker/train/parallel/row_parts.h"

namespace lemo::train {

// Where a parameter takes part. Within a layer, in forward order.
enum class Stage { kEmbedding, kQkv, kOutput, kMlp, kHead };

struct DecoderLayer {
  at::Tensor attention_norm, attention_norm_bias;  // [H]; the bias with LayerNorm alone
  Projection q, k, v, o;                           // [A*D, H], [G*D, H], [G*D, H], [H, A*D]
  at::Tensor q_norm, k_norm;                       // [D], undefined without QK norm
  at::Tensor mlp_norm, mlp_norm_bias;              // as those of attention
  Projection gate, up, down;                       // [I, H], [I, H], [H, I]; ReLU MLPs have no gate

  std::vector<Projection*> Projections();
};

// Tensors share storage with the weights it was made from until a tuner replaces them.
struct Decoder {
  DecoderConfig config;
  at::ScalarType type = at::kFloat;  // of weights and activations
  at::Device device = at::kCPU;
  at::Tensor embedding;   // [V, E]
  at::Tensor project_in;  // [H, E], undefined where E = H
  at::Tensor positions;   // [positions, H], undefined without a learned table
  std::vector<DecoderLayer> layers;
  at::Tensor final_norm, final_norm_bias;  // [H], undefined where the model has none
  at::Tensor project_out;                  // [E, H], undefined where E = H
  at::Tensor head;                         // [V, E]; the embedding itself when tied

  // Where a tensor group shares the model: the part that this rank has, and the group. `config` is
  // then the part's, V in the shapes above its share of the words. Absent and null for a whole
  // model.
  std::optional<ModelSplit> split;
  Communicator* tensor = nullptr;
  std::shared_ptr<Communicator> key_sharers;  // ranks with the same key head; null for this alone

  Decoder(DecoderConfig config, const ModelWeights& weights);
  // `weights` are this rank's part of a model that `tensor`, which outlives the decoder, shares.
  // All ranks of the group call.
  Decoder(const ModelSplit& split, const ModelWeights& weights, Communicator& tensor);

  const DecoderConfig& whole_config() const { return split ? split->whole : config; }
  // Of a parameter by its Hugging Face name.
  Shard ShardOf(const std::string& name) const { return split ? split->ShardOf(name) : Shard{}; }
  bool shares_rows() const { return split && split->shares_rows; }
  // How the ranks that share the model have the `rows` rows of a stream.
  RowParts Rows(int64_t rows) const {
    return shares_rows() ? RowParts::Even(tensor, rows) : RowParts::Everywhere(tensor, rows);
  }
  // How they have rows of which `own` are here. All ranks of the group call.
  RowParts RowsWith(int64_t own) const;

  // Calls `visit` with the Hugging Face name, the place and the slot of every parameter, in forward
  // order. A tied head is visited once, as the embedding.
  void VisitParameters(const std::function<void(const std::string& name, int64_t layer, Stage stage,
                                                at::Tensor&)>& visit);
};

// Rotation tables of the rows of one sub-block, [N, D / 2]; undefined where nothing is rotated.
struct RopeTables {
  at::Tensor cos, sin;
};

struct Qkv {
  at::Tensor q;  // [N, A, D], rotated where the model rotates
  at::Tensor k;  // [N, G, D], likewise
  at::Tensor v;  // [N, G, D]
};

// Writes the rows of the stream in front of the first layer to `x`, contiguous: [N, H], or those of
// this rank where `rows` says that N rows are shared. `tokens` and `positions` int64 [N]. Not
// recorded by autograd. All ranks of a tensor group call.
void Embed(const Decoder& decoder, const at::Tensor& tokens, const at::Tensor& positions,
           const RowParts& rows, const at::Tensor& x);

// The stages. Each records its graph when grad mode is on. `known` holds values kept from the
// forward pass (undefined members are computed). Without `want_q`, for rows that are only seen, q
// stays undefined. `normed`, where it was made already, is x behind the norm, and x is not read.
Qkv QkvStage(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x,
             const RopeTables& rope, const StageContext& context, const Qkv& known,
             bool want_q = true, const at::Tensor& normed = {});

// o [N, A, D] -> [N, H], to be added to the stream. In a tensor group a part of a sum over its
// ranks, and so are the gradients of x that the stages give; none of them adds up here.
at::Tensor OutputStage(const DecoderLayer& layer, const at::Tensor& o, const StageContext& context,
                       const Output& output);

// Numbers of `words` (int64) in this rank's part of the vocabulary; below 0 or beyond it those of
// other ranks' words.
at::Tensor LocalWords(const Decoder& decoder, const at::Tensor& words);

struct GateUp {
  at::Tensor gate, up;  // [N, I]; no gate in a ReLU MLP
};

// All that backward reads of a ReLU MLP's `up` is which entries are positive: its last projection
// neither trains nor has a branch that reads the activations. Any tensor with these signs may then
// stand for a known `up`.
bool OnlySignsMatter(const Decoder& decoder, const DecoderLayer& layer);

// x2 [N, H] -> [N, H], to be added to the stream. `keep` (may be null) receives gate and up;
// `normed` as in QkvStage.
at::Tensor MlpStage(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x2,
                    const StageContext& context, const GateUp& known, const Output& output,
                    GateUp* keep, const at::Tensor& normed = {});

// A layer's norms over rows [N, H]: of what a sub-block reads, which the stages make themselves
// unless they are given it. In post-norm models of the stream after the sub-block was added to it,
// which then goes on; rows that took no part are normalised like the others (lemo-spec section 2).
at::Tensor AttentionNorm(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x);
at::Tensor MlpNorm(const Decoder& decoder, const DecoderLayer& layer, const at::Tensor& x);

// Rows of the last stream [N, H] -> rows [N, E] that the head multiplies.
at::Tensor FinalNorm(const Decoder& decoder, const at::Tensor& x);

}  // namespace lemo::train
