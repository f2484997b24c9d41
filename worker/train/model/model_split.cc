#include "worker/train/model/model_split.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "worker/train/model/family/family.h"

namespace lemo::train {
namespace {

bool Divides(const DecoderConfig& config, int64_t ranks) {
  const int64_t groups = config.kv_heads;
  return config.heads % ranks == 0 && (groups % ranks == 0 || ranks % groups == 0) &&
         config.intermediate % ranks == 0;
}

}  // namespace

absl::Status CheckSplit(const DecoderConfig& config, int ranks) {
  if (ranks == 1) return absl::OkStatus();
  const auto refuse = [](const std::string& reason) {
    return absl::InvalidArgumentError(absl::StrCat("parallel.tensor: ", reason));
  };
  if (config.post_norm) {
    return refuse(
        "must be 1 for a model whose norms follow the residual additions: they take whole rows of "
        "the stream");
  }
  if (config.projected_embedding()) {
    return refuse("must be 1 for a model that projects its embedding to another width");
  }
  if (Divides(config, ranks)) return absl::OkStatus();
  std::vector<int64_t> sizes;
  for (int64_t size = 1; size <= config.heads; ++size) {
    if (Divides(config, size)) sizes.push_back(size);
  }
  return refuse(absl::StrCat(ranks, " ranks cannot share ", config.heads, " heads, ",
                             config.kv_heads, " key/value heads and an MLP of width ",
                             config.intermediate,
                             " evenly; sizes that can: ", absl::StrJoin(sizes, ", ")));
}

absl::StatusOr<ModelSplit> ModelSplit::Make(const DecoderConfig& config, int rank, int ranks) {
  LEMO_RETURN_IF_ERROR(CheckSplit(config, ranks));
  ModelSplit split{rank, ranks, config, config};
  split.local.heads /= ranks;
  split.local.kv_heads = std::max<int64_t>(1, config.kv_heads / ranks);
  split.local.intermediate /= ranks;
  return split;
}

Shard ModelSplit::ShardOf(std::string_view tensor) const {
  const ModuleNames& names = NamesOf(whole);
  absl::string_view module(tensor.data(), tensor.size());
  const bool bias = absl::ConsumeSuffix(&module, ".bias");
  if (!bias) absl::ConsumeSuffix(&module, ".weight");
  if (module == names.embedding || module == names.head) {
    return {0, vocabulary_first(), whole.vocabulary, vocabulary_rows()};
  }
  if (!absl::ConsumePrefix(&module, names.layers)) return {};
  module.remove_prefix(std::min(module.find('.') + 1, module.size()));  // the layer's number
  const auto part = [&](int64_t dim, int64_t full) {
    return Shard{dim, full * rank / ranks, full, full / ranks};
  };
  const int64_t query = whole.heads * whole.head_dim;
  if (module == names.q) return part(0, query);
  if (module == names.k || module == names.v) {
    const int64_t size = local.kv_heads * whole.head_dim;
    return {0, rank / kv_copies() * size, whole.kv_heads * whole.head_dim, size, kv_copies()};
  }
  if (module == names.gate || module == names.up) return part(0, whole.intermediate);
  if (bias) return {};
  if (module == names.o) return part(1, query);
  if (module == names.down) return part(1, whole.intermediate);
  return {};
}

}  // namespace lemo::train
