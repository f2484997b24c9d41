#include "worker/train/tokens/policy/predictor.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/tokens/policy/oracle.h"
#include "worker/train/tokens/predictor/network.h"
#include "worker/train/tokens/scoring/attention_scores.h"
#include "worker/train/tokens/scoring/host_scores.h"

namespace lemo::train {

PredictorPolicy::PredictorPolicy(const TokenSettings& settings, const Decoder& decoder,
                                 const Predictor& predictor)
    : scope_(settings.scope),
      decoder_(decoder),
      shape_(predictor.card.shape),
      truth_{CombineFromName(predictor.card.combine), predictor.card.score_rope} {
  const auto add = [&](const std::string& name, int64_t layer) {
    const auto head = predictor.heads.find(name);
    if (head != predictor.heads.end()) SetHead(name, layer, head->second);
  };
  if (scope_ == Scope::kStack) add(kStackHead, 0);
  for (int64_t i = 0; i < decoder.config.layers; ++i) {
    if (settings.keep[i] < 1 && settings.RowsComeBack()) add(LayerHead(i), i);
    if (settings.keep[i] < 1 && settings.mlp == MlpRows::kOwn) {
      const ScopedMemoryCategory category(MemoryCategory::kWeights);
      mlp_.try_emplace(i, predictor.mlp.at(i), MlpNormOf(decoder, i), decoder.type, decoder.device);
    }
  }
  for (const int64_t layer : NestedChoices(settings)) {
    add(LayerHead(layer), layer);
    add(AboveHead(layer), layer);
  }
}

void PredictorPolicy::SetHead(const std::string& name, int64_t layer,
                              const AttentionPredictor& head) {
  const at::NoGradGuard no_grad;
  const ScopedMemoryCategory category(MemoryCategory::kWeights);
  heads_.erase(name);
  heads_.try_emplace(name, head, shape_, AttentionNormOf(decoder_, layer), decoder_.type,
                     decoder_.device);
}

std::vector<float> PredictorPolicy::Scores(const ScoreRequest& request) {
  const at::NoGradGuard no_grad;
  const BlockLayout& blocks = request.space.blocks();
  const kernels::Combine combine = truth_.combine;
  at::Tensor scores;
  if (request.sub_block == ScoreRequest::SubBlock::kMlp) {
    scores = mlp_.at(request.layer).Scores(request.stream, blocks);
  } else if (const AttentionScorer* joint = JointHead(request)) {
    scores = joint->Scores(request.stream, blocks, combine);
  } else if (scope_ == Scope::kNested) {
    scores = heads_.at(LayerHead(request.layer)).Scores(request.stream, blocks, combine);
  } else {
    for (int64_t i = request.layer; i < request.end_layer; ++i) {
      const at::Tensor own = heads_.at(LayerHead(i)).Scores(request.stream, blocks, combine);
      scores = scores.defined() ? scores + own : own;
    }
    scores = scores / static_cast<double>(request.end_layer - request.layer);
  }
  return OnHost(scores);
}

std::vector<float> PredictorPolicy::TrueScores(const ScoreRequest& request) {
  return OracleScores(decoder_, request, truth_);
}

const AttentionScorer* PredictorPolicy::JointHead(const ScoreRequest& request) const {
  std::string name;
  if (scope_ == Scope::kStack) name = kStackHead;
  if (scope_ == Scope::kNested) name = AboveHead(request.layer);
  const auto found = heads_.find(name);
  return found == heads_.end() ? nullptr : &found->second;
}

std::vector<int64_t> NestedChoices(const TokenSettings& settings) {
  return settings.scope == Scope::kNested ? settings.Choices() : std::vector<int64_t>();
}

PredictorUse PredictorUseOf(const TokenSettings& settings, const DecoderConfig& config) {
  PredictorUse use;
  use.base = MakePredictorBase(config, "");
  use.block = settings.block;
  if (settings.spec.has_combine()) use.combine = settings.spec.combine();
  if (settings.spec.has_score_rope()) {
    use.score_rope = settings.spec.score_rope() ? "true" : "false";
  }
  if (settings.scope == Scope::kStack) {
    use.heads = {kStackHead};
  } else if (settings.scope == Scope::kNested) {
    // Where it lacks the head for all layers above, the layer's own takes its place.
    for (const int64_t layer : NestedChoices(settings)) use.heads.push_back(LayerHead(layer));
  } else {
    for (int64_t i = 0; i < config.layers; ++i) {
      if (settings.keep[i] < 1) use.heads.push_back(LayerHead(i));
      if (settings.keep[i] < 1 && settings.mlp == MlpRows::kOwn) use.mlp.push_back(i);
    }
  }
  if (settings.spec.layers() == kAllocated) {
    use.allocated = settings.spec.mode() == "threshold" ? PredictorUse::Allocated::kThresholds
                                                        : PredictorUse::Allocated::kShares;
    use.allocated_mlp = settings.spec.mlp();
  }
  return use;
}

absl::StatusOr<Predictor> ReadFitting(const TokenSettings& settings, const Decoder& decoder) {
  absl::StatusOr<Predictor> predictor = ReadPredictor(settings.spec.predictor());
  const absl::Status status =
      predictor.ok() ? CheckFits(*predictor, PredictorUseOf(settings, decoder.whole_config()))
                     : predictor.status();
  if (status.ok()) return predictor;
  return absl::Status(status.code(), absl::StrCat("tokens.predictor: ", status.message()));
}

std::unique_ptr<TokenPolicy> MakePredictorPolicy(const TokenSettings& settings,
                                                 const Decoder& decoder,
                                                 const Predictor& predictor) {
  return std::make_unique<PredictorPolicy>(settings, decoder, predictor);
}

absl::StatusOr<std::unique_ptr<TokenPolicy>> MakePredictorPolicy(const TokenSettings& settings,
                                                                 const Decoder& decoder) {
  LEMO_ASSIGN_OR_RETURN(const Predictor predictor, ReadFitting(settings, decoder));
  return MakePredictorPolicy(settings, decoder, predictor);
}

}  // namespace lemo::train
