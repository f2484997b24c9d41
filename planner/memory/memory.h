// How many bytes of tensors one rank needs at most, by category: the figure that a contract is made
// of.
//
// Pure: numbers in, numbers out. The model is the trainer's own bookkeeping, not a fit: buffers
// that are sized beforehand are computed by the same rules (the arena of worker/train/memory, which
// worker/train/tape sizes), and what comes and goes within a layer is followed allocation by
// allocation through forward, loss, backward, optimizer, evaluation, checkpoint and publishing,
// where the peak is the highest point met. Bytes are those of live tensors as the counting
// allocator of a CPU counts them. A byte of the process that is no tensor (code, libraries, the C++
// heap) is not in it.
//
// Between two layers nothing of a layer is alive but the arena, so layers of equal shape need
// looking at once.
//
// A run that trains a predictor is another one (learning.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "planner/cost_model.h"
#include "planner/memory/lesson.h"

namespace lemo::planner {

// Ranks of the adapters beside each projection, 0 for none.
struct AdapterRanks {
  int64_t q = 0, k = 0, v = 0, o = 0, gate = 0, up = 0, down = 0;
};

struct MemoryTuning {
  bool full = false;  // every weight trains; no adapters
  AdapterRanks adapters;
  bool dropout = false;  // of the adapters' inputs
};

// What data parallel ranks divide among them, each including the one before it.
enum class Sharding { kNone, kOptimizer, kGradients, kParameters };

// One layer in the largest micro-batch. Rows are those of one rank's micro-batch.
struct LayerMemory {
  Stored stored = Stored::kAttentionOut;
  bool offload = false;
  int64_t stream = 0;     // rows of the residual stream
  int64_t attention = 0;  // rows that attention computes
  int64_t mlp = 0;
  bool separate = false;  // the MLP computes other rows than attention
  // Rows are named by lists though they may be all of the stream's: how many is known when they
  // have been chosen.
  bool listed = false;
  int64_t longest = 0;  // attention's rows of the document that has most of them
  // Rows of which attention has keys and values, but no queries; with them the keys of the longest
  // document.
  int64_t seen = 0;
  int64_t keys = 0;
  // Rows that a boundary of attention has room for, where that is more than are computed: layers
  // that choose for themselves reserve whole blocks. 0: as many as are computed.
  int64_t reserved = 0;
  // Ranks that share the rows of the stream: each has its part of them, and of what a sub-block
  // reads of them those of its part. Set by the forecast.
  int64_t row_ranks = 1;

  // This rank's of so many rows of a sub-block, at most.
  int64_t Own(int64_t rows) const {
    return row_ranks > 1 ? std::min(rows, (stream + row_ranks - 1) / row_ranks) : rows;
  }
};

// What rows are chosen by, as far as bytes and seconds depend on it.
struct RowChooser {
  enum class By {
    kPlace,      // chance, the place in the document, a table: nothing that is a tensor
    kNorm,       // the length of the stream's rows
    kPredictor,  // networks that read the stream
    kScores,     // true scores: a pass of all rows of the stream through the layers chosen for
  };
  By by = By::kPlace;
  // It reads a stream made for it: of the rows that may enter, or gathered where ranks share them.
  bool own_stream = false;
  // Of a predictor: its networks, held as long as the run; neurons of the first layer of the widest
  // one, both paths together; a block's rows in one vector, not each by itself.
  int64_t held_bytes = 0;
  int64_t first_width = 0;
  bool flat_slice = false;
  // Of true scores: how many layers a choice is for, at most; whether queries and keys are rotated
  // first; whether the MLP chooses by itself.
  int64_t layers = 1;
  bool rotated = false;
  bool mlp = false;
  int64_t block = 64;  // rows; scores are of all pairs of blocks

  bool operator==(const RowChooser&) const = default;
};

// A predictor that goes on learning while the run trains: one lesson at a time, from the largest
// micro-batch of a step. No parameters for none.
struct Lessons {
  LearningHeads heads;      // of the widest; its counts of heads are not looked at
  int64_t parameters = 0;   // of all heads that learn
  int64_t joint = 0;        // of these heads those that guess the mean of several layers
  int64_t layers = 1;       // that a lesson passes through, at most
  int64_t start_bytes = 0;  // of the predictor as the run found it, which stays
};

// A pass that keeps nothing: one micro-batch of an evaluation.
struct EvaluationRows {
  int64_t rows = 0;
  int64_t longest = 0;   // rows of the longest document
  int64_t labelled = 0;  // rows that carry loss
};

// The pass of all rows before the run that makes a table of the blocks: one micro-batch of it.
struct ScoredRows {
  enum class By { kAttention, kLoss, kEntropy };
  By by = By::kAttention;
  bool rotated = false;  // kAttention: of rotated queries and keys
  int64_t rows = 0;
  int64_t longest = 0;  // rows of the longest document
};

struct MemoryOptions {
  ModelShape shape;           // of the whole model
  int64_t element_bytes = 4;  // of weights and activations: 4 for float32, 2 for bfloat16
  MemoryTuning tuning;

  int64_t tensor_ranks = 1;
  bool sequence = false;  // tensor ranks share the rows of the residual stream, too
  int64_t data_ranks = 1;
  Sharding sharding = Sharding::kNone;
  int64_t bucket_bytes = int64_t{32} << 20;  // of gradients that are reduced together

  std::vector<LayerMemory> layers;  // one a layer
  // Rows of the micro-batch before any were left out, and those of the largest that the run can
  // have (an evaluation's too), for which the stream is made.
  int64_t batch_rows = 0;
  int64_t rows_max = 0;
  int64_t longest = 0;  // of the micro-batch's documents, likewise; for choices by true scores
  // Rows that enter the stream: fewer than the batch's where one choice holds for all layers.
  int64_t stream_rows = 0;
  int64_t labelled = 0;   // rows of the stream that carry loss
  int64_t documents = 1;  // of the micro-batch

  RowChooser chooser;  // where rows are left out
  Lessons lessons;     // of the chooser's networks; `chooser` is then a predictor
  ScoredRows scored;   // of the largest; no rows for none

  int64_t mlp_tile_rows = 0;      // 0: chosen as the trainer does on a CPU
  int64_t loss_segment_rows = 0;  // 0: likewise
  EvaluationRows evaluation;      // of the largest; no rows for none
  // Rows on which a published result is compared with the live model; 0 leaves publishing out. A
  // predictor that learnt is measured on those of `evaluation`, without which on the batch's.
  int64_t publish_rows = 256;
  bool merge = false;        // publishing an adapter also writes the merged model
  bool checkpoints = false;  // are written while training
  int64_t threads = 1;       // of the rank; each has scratch in attention
  // Attention's forward kernel has keys and values once more, of all heads.
  bool packs_keys = false;
  // The device has memory of its own: offloaded boundaries are not in it, but come back to it one
  // layer at a time. Else the ring that they are kept in is the same memory, and counts.
  bool own_memory = false;
};

// Bytes. `total` is the peak of the sum and no more than the sum of the peaks.
struct CategoryBytes {
  int64_t weights = 0;            // frozen parameters, a predictor's among them
  int64_t trainable = 0;          // trainable parameters, gradients, optimizer state
  int64_t saved_activations = 0;  // what forward keeps for backward, streams included
  int64_t transient = 0;          // temporaries
  int64_t loss = 0;               // segment buffers
  int64_t total = 0;
  int64_t base = 0;  // of weights the frozen model's, which other runs on it can have with this one
};

// What is highest in one part of a run.
struct Moment {
  std::string_view name;  // "forward", "backward", ...; static storage
  int64_t transient = 0;  // bytes
  int64_t loss = 0;       // bytes, at the same time
};

struct MemoryForecast {
  // `low` has nothing that may or may not coincide; `expected` is what a run should show; a run
  // never shows more than `high`.
  CategoryBytes low, expected, high;
  int64_t host_bytes = 0;  // the ring of offloaded boundaries where it is no memory of the device
  std::vector<Moment> moments;  // in the order of a run; of `expected`
};

// `options.layers` has options.shape.layers entries, every count is above 0 or documented as 0, and
// the ranks divide the shape (TensorRanksFit); anything else gives numbers without meaning.
MemoryForecast ForecastMemory(const MemoryOptions& options);

// Whether a tensor group of `ranks` can share this model, as the trainer's ModelSplit has it.
bool TensorRanksFit(const ModelShape& shape, int64_t ranks);

// Parameters of the whole model, and those that train.
int64_t CountParameters(const ModelShape& shape);
int64_t CountTrainable(const ModelShape& shape, const MemoryTuning& tuning);

// Bytes that a layer keeps for backward, each boundary rounded up to the arena's alignment.
int64_t SavedBytes(const ModelShape& shape, const LayerMemory& layer, int64_t element_bytes,
                   bool down_trains);

}  // namespace lemo::planner
