// The choices of rows of one micro-batch: what the tape asks while it runs forward.
//
// In a tensor group rank 0 chooses for all ranks; bad blocks are counted there alone.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lemo/v1/run_event.pb.h"
#include "worker/train/tape/tape.h"
#include "worker/train/tokens/policy/policy.h"

namespace lemo::train {

class TokenPlan final : public RowSource {
 public:
  // What is made of a pass beside its choices.
  struct Looks {
    // The choice of attention's rows that begins at this layer is compared with true scores.
    std::optional<int64_t> measured;
    // Layers from whose streams the policy learns. Asked for in passes of all rows, too.
    std::vector<int64_t> lessons;
  };
  struct Batch {
    std::vector<double> keep;                                 // shares of the layers in this step
    std::vector<uint8_t> labelled;                            // one entry a row of the micro-batch
    std::span<const int64_t> document_rows, document_places;  // as MicroBatch has them
    at::Tensor tokens;                                        // int64 [rows]
    at::Tensor labels;                                        // int64 [rows], -100 for none
    uint64_t draw = 0;                                        // differs between steps
    Looks looks;
  };

  // `settings`, `policy`, `decoder`, `space` and the views of `batch` outlive the plan. `space` has
  // all rows of the micro-batch.
  TokenPlan(const TokenSettings& settings, TokenPolicy& policy, const Decoder& decoder,
            const RowSpace& space, Batch batch);

  // With scope stack: the blocks that go in at all, to be asked before the forward pass, which then
  // runs on a space of them alone. Null: all. Any other scope: null.
  BlocksKept Enter(const RowSpace& space);

  // What the forward pass of this plan needs at most. After Enter, before the pass.
  RowBounds Bounds() const;

  BlocksKept Stay(int64_t layer, const RowSpace& space, const at::Tensor& stream) override;
  BlocksKept Attention(int64_t layer, const RowSpace& space, const at::Tensor& stream) override;
  BlocksKept Mlp(int64_t layer, const RowSpace& space, const at::Tensor& stream) override;

  // After the forward pass.
  // uint8, one entry a row of the micro-batch: computed by every sub-block.
  std::vector<uint8_t> ThroughRows() const;
  double seconds() const { return seconds_; }
  // Adds this micro-batch's counts; Finish turns the sums of a step into shares.
  void AddTo(struct SparsityCounts* counts) const;
  lemo::v1::SelectionEvent Selection() const;

 private:
  BlocksKept Choose(const RowSpace& space, const at::Tensor& stream, int64_t layer,
                    int64_t end_layer, ScoreRequest::SubBlock sub_block, double keep);
  bool Chooses() const;
  void Teach(int64_t layer, const RowSpace& space, const at::Tensor& stream);
  // The stream as the policy reads it: the rows of all ranks that share them.
  at::Tensor Seen(const RowSpace& space, const at::Tensor& stream) const;
  void Measure(const ScoreRequest& request, const BlockMask& kept, const SelectOptions& options);
  // Rank 0's choice, of this many blocks.
  BlockMask Broadcast(BlockMask kept, int64_t blocks) const;
  void Record(const BlocksKept& kept, BlockMask* mask) const;
  void KeepInStream(const BlockMask& kept);

  const TokenSettings& settings_;
  TokenPolicy& policy_;
  const Decoder& decoder_;
  const RowSpace& whole_;
  Batch batch_;
  const BlockLayout layout_;  // of the micro-batch
  // Of the stream as it is: the micro-batch's number of every block, and which are mandatory
  // whatever their place.
  std::vector<int32_t> block_ids_;
  std::vector<uint64_t> block_places_;
  std::vector<int64_t> whole_blocks_;  // of every document; none of them ever leaves as a whole
  BlockMask always_;
  double share_ = 1;      // of the documents' blocks that are in the stream
  BlocksKept attention_;  // of the layer at hand, or of its group
  std::vector<BlockMask> attention_masks_, mlp_masks_;  // by layer, in the micro-batch's blocks
  int64_t bad_blocks_ = 0;
  double seconds_ = 0;
  ChoiceRecall recall_;
};

// Sums over the micro-batches of a step.
struct SparsityCounts {
  std::vector<int64_t> attention, mlp;  // rows computed, by layer
  int64_t rows = 0;
  int64_t never = 0;
  int64_t bad_blocks = 0;
  double seconds = 0;
  ChoiceRecall recall;

  // All counts as numbers, for `layers` layers, to be added over ranks.
  std::vector<double> Numbers(int64_t layers) const;
  void SetNumbers(const std::vector<double>& numbers);

  // `measured` is the layer that `recall` is of.
  lemo::v1::TokenSparsity Shares(int64_t labelled, int64_t labelled_kept,
                                 std::optional<int64_t> measured) const;
};

}  // namespace lemo::train
