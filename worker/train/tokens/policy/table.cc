#include "worker/train/tokens/policy/table.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/safetensors.h"
#include "common/status_macros.h"
#include "worker/train/tokens/scoring/attention_scores.h"
#include "worker/train/tokens/scoring/head_scores.h"
#include "worker/train/tokens/scoring/host_scores.h"
#include "worker/train/tokens/scoring/score_pass.h"

namespace lemo::train {
namespace {

constexpr const char* kFormat = "lemo.block_scores";

at::Tensor Integers(const std::vector<int32_t>& values, at::Device device) {
  return at::tensor(at::ArrayRef<int32_t>(values), at::kInt).to(device, at::kLong);
}

// The tensor of that name, if it is a list of that type.
template <typename T>
absl::StatusOr<std::vector<T>> Read(const SafetensorsFile& file, const std::string& name,
                                    TensorType type) {
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end() || found->second.type != type ||
      found->second.shape.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat(file.path().string(), ": no list of ",
                                                   std::string(TensorTypeName(type)), " called ",
                                                   name));
  }
  std::vector<T> values(found->second.shape[0]);
  std::memcpy(values.data(), found->second.bytes.data(), found->second.bytes.size());
  return values;
}

}  // namespace

TablePolicy::TablePolicy(const TokenSettings& settings, Decoder base, int64_t segment_rows)
    : spec_(settings.spec),
      block_(settings.block),
      base_(std::move(base)),
      segment_rows_(segment_rows) {}

std::vector<float> TablePolicy::BaseScores(const at::Tensor& tokens, const at::Tensor& labels,
                                           const RowSpace& space) const {
  const at::NoGradGuard no_grad;
  const at::Tensor stream =
      at::empty({tokens.size(0), base_.config.hidden}, base_.embedding.options());
  Embed(base_, tokens, space.positions(), base_.Rows(space.rows()), stream);
  const std::string& score = spec_.table_score();
  if (score.empty() || score == "attention") {
    return OnHost(
        MeanAttentionScores(base_, 0, base_.config.layers, stream, space, ScoreOptionsOf(spec_)));
  }
  ScoreVisitor nobody;
  ScorePass(base_, *space.all(), {.end_layer = base_.config.layers}, stream, nobody);
  if (score == "entropy") {
    return OnHost(EntropyScores(base_, stream, space.blocks(), segment_rows_));
  }
  std::vector<float> losses =
      OnHost(LossScores(base_, stream, labels, space.blocks(), segment_rows_));
  for (float& loss : losses) {
    if (loss < 0) {  // no label
      loss = std::numeric_limits<float>::lowest();
    } else if (score == "low_loss") {
      loss = -loss;
    }
  }
  return losses;
}

bool TablePolicy::Knows(std::span<const int64_t> documents) const {
  return std::all_of(documents.begin(), documents.end(),
                     [this](int64_t document) { return table_.contains(document); });
}

void TablePolicy::Add(const MicroBatch& batch) {
  if (Knows(batch.document_rows)) return;
  const auto space = RowSpace::Make(batch, base_.config, base_.type, base_.device, block_);
  const std::vector<float> scores = BaseScores(Integers(batch.tokens, base_.device),
                                               Integers(batch.labels, base_.device), *space);
  const std::vector<int32_t>& starts = space->blocks().documents;
  for (size_t d = 0; d < batch.document_rows.size(); ++d) {
    table_.try_emplace(batch.document_rows[d], scores.begin() + starts[d],
                       scores.begin() + starts[d + 1]);
  }
}

std::vector<float> TablePolicy::Scores(const ScoreRequest& request) {
  const std::vector<int32_t>& starts = request.whole->blocks().documents;
  const bool known = !request.document_rows.empty() && Knows(request.document_rows);
  if (!known && !scored_tokens_.is_same(request.tokens)) {
    scored_ = BaseScores(request.tokens, request.labels, *request.whole);
    scored_tokens_ = request.tokens;
  }
  std::vector<float> scores;
  for (const int32_t block : request.block_ids) {
    if (!known) {
      scores.push_back(scored_[block]);
      continue;
    }
    const auto next = std::upper_bound(starts.begin(), starts.end(), block);
    const auto document = static_cast<size_t>(next - starts.begin()) - 1;
    scores.push_back(
        table_.at(request.document_rows[document]).at(static_cast<size_t>(block - *(next - 1))));
  }
  return scores;
}

absl::Status TablePolicy::Save(const std::filesystem::path& path, const std::string& run) const {
  std::vector<int64_t> documents, starts = {0};
  std::vector<float> scores;
  for (const auto& [document, values] : table_) {
    documents.push_back(document);
    scores.insert(scores.end(), values.begin(), values.end());
    starts.push_back(static_cast<int64_t>(scores.size()));
  }
  return WriteSafetensorsAtomic(path,
                                {{"documents", ListView(TensorType::kI64, documents)},
                                 {"starts", ListView(TensorType::kI64, starts)},
                                 {"scores", ListView(TensorType::kF32, scores)}},
                                {{"format", kFormat},
                                 {"version", "1"},
                                 {"run", run},
                                 {"score", spec_.table_score()},
                                 {"block", absl::StrCat(block_)}});
}

absl::Status TablePolicy::Load(const std::filesystem::path& path, const std::string& run) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return absl::NotFoundError(absl::StrCat(path.string(), ": no such file"));
  }
  LEMO_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  for (const auto& [name, wanted] :
       {std::pair{"format", std::string(kFormat)}, std::pair{"run", run}}) {
    const auto found = file.metadata().find(name);
    if (found != file.metadata().end() && found->second == wanted) continue;
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": another ", name));
  }
  LEMO_ASSIGN_OR_RETURN(const auto documents, Read<int64_t>(file, "documents", TensorType::kI64));
  LEMO_ASSIGN_OR_RETURN(const auto starts, Read<int64_t>(file, "starts", TensorType::kI64));
  LEMO_ASSIGN_OR_RETURN(const auto scores, Read<float>(file, "scores", TensorType::kF32));
  if (starts.size() != documents.size() + 1 || starts.front() != 0 ||
      starts.back() != static_cast<int64_t>(scores.size()) ||
      !std::is_sorted(starts.begin(), starts.end())) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ": the documents do not divide the scores"));
  }
  table_.clear();
  for (size_t d = 0; d < documents.size(); ++d) {
    table_.try_emplace(documents[d], scores.begin() + starts[d], scores.begin() + starts[d + 1]);
  }
  return absl::OkStatus();
}

}  // namespace lemo::train
