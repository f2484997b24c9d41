// Policy `table`: blocks ranked by scores that the base model gave them once, before the run.
//
// The base is what the weights say, without adapters and before any update: whatever trains, a
// document's scores stay the same, so they are made in one pass over the data and looked up after.
// The other way, scores of the model as it trains, costs a forward pass a step (policy oracle).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/train/data/batch.h"
#include "worker/train/model/decoder.h"
#include "worker/train/tokens/policy/policy.h"

namespace lemo::train {

// What tokens.table_score says of a block, higher is kept first:
//   attention  the mean over all layers of its informativeness
//   loss       mean loss of its labelled rows; low_loss the same negated. Blocks without a label
//              come last.
//   entropy    mean entropy of its rows' predictions
// All of it of the documents by themselves, all rows computed.
class TablePolicy final : public TokenPolicy {
 public:
  // `base` has no adapters. `segment_rows` as memory.loss_segment_rows.
  TablePolicy(const TokenSettings& settings, Decoder base, int64_t segment_rows);

  // Looks the documents up by document_rows. A micro-batch that has none (evaluation), or one that
  // the table lacks, is scored here and now.
  std::vector<float> Scores(const ScoreRequest& request) override;

  // Scores the documents of `batch` that the table does not have yet.
  void Add(const MicroBatch& batch);
  int64_t documents() const { return static_cast<int64_t>(table_.size()); }

  // Writes the table, whole or not at all: I64 `documents` [D], their numbers in the training data,
  // ascending; I64 `starts` [D + 1], where each one's scores begin; F32 `scores`. `run` is the
  // run's fingerprint.
  absl::Status Save(const std::filesystem::path& path, const std::string& run) const;
  // Takes a table in the place of this one. NotFound when there is no file, InvalidArgument when it
  // is damaged or another run's; the table is then as it was.
  absl::Status Load(const std::filesystem::path& path, const std::string& run);

 private:
  // One score a block of `space`, which has all rows of `tokens`.
  std::vector<float> BaseScores(const at::Tensor& tokens, const at::Tensor& labels,
                                const RowSpace& space) const;
  bool Knows(std::span<const int64_t> documents) const;

  const lemo::v1::TokensSpec spec_;
  const int64_t block_;
  const Decoder base_;
  const int64_t segment_rows_;
  std::map<int64_t, std::vector<float>> table_;  // scores of the blocks, by document
  // Of the last micro-batch that was not in the table: a plan asks several times.
  at::Tensor scored_tokens_;
  std::vector<float> scored_;
};

}  // namespace lemo::train
