// Full fine-tuning: every parameter of the model trains.
#pragma once

#include "worker/train/tuner/tuner.h"

namespace lemo::train {

class FullTuner final : public Tuner {
 public:
  std::string kind() const override { return "full"; }
  absl::StatusOr<Trainables> Attach(Decoder& decoder, uint64_t seed) override;
};

}  // namespace lemo::train
