// Trainable tensors in a gang: the sums of their gradients, and which rank keeps what of them.
//
// Trainables lie one behind another in buckets, the last layer first, since backward ends with it
// first. A bucket's gradients are summed over the data group as soon as backward is through its
// sub-blocks, while it goes on with the others (PyTorch DDP, Li et al. 2020, arXiv 2006.15704).
// Each of D data-parallel ranks owns one D-th of every bucket (ZeRO, Rajbhandari et al. 2020, arXiv
// 1910.02054):
//
//   none        everything on every rank; one all-reduce a bucket
//   optimizer   moments, and masters where they are not the values themselves, on their owner;
//               gradients reduce-scattered after the last micro-batch, values gathered after the
//               update
//   gradients   the same, and whole gradients exist only between a bucket's first sub-block in
//               backward and the end of its sum, in every micro-batch
//   parameters  the same, and values exist only while their sub-block is computed: a bucket is a
//               sub-block, the next one is gathered ahead. Embedding, final norm and head are there
//               throughout a pass.
//
// Gradients of tensors that every rank of a tensor group has whole are parts of a sum over that
// group as well (Trainable::shard). All ranks call every function in the same order, whether or not
// they have rows: a rank without any calls Enter and Leave all the same (PassBy).
//
// Alone, nothing is moved: gradients stay where the tuner made them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "worker/train/optim/adamw.h"
#include "worker/train/parallel/communicator.h"
#include "worker/train/tape/sub_block_observer.h"
#include "worker/train/tuner/tuner.h"

namespace lemo::train {

enum class Sharding { kNone, kOptimizer, kGradients, kParameters };

// `none`, `optimizer`, `gradients`, `parameters`.
Sharding ParseSharding(const std::string& name);

class ShardedTrainables final : public SubBlockObserver {
 public:
  struct Options {
    Sharding sharding = Sharding::kNone;
    int64_t bucket_bytes = int64_t{32} << 20;
    int64_t layers = 0;
  };
  // The trainables and communicators outlive it. Masters that become shards are undefined in
  // `trainables` afterwards; values and gradients are the same tensors on other memory.
  ShardedTrainables(Trainables& trainables, Communicator& tensor, Communicator& data,
                    const Options& options);

  // What the optimizer updates on this rank; tensors stay the same ones.
  const std::vector<OptimizerPiece>& pieces() const { return pieces_; }

  // --- one step
  void ZeroGradients();
  // Around each forward and backward pass, and a forward pass alone. `sums`: sums are taken in this
  // backward pass (the last micro-batch's; with sharded gradients always).
  void BeginPass(bool backward, bool last);
  void EndPass();
  // What a pass would call here on a rank that has no rows for it.
  void PassBy(bool backward, bool last, int64_t horizon);
  // Waits for all sums.
  void FinishGradients();
  void ScaleGradients(double factor);
  double GradientNorm();
  std::string FirstBadGradient();
  // After the optimizer, or when masters were overwritten.
  void SpreadValues();

  // SubBlockObserver
  void Enter(int64_t layer, SubBlock part, bool backward) override;
  void Leave(int64_t layer, SubBlock part, bool backward) override;
  void LeaveEmbedding() override;

  // --- whole tensors of this tensor rank; all data ranks call
  // The whole of what `pieces` (in the order of pieces()) are parts of.
  at::Tensor Whole(size_t trainable, const std::vector<at::Tensor>& pieces);
  // `pieces` take their parts of `whole`.
  void Part(size_t trainable, const at::Tensor& whole, const std::vector<at::Tensor>& pieces);

 private:
  // A flat tensor whose memory comes and goes while tensors that look into it stay.
  class Flat {
   public:
    void Make(int64_t elements, const at::TensorOptions& options);
    void Take();  // memory, not initialised
    void Drop();
    bool here() const { return here_; }
    const at::Tensor& tensor() const { return tensor_; }

   private:
    at::Tensor tensor_;
    bool here_ = false;
  };
  struct Member {
    size_t trainable;
    int64_t offset;  // in the bucket
  };
  struct Bucket {
    std::vector<Member> members;
    bool whole = true;                        // not cut by the tensor group
    int64_t first_place = 0, last_place = 0;  // PlaceOf
    int64_t elements = 0;                     // a multiple of the data group's size
    Flat values, gradients;
    at::Tensor master, gradient, part;  // [elements / D]
    Pending sum, gathering;
    bool summing = false, summed = false, gathers = false;
  };
  bool alone() const { return tensor_.size() == 1 && data_.size() == 1; }
  bool sharded() const { return options_.sharding != Sharding::kNone && data_.size() > 1; }
  bool gradients_come_and_go() const {
    return sharded() && options_.sharding >= Sharding::kGradients;
  }
  bool values_come_and_go() const {
    return sharded() && options_.sharding == Sharding::kParameters;
  }
  // Sub-blocks in forward order, from 0 on; -1 the embedding, the last one the head.
  int64_t PlaceOf(const Trainable& trainable) const;
  bool IsEnd(const Bucket& bucket) const {
    return bucket.first_place < 0 || bucket.last_place >= 2 * options_.layers;
  }
  void MakeBuckets();
  void MoveValues(Bucket& bucket);
  void MoveGradients(Bucket& bucket);
  void TakeGradients(Bucket& bucket);
  void StartGathering(Bucket& bucket);
  void FinishGathering(Bucket& bucket);
  void StartSum(Bucket& bucket);
  void FinishSum(Bucket& bucket);
  void SumFrom(int64_t place);
  at::Tensor OwnPart(const at::Tensor& flat) const;
  std::vector<int64_t> EqualParts(const Bucket& bucket) const;

  Trainables& trainables_;
  Communicator& tensor_;
  Communicator& data_;
  Options options_;
  std::deque<Bucket> buckets_;
  std::vector<size_t> bucket_of_, member_of_;  // by trainable
  std::vector<OptimizerPiece> pieces_;
  std::vector<std::vector<size_t>> pieces_of_;  // by trainable; at most one where sharded
  bool in_backward_ = false, sums_now_ = false;
};

}  // namespace lemo::train
