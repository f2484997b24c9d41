#include "worker/train/governor/step_bytes.h"

#include <algorithm>
#include <utility>

#include "common/status_macros.h"
#include "planner/memory/parameters.h"
#include "worker/train/plan/plan_request.h"
#include "worker/train/tokens/blocks.h"

namespace lemo::train {
namespace {

using planner::LayerMemory;
using planner::LayerStorage;
using planner::MemoryForecast;
using planner::MemoryOptions;
using planner::RowChooser;
using planner::Stored;

// The rows of a micro-batch as its layers see them.
struct PieceRows {
  int64_t rows = 0;
  int64_t stream = 0;  // that enter
  int64_t longest = 0;
  int64_t labelled = 0;
  int64_t documents = 0;
  std::vector<LayerMemory> layers;  // what they store is not said
};

PieceRows RowsOf(const StepModel& model, std::span<const int32_t> starts,
                 std::span<const uint8_t> labelled, const std::vector<double>& keep) {
  PieceRows piece;
  piece.rows = piece.stream = starts.back();
  piece.documents = static_cast<int64_t>(starts.size()) - 1;
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    piece.longest = std::max<int64_t>(piece.longest, starts[d + 1] - starts[d]);
  }
  piece.labelled = std::count(labelled.begin(), labelled.end(), uint8_t{1});
  const auto sparse = [](double share) { return share < 1; };
  if (std::none_of(keep.begin(), keep.end(), sparse)) {
    piece.layers.assign(keep.size(), {.stream = piece.rows,
                                      .attention = piece.rows,
                                      .mlp = piece.rows,
                                      .longest = piece.longest});
    return piece;
  }
  const TokenSettings& tokens = model.tokens;
  const BlockLayout layout = MakeBlocks(starts, tokens.block);
  const BlockMask always = tokens.keep_labels ? LabelBlocks(layout, labelled) : BlockMask();
  for (size_t l = 0; l < keep.size(); ++l) {
    if (l > 0 && keep[l] == keep[l - 1]) {
      piece.layers.push_back(piece.layers.back());
      continue;
    }
    const bool any_share = keep[l] < 1 && !tokens.threshold.empty();
    int64_t kept = piece.rows, seen = 0;
    if (keep[l] < 1) {
      SelectOptions select = tokens.select;
      select.keep = keep[l];
      select.use_threshold = any_share;
      kept = MostRows(layout, always, select);
      seen = tokens.kv_all ? piece.rows - LeastRows(layout, always, select) : 0;
    }
    const bool own_stream = tokens.RowsComeBack();
    const bool all_mlp = tokens.mlp == MlpRows::kAll;
    piece.layers.push_back({.stream = own_stream ? piece.rows : kept,
                            .attention = kept,
                            .mlp = all_mlp ? piece.rows : kept,
                            .separate = keep[l] < 1 && tokens.mlp != MlpRows::kShared,
                            .listed = any_share,
                            .longest = std::min(kept, piece.longest),
                            .seen = seen,
                            .keys = seen > 0 ? piece.longest : 0});
  }
  if (tokens.scope == Scope::kStack) piece.stream = piece.layers.front().stream;
  piece.labelled = std::min(piece.labelled, piece.layers.back().stream);
  return piece;
}

// What the forecast says of its moments alone: its most but for what is there throughout. (The most
// of a category may have what passes, too.)
StepNeed NeedIn(const MemoryForecast& forecast) {
  const planner::CategoryBytes& fixed = forecast.expected;
  return {
      .buffers = fixed.saved_activations,
      .passing = forecast.high.total - fixed.weights - fixed.trainable - fixed.saved_activations};
}

std::vector<uint8_t> LabelledRows(const MicroBatch& batch) {
  std::vector<uint8_t> labelled(batch.labels.size());
  std::transform(batch.labels.begin(), batch.labels.end(), labelled.begin(),
                 [](int32_t label) { return label != kIgnoreLabel; });
  return labelled;
}

// A pass of all rows that nothing is kept of and nothing is learnt from, without a run around it.
MemoryOptions PassOf(const StepModel& model, int64_t rows, int64_t longest) {
  MemoryOptions options = model.memory;
  options.lessons.parameters = 0;
  options.layers.assign(
      options.shape.layers,
      {.stored = Stored::kInput, .stream = 1, .attention = 1, .mlp = 1, .longest = 1});
  // The step beside it is of one row, which no pass is below.
  options.batch_rows = options.stream_rows = options.labelled = options.longest = 1;
  options.rows_max = rows;
  options.evaluation = {.rows = rows, .longest = longest, .labelled = rows};
  return options;
}

// The buffers of that pass: its stream alone.
StepNeed StreamAlone(const StepModel& model, const MemoryForecast& forecast, int64_t rows) {
  constexpr int64_t kSlotBytes = 64;  // the arena's alignment
  const int64_t ranks = model.memory.sequence ? model.memory.tensor_ranks : 1;
  const int64_t own = (rows + ranks - 1) / ranks;
  return {.buffers = own * model.memory.shape.hidden * model.memory.element_bytes + kSlotBytes,
          .passing = NeedIn(forecast).passing};
}

}  // namespace

absl::StatusOr<StepModel> StepModelOf(const lemo::v1::RunSpec& spec, const DecoderConfig& config,
                                      const RankCompute& compute,
                                      const std::optional<PredictorFacts>& predictor) {
  StepModel model;
  Violations violations;
  model.tokens = MakeTokenSettings(spec.tokens(), config.layers, &violations);
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  // Asked for shape, tuner and split. What a plan would refuse for its whole run (all rows at the
  // beginning, batches of tokens) a single step does not depend on.
  lemo::v1::RunSpec asked = spec;
  asked.clear_tokens();
  const int64_t data = std::max(1, spec.parallel().data());
  asked.mutable_train()->clear_batch_tokens();
  asked.mutable_train()->set_batch_sequences(static_cast<int32_t>(data));
  PlanFacts facts;
  facts.documents = {{1, data}};
  facts.element_bytes = compute.element_bytes;
  facts.device = {.compute = {.products = 1, .attention = 1}};
  LEMO_ASSIGN_OR_RETURN(const planner::OfferRequest request, PlanRequestOf(asked, config, facts));
  MemoryOptions& memory = model.memory;
  memory.shape = request.shape;
  memory.element_bytes = compute.element_bytes;
  memory.tuning = request.tuning;
  memory.tensor_ranks = std::max(1, spec.parallel().tensor());
  memory.sequence = spec.parallel().sequence();
  memory.data_ranks = data;
  memory.sharding = request.shardings.front();
  memory.bucket_bytes = spec.parallel().bucket_bytes();
  memory.mlp_tile_rows = spec.memory().mlp_tile_rows();
  memory.loss_segment_rows = spec.memory().loss_segment_rows();
  memory.publish_rows = 0;
  memory.threads = std::max<int64_t>(1, compute.threads);
  memory.own_memory = compute.own_memory;
  memory.packs_keys = compute.packs_keys;
  if (!model.tokens.dense()) {
    memory.chooser = ChooserOf(model.tokens, predictor);
    memory.lessons = LessonsOf(model.tokens, predictor);
    memory.chooser.own_stream |= memory.sequence && memory.chooser.by != RowChooser::By::kPlace;
  }
  const planner::AdapterRanks& ranks = request.tuning.adapters;
  model.tuning = {.full = request.tuning.full,
                  .attention_rank = (ranks.q + ranks.k + ranks.v + ranks.o + 3) / 4,
                  .mlp_rank = std::max({ranks.gate, ranks.up, ranks.down})};
  return model;
}

StepNeed NeedOf(const StepModel& model, std::span<const int32_t> document_starts,
                std::span<const uint8_t> labelled, const std::vector<double>& keep,
                const std::vector<LayerStorage>& storage) {
  PieceRows piece = RowsOf(model, document_starts, labelled, keep);
  MemoryOptions options = model.memory;
  options.layers = std::move(piece.layers);
  for (size_t l = 0; l < storage.size(); ++l) {
    options.layers[l].stored = storage[l].stored;
    options.layers[l].offload = storage[l].offload;
  }
  options.batch_rows = piece.rows;
  options.longest = piece.longest;
  options.stream_rows = options.rows_max = piece.stream;
  options.labelled = std::max<int64_t>(1, piece.labelled);
  options.documents = piece.documents;
  return NeedIn(planner::ForecastMemory(options));
}

planner::Work WorkOf(const StepModel& model, std::span<const int32_t> document_starts,
                     std::span<const uint8_t> labelled, const std::vector<double>& keep,
                     const std::vector<LayerStorage>& storage) {
  const PieceRows piece = RowsOf(model, document_starts, labelled, keep);
  double pairs = 0;
  for (size_t d = 0; d + 1 < document_starts.size(); ++d) {
    pairs += planner::CausalPairs(document_starts[d + 1] - document_starts[d]);
  }
  planner::Work work = planner::HeadWork(model.memory.shape, model.tuning, piece.labelled).Total();
  for (size_t l = 0; l < storage.size(); ++l) {
    const LayerMemory& layer = piece.layers[l];
    const double share = static_cast<double>(layer.attention) / static_cast<double>(piece.rows);
    const double of_keys = layer.seen > 0 ? 1 : share;
    work += planner::LayerWork(model.memory.shape, model.tuning, storage[l].stored,
                               {.attention = layer.attention,
                                .mlp = layer.mlp,
                                .seen = layer.seen,
                                .pairs = pairs * share * of_keys,
                                .separate = layer.separate})
                .Total();
  }
  return work;
}

StepNeed EvaluationNeed(const StepModel& model, int64_t rows, int64_t longest) {
  return StreamAlone(model, planner::ForecastMemory(PassOf(model, rows, longest)), rows);
}

StepNeed ScoresNeed(const StepModel& model, int64_t rows, int64_t longest) {
  const std::optional<planner::ScoredRows> table = TableOf(model.tokens);
  if (!table) return {};
  MemoryOptions options = PassOf(model, rows, longest);
  options.evaluation = {};
  options.rows_max = 1;
  options.scored = *table;
  options.scored.rows = rows;
  options.scored.longest = longest;
  return NeedIn(planner::ForecastMemory(options));
}

StepNeed PublishNeed(const StepModel& model, int64_t rows, int64_t measured, bool merge) {
  MemoryOptions options = PassOf(model, rows, rows);
  options.lessons = model.memory.lessons;
  const bool measures = options.lessons.parameters > 0;
  options.evaluation =
      measures ? planner::EvaluationRows{measured, measured, measured} : planner::EvaluationRows();
  options.publish_rows = rows;
  options.merge = merge;
  return StreamAlone(model, planner::ForecastMemory(options), rows);
}

int64_t SnapshotBytes(const StepModel& model, int parts) {
  constexpr int64_t kBytes = 3 * 4;  // a master and its moments
  planner::ParameterCount count = planner::CountTrained(model.memory.shape, model.memory.tuning);
  count.all += model.memory.lessons.parameters;
  // Whole tensors, each to the part with the least: none exceeds the mean by more than one of them.
  return kBytes * std::min(count.all, count.all / parts + count.largest);
}

int64_t WeightBytes(const StepModel& model) {
  return planner::ForecastMemory(PassOf(model, 1, 1)).expected.weights;
}

int64_t TrainableBytes(const StepModel& model) {
  MemoryOptions options = PassOf(model, 1, 1);
  options.lessons = model.memory.lessons;
  return planner::ForecastMemory(options).expected.trainable;
}

LadderOptions LadderOptionsOf(const StepModel& model, const std::vector<LayerStorage>& storage,
                              int64_t rows, double min_keep, const planner::Rates& rates) {
  LadderOptions options{.storage = storage,
                        .own_memory = model.memory.own_memory,
                        .rows_max = rows,
                        .min_keep = min_keep};
  const std::vector<int32_t> starts = {0, static_cast<int32_t>(rows)};
  const std::vector<uint8_t> labelled(rows, 1);
  const PieceRows piece = RowsOf(model, starts, labelled, model.tokens.keep);
  const planner::AdapterRanks& ranks = model.memory.tuning.adapters;
  const bool down_trains = model.memory.tuning.full || ranks.down > 0;
  for (size_t l = 0; l < storage.size(); ++l) {
    LayerMemory layer = piece.layers[l];
    std::vector<planner::StorageChoice> choices;
    for (const Stored stored :
         {Stored::kInput, Stored::kAttentionOut, Stored::kMlp, Stored::kAll}) {
      layer.stored = stored;
      const planner::StepWork work =
          planner::LayerWork(model.memory.shape, model.tuning, stored,
                             {.attention = layer.attention,
                              .mlp = layer.mlp,
                              .pairs = planner::CausalPairs(layer.attention),
                              .separate = layer.separate});
      choices.push_back({.bytes = planner::SavedBytes(model.memory.shape, layer,
                                                      model.memory.element_bytes, down_trains),
                         .seconds = planner::Seconds(work.replay, rates)});
    }
    options.choices.push_back(std::move(choices));
  }
  const std::vector<double>& keep = model.tokens.keep;
  double most = 0;
  for (const double share : keep) {
    if (share < 1) most = std::max(most, share);
  }
  options.keep = most > 0 ? most : 1;
  options.min_keep = std::min(min_keep, options.keep);
  return options;
}

StepBatch::StepBatch(const StepModel& model, const Ladder& ladder, const Batch& batch,
                     std::vector<double> shares)
    : model_(model), ladder_(ladder), batch_(batch), shares_(std::move(shares)) {
  for (const MicroBatch& micro_batch : batch.micro_batches) {
    labelled_.push_back(LabelledRows(micro_batch));
  }
}

std::vector<StepBatch::Piece> StepBatch::PiecesOf(int64_t micro_rows) const {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < batch_.micro_batches.size(); ++i) {
    const MicroBatch& micro_batch = batch_.micro_batches[i];
    const int64_t limit = micro_rows > 0 ? micro_rows : std::max<int64_t>(1, micro_batch.rows());
    for (const DocumentRange& documents : SplitDocuments(micro_batch.document_starts, limit)) {
      pieces.push_back({i, documents});
    }
  }
  return pieces;
}

template <typename Visit>
void StepBatch::ForPieces(int64_t rung, Visit visit) {
  const int64_t micro = ladder_.micro_of(rung);
  const auto [found, made] = pieces_.try_emplace(micro);
  if (made) found->second = PiecesOf(ladder_.micro_rows(micro));
  for (const Piece& piece : found->second) {
    const std::vector<int32_t>& starts = batch_.micro_batches[piece.micro_batch].document_starts;
    const int32_t begin = starts[piece.documents.first];
    std::vector<int32_t> own;
    for (int64_t d = piece.documents.first; d <= piece.documents.last; ++d) {
      own.push_back(starts[d] - begin);
    }
    visit(own, std::span(labelled_[piece.micro_batch]).subspan(begin, own.back()));
  }
}

StepNeed StepBatch::Need(int64_t rung) {
  const auto [found, made] = needs_.try_emplace(rung);
  if (!made) return found->second;
  const std::vector<double> keep =
      model_.tokens.Capped(shares_, ladder_.keep_most(ladder_.keep_of(rung)));
  const std::vector<LayerStorage>& storage = ladder_.storage(ladder_.storage_of(rung));
  StepNeed most;
  ForPieces(rung, [&](std::span<const int32_t> starts, std::span<const uint8_t> labelled) {
    const StepNeed need = NeedOf(model_, starts, labelled, keep, storage);
    // Buffers stay as large as the largest pass wanted them, so the two may meet.
    most.buffers = std::max(most.buffers, need.buffers);
    most.passing = std::max(most.passing, need.passing);
  });
  return found->second = most;
}

planner::Work StepBatch::Work(int64_t rung) {
  const std::vector<double> keep =
      model_.tokens.Capped(shares_, ladder_.keep_most(ladder_.keep_of(rung)));
  const std::vector<LayerStorage>& storage = ladder_.storage(ladder_.storage_of(rung));
  planner::Work work;
  ForPieces(rung, [&](std::span<const int32_t> starts, std::span<const uint8_t> labelled) {
    work += WorkOf(model_, starts, labelled, keep, storage);
  });
  return work;
}

int64_t StepBatch::rounds(int64_t rung) const {
  return static_cast<int64_t>(PiecesOf(ladder_.micro_rows(ladder_.micro_of(rung))).size());
}

std::vector<MicroBatch> StepBatch::Parts(int64_t rung) const {
  std::vector<MicroBatch> parts;
  for (const Piece& piece : PiecesOf(ladder_.micro_rows(ladder_.micro_of(rung)))) {
    parts.push_back(PartOf(batch_.micro_batches[piece.micro_batch], piece.documents));
  }
  return parts;
}

}  // namespace lemo::train
