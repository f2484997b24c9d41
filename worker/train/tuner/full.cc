#include "worker/train/tuner/full.h"

#include <ATen/ATen.h>

#include "absl/strings/match.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {

absl::StatusOr<Trainables> FullTuner::Attach(Decoder& decoder, uint64_t /*seed*/) {
  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  Trainables trainables;
  const auto master_type = decoder.type == at::kDouble ? at::kDouble : at::kFloat;
  decoder.VisitParameters(
      [&](const std::string& name, int64_t layer, Stage stage, at::Tensor& slot) {
        Trainable trainable;
        trainable.name = name;
        trainable.layer = layer;
        trainable.stage = stage;
        trainable.shard = decoder.ShardOf(name);
        trainable.decay = slot.dim() > 1;
        // A copy: the loaded weights may be a read-only mapping of the file.
        trainable.master = slot.to(master_type, /*non_blocking=*/false, /*copy=*/true);
        trainable.value =
            decoder.type == master_type ? trainable.master : trainable.master.to(decoder.type);
        trainable.value.set_requires_grad(true);
        trainable.grad = at::zeros_like(trainable.master);
        slot = trainable.value;
        trainables.push_back(std::move(trainable));
      });
  return trainables;
}

}  // namespace lemo::train
