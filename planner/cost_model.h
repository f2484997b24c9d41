// What a training step computes, and how long that should take (lemo-spec section 11).
//
// Pure: numbers in, numbers out. Work is counted apart for the two things that machines do at very
// different rates: dense products (projections, MLP, head) and attention. A rate a kind, taken from
// runs of all rows, then predicts runs of some: CalibrateRates, Seconds.
//
// Counted is what the trainer's tape does, which replays less than whole layers: the boundary that
// ends a sub-block is never computed again, and attention only where its output was not kept.
// Elementwise work (norms, rotation, residual additions, gathers) has no term of its own. It grows
// with the rows as the products do, so a calibrated rate of products includes it; choosing the rows
// is not included.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace lemo::planner {

// What follows `gated_mlp` decides bytes, not FLOP worth counting: planner/memory.
struct ModelShape {
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate = 0;
  int64_t vocabulary = 0;
  bool gated_mlp = true;  // three matrices in the MLP, not two

  int64_t layers = 0;
  int64_t embedding_width = 0;  // of the embedding's rows; 0 for `hidden`
  int64_t position_rows = 0;    // of a learned table; 0 where q and k are rotated
  bool layer_norm = false;      // LayerNorm, with a bias; else RMSNorm
  bool post_norm = false;       // norms follow the residual additions
  bool final_norm = true;
  bool qk_norm = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool tied_embeddings = false;
};

// What trains. Adapters are pairs of matrices of this rank beside the projections of attention and
// of the MLP, 0 for none there; with `full` every matrix trains and there are no adapters.
struct Tuning {
  bool full = false;
  int64_t attention_rank = 0;
  int64_t mlp_rank = 0;
};

// Boundaries of a layer that forward keeps for backward: its storage policy.
enum class Stored {
  kInput,         // x
  kAttentionOut,  // and attention's output
  kMlp,           // and q, k, v, and the stream before the MLP
  kAll,           // and the MLP's two inner activations
};

// The rows of one layer in one micro-batch.
struct LayerRows {
  int64_t attention = 0;
  int64_t mlp = 0;
  int64_t seen = 0;  // of which attention has keys and values, but no queries
  // Pairs of a query and a key that it sees, itself included: CausalPairs of every document's kept
  // rows, added up.
  double pairs = 0;
  // The MLP computes other rows than attention. What it reads is then kept whatever the policy.
  bool separate = false;
  // The rows are some of the stream's, and gathered from it. Costs time, no FLOP.
  bool indexed = false;
};

// Of `rows` rows that each see themselves and all before them.
double CausalPairs(int64_t rows);

struct Work {
  double products = 0;   // FLOP
  double attention = 0;  // FLOP
  double total() const { return products + attention; }
  Work& operator+=(const Work& other);
};

struct StepWork {
  Work forward, replay, backward;  // replay: what backward computes again
  Work Total() const;
};

// A layer's forward and backward pass. The lowest layer's gradient of its input is counted though
// with adapters nobody wants it: one product in some hundreds.
StepWork LayerWork(const ModelShape& shape, const Tuning& tuning, Stored stored,
                   const LayerRows& rows);

// Head and loss over `rows` labelled rows: made once, gradient in the same go.
StepWork HeadWork(const ModelShape& shape, const Tuning& tuning, int64_t rows);

// FLOP/s. What a machine reaches, not what it is sold as.
struct Rates {
  double products = 0;
  double attention = 0;
};

double Seconds(const Work& work, const Rates& rates);

struct MeasuredStep {
  Work work;
  double seconds = 0;
};

// The rates that explain the measured steps best: least squares of relative errors. Steps whose
// work differs in nothing but size (one step alone, too) leave the two rates equal. Nothing
// without steps, or where a step has no time or no work.
std::optional<Rates> CalibrateRates(std::span<const MeasuredStep> steps);

}  // namespace lemo::planner
