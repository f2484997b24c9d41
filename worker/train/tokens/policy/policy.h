// Token policies: what ranks the blocks of a stream. The rules that turn a ranking into the blocks
// that are kept are the same for all (worker/train/tokens/selection.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/train/model/decoder.h"
#include "worker/train/tokens/row_space.h"
#include "worker/train/tokens/settings.h"

namespace lemo::train {

// One choice to be made. Views are valid for the call.
struct ScoreRequest {
  enum class SubBlock { kAttention, kMlp };
  const RowSpace& space;
  // The rows before the sub-block [rows, H]; for a choice of the whole stack the embedded rows, and
  // only if the policy reads them.
  const at::Tensor& stream;
  const at::Tensor& tokens;  // int64, one a row of the micro-batch
  // First layer that the choice is for, and the layer after the last one.
  int64_t layer = 0;
  int64_t end_layer = 0;
  SubBlock sub_block = SubBlock::kAttention;
  // Differs between the choices of a run, the same when the run is repeated.
  uint64_t draw = 0;
  // The micro-batch's number of every block of the space.
  std::span<const int32_t> block_ids;
  // What random draws know each of those by: the place of its first row in the effective batch.
  std::span<const uint64_t> block_places;
  // Rows of the training data that the documents of the micro-batch are; empty in evaluation.
  std::span<const int64_t> document_rows;
  // All rows of the micro-batch, and their labels (int64, -100 for none).
  const RowSpace* whole = nullptr;
  at::Tensor labels;
};

// Not thread-safe. No gradient comes out of a policy (acceptance test C5).
class TokenPolicy {
 public:
  virtual ~TokenPolicy() = default;

  // One score a block of the space; the highest are kept first.
  virtual std::vector<float> Scores(const ScoreRequest& request) = 0;
  // What Scores guesses at: the scores that policy `oracle` would rank by, of the very rows and
  // with the adapters as they are. As dear as that. Empty for a policy that guesses at nothing.
  virtual std::vector<float> TrueScores(const ScoreRequest& /*request*/) { return {}; }
  // Before attention of `layer`, in a step that is to teach the policy there: the rows that the
  // pass has, which stay as they are. Nothing for a policy that does not learn.
  virtual void Learn(int64_t /*layer*/, const RowSpace& /*space*/, const at::Tensor& /*stream*/) {}
  // Whether Scores looks at the stream.
  virtual bool ReadsStream() const { return false; }
};

// The policy that the settings name. `decoder` must outlive it. InvalidArgument or NotFound names
// the field.
absl::StatusOr<std::unique_ptr<TokenPolicy>> MakeTokenPolicy(const TokenSettings& settings,
                                                             const Decoder& decoder);

// The mean over the rows of every block, on the host. `values` fp32 [rows].
std::vector<float> BlockMeans(const at::Tensor& values, const BlockLayout& blocks);

}  // namespace lemo::train
