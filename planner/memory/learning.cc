#include "planner/memory/learning.h"

#include <algorithm>

#include "planner/memory/choice_bytes.h"
#include "planner/memory/layer_bytes.h"
#include "planner/memory/meter.h"
#include "planner/memory/parameters.h"
#include "planner/memory/trainer_sizes.h"

namespace lemo::planner {
namespace {

constexpr int64_t kWide = 4;         // fp32, in which heads learn
constexpr int64_t kStateBytes = 16;  // a parameter's value, gradient and two moments

// One run of the forecast.
class Forecast {
 public:
  explicit Forecast(const LearningOptions& options)
      : options_(options),
        heads_(options.heads),
        shape_(options.shape),
        e_(options.element_bytes) {}

  MemoryForecast Run();

 private:
  int64_t Row(int64_t rows) const { return rows * shape_.hidden * e_; }
  int64_t BatchBytes(int64_t rows) const {
    const int64_t tables = shape_.position_rows == 0 ? rows * shape_.head_dim * kWide : 0;
    return rows * (2 * kTokenBytes + 4) + tables;
  }
  LayerScene SceneOf(const LessonRows& of) const;
  // Of the copy of a head that policies run.
  int64_t RankingBytes(int64_t rows) const {
    return ChoiceBytes(shape_, e_,
                       {.by = RowChooser::By::kPredictor,
                        .first_width = 2 * heads_.r1,
                        .flat_slice = heads_.flat_slice},
                       rows);
  }
  int64_t MlpHeadBytes(const LessonRows& of) const;
  // A pass, with all that is alive beside it.
  void AddPass(const char* name, const LessonRows& of, int64_t held);
  // Leaving rows out of one layer after another.
  void AddTrials(int64_t held);
  int64_t ScorerBytes() const;   // of one attention head
  int64_t ScorersBytes() const;  // of all heads

  const LearningOptions& options_;
  const LearningHeads& heads_;
  const ModelShape& shape_;
  const int64_t e_;
  MemoryForecast forecast_;
};

LayerScene Forecast::SceneOf(const LessonRows& of) const {
  return {.shape = shape_,
          .layer = {.stream = of.rows, .attention = of.rows, .mlp = of.rows, .longest = of.longest},
          .element_bytes = e_,
          .tile_rows = TileRows(0),
          .threads = options_.threads,
          .packs_keys = options_.packs_keys,
          .several_documents = of.documents > 1,
          .unturned = true};
}

int64_t Forecast::MlpHeadBytes(const LessonRows& of) const {
  Meter meter;
  const int64_t first = of.rows * kMlpHeadNeurons;
  if (!of.learns) return first * e_ + of.rows * kWide;
  const NormedBytes normed = NormedRows(shape_, e_, of.rows);
  meter.Touch(normed.highest);
  meter.Take(normed.left);
  meter.Take(first * kWide);
  meter.Touch(first * kWide + (kMlpHeadNeurons * (shape_.hidden + 1) + 1) * kWide);
  return meter.peak();
}

void Forecast::AddPass(const char* name, const LessonRows& of, int64_t held) {
  const LayerScene scene = SceneOf(of);
  // The stream; of joint heads the rows that the first of their layers read, and sums of scores;
  // and of heads for the MLP the rows before it, until the next layer's.
  int64_t beside = held + Row(of.rows) + heads_.joint * (Row(of.rows) + PairBytes(heads_, of));
  if (heads_.mlp) beside += Row(of.rows);
  const int64_t qkv =
      of.rows * (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim * e_ + PairBytes(heads_, of);
  const int64_t rotated =
      heads_.rotated ? of.rows * (shape_.heads + shape_.kv_heads) * shape_.head_dim * e_ : 0;
  int64_t highest = std::max({ForwardLayerBytes(scene, /*keep=*/false), qkv + rotated,
                              qkv + AttentionHeadBytes(shape_, e_, heads_, of)});
  if (heads_.mlp) {
    const int64_t tile = Row(std::min(scene.tile_rows, of.rows));
    highest = std::max({highest, Row(of.rows), tile + MlpHeadBytes(of)});
  }
  forecast_.moments.push_back({name, beside + highest, 0});
}

// As policies run one head of a layer.
int64_t Forecast::ScorerBytes() const {
  const int64_t width = heads_.flat_slice ? kWide : e_;
  const int64_t first =
      2 * heads_.r1 * (heads_.flat_slice ? heads_.block * shape_.head_dim : shape_.hidden);
  return first * width + (heads_.ParametersOfOne(shape_) - first) * kWide;
}

int64_t Forecast::ScorersBytes() const {
  const int64_t of_mlp = kMlpHeadNeurons * shape_.hidden * e_ + (kMlpHeadNeurons + 1) * kWide;
  return (shape_.layers + heads_.joint) * ScorerBytes() + (heads_.mlp ? shape_.layers * of_mlp : 0);
}

void Forecast::AddTrials(int64_t held) {
  const EvaluationRows& of = options_.measured;
  LayerScene scene = SceneOf({of.rows, of.longest, 1, false});
  scene.unturned = false;
  const int64_t width = shape_.embedding_width > 0 ? shape_.embedding_width : shape_.hidden;
  const int64_t segment =
      SegmentRows(options_.loss_segment_rows, shape_.vocabulary, std::max<int64_t>(1, of.labelled));
  const int64_t loss = segment * (shape_.vocabulary + 2 * width) * e_ + of.rows * kTokenBytes;
  const int64_t batch = held + BatchBytes(of.rows) + of.rows * kTokenBytes + Row(of.rows);
  forecast_.moments.push_back(
      {"shares by layer",
       batch + std::max(RankingBytes(of.rows), ForwardLayerBytes(scene, /*keep=*/false)), 0});
  forecast_.moments.push_back({"loss of shares", batch, loss});
}

MemoryForecast Forecast::Run() {
  const int64_t parameters = heads_.Parameters(shape_);
  AddPass("learning", {options_.rows, options_.longest, options_.documents, true},
          options_.micro_batches * BatchBytes(options_.rows));
  const EvaluationRows& measured = options_.measured;
  AddPass("measuring", {measured.rows, measured.longest, 1, false},
          ScorersBytes() + BatchBytes(measured.rows));
  // What is written is a copy; the heads that layers choose by are, for trials, there once more.
  const int64_t copies = ScorersBytes() + parameters * kWide;
  if (options_.allocates) AddTrials(copies + shape_.layers * ScorerBytes());
  forecast_.moments.push_back({"publish", copies + parameters * kWide, 0});

  CategoryBytes bytes{.weights = CountWeights(shape_).all * e_,
                      .trainable = parameters * kStateBytes,
                      .base = CountWeights(shape_).all * e_};
  int64_t highest = 0;
  for (const Moment& moment : forecast_.moments) {
    bytes.transient = std::max(bytes.transient, moment.transient);
    bytes.loss = std::max(bytes.loss, moment.loss);
    highest = std::max(highest, moment.transient + moment.loss);
  }
  bytes.total = bytes.weights + bytes.trainable + highest;
  forecast_.low = forecast_.expected = forecast_.high = bytes;
  // Which of the gradients are alive together is autograd's affair.
  forecast_.low.total =
      std::max(bytes.weights, bytes.total - std::max(kSmallTensors, bytes.total / 64));
  const int64_t margin = MarginBytes(e_, bytes.transient);
  forecast_.high.transient += margin;
  forecast_.high.total += margin;
  return forecast_;
}

}  // namespace

MemoryForecast ForecastLearning(const LearningOptions& options) { return Forecast(options).Run(); }

}  // namespace lemo::planner
