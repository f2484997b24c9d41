// LoRA (Hu et al. 2021, arXiv 2106.09685) with PEFT's names, patterns and scaling:
//
//   y = x W^T + scale * dropout(x) A^T B^T,   scale = alpha / rank, or alpha / sqrt(rank) with
//   rsLoRA
//
// A [rank, in] starts uniform in +-1/sqrt(in) (what PEFT's kaiming_uniform(a = sqrt(5)) comes to),
// B [out, rank] starts at zero.
#pragma once

#include <map>

#include "worker/train/tuner/tuner.h"

namespace lemo::train {

// What one module got, for the export.
struct LoraModule {
  std::string name;  // `model.layers.0.self_attn.q_proj`
  int64_t rank = 0;
  double alpha = 0;
  double scale = 0;
};

class LoraTuner final : public Tuner {
 public:
  explicit LoraTuner(lemo::v1::LoraSpec spec) : spec_(std::move(spec)) {}

  std::string kind() const override { return "lora"; }
  absl::StatusOr<Trainables> Attach(Decoder& decoder, uint64_t seed) override;

  // In the order of the trainables (two of them a module). Valid after Attach.
  const std::vector<LoraModule>& modules() const { return modules_; }
  const lemo::v1::LoraSpec& spec() const { return spec_; }

 private:
  lemo::v1::LoraSpec spec_;
  std::vector<LoraModule> modules_;
};

}  // namespace lemo::train
