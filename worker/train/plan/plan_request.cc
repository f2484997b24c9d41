#include "worker/train/plan/plan_request.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/violations.h"
#include "planner/offers/workload.h"
#include "worker/train/model/family/family.h"
#include "worker/train/publish/peft_pattern.h"
#include "worker/train/tokens/settings.h"

namespace lemo::train {
namespace {

using planner::OfferRequest;

constexpr const char* kAllLinear = "all-linear";

// Of the first layer's module; the planner takes layers as alike.
int64_t RankOf(const lemo::v1::LoraSpec& spec, const std::string& module) {
  const bool targeted = std::any_of(
      spec.targets().begin(), spec.targets().end(), [&module](const std::string& target) {
        return target == kAllLinear || MatchesPeftTarget(module, target);
      });
  if (!targeted) return 0;
  const std::map<std::string, int32_t> patterns(spec.rank_pattern().begin(),
                                                spec.rank_pattern().end());
  for (const auto& [pattern, rank] : patterns) {
    if (MatchesPeftPattern(module, pattern)) return rank;
  }
  return spec.rank();
}

planner::MemoryTuning TuningOf(const lemo::v1::TunerSpec& tuner, const DecoderConfig& config) {
  if (tuner.has_full()) return {.full = true};
  const lemo::v1::LoraSpec& lora = tuner.lora();
  const ModuleNames& names = NamesOf(config);
  const auto rank = [&](const char* module) {
    return RankOf(lora, absl::StrCat(names.layers, "0.", module));
  };
  const bool gated = config.mlp == DecoderConfig::Mlp::kSwiGlu;
  return {.adapters = {.q = rank(names.q),
                       .k = rank(names.k),
                       .v = rank(names.v),
                       .o = rank(names.o),
                       .gate = gated ? rank(names.gate) : 0,
                       .up = rank(names.up),
                       .down = rank(names.down)},
          .dropout = lora.dropout() > 0};
}

planner::Learning LearningOf(const lemo::v1::PredictorSpec& spec) {
  return {.heads = {.block = spec.block(),
                    .r1 = spec.r1(),
                    .r2 = spec.r2(),
                    .p = spec.p(),
                    .flat_slice = spec.kind() == "flat_slice",
                    .mlp = spec.mlp(),
                    .joint = 1 + spec.nested_from_size(),
                    .rotated = spec.score_rope()},
          .allocates = spec.allocate() > 0};
}

planner::Sharding ShardingOf(const std::string& name) {
  if (name == "optimizer") return planner::Sharding::kOptimizer;
  if (name == "gradients") return planner::Sharding::kGradients;
  if (name == "parameters") return planner::Sharding::kParameters;
  return planner::Sharding::kNone;
}

// With `share` of a sparse layer's blocks; what tokens.keep says then is put into `spec_keep`.
TokenSettings WithShare(TokenSettings settings, const PlanFacts& facts, double share,
                        std::vector<double>* spec_keep) {
  if (facts.allocated && facts.predictor) {
    settings.keep = AllocateShares(facts.predictor->allocated.rises, share);
  } else {
    for (double& keep : settings.keep) {
      if (keep < 1) keep = share;
    }
  }
  const bool list = settings.spec.keep_size() > 1 && !facts.allocated;
  *spec_keep = list ? settings.keep : std::vector<double>{share};
  return settings;
}

absl::Status AddTokens(const TokenSettings& settings, const PlanFacts& facts,
                       const std::vector<double>& shares, OfferRequest* request) {
  if (settings.dense()) {
    if (shares.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("plan.keep: the run leaves no rows out (tokens)");
  }
  if (!settings.threshold.empty() && !shares.empty()) {
    return absl::InvalidArgumentError(
        "plan.keep: the thresholds say how many blocks are kept (tokens.mode)");
  }
  const auto add = [&](const TokenSettings& of, std::vector<double> spec_keep) {
    request->tokens.push_back({.scope = of.RowsComeBack()            ? planner::Scope::kLayer
                                        : of.scope == Scope::kNested ? planner::Scope::kNested
                                                                     : planner::Scope::kStack,
                               .keep = SharesForTimeOf(of, facts.predictor),
                               .spec_keep = std::move(spec_keep),
                               .mlp_off = of.mlp == MlpRows::kAll,
                               .mlp_own = of.mlp == MlpRows::kOwn,
                               .kv_all = of.kv_all,
                               .any_share = !of.threshold.empty(),
                               .block = of.block,
                               .chooser = ChooserOf(of, facts.predictor),
                               .lessons = LessonsOf(of, facts.predictor),
                               .table = TableOf(of),
                               .loss_gap = LossGapOf(of, facts.predictor),
                               .evidence = EvidenceOf(of, facts.predictor)});
  };
  if (std::all_of(settings.keep.begin(), settings.keep.end(), [](double k) { return k >= 1; })) {
    return absl::OkStatus();
  }
  add(settings, {});
  for (const double share : shares) {
    std::vector<double> spec_keep;
    const TokenSettings other = WithShare(settings, facts, share, &spec_keep);
    const bool known =
        std::any_of(request->tokens.begin(), request->tokens.end(),
                    [&other](const planner::TokenChoice& of) { return of.keep == other.keep; });
    if (!known) add(other, std::move(spec_keep));
  }
  return absl::OkStatus();
}

// How often: before the first step, behind the last, and between.
void AddTimes(const lemo::v1::EvalSpec& spec, int64_t steps, planner::Evaluated* evaluated) {
  if (evaluated->rows == 0) return;
  const int64_t every = spec.every_steps(), shadow_every = spec.shadow_every_steps();
  evaluated->times = 2 + (every > 0 ? (steps - 1) / every : 0);
  evaluated->sparse = spec.sparse();
  if (shadow_every > 0) evaluated->shadows = steps / shadow_every;
}

int64_t Longest(const PlanFacts& facts) {
  int64_t longest = facts.evaluated.longest;
  for (const planner::LengthCount& of : facts.documents) longest = std::max(longest, of.length);
  return longest;
}

}  // namespace

planner::ModelShape ShapeOf(const DecoderConfig& config) {
  planner::ModelShape shape{.hidden = config.hidden,
                            .heads = config.heads,
                            .kv_heads = config.kv_heads,
                            .head_dim = config.head_dim,
                            .intermediate = config.intermediate,
                            .vocabulary = config.vocabulary,
                            .gated_mlp = config.mlp == DecoderConfig::Mlp::kSwiGlu};
  shape.layers = config.layers;
  shape.embedding_width = config.embedding_width;
  if (config.positions == DecoderConfig::Positions::kTable) {
    shape.position_rows = config.max_positions + config.position_offset;
  }
  shape.layer_norm = config.norm == DecoderConfig::Norm::kLayer;
  shape.post_norm = config.post_norm;
  shape.final_norm = config.final_norm;
  shape.qk_norm = config.qk_norm;
  shape.qkv_bias = config.qkv_bias;
  shape.o_bias = config.o_bias;
  shape.mlp_bias = config.mlp_bias;
  shape.tied_embeddings = config.tied_embeddings;
  return shape;
}

absl::StatusOr<OfferRequest> PlanRequestOf(const lemo::v1::RunSpec& spec,
                                           const DecoderConfig& config, const PlanFacts& facts,
                                           const PlanWishes& wishes) {
  OfferRequest request;
  request.shape = ShapeOf(config);
  request.element_bytes = facts.element_bytes;
  if (spec.has_predictor()) {
    request.learning = LearningOf(spec.predictor());
  } else {
    request.tuning = TuningOf(spec.tuner(), config);
  }
  request.data = {.documents = facts.documents, .packing = spec.data().packing()};
  request.window = spec.data().max_length();
  const lemo::v1::TrainSpec& train = spec.train();
  request.batch_sequences =
      train.batch_sequences() > 0
          ? train.batch_sequences()
          : std::max<int64_t>(1, train.batch_tokens() / std::max<int64_t>(1, request.window));
  request.labelled_share = facts.labelled_share;
  request.evaluated = facts.evaluated;
  // A predictor's training is begun anew, not gone on with.
  request.checkpoints = spec.checkpoint().every_steps() > 0 && !spec.has_predictor();
  // A dense spec means its rows; one that leaves some out says which, and should see what windows
  // of as few rows would do instead.
  request.preference = planner::Preference::kMostExact;
  Violations violations;
  const TokenSettings settings = MakeTokenSettings(spec.tokens(), config.layers, &violations);
  LEMO_RETURN_IF_ERROR(violations.ToStatus());
  LEMO_RETURN_IF_ERROR(AddTokens(settings, facts, wishes.keep, &request));
  if (!request.tokens.empty()) {
    for (const planner::TokenChoice& choice : request.tokens) {
      const double keep = std::accumulate(choice.keep.begin(), choice.keep.end(), 0.0) /
                          static_cast<double>(choice.keep.size());
      const auto short_window = static_cast<int64_t>(keep * static_cast<double>(request.window));
      if (short_window < choice.block) continue;
      if (!facts.splits && short_window < Longest(facts)) continue;
      std::vector<int64_t>& windows = request.short_windows;
      if (std::find(windows.begin(), windows.end(), short_window) == windows.end()) {
        windows.push_back(short_window);
      }
    }
    request.preference = planner::Preference::kFastest;
  }

  const lemo::v1::ParallelSpec& parallel = spec.parallel();
  const int64_t tensor = std::max(1, parallel.tensor()), data = std::max(1, parallel.data());
  request.world_sizes = {tensor * data};
  if (!wishes.world_sizes.empty()) request.world_sizes = wishes.world_sizes;
  request.may_split_tensors = tensor > 1;
  request.sequence = parallel.sequence();
  request.shardings = {ShardingOf(parallel.shard())};
  request.loss_segments = {spec.memory().loss_segment_rows()};
  request.micro_batch_sequences.clear();
  for (int64_t micro = 1; micro <= request.batch_sequences; micro *= 2) {
    request.micro_batch_sequences.push_back(micro);
  }
  request.device = facts.device;
  request.bounds = wishes.bounds;
  if (wishes.preference) request.preference = *wishes.preference;
  request.steps = 1;
  if (const std::vector<std::string> faults = planner::FaultsOf(request); !faults.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot plan: ", absl::StrJoin(faults, "; ")));
  }
  if (train.has_steps()) {
    request.steps = train.steps();
  } else {
    const planner::Workload load = planner::WorkloadOf(request, request.window, nullptr);
    request.steps = std::max<int64_t>(
        1, static_cast<int64_t>(std::ceil(train.epochs() * static_cast<double>(load.sequences) /
                                          static_cast<double>(request.batch_sequences))));
  }
  AddTimes(spec.eval(), request.steps, &request.evaluated);
  if (request.tokens.empty()) return request;
  // A predictor that has learnt nothing yet begins with steps of all rows.
  lemo::v1::TokensSpec tokens = spec.tokens();
  FillWarmup(request.steps, /*fresh=*/facts.predictor && facts.predictor->steps == 0, &tokens);
  const TokenSettings warmed_up = MakeTokenSettings(tokens, config.layers, &violations);
  for (planner::TokenChoice& choice : request.tokens) {
    choice.dense_share = DenseShare(warmed_up, request.steps);
    choice.lessons_a_step = LessonsAStep(warmed_up, choice.dense_share);
  }
  return request;
}

PlanWishes WishesOf(const lemo::v1::PlanSpec& spec, const std::string& path,
                    Violations* violations) {
  PlanWishes wishes;
  const auto fault = [&](const std::string& field, std::string reason) {
    violations->Add(path.empty() ? field : absl::StrCat(path, ".", field), std::move(reason));
  };
  const auto positive = [&](bool given, double value, const char* field) {
    if (given && !(value > 0 && std::isfinite(value))) {
      fault(field, absl::StrCat("must be above 0, got ", value));
    }
  };
  if (spec.has_prefer()) {
    static const auto* const kNames = new std::map<std::string, planner::Preference>{
        {"fastest", planner::Preference::kFastest},
        {"smallest", planner::Preference::kSmallest},
        {"most_exact", planner::Preference::kMostExact}};
    if (const auto found = kNames->find(spec.prefer()); found != kNames->end()) {
      wishes.preference = found->second;
    } else {
      fault("prefer", "expected fastest, smallest or most_exact");
    }
  }
  wishes.offer = spec.offer();
  if (spec.has_finish_by()) fault("finish_by", "is the service's; give max_run_seconds");
  positive(spec.has_max_memory_bytes(), static_cast<double>(spec.max_memory_bytes()),
           "max_memory_bytes");
  positive(spec.has_max_run_seconds(), spec.max_run_seconds(), "max_run_seconds");
  positive(spec.has_max_device_hours(), spec.max_device_hours(), "max_device_hours");
  if (spec.has_min_keep() && !(spec.min_keep() > 0 && spec.min_keep() <= 1)) {
    fault("min_keep", absl::StrCat("must be above 0 and at most 1, got ", spec.min_keep()));
  }
  for (const int32_t ranks : spec.ranks()) {
    if (ranks < 1) fault("ranks", absl::StrCat("must be above 0, got ", ranks));
    wishes.world_sizes.push_back(ranks);
  }
  for (int i = 0; i < spec.keep_size(); ++i) {
    const double share = spec.keep(i);
    if (!(share > 0 && share < 1)) {
      fault(absl::StrCat("keep[", i, "]"),
            absl::StrCat("must be above 0 and below 1, got ", share));
    }
    wishes.keep.push_back(share);
  }
  constexpr double kSecondsAnHour = 3600;
  wishes.bounds = {.memory_bytes_max = spec.max_memory_bytes(),
                   .finish_seconds_max = spec.max_run_seconds(),
                   .keep_min = spec.min_keep(),
                   .device_seconds_max = kSecondsAnHour * spec.max_device_hours()};
  return wishes;
}

}  // namespace lemo::train
