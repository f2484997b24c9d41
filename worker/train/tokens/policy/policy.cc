#include "worker/train/tokens/policy/policy.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "worker/train/tokens/policy/predictor.h"

namespace lemo::train {

// One file a policy, and one entry here (a static library drops object files that nothing names).
std::unique_ptr<TokenPolicy> MakeRandomPolicy();
std::unique_ptr<TokenPolicy> MakeRecencyPolicy();
std::unique_ptr<TokenPolicy> MakeNormPolicy();
std::unique_ptr<TokenPolicy> MakeOraclePolicy(const TokenSettings& settings,
                                              const Decoder& decoder);

absl::StatusOr<std::unique_ptr<TokenPolicy>> MakeTokenPolicy(const TokenSettings& settings,
                                                             const Decoder& decoder) {
  if (settings.policy == "random") return MakeRandomPolicy();
  if (settings.policy == "recency") return MakeRecencyPolicy();
  if (settings.policy == "norm") return MakeNormPolicy();
  if (settings.policy == "oracle") return MakeOraclePolicy(settings, decoder);
  if (settings.policy == "predictor") return MakePredictorPolicy(settings, decoder);
  return absl::InvalidArgumentError(
      absl::StrCat("tokens.policy: \"", settings.policy, "\" ranks no blocks by itself"));
}

std::vector<float> BlockMeans(const at::Tensor& values, const BlockLayout& blocks) {
  const at::Tensor host = values.to(at::kCPU, at::kFloat).contiguous();
  const float* data = host.const_data_ptr<float>();
  std::vector<float> means(blocks.blocks());
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    double sum = 0;
    for (int64_t row = blocks.starts[n]; row < blocks.starts[n + 1]; ++row) sum += data[row];
    means[n] = static_cast<float>(sum / static_cast<double>(blocks.rows_of(n)));
  }
  return means;
}

}  // namespace lemo::train
