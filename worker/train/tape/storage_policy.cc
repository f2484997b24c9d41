#include "worker/train/tape/storage_policy.h"

#include <array>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "worker/train/memory/arena.h"

namespace lemo::train {
namespace {

using Keep = StoragePolicy::Keep;
constexpr std::array<std::pair<Keep, const char*>, 4> kNames = {{{Keep::kInput, "input"},
                                                                 {Keep::kAttentionOut, "attn_out"},
                                                                 {Keep::kMlp, "mlp"},
                                                                 {Keep::kAll, "all"}}};
constexpr const char* kOffload = "+offload";

}  // namespace

absl::StatusOr<StoragePolicy> ParseStoragePolicy(const std::string& name) {
  absl::string_view stem = name;
  StoragePolicy policy;
  policy.offload = absl::ConsumeSuffix(&stem, kOffload);
  for (const auto& [keep, text] : kNames) {
    if (stem == text) {
      policy.keep = keep;
      return policy;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown storage policy \"", name,
                   "\"; choose all, mlp, attn_out or input, each with an optional +offload"));
}

std::string StoragePolicyName(const StoragePolicy& policy) {
  for (const auto& [keep, text] : kNames) {
    if (keep == policy.keep) return absl::StrCat(text, policy.offload ? kOffload : "");
  }
  return "";
}

int64_t SavedBytes(const StoragePolicy& policy, const DecoderConfig& config, int64_t rows,
                   int64_t element_bytes, int64_t statistic_bytes) {
  const auto slot = [rows](int64_t width, int64_t bytes) {
    return Arena::Rounded(rows * width * bytes);
  };
  const int64_t stream = slot(config.hidden, element_bytes);
  const int64_t query = slot(config.heads * config.head_dim, element_bytes);
  const int64_t key = slot(config.kv_heads * config.head_dim, element_bytes);
  int64_t bytes = stream;
  if (policy.KeepsAttention()) bytes += query + slot(config.heads, statistic_bytes);
  if (policy.KeepsQkv()) bytes += query + 2 * key;
  if (policy.KeepsX2()) bytes += stream;
  if (policy.KeepsGateUp()) bytes += 2 * slot(config.intermediate, element_bytes);
  return bytes;
}

}  // namespace lemo::train
