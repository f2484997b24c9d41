#include "worker/train/optim/sharded_trainables.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {
namespace {

int64_t Place(int64_t layer, SubBlock part) { return 2 * layer + (part == SubBlock::kMlp ? 1 : 0); }

}  // namespace

Sharding ParseSharding(const std::string& name) {
  if (name == "optimizer") return Sharding::kOptimizer;
  if (name == "gradients") return Sharding::kGradients;
  if (name == "parameters") return Sharding::kParameters;
  return Sharding::kNone;
}

void ShardedTrainables::Flat::Make(int64_t elements, const at::TensorOptions& options) {
  tensor_ = at::empty({elements}, options);
  here_ = true;
}

void ShardedTrainables::Flat::Take() {
  if (here_) return;
  c10::StorageImpl* storage = tensor_.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(storage->allocator()->allocate(storage->nbytes()));
  here_ = true;
}

void ShardedTrainables::Flat::Drop() {
  if (!here_) return;
  tensor_.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(
      at::DataPtr(nullptr, tensor_.device()));
  here_ = false;
}

ShardedTrainables::ShardedTrainables(Trainables& trainables, Communicator& tensor,
                                     Communicator& data, const Options& options)
    : trainables_(trainables), tensor_(tensor), data_(data), options_(options) {
  const at::NoGradGuard no_grad;
  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  pieces_of_.resize(trainables_.size());
  if (!alone()) {
    MakeBuckets();
    for (Bucket& bucket : buckets_) {
      MoveGradients(bucket);
      if (sharded()) MoveValues(bucket);
    }
  }
  if (sharded()) return;
  for (size_t i = 0; i < trainables_.size(); ++i) {
    Trainable& trainable = trainables_[i];
    pieces_of_[i] = {pieces_.size()};
    pieces_.push_back({trainable.master, trainable.grad, trainable.decay});
  }
}

int64_t ShardedTrainables::PlaceOf(const Trainable& trainable) const {
  if (trainable.layer < 0) return -1;
  if (trainable.layer >= options_.layers) return 2 * options_.layers;
  return Place(trainable.layer,
               trainable.stage == Stage::kMlp ? SubBlock::kMlp : SubBlock::kAttention);
}

void ShardedTrainables::MakeBuckets() {
  std::vector<size_t> order(trainables_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [this](size_t a, size_t b) {
    return PlaceOf(trainables_[a]) > PlaceOf(trainables_[b]);
  });
  bucket_of_.resize(trainables_.size());
  member_of_.resize(trainables_.size());
  // The last bucket of each kind that takes more: cut tensors, whole ones.
  std::optional<size_t> open[2];
  for (const size_t i : order) {
    const Trainable& trainable = trainables_[i];
    const int64_t place = PlaceOf(trainable);
    const bool whole = trainable.shard.dim < 0;
    std::optional<size_t>& at = open[whole ? 1 : 0];
    const bool starts_anew =
        !at || buckets_[*at].elements * int64_t{4} >= options_.bucket_bytes ||
        // Ends of the model stay by themselves where sub-blocks come and go, each a bucket.
        (values_come_and_go() && buckets_[*at].last_place != place) ||
        trainables_[buckets_[*at].members.front().trainable].value.scalar_type() !=
            trainable.value.scalar_type();
    if (starts_anew) {
      at = buckets_.size();
      buckets_.emplace_back();
      buckets_.back().whole = whole;
      buckets_.back().last_place = place;
    }
    Bucket& bucket = buckets_[*at];
    bucket_of_[i] = *at;
    member_of_[i] = bucket.members.size();
    bucket.members.push_back({i, bucket.elements});
    bucket.elements += trainable.value.numel();
    bucket.first_place = place;
  }
  for (Bucket& bucket : buckets_) {
    bucket.elements = (bucket.elements + data_.size() - 1) / data_.size() * data_.size();
  }
}

at::Tensor ShardedTrainables::OwnPart(const at::Tensor& flat) const {
  const int64_t part = flat.numel() / data_.size();
  return flat.narrow(0, data_.rank() * part, part);
}

std::vector<int64_t> ShardedTrainables::EqualParts(const Bucket& bucket) const {
  return std::vector<int64_t>(data_.size(), bucket.elements / data_.size());
}

void ShardedTrainables::MoveGradients(Bucket& bucket) {
  const Trainable& first = trainables_[bucket.members.front().trainable];
  bucket.gradients.Make(bucket.elements, first.grad.options());
  bucket.gradients.tensor().zero_();
  for (const Member& member : bucket.members) {
    Trainable& trainable = trainables_[member.trainable];
    trainable.grad = bucket.gradients.tensor()
                         .narrow(0, member.offset, trainable.grad.numel())
                         .view(trainable.grad.sizes());
  }
  if (!sharded()) return;
  bucket.gradient = at::zeros({bucket.elements / data_.size()}, first.grad.options());
  bucket.part = gradients_come_and_go() ? at::empty_like(bucket.gradient) : bucket.gradient;
  if (gradients_come_and_go()) bucket.gradients.Drop();
}

void ShardedTrainables::MoveValues(Bucket& bucket) {
  const Trainable& first = trainables_[bucket.members.front().trainable];
  const at::TensorOptions master_options = first.grad.options();
  bucket.values.Make(bucket.elements, first.value.detach().options());
  bucket.values.tensor().zero_();
  const bool one_tensor = first.value.is_same(first.master);
  at::Tensor masters = bucket.values.tensor();
  if (!one_tensor) masters = at::zeros({bucket.elements}, master_options);
  for (const Member& member : bucket.members) {
    Trainable& trainable = trainables_[member.trainable];
    const int64_t count = trainable.value.numel();
    const at::Tensor place =
        bucket.values.tensor().narrow(0, member.offset, count).view(trainable.value.sizes());
    place.copy_(trainable.value.detach());
    masters.narrow(0, member.offset, count).copy_(trainable.master.detach().view({-1}));
    trainable.master = at::Tensor();
    // The stages and branches hold this very tensor; it gets other memory.
    trainable.value.set_data(place);
  }
  bucket.master = OwnPart(masters);
  if (!one_tensor || values_come_and_go()) bucket.master = bucket.master.clone();
  if (values_come_and_go()) bucket.values.Drop();

  // What of each tensor lies in this rank's part.
  const int64_t part = bucket.elements / data_.size(), begin = data_.rank() * part;
  for (const Member& member : bucket.members) {
    const Trainable& trainable = trainables_[member.trainable];
    const int64_t from = std::max(begin, member.offset);
    const int64_t to = std::min(begin + part, member.offset + trainable.value.numel());
    if (from >= to) continue;
    pieces_of_[member.trainable] = {pieces_.size()};
    pieces_.push_back({bucket.master.narrow(0, from - begin, to - from),
                       bucket.gradient.narrow(0, from - begin, to - from), trainable.decay});
  }
}

void ShardedTrainables::ZeroGradients() {
  if (alone()) {
    lemo::train::ZeroGradients(trainables_);
    return;
  }
  for (Bucket& bucket : buckets_) {
    if (bucket.gradients.here()) bucket.gradients.tensor().zero_();
    if (bucket.gradient.defined()) bucket.gradient.zero_();
  }
}

void ShardedTrainables::BeginPass(bool backward, bool last) {
  in_backward_ = backward;
  sums_now_ = backward && (last || gradients_come_and_go());
  for (Bucket& bucket : buckets_) bucket.summing = bucket.summed = false;
  for (Bucket& bucket : buckets_) {
    if (!IsEnd(bucket)) continue;
    if (values_come_and_go()) {
      StartGathering(bucket);
      FinishGathering(bucket);
    }
    // The objective adds to the embedding's too, where the head is tied to it.
    if (backward && gradients_come_and_go()) TakeGradients(bucket);
  }
}

void ShardedTrainables::TakeGradients(Bucket& bucket) {
  if (bucket.gradients.here()) return;
  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  bucket.gradients.Take();
  bucket.gradients.tensor().zero_();
}

void ShardedTrainables::EndPass() {
  if (sums_now_) {
    SumFrom(-1);
    // Where they come and go, the memory of the last sums is wanted back before the next pass.
    if (gradients_come_and_go()) {
      for (Bucket& bucket : buckets_) FinishSum(bucket);
    }
  }
  if (!values_come_and_go()) return;
  for (Bucket& bucket : buckets_) bucket.values.Drop();
}

void ShardedTrainables::PassBy(bool backward, bool last, int64_t horizon) {
  BeginPass(backward, last);
  for (int64_t i = 0; i < options_.layers; ++i) {
    for (const SubBlock part : {SubBlock::kAttention, SubBlock::kMlp}) {
      Enter(i, part, false);
      Leave(i, part, false);
    }
  }
  for (int64_t i = options_.layers - 1; backward && i >= horizon; --i) {
    for (const SubBlock part : {SubBlock::kMlp, SubBlock::kAttention}) Enter(i, part, true);
    for (const SubBlock part : {SubBlock::kMlp, SubBlock::kAttention}) Leave(i, part, true);
  }
  if (backward) LeaveEmbedding();
  EndPass();
}

void ShardedTrainables::StartGathering(Bucket& bucket) {
  if (bucket.values.here() || bucket.gathers) return;
  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  bucket.values.Take();
  const at::Tensor own = OwnPart(bucket.values.tensor());
  own.copy_(bucket.master);
  bucket.gathering = data_.AllGather(own, bucket.values.tensor(), EqualParts(bucket));
  bucket.gathers = true;
}

void ShardedTrainables::FinishGathering(Bucket& bucket) {
  if (!std::exchange(bucket.gathers, false)) return;
  bucket.gathering.Wait();
}

void ShardedTrainables::Enter(int64_t layer, SubBlock part, bool backward) {
  const int64_t place = Place(layer, part);
  if (values_come_and_go()) {
    const int64_t next = backward ? place - 1 : place + 1;
    const at::NoGradGuard no_grad;
    for (const int64_t wanted : {place, next}) {
      for (Bucket& bucket : buckets_) {
        if (!IsEnd(bucket) && bucket.first_place == wanted) StartGathering(bucket);
      }
    }
    for (Bucket& bucket : buckets_) {
      if (!IsEnd(bucket) && bucket.first_place == place) FinishGathering(bucket);
    }
  }
  if (!backward || !gradients_come_and_go()) return;
  for (Bucket& bucket : buckets_) {
    if (!bucket.summing && bucket.first_place <= place && place <= bucket.last_place) {
      TakeGradients(bucket);
    }
  }
}

void ShardedTrainables::Leave(int64_t layer, SubBlock part, bool backward) {
  const int64_t place = Place(layer, part);
  if (values_come_and_go()) {
    for (Bucket& bucket : buckets_) {
      // The last layer is wanted again at once, by backward.
      const bool again = in_backward_ && !backward && layer + 1 == options_.layers;
      if (!IsEnd(bucket) && bucket.first_place == place && !again) bucket.values.Drop();
    }
  }
  if (backward && sums_now_) SumFrom(place);
}

void ShardedTrainables::LeaveEmbedding() {
  if (sums_now_) SumFrom(-1);
}

void ShardedTrainables::SumFrom(int64_t place) {
  for (Bucket& bucket : buckets_) {
    if (bucket.first_place >= place && !bucket.summing) StartSum(bucket);
  }
  if (!gradients_come_and_go()) return;
  // At most one sum is under way, so that at most two buckets have whole gradients.
  Bucket* newest = nullptr;
  for (Bucket& bucket : buckets_) {
    if (!bucket.summing || bucket.summed) continue;
    if (newest != nullptr) FinishSum(*newest);
    newest = &bucket;
  }
}

void ShardedTrainables::StartSum(Bucket& bucket) {
  bucket.summing = true;
  const at::Tensor& gradients = bucket.gradients.tensor();
  TakeGradients(bucket);  // of layers that this pass had no backward for
  if (bucket.whole) tensor_.AllReduce(gradients, ReduceOp::kSum).Wait();
  if (data_.size() == 1) return;
  bucket.sum = sharded() ? data_.ReduceScatter(gradients, bucket.part, EqualParts(bucket))
                         : data_.AllReduce(gradients, ReduceOp::kSum);
}

void ShardedTrainables::FinishSum(Bucket& bucket) {
  if (!bucket.summing || std::exchange(bucket.summed, true)) return;
  bucket.sum.Wait();
  if (!gradients_come_and_go()) return;
  bucket.gradient.add_(bucket.part);
  bucket.gradients.Drop();
}

void ShardedTrainables::FinishGradients() {
  for (Bucket& bucket : buckets_) FinishSum(bucket);
}

void ShardedTrainables::ScaleGradients(double factor) {
  for (const OptimizerPiece& piece : pieces_) at::Tensor(piece.grad).mul_(factor);
}

double ShardedTrainables::GradientNorm() {
  if (alone()) return GlobalGradientNorm(trainables_);
  // Squares of tensors that are cut by the tensor group, and of whole ones.
  const at::Tensor squares = at::zeros({2}, at::kDouble);
  double* sums = squares.mutable_data_ptr<double>();
  for (size_t i = 0; i < trainables_.size(); ++i) {
    for (const size_t p : pieces_of_[i]) {
      const double norm =
          at::linalg_vector_norm(pieces_[p].grad, 2, std::nullopt, false, at::kDouble)
              .item<double>();
      // Each of the ranks that have copies of a part counts its share of them.
      const Shard& shard = trainables_[i].shard;
      sums[shard.cut() ? 0 : 1] += norm * norm / static_cast<double>(shard.copies);
    }
  }
  const at::Tensor there =
      squares.to(pieces_.empty() ? at::Device(at::kCPU) : pieces_.front().grad.device());
  if (sharded()) data_.AllReduce(there, ReduceOp::kSum).Wait();
  tensor_.AllReduce(there.narrow(0, 0, 1), ReduceOp::kSum).Wait();
  return std::sqrt(there.sum().item<double>());
}

std::string ShardedTrainables::FirstBadGradient() {
  for (size_t i = 0; i < trainables_.size(); ++i) {
    for (const size_t p : pieces_of_[i]) {
      if (!pieces_[p].grad.isfinite().all().item<bool>()) return trainables_[i].name;
    }
  }
  return "";
}

void ShardedTrainables::SpreadValues() {
  if (!sharded()) {
    RefreshValues(trainables_);
    return;
  }
  if (values_come_and_go()) return;  // gathered when they are wanted
  const at::NoGradGuard no_grad;
  for (Bucket& bucket : buckets_) {
    const at::Tensor own = OwnPart(bucket.values.tensor());
    if (own.const_data_ptr() != bucket.master.const_data_ptr()) own.copy_(bucket.master);
    bucket.gathering = data_.AllGather(own, bucket.values.tensor(), EqualParts(bucket));
  }
  for (Bucket& bucket : buckets_) bucket.gathering.Wait();
}

at::Tensor ShardedTrainables::Whole(size_t trainable, const std::vector<at::Tensor>& pieces) {
  const at::Tensor& value = trainables_[trainable].value;
  if (!sharded()) return pieces[pieces_of_[trainable].front()];
  const Bucket& bucket = buckets_[bucket_of_[trainable]];
  const int64_t offset = bucket.members[member_of_[trainable]].offset;
  const int64_t part = bucket.elements / data_.size();
  std::vector<int64_t> counts;
  for (int r = 0; r < data_.size(); ++r) {
    const int64_t from = std::max(r * part, offset);
    const int64_t to = std::min((r + 1) * part, offset + value.numel());
    counts.push_back(std::max<int64_t>(0, to - from));
  }
  const at::TensorOptions options = bucket.gradient.options();
  const at::Tensor own = pieces_of_[trainable].empty()
                             ? at::empty({0}, options)
                             : pieces[pieces_of_[trainable].front()].contiguous();
  const at::Tensor whole = at::empty({value.numel()}, options);
  data_.AllGather(own, whole, counts).Wait();
  return whole.view(value.sizes());
}

void ShardedTrainables::Part(size_t trainable, const at::Tensor& whole,
                             const std::vector<at::Tensor>& pieces) {
  const at::NoGradGuard no_grad;
  for (const size_t p : pieces_of_[trainable]) {
    at::Tensor piece = pieces[p];
    if (!sharded()) {
      piece.copy_(whole);
      continue;
    }
    const Bucket& bucket = buckets_[bucket_of_[trainable]];
    const int64_t begin = data_.rank() * (bucket.elements / data_.size());
    const int64_t offset = bucket.members[member_of_[trainable]].offset;
    piece.copy_(whole.reshape({-1}).narrow(0, std::max(begin, offset) - offset, piece.numel()));
  }
}

}  // namespace lemo::train
