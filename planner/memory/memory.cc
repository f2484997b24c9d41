#include "planner/memory/memory.h"

#include <algorithm>

#include "planner/memory/choice_bytes.h"
#include "planner/memory/layer_bytes.h"
#include "planner/memory/lesson.h"
#include "planner/memory/meter.h"
#include "planner/memory/parameters.h"
#include "planner/memory/trainer_sizes.h"

namespace lemo::planner {
namespace {

constexpr int64_t kAlignment = 64;                // of the arena's slices
constexpr int64_t kNormGrain = int64_t{1} << 13;  // elements of a chunk of RMSNorm, at least

int64_t Slot(int64_t rows, int64_t width, int64_t bytes) {
  return (rows * width * bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// One run of the forecast; the functions are its parts.
class Forecast {
 public:
  explicit Forecast(const MemoryOptions& options)
      : options_(options),
        part_(PartOf(options.shape, options.tensor_ranks)),
        trained_(CountTrained(part_, options.tuning)),
        row_ranks_(options.sequence ? options.tensor_ranks : 1),
        e_(options.element_bytes),
        rope_(options.shape.position_rows == 0) {}

  MemoryForecast Run();

 private:
  int64_t ModelWeights() const { return CountWeights(part_).all * e_; }
  int64_t Weights() const {
    return ModelWeights() + options_.chooser.held_bytes + options_.lessons.start_bytes;
  }
  int64_t Trainable() const;
  int64_t SavedBy(const LayerMemory& asked) const {
    LayerMemory layer = asked;
    layer.row_ranks = row_ranks_;
    layer.attention = std::max(layer.attention, layer.reserved);
    if (!layer.separate) layer.mlp = std::max(layer.mlp, layer.reserved);
    return SavedBytes(part_, layer, e_, options_.tuning.full || options_.tuning.adapters.down > 0);
  }
  // Of boundaries in the arena, or in the ring of offloaded ones.
  int64_t Saved(bool in_ring) const;
  int64_t Arena() const;
  // Tokens, labels, positions, row ids and rotation tables of a micro-batch, which live as long as
  // it does.
  int64_t BatchBytes(int64_t rows, bool rotates) const {
    const int64_t bounds = (options_.documents + 1) * 4;  // of its documents
    return rows * (3 * kTokenBytes + 4) + bounds +
           (rope_ && rotates ? rows * part_.head_dim * kStatisticBytes : 0);
  }
  // This rank's of the rows of a stream, at most.
  int64_t Own(int64_t rows) const { return (rows + row_ranks_ - 1) / row_ranks_; }
  LayerScene SceneOf(const LayerMemory& layer) const;
  // Highest of all layers; equal neighbours are looked at once.
  int64_t HighestForward() const;
  int64_t HighestBackward() const;
  // Of a segment of the loss over so many labelled rows.
  int64_t SegmentOf(int64_t labelled) const {
    return SegmentRows(options_.loss_segment_rows, part_.vocabulary, labelled);
  }
  int64_t LossBytes(int64_t rows, int64_t labelled, bool gradient) const;
  int64_t NormWeightBytes(int64_t rows) const;
  int64_t EmbedBytes(int64_t rows) const;
  // Of a choice among the rows of the micro-batch.
  int64_t ChoosingBytes() const;
  int64_t TrueScoreBytes() const;
  // Of what networks see of a pass, beside the stream that it reads; `joint` of them wait for its
  // last layer.
  int64_t LessonBytes(const LessonRows& of, int64_t joint) const;
  // While what ranks by the head that was taught is made anew: both paths' first matrix, in fp32,
  // and with the norm in it.
  int64_t TaughtHeadBytes() const {
    return 3 * options_.lessons.heads.ParametersOfOne(part_) * kMasterBytes;
  }
  int64_t LearningBytes() const;

  void AddSteps(int64_t snapshot, const char* forward, const char* backward);
  void AddScores();
  void AddEvaluation(int64_t snapshot, const char* name);
  void AddPublishing();
  void AddPublishedPredictor();
  void Add(const char* name, int64_t transient, int64_t loss = 0) {
    forecast_.moments.push_back({name, transient, loss});
  }

  const MemoryOptions& options_;
  const ModelShape part_;
  const ParameterCount trained_;
  const int64_t row_ranks_;  // that share the rows of the stream
  const int64_t e_;
  const bool rope_;
  MemoryForecast forecast_;
};

// Masters, gradients and two moments in fp32, and values of their own where they compute in another
// type. Tuners make masters, values and gradients whole; what ranks divide is divided after that.
int64_t Forecast::Trainable() const {
  const int64_t count = trained_.all;
  const int64_t own_values = e_ < kMasterBytes ? count * e_ : 0;
  const int64_t attached = 2 * count * kMasterBytes + own_values;
  const int64_t ranks = options_.data_ranks;
  const int64_t share = (count + ranks - 1) / ranks;
  if (options_.sharding == Sharding::kNone || ranks == 1) {
    // Gangs gather gradients in buckets, one at a time beside the tensors that it replaces.
    const bool gang = ranks > 1 || options_.tensor_ranks > 1;
    const int64_t bucket = gang ? std::min(count * kMasterBytes,
                                           options_.bucket_bytes + trained_.largest * kMasterBytes)
                                : 0;
    return std::max(attached + bucket, attached + 2 * count * kMasterBytes);
  }
  const bool by_sub_block = options_.sharding == Sharding::kParameters;
  const int64_t bucket =
      by_sub_block ? std::max({trained_.attention, trained_.mlp, trained_.ends})
                   : std::min(count, options_.bucket_bytes / kMasterBytes + trained_.largest);
  const int64_t part = share * kMasterBytes;
  // While buckets move: the tensors of one are there twice, masters or gradients.
  const int64_t moving = attached + bucket * kMasterBytes + part;
  const int64_t values = count * std::min(e_, kMasterBytes);
  const int64_t own_masters = own_values > 0 ? part : 0;  // fp32 masters are a part of the values
  int64_t steady = 3 * part;                              // of moments and gradients
  switch (options_.sharding) {
    case Sharding::kNone:
      break;
    case Sharding::kOptimizer:
      steady += values + own_masters + count * kMasterBytes;
      break;
    case Sharding::kGradients:
      // Whole gradients of both ends of the model, which the head adds to first and the embedding
      // last, and of the bucket between; and the part that a sum arrives in.
      steady += values + own_masters + part + std::min(count, 3 * bucket) * kMasterBytes;
      break;
    case Sharding::kParameters:
      // Of gradients both ends and a layer, or one end, a layer and the attention above it, whose
      // sum is under way; of values this layer's, the next MLP's and both ends'.
      steady += 2 * part +
                (trained_.ends + trained_.layer() + std::max(trained_.ends, trained_.attention)) *
                    kMasterBytes +
                std::min(count, trained_.layer() + trained_.mlp + 2 * trained_.ends) * e_;
      break;
  }
  return std::max(moving, steady);
}

int64_t Forecast::Saved(bool in_ring) const {
  int64_t saved = 0;
  for (const LayerMemory& layer : options_.layers) {
    if (in_ring == layer.offload) saved += SavedBy(layer);
  }
  return saved;
}

// As large as the largest pass wants. An evaluation has the stream of all rows and keeps nothing.
int64_t Forecast::Arena() const {
  return std::max(Slot(Own(options_.rows_max), part_.hidden, e_),
                  Slot(Own(options_.stream_rows), part_.hidden, e_) + Saved(/*in_ring=*/false)) +
         (options_.own_memory ? 0 : Saved(/*in_ring=*/true));
}

LayerScene Forecast::SceneOf(const LayerMemory& layer) const {
  MemoryTuning tuning = options_.tuning;
  if (!part_.gated_mlp) tuning.adapters.gate = 0;  // there is nothing for it to stand beside
  LayerMemory own = layer;
  own.row_ranks = row_ranks_;
  return {.shape = part_,
          .tuning = tuning,
          .layer = own,
          .element_bytes = e_,
          .tile_rows = TileRows(options_.mlp_tile_rows),
          .threads = options_.threads,
          .packs_keys = options_.packs_keys,
          .several_documents = options_.documents > 1,
          .shares_tensors = options_.tensor_ranks > 1,
          .into_x = true};
}

bool Equal(const LayerMemory& a, const LayerMemory& b) {
  return a.stored == b.stored && a.offload == b.offload && a.stream == b.stream &&
         a.attention == b.attention && a.mlp == b.mlp && a.separate == b.separate &&
         a.listed == b.listed && a.longest == b.longest && a.seen == b.seen && a.keys == b.keys &&
         a.reserved == b.reserved;
}

int64_t Forecast::HighestForward() const {
  int64_t highest = 0;
  for (size_t i = 0; i < options_.layers.size(); ++i) {
    if (i > 0 && Equal(options_.layers[i], options_.layers[i - 1])) continue;
    highest = std::max(highest, ForwardLayerBytes(SceneOf(options_.layers[i]), /*keep=*/true));
  }
  return highest;
}

int64_t Forecast::HighestBackward() const {
  int64_t highest = 0;
  for (size_t i = 0; i < options_.layers.size(); ++i) {
    const LayerMemory& layer = options_.layers[i];
    if (i > 1 && Equal(layer, options_.layers[i - 1])) continue;
    const int64_t back = options_.own_memory && layer.offload ? SavedBy(layer) : 0;
    LayerScene scene = SceneOf(layer);
    // Nothing below the first layer trains but the embedding.
    scene.into_x = i > 0 || options_.tuning.full;
    highest = std::max(highest, back + BackwardLayerBytes(scene));
    // Where all rows may be kept, the MLP's are then no others: what it read is not kept apart, but
    // computed again.
    if (layer.separate && layer.attention == layer.stream && layer.mlp == layer.stream) {
      scene.layer.separate = false;
      highest = std::max(highest, back + BackwardLayerBytes(scene));
    }
  }
  return highest;
}

// CrossEntropyObjective: of a segment the rows, their norm, the logits that become their own
// gradient, and the gradients of both on the way back.
int64_t Forecast::LossBytes(int64_t rows, int64_t labelled, bool gradient) const {
  const int64_t width = part_.embedding_width > 0 ? part_.embedding_width : part_.hidden;
  const int64_t segment = SegmentOf(labelled);
  const bool shared = row_ranks_ > 1;
  const int64_t own = shared ? std::min(Own(rows), Own(segment) + 1) : segment;
  Meter meter(/*base=*/16);  // the sums of losses and of hits, eight bytes each
  meter.Take(Own(rows));     // which rows are labelled, and their list
  meter.Touch(Own(rows));
  meter.Take(std::min(Own(rows), labelled) * kTokenBytes);
  // Labels of the rows of all ranks, and a segment's normed rows of all.
  if (shared) meter.Take(labelled * kTokenBytes + segment * part_.hidden * e_);
  const int64_t x = own * part_.hidden * e_;
  const int64_t statistics = (part_.layer_norm ? 2 : 1) * own * kStatisticBytes;
  const int64_t normed =
      (part_.final_norm ? x : 0) + (width != part_.hidden ? segment * width * e_ : 0);
  meter.Take(x);
  meter.Take(normed);
  if (part_.final_norm) gradient ? meter.Take(statistics) : meter.Touch(statistics);
  meter.Take(segment * part_.vocabulary * e_);
  if (!gradient) meter.Give(x + normed);
  meter.Take(segment * kTokenBytes);            // labels
  meter.Take(segment * (kStatisticBytes + 1));  // loss and hit of every row
  meter.Give(segment * kTokenBytes);
  if (options_.tensor_ranks > 1) {
    // Statistics of every rank in fp64, four a row, and a few rows of arithmetic on them.
    meter.Touch(segment * 8 * (4 * (options_.tensor_ranks + 1) + 4 * options_.tensor_ranks));
  }
  if (gradient) {
    // A product in another type than the gradient's is a tensor of its own, and is added by way of
    // a copy in the gradient's.
    if (options_.tuning.full && e_ < kMasterBytes) {
      meter.Touch(part_.vocabulary * width * (e_ + kMasterBytes));
    }
    meter.Take(segment * width * e_);
    if (shared) {
      // The sum takes its place.
      meter.Take(x);
      meter.Give(segment * width * e_);
    }
    if (width != part_.hidden) {
      meter.Touch(x + (options_.tuning.full ? width * part_.hidden * e_ : 0));
    }
    if (part_.final_norm) {
      meter.Take(x);
      if (options_.tuning.full) meter.Touch(NormWeightBytes(own));
    }
  }
  return meter.peak();
}

// What the gradient of a norm's weight is added up in: RMSNorm has a partial sum of every chunk of
// rows in fp32 and in fp64 (kernels/rms_norm), LayerNorm one of weight and bias a thread.
int64_t Forecast::NormWeightBytes(int64_t rows) const {
  if (part_.layer_norm) return 2 * (1 + options_.threads) * part_.hidden * kStatisticBytes;
  const int64_t chunk_rows = std::max({int64_t{64}, kNormGrain / part_.hidden, (rows + 63) / 64});
  const int64_t chunks = (rows + chunk_rows - 1) / chunk_rows;
  return (chunks + 1) * part_.hidden * (kStatisticBytes + 8);
}

int64_t Forecast::EmbedBytes(int64_t rows) const {
  int64_t bytes = 0;
  const int64_t out = rows * part_.hidden * e_;
  if (part_.position_rows > 0) bytes = rows * kTokenBytes + out;
  if (options_.tensor_ranks > 1) bytes = std::max(bytes, out + 3 * rows * kTokenBytes);
  // The rows of all ranks before they are added up, and those of this one.
  if (row_ranks_ > 1) bytes += out + Own(rows) * part_.hidden * e_;
  if (part_.embedding_width > 0 && part_.embedding_width != part_.hidden) {
    bytes = std::max(bytes, rows * part_.embedding_width * e_ + out);
  }
  return bytes;
}

// A pass of all rows that keeps nothing; of several layers in a copy of the stream.
int64_t Forecast::TrueScoreBytes() const {
  const RowChooser& chooser = options_.chooser;
  const int64_t rows = options_.batch_rows, stream = rows * part_.hidden * e_;
  LayerScene scene =
      SceneOf({.stream = rows, .attention = rows, .mlp = rows, .longest = options_.longest});
  scene.unturned = true;
  int64_t bytes = ScoreLayerBytes(scene, chooser.rotated, chooser.block);
  if (chooser.layers > 1) {
    bytes = stream + std::max(bytes, ForwardLayerBytes(scene, /*keep=*/false));
  }
  if (chooser.mlp) {
    scene.layer.attention = 0;
    bytes = std::max(bytes, ForwardLayerBytes(scene, /*keep=*/false));
  }
  return bytes + (chooser.own_stream ? stream : 0);
}

int64_t Forecast::LessonBytes(const LessonRows& of, int64_t joint) const {
  const Lessons& lessons = options_.lessons;
  LayerScene scene =
      SceneOf({.stream = of.rows, .attention = of.rows, .mlp = of.rows, .longest = of.longest});
  scene.unturned = true;
  // Queries and keys are there while heads look at their scores.
  const int64_t row = part_.head_dim * e_, pairs = PairBytes(lessons.heads, of);
  const int64_t seen = of.rows * (part_.heads + part_.kv_heads) * row + pairs +
                       AttentionHeadBytes(part_, e_, lessons.heads, of);
  const int64_t scores = ScoreLayerBytes(scene, lessons.heads.rotated, lessons.heads.block);
  if (joint == 0) return std::max(seen, scores);
  // Values are there too where the pass goes on; joint heads keep the rows of their first layer,
  // and sums of scores.
  return joint * (of.rows * part_.hidden * e_ + pairs) +
         std::max({seen, of.rows * part_.kv_heads * row + scores,
                   ForwardLayerBytes(scene, /*keep=*/false)});
}

int64_t Forecast::LearningBytes() const {
  const Lessons& lessons = options_.lessons;
  if (lessons.parameters == 0) return 0;
  const int64_t rows = options_.batch_rows, stream = rows * part_.hidden * e_;
  const bool passes = lessons.layers > 1;  // through layers, in a copy of the stream
  const int64_t learning =
      (passes ? stream : 0) +
      LessonBytes({.rows = rows, .longest = options_.longest, .documents = options_.documents},
                  passes ? 1 : 0);
  return learning + (options_.chooser.own_stream ? stream : 0);
}

int64_t Forecast::ChoosingBytes() const {
  const RowChooser& chooser = options_.chooser;
  const int64_t rows = options_.batch_rows;
  if (chooser.by == RowChooser::By::kPlace) return 0;
  const int64_t bytes = chooser.by == RowChooser::By::kScores
                            ? TrueScoreBytes()
                            : ChoiceBytes(part_, e_, chooser, rows);
  return std::max(bytes, chooser.own_stream ? EmbedBytes(rows) : 0);
}

void Forecast::AddSteps(int64_t snapshot, const char* forward, const char* backward) {
  const int64_t rows = options_.batch_rows;
  const int64_t first = options_.layers.front().stream, last = options_.layers.back().stream;
  // Rotation tables are made when the first layer asks: of all rows only if it has all, or if their
  // true scores are wanted.
  const bool all = first == rows || options_.chooser.by == RowChooser::By::kScores ||
                   options_.lessons.parameters > 0;
  int64_t batch = snapshot + BatchBytes(rows, all);
  const int64_t before_any_leaves = batch;
  // Where rows leave the stream, those that stay are a micro-batch of their own; which stayed and
  // which left is kept for the way down, unless they were never embedded.
  int64_t entering = rows * 4, before = rows;
  for (const LayerMemory& layer : options_.layers) {
    if (layer.stream == before) continue;
    batch +=
        BatchBytes(layer.stream, true) + (options_.stream_rows == rows ? before * kTokenBytes : 0);
    entering = std::max(
        entering, layer.stream * (2 * kTokenBytes + part_.hidden * e_) +
                      (rope_ && before == rows ? rows * part_.head_dim * kStatisticBytes : 0));
    if (row_ranks_ > 1) {
      // Those that stay and those that left are gathered one after the other, and dealt out anew.
      const int64_t most = std::max(layer.stream, before - layer.stream) + Own(before);
      entering = std::max(entering, most * part_.hidden * e_ + 3 * before * kTokenBytes);
    }
    before = layer.stream;
  }
  const int64_t stream = options_.stream_rows;
  // Of rows that are not embedded the pass before still has what it had.
  const int64_t learning = (stream < rows ? batch : before_any_leaves) + LearningBytes();
  Add(forward, std::max(learning, batch + std::max({entering, ChoosingBytes(), EmbedBytes(stream),
                                                    HighestForward()})));
  Add("loss", batch, LossBytes(last, options_.labelled, /*gradient=*/true));
  // Where the embedding trains, the gradients of the rows of all ranks and those that have a word
  // here.
  const int64_t embedding =
      row_ranks_ > 1 && options_.tuning.full
          ? stream * (part_.hidden * (2 * e_ + kMasterBytes) + 3 * kTokenBytes)
          : 0;
  Add(backward, batch + std::max(embedding, HighestBackward()));
  // The norm of a gradient is taken of a copy in fp64; the update has one tensor of the square
  // roots.
  Add("optimizer", batch + trained_.largest * 8);
  if (options_.lessons.parameters > 0) Add("update of a lesson", TaughtHeadBytes());
}

// A table's numbers, made before the first step by a pass of all rows: with a stream of its own,
// and tables of rotation that turn nothing.
void Forecast::AddScores() {
  const ScoredRows& scored = options_.scored;
  const int64_t rows = scored.rows;
  if (rows == 0) return;
  const bool attention = scored.by == ScoredRows::By::kAttention;
  const int64_t stream = rows * part_.hidden * e_;
  const int64_t batch = BatchBytes(rows, true) + stream;
  int64_t loss = 0;
  if (scored.by == ScoredRows::By::kLoss) loss = LossBytes(rows, rows, /*gradient=*/false);
  if (scored.by == ScoredRows::By::kEntropy) {
    // Logits, then the logarithms of the shares beside them, then the shares in their place.
    loss = SegmentOf(rows) * 2 * part_.vocabulary * e_;
  }
  LayerScene scene =
      SceneOf({.stream = rows, .attention = rows, .mlp = rows, .longest = scored.longest});
  scene.tuning = {};  // it is the base that scores
  const int64_t rotated =
      scored.rotated ? rows * (part_.heads + part_.kv_heads) * part_.head_dim * e_ : 0;
  // Attention's are of a copy of the stream. Tables that turn nothing are gone before attention,
  // which needs more.
  const int64_t pass = std::max(EmbedBytes(rows), (attention ? stream : 0) + rotated +
                                                      ForwardLayerBytes(scene, /*keep=*/false));
  // Where layers choose, what they keep is not reserved before they have chosen.
  const LayerMemory& top = options_.layers.back();
  const bool chooses = top.listed || top.attention < options_.batch_rows;
  const int64_t later = chooses ? Arena() - Slot(Own(options_.rows_max), part_.hidden, e_) : 0;
  const auto add = [&](const char* name, int64_t bytes, int64_t of_loss) {
    const int64_t of_transient = std::min(bytes, later);
    Add(name, bytes - of_transient, std::max<int64_t>(0, of_loss - (later - of_transient)));
  };
  add("scores of blocks", batch + pass, 0);
  if (loss > 0) add("scores of blocks, by the head", batch, loss);
}

void Forecast::AddEvaluation(int64_t snapshot, const char* name) {
  const EvaluationRows& pass = options_.evaluation;
  if (pass.rows == 0) return;
  const int64_t batch = snapshot + BatchBytes(pass.rows, true);
  LayerScene scene = SceneOf(
      {.stream = pass.rows, .attention = pass.rows, .mlp = pass.rows, .longest = pass.longest});
  Add(name, batch + std::max(EmbedBytes(pass.rows), ForwardLayerBytes(scene, /*keep=*/false)));
  Add("evaluation loss", batch, LossBytes(pass.rows, pass.labelled, /*gradient=*/false));
}

// The live model's logits are kept; an adapter is read back beside a copy of the tensors it takes
// the place of for a pass. The difference of the logits has two more tensors of their size.
void Forecast::AddPublishing() {
  const int64_t rows = options_.publish_rows;
  if (rows == 0) return;
  const int64_t logits = rows * options_.shape.vocabulary * kMasterBytes;
  const LayerScene scene =
      SceneOf({.stream = rows, .attention = rows, .mlp = rows, .longest = rows});
  const int64_t pass = BatchBytes(rows, true) + ForwardLayerBytes(scene, /*keep=*/false);
  const int64_t compared = std::max(logits + pass, 4 * logits);
  const bool model = options_.tuning.full || options_.merge;
  if (!options_.tuning.full) Add("publish adapter", compared + 2 * trained_.all * kMasterBytes);
  if (!model) return;
  // Merged weights, and those that are narrower than their masters, are copies; the model that is
  // read back is a mapping of its file where its type is that of the run.
  const int64_t whole = CountWeights(options_.shape).all;
  const int64_t copies = options_.tuning.full ? (e_ < kMasterBytes ? whole * e_ : 0) : whole * e_;
  Add("publish model", compared + copies + Slot(rows, part_.hidden, e_));
}

// Heads are measured by copies such as policies run, and written from others.
void Forecast::AddPublishedPredictor() {
  const Lessons& lessons = options_.lessons;
  if (lessons.parameters == 0 || options_.publish_rows == 0) return;
  const EvaluationRows& held_out = options_.evaluation;
  LessonRows of{.rows = options_.batch_rows, .longest = options_.longest, .learns = false};
  if (held_out.rows > 0) of = {.rows = held_out.rows, .longest = held_out.longest, .learns = false};
  const int64_t copies = options_.chooser.held_bytes;
  Add("measuring the predictor", copies + BatchBytes(of.rows, true) + of.rows * part_.hidden * e_ +
                                     std::max(EmbedBytes(of.rows), LessonBytes(of, lessons.joint)));
  Add("publish predictor", copies + 2 * lessons.parameters * kMasterBytes);
}

MemoryForecast Forecast::Run() {
  // Masters and moments are on the host until they are written, beside the steps that go on: of a
  // gang's each rank has its part, or the lead all where nobody else sees its directory.
  const int64_t snapshot =
      options_.checkpoints
          ? 3 * kMasterBytes *
                (CountTrained(options_.shape, options_.tuning).all + options_.lessons.parameters)
          : 0;
  AddScores();
  AddEvaluation(0, "evaluation");
  AddSteps(0, "forward", "backward");
  const size_t alone = forecast_.moments.size();
  if (snapshot > 0) {
    Add("checkpoint", snapshot + BatchBytes(options_.batch_rows, true));
    AddSteps(snapshot, "forward beside a checkpoint", "backward beside a checkpoint");
    AddEvaluation(snapshot, "evaluation beside a checkpoint");
  }
  const size_t beside = forecast_.moments.size();
  AddPublishing();
  AddPublishedPredictor();

  // Heads have a gradient and two moments, and no values but their masters.
  const int64_t learning = 4 * kMasterBytes * options_.lessons.parameters;
  const CategoryBytes fixed{.weights = Weights(),
                            .trainable = Trainable() + learning,
                            .saved_activations = Arena(),
                            .base = options_.tuning.full ? 0 : ModelWeights()};
  const auto sum = [&](bool overlaps) {
    CategoryBytes bytes = fixed;
    int64_t highest = 0;
    for (size_t i = 0; i < forecast_.moments.size(); ++i) {
      const Moment& moment = forecast_.moments[i];
      if (!overlaps && i > alone && i < beside) continue;
      bytes.transient = std::max(bytes.transient, moment.transient);
      bytes.loss = std::max(bytes.loss, moment.loss);
      highest = std::max(highest, moment.transient + moment.loss);
    }
    bytes.total = fixed.weights + fixed.trainable + fixed.saved_activations + highest;
    return bytes;
  };
  forecast_.low = sum(/*overlaps=*/false);
  forecast_.expected = sum(/*overlaps=*/true);
  forecast_.high = forecast_.expected;
  // What layers that come and go have at most need not be there when everything else is highest.
  int64_t apart = kSmallTensors;
  if (options_.sharding == Sharding::kParameters && options_.data_ranks > 1) {
    apart += trained_.layer() * (kMasterBytes + e_);
  }
  // Nor are kept rows always neighbours: attention to all rows goes by runs of them.
  int64_t runs = 0;
  for (const LayerMemory& layer : options_.layers) {
    if (layer.seen > 0) runs = std::max(runs, layer.longest * part_.heads * part_.head_dim * e_);
  }
  apart += runs;
  // A sum between ranks that share rows may be over before the next tile needs its memory.
  if (row_ranks_ > 1) apart += TileRows(options_.mlp_tile_rows) * part_.hidden * e_;
  forecast_.low.total = std::max(fixed.weights, forecast_.low.total - apart);
  forecast_.host_bytes = options_.own_memory ? Saved(/*in_ring=*/true) : 0;
  const int64_t margin = MarginBytes(e_, forecast_.expected.transient);
  // Of what is made for a moment, this alone counts as weights.
  if (options_.lessons.parameters > 0) forecast_.high.weights += TaughtHeadBytes();
  forecast_.high.transient += margin;
  forecast_.high.loss += margin;
  forecast_.high.total += margin;
  return forecast_;
}

}  // namespace

int64_t SavedBytes(const ModelShape& shape, const LayerMemory& layer, int64_t element_bytes,
                   bool down_trains) {
  const int64_t query = Slot(layer.attention, shape.heads * shape.head_dim, element_bytes);
  const int64_t key = Slot(layer.attention, shape.kv_heads * shape.head_dim, element_bytes);
  int64_t bytes = Slot(layer.Own(layer.attention), shape.hidden, element_bytes);
  if (layer.stored >= Stored::kAttentionOut) {
    bytes += query + Slot(layer.attention, shape.heads, kStatisticBytes);
  }
  if (layer.stored >= Stored::kMlp) bytes += query + 2 * key;
  bytes += 2 * Slot(layer.seen, shape.kv_heads * shape.head_dim, element_bytes);
  if (shape.post_norm) {
    bytes += 2 * Slot(layer.stream, shape.hidden, element_bytes);
  } else if (layer.stored >= Stored::kMlp || layer.separate) {
    bytes += Slot(layer.Own(layer.mlp), shape.hidden, element_bytes);
  }
  if (layer.stored == Stored::kAll) {
    // Of a ReLU whose output nobody that trains reads, the signs are enough.
    bytes += shape.gated_mlp || down_trains
                 ? (shape.gated_mlp ? 2 : 1) * Slot(layer.mlp, shape.intermediate, element_bytes)
                 : Slot(layer.mlp, (shape.intermediate + 7) / 8, 1);
  }
  return bytes;
}

MemoryForecast ForecastMemory(const MemoryOptions& options) { return Forecast(options).Run(); }

}  // namespace lemo::planner
