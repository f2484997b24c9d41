#include "worker/train/tape/storage_policy.h"

#include <array>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "worker/train/memory/arena.h"
#include "worker/train/model/sign_bits.h"

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

int64_t SavedBytes(const StoragePolicy& policy, const DecoderConfig& config,
                   const LayerRowCounts& rows, int64_t element_bytes, int64_t statistic_bytes,
                   bool down_trains) {
  const auto slot = [](int64_t count, int64_t width, int64_t bytes) {
    return Arena::Rounded(count * width * bytes);
  };
  const int64_t query = slot(rows.attention, config.heads * config.head_dim, element_bytes);
  const int64_t key = slot(rows.attention, config.kv_heads * config.head_dim, element_bytes);
  int64_t bytes = slot(rows.own_attention.value_or(rows.attention), config.hidden, element_bytes);
  if (policy.KeepsAttention()) bytes += query + slot(rows.attention, config.heads, statistic_bytes);
  if (policy.KeepsQkv()) bytes += query + 2 * key;
  if (rows.seen > 0) {
    bytes += 2 * slot(rows.seen, config.kv_heads * config.head_dim, element_bytes);
  }
  if (config.post_norm) {
    bytes += 2 * slot(rows.stream, config.hidden, element_bytes);
  } else if (policy.KeepsX2() || rows.separate) {
    bytes += slot(rows.own_mlp.value_or(rows.mlp), config.hidden, element_bytes);
  }
  if (policy.KeepsGateUp()) {
    const bool gated = config.mlp == DecoderConfig::Mlp::kSwiGlu;
    bytes += gated || down_trains
                 ? (gated ? 2 : 1) * slot(rows.mlp, config.intermediate, element_bytes)
                 : slot(rows.mlp, SignBytes(config.intermediate), 1);
  }
  return bytes;
}

}  // namespace lemo::train
