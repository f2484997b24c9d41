#include "worker/train/tokens/policy/plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <numeric>
#include <string>
#include <utility>

#include "worker/train/data/random.h"

namespace lemo::train {

TokenPlan::TokenPlan(const TokenSettings& settings, TokenPolicy& policy, const Decoder& decoder,
                     const RowSpace& space, Batch batch)
    : settings_(settings),
      policy_(policy),
      decoder_(decoder),
      whole_(space),
      batch_(std::move(batch)),
      layout_(space.blocks()),
      block_ids_(layout_.blocks()),
      attention_masks_(batch_.keep.size()),
      mlp_masks_(batch_.keep.size()) {
  std::iota(block_ids_.begin(), block_ids_.end(), 0);
  for (size_t i = 0; i + 1 < layout_.documents.size(); ++i) {
    whole_blocks_.push_back(layout_.documents[i + 1] - layout_.documents[i]);
    const int32_t first = layout_.starts[layout_.documents[i]];
    const int64_t place = batch_.document_places.empty() ? first : batch_.document_places[i];
    for (int32_t n = layout_.documents[i]; n < layout_.documents[i + 1]; ++n) {
      block_places_.push_back(static_cast<uint64_t>(place + layout_.starts[n] - first));
    }
  }
  if (settings_.keep_labels) always_ = LabelBlocks(layout_, batch_.labelled);
}

BlocksKept TokenPlan::Choose(const RowSpace& space, const at::Tensor& stream, int64_t layer,
                             int64_t end_layer, ScoreRequest::SubBlock sub_block, double keep) {
  const auto start = std::chrono::steady_clock::now();
  SelectOptions options = settings_.select;
  options.keep = keep;
  if (!settings_.threshold.empty()) {
    options.use_threshold = true;
    options.threshold = settings_.threshold[layer];
  }
  const ScoreRequest request = {
      .space = space,
      .stream = stream,
      .tokens = batch_.tokens,
      .layer = layer,
      .end_layer = end_layer,
      .sub_block = sub_block,
      .draw = MixKeys(batch_.draw, static_cast<uint64_t>(layer), static_cast<uint64_t>(sub_block)),
      .block_ids = block_ids_,
      .block_places = block_places_,
      .document_rows = batch_.document_rows,
      .whole = &whole_,
      .labels = batch_.labels};
  BlockMask kept;
  if (Chooses()) {
    BlockChoice choice =
        SelectBlocks(policy_.Scores(request), space.blocks(), always_, options, whole_blocks_);
    bad_blocks_ += choice.bad_blocks;
    kept = std::move(choice.kept);
  }
  if (decoder_.tensor != nullptr) kept = Broadcast(std::move(kept), space.blocks().blocks());
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  // A look at the choice is no part of what choosing takes.
  if (layer == batch_.looks.measured && sub_block == ScoreRequest::SubBlock::kAttention) {
    Measure(request, kept, options);
  }
  // A choice of everything is no choice: the dense path needs no row lists.
  if (std::find(kept.begin(), kept.end(), 0) == kept.end()) return nullptr;
  return std::make_shared<const BlockMask>(std::move(kept));
}

void TokenPlan::Teach(int64_t layer, const RowSpace& space, const at::Tensor& stream) {
  const std::vector<int64_t>& lessons = batch_.looks.lessons;
  if (std::find(lessons.begin(), lessons.end(), layer) == lessons.end()) return;
  policy_.Learn(layer, space, stream);
}

void TokenPlan::Measure(const ScoreRequest& request, const BlockMask& kept,
                        const SelectOptions& options) {
  const std::vector<float> truth = policy_.TrueScores(request);
  if (truth.empty()) return;
  recall_ = RecallOf(kept, truth, request.space.blocks(), always_, options, whole_blocks_);
}

// Ranks that compute one model must agree on its rows. Their streams are equal to the bit, but
// scores need not be made alike for that to hold.
bool TokenPlan::Chooses() const {
  return decoder_.tensor == nullptr || decoder_.tensor->rank() == 0;
}

at::Tensor TokenPlan::Seen(const RowSpace& space, const at::Tensor& stream) const {
  return policy_.ReadsStream() ? decoder_.Rows(space.rows()).Gather(stream) : stream;
}

BlockMask TokenPlan::Broadcast(BlockMask kept, int64_t blocks) const {
  kept.resize(blocks);
  const at::Tensor mask =
      at::from_blob(kept.data(), {blocks}, at::kByte).to(decoder_.device, at::kByte, false, true);
  decoder_.tensor->Broadcast(mask, 0).Wait();
  const at::Tensor host = mask.cpu();
  const uint8_t* bits = host.const_data_ptr<uint8_t>();
  kept.assign(bits, bits + blocks);
  return kept;
}

void TokenPlan::KeepInStream(const BlockMask& kept) {
  size_t next = 0;
  for (size_t n = 0; n < kept.size(); ++n) {
    if (!kept[n]) continue;
    block_ids_[next] = block_ids_[n];
    block_places_[next] = block_places_[n];
    if (!always_.empty()) always_[next] = always_[n];
    ++next;
  }
  block_ids_.resize(next);
  block_places_.resize(next);
  if (!always_.empty()) always_.resize(next);
}

BlocksKept TokenPlan::Enter(const RowSpace& space) {
  const double keep = batch_.keep.front();
  const bool teaches = !batch_.looks.lessons.empty();
  if (settings_.scope != Scope::kStack || (keep >= 1 && !teaches)) return nullptr;
  at::Tensor embedded;
  if (policy_.ReadsStream()) {
    embedded = at::empty({space.rows(), decoder_.config.hidden}, decoder_.embedding.options());
    Embed(decoder_, batch_.tokens, space.positions(),
          RowParts::Everywhere(decoder_.tensor, space.rows()), embedded);
  }
  Teach(0, space, embedded);
  if (keep >= 1) return nullptr;
  BlocksKept kept = Choose(space, embedded, 0, static_cast<int64_t>(batch_.keep.size()),
                           ScoreRequest::SubBlock::kAttention, keep);
  if (kept) KeepInStream(*kept);
  return kept;
}

BlocksKept TokenPlan::Stay(int64_t layer, const RowSpace& space, const at::Tensor& stream) {
  const double keep = batch_.keep[layer];
  if (settings_.scope == Scope::kNested) Teach(layer, space, stream);
  if (settings_.scope != Scope::kNested || keep >= share_) return nullptr;
  BlocksKept kept =
      Choose(space, Seen(space, stream), layer, static_cast<int64_t>(batch_.keep.size()),
             ScoreRequest::SubBlock::kAttention, keep);
  share_ = keep;
  if (kept) KeepInStream(*kept);
  return kept;
}

BlocksKept TokenPlan::Attention(int64_t layer, const RowSpace& space, const at::Tensor& stream) {
  const bool chooses = settings_.RowsComeBack();
  if (chooses) Teach(layer, space, stream);
  if (!chooses || batch_.keep[layer] >= 1) {
    attention_ = nullptr;
  } else if (!settings_.ContinuesGroup(layer)) {
    int64_t end = layer + 1;
    while (end < static_cast<int64_t>(batch_.keep.size()) && settings_.ContinuesGroup(end)) ++end;
    attention_ = Choose(space, Seen(space, stream), layer, end, ScoreRequest::SubBlock::kAttention,
                        batch_.keep[layer]);
  }
  Record(attention_, &attention_masks_[layer]);
  return attention_;
}

BlocksKept TokenPlan::Mlp(int64_t layer, const RowSpace& space, const at::Tensor& stream) {
  BlocksKept kept = attention_;
  if (batch_.keep[layer] < 1 && settings_.mlp == MlpRows::kAll) kept = nullptr;
  if (batch_.keep[layer] < 1 && settings_.mlp == MlpRows::kOwn) {
    kept = Choose(space, Seen(space, stream), layer, layer + 1, ScoreRequest::SubBlock::kMlp,
                  batch_.keep[layer]);
  }
  Record(kept, &mlp_masks_[layer]);
  return kept;
}

// In the blocks of the micro-batch.
void TokenPlan::Record(const BlocksKept& kept, BlockMask* mask) const {
  mask->assign(layout_.blocks(), 0);
  for (size_t n = 0; n < block_ids_.size(); ++n) (*mask)[block_ids_[n]] = kept ? (*kept)[n] : 1;
}

RowBounds TokenPlan::Bounds() const {
  const auto layers = static_cast<int64_t>(batch_.keep.size());
  const auto options_at = [this](double keep) {
    SelectOptions options = settings_.select;
    options.keep = keep;
    options.use_threshold = !settings_.threshold.empty();
    return options;
  };
  RowBounds bounds;
  bounds.stream = layout_.rows();
  if (settings_.scope == Scope::kStack) {
    bounds.stream = 0;
    for (const int32_t block : block_ids_) bounds.stream += layout_.rows_of(block);
  }
  for (int64_t i = 0; i < layers; ++i) {
    const double keep = batch_.keep[i];
    const int64_t rows = settings_.scope == Scope::kStack ? bounds.stream
                         : keep < 1 ? MostRows(layout_, always_, options_at(keep))
                                    : layout_.rows();
    const bool separate = keep < 1 && settings_.mlp != MlpRows::kShared;
    const bool sees_others = settings_.kv_all && keep < 1;
    const int64_t seen =
        sees_others ? layout_.rows() - LeastRows(layout_, always_, options_at(keep)) : 0;
    bounds.layers.push_back({.attention = rows,
                             .mlp = settings_.mlp == MlpRows::kAll ? layout_.rows() : rows,
                             .separate = separate,
                             .seen = seen,
                             .stream = settings_.scope == Scope::kNested ? rows : bounds.stream});
  }
  return bounds;
}

std::vector<uint8_t> TokenPlan::ThroughRows() const {
  std::vector<uint8_t> rows(layout_.rows(), 0);
  for (int64_t n = 0; n < layout_.blocks(); ++n) {
    bool through = true;
    for (size_t i = 0; i < attention_masks_.size() && through; ++i) {
      through = attention_masks_[i][n] && mlp_masks_[i][n];
    }
    std::fill(rows.begin() + layout_.starts[n], rows.begin() + layout_.starts[n + 1], through);
  }
  return rows;
}

void TokenPlan::AddTo(SparsityCounts* counts) const {
  const size_t layers = attention_masks_.size();
  counts->attention.resize(layers);
  counts->mlp.resize(layers);
  BlockMask ever(layout_.blocks(), 0);
  for (size_t i = 0; i < layers; ++i) {
    counts->attention[i] += CountRows(layout_, attention_masks_[i]);
    counts->mlp[i] += CountRows(layout_, mlp_masks_[i]);
    for (size_t n = 0; n < ever.size() && batch_.keep[i] < 1; ++n) {
      ever[n] |= attention_masks_[i][n] | mlp_masks_[i][n];
    }
  }
  counts->rows += layout_.rows();
  counts->never += layout_.rows() - CountRows(layout_, ever);
  counts->bad_blocks += bad_blocks_;
  counts->seconds += seconds_;
  counts->recall.wanted += recall_.wanted;
  counts->recall.kept += recall_.kept;
}

lemo::v1::SelectionEvent TokenPlan::Selection() const {
  lemo::v1::SelectionEvent event;
  event.mutable_block_starts()->Add(layout_.starts.begin(), layout_.starts.end());
  for (const int32_t block : layout_.documents) {
    event.add_document_starts(layout_.starts[block]);
  }
  for (size_t i = 0; i < attention_masks_.size(); ++i) {
    event.add_attention(std::string(attention_masks_[i].begin(), attention_masks_[i].end()));
    const bool same = mlp_masks_[i] == attention_masks_[i];
    event.add_mlp(same ? "" : std::string(mlp_masks_[i].begin(), mlp_masks_[i].end()));
  }
  return event;
}

std::vector<double> SparsityCounts::Numbers(int64_t layers) const {
  std::vector<double> numbers(2 * layers, 0.0);
  for (size_t i = 0; i < attention.size(); ++i) {
    numbers[2 * i] = static_cast<double>(attention[i]);
    numbers[2 * i + 1] = static_cast<double>(mlp[i]);
  }
  for (const int64_t count : {rows, never, bad_blocks, recall.wanted, recall.kept}) {
    numbers.push_back(static_cast<double>(count));
  }
  return numbers;
}

void SparsityCounts::SetNumbers(const std::vector<double>& numbers) {
  int64_t* const others[] = {&rows, &never, &bad_blocks, &recall.wanted, &recall.kept};
  const size_t layers = (numbers.size() - std::size(others)) / 2;
  attention.resize(layers);
  mlp.resize(layers);
  for (size_t i = 0; i < layers; ++i) {
    attention[i] = static_cast<int64_t>(numbers[2 * i]);
    mlp[i] = static_cast<int64_t>(numbers[2 * i + 1]);
  }
  for (size_t i = 0; i < std::size(others); ++i) {
    *others[i] = static_cast<int64_t>(numbers[2 * layers + i]);
  }
}

lemo::v1::TokenSparsity SparsityCounts::Shares(int64_t labelled, int64_t labelled_kept,
                                               std::optional<int64_t> measured) const {
  const auto share = [](int64_t part, int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
  };
  lemo::v1::TokenSparsity result;
  for (const int64_t kept : attention) result.add_attention_kept(share(kept, rows));
  for (const int64_t kept : mlp) result.add_mlp_kept(share(kept, rows));
  result.set_never_kept(share(never, rows));
  result.set_loss_kept(share(labelled_kept, labelled));
  result.set_bad_blocks(bad_blocks);
  result.set_selection_seconds(seconds);
  if (measured && recall.wanted > 0) {
    result.add_recall(share(recall.kept, recall.wanted));
    result.add_recall_layers(static_cast<int32_t>(*measured));
  }
  return result;
}

}  // namespace lemo::train
