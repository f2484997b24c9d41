#include "worker/train/tuner/tuner.h"

#include <ATen/ATen.h>

#include "absl/status/status.h"
#include "worker/train/tuner/full.h"
#include "worker/train/tuner/lora.h"

namespace lemo::train {

std::vector<int64_t> WholeShape(const Trainable& trainable) {
  return WholeShape(trainable.shape(), trainable.shard);
}

void RefreshValues(Trainables& trainables) {
  const at::NoGradGuard no_grad;
  for (Trainable& trainable : trainables) {
    if (!trainable.value.is_same(trainable.master)) trainable.value.copy_(trainable.master);
  }
}

void ZeroGradients(Trainables& trainables) {
  for (Trainable& trainable : trainables) trainable.grad.zero_();
}

int64_t CountParameters(const Trainables& trainables) {
  int64_t count = 0;
  for (const Trainable& trainable : trainables) {
    count += c10::multiply_integers(WholeShape(trainable));
  }
  return count;
}

absl::StatusOr<std::unique_ptr<Tuner>> MakeTuner(const lemo::v1::TunerSpec& spec) {
  switch (spec.kind_case()) {
    case lemo::v1::TunerSpec::kLora:
      return std::make_unique<LoraTuner>(spec.lora());
    case lemo::v1::TunerSpec::kFull:
      return std::make_unique<FullTuner>();
    case lemo::v1::TunerSpec::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("tuner: choose one of lora, full");
}

}  // namespace lemo::train
