#include "worker/train/tokens/settings.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace lemo::train {
namespace {

using lemo::v1::TokensSpec;

constexpr std::pair<const char*, Scope> kScopes[] = {{"layer", Scope::kLayer},
                                                     {"group", Scope::kGroup},
                                                     {"nested", Scope::kNested},
                                                     {"stack", Scope::kStack}};
constexpr std::pair<const char*, MlpRows> kMlpRows[] = {
    {"off", MlpRows::kAll}, {"shared", MlpRows::kShared}, {"own", MlpRows::kOwn}};

template <typename Value, size_t kCount>
Value ValueOf(const std::pair<const char*, Value> (&names)[kCount], const std::string& name) {
  for (const auto& [text, value] : names) {
    if (name == text) return value;
  }
  return names[0].second;
}

void OneOf(const char* field, const std::string& value, const std::vector<std::string>& choices,
           Violations* violations) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  const std::string nearest = NearestName(value, choices);
  violations->Add(
      absl::StrCat("tokens.", field),
      absl::StrCat("\"", value, "\" is not one of ", absl::StrJoin(choices, ", "),
                   nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?")));
}

// "2-4,6" as first and last layer of each run; absent when it does not read so.
std::optional<std::vector<std::pair<int64_t, int64_t>>> ParseRuns(const std::string& text) {
  std::vector<std::pair<int64_t, int64_t>> runs;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(part, '-');
    int64_t first = 0, last = 0;
    if (ends.size() > 2 || !absl::SimpleAtoi(ends.front(), &first) ||
        !absl::SimpleAtoi(ends.back(), &last) || first < 0 || last < first) {
      return std::nullopt;
    }
    runs.emplace_back(first, last);
  }
  return runs;
}

// Which layers are sparse.
std::vector<bool> SparseLayers(const TokensSpec& spec, Scope scope, int64_t layers,
                               Violations* violations) {
  std::vector<bool> sparse(layers, false);
  if (spec.layers() == "all" || spec.layers() == kAllocated || scope == Scope::kStack) {
    sparse.assign(layers, true);
  } else if (spec.layers() == "auto") {
    // The early layers show little sparsity, and the last one feeds the head (lemo-spec section 6).
    // A row that left before the last layer cannot come back for it.
    for (int64_t i = std::max<int64_t>(layers / 2 - 1, 0); i < layers; ++i) {
      sparse[i] = i < layers - 1 || scope == Scope::kNested;
    }
  } else {
    for (const auto& [first, last] :
         ParseRuns(spec.layers()).value_or(std::vector<std::pair<int64_t, int64_t>>())) {
      if (last >= layers) {
        violations->Add("tokens.layers",
                        absl::StrCat(last, " is beyond the last layer, ", layers - 1));
        break;
      }
      for (int64_t i = first; i <= last; ++i) sparse[i] = true;
    }
  }
  return sparse;
}

template <typename Value>
std::vector<double> ByLayer(const Value& values, int64_t layers, const char* field,
                            Violations* violations) {
  if (values.size() == 1) return std::vector<double>(layers, values.Get(0));
  if (values.size() != layers) {
    violations->Add(absl::StrCat("tokens.", field),
                    absl::StrCat("give one number, or one for each of the model's ", layers,
                                 " layers; it has ", values.size()));
    return std::vector<double>(layers, 1.0);
  }
  return {values.begin(), values.end()};
}

}  // namespace

void FillTokenDefaults(TokensSpec* spec) {
#define LEMO_DEFAULT(field, value) \
  if (!spec->has_##field()) spec->set_##field(value)
  LEMO_DEFAULT(policy, "dense");
  if (spec->policy() == "dense") return;
  LEMO_DEFAULT(scope, "stack");
  const bool stays_out = spec->scope() == "stack" || spec->scope() == "nested";
  if (spec->keep_size() == 0) spec->add_keep(0.5);
  LEMO_DEFAULT(layers, "auto");
  LEMO_DEFAULT(mlp, "shared");
  LEMO_DEFAULT(loss_rows, stays_out ? "through" : "all");
  LEMO_DEFAULT(sink_blocks, 1);
  LEMO_DEFAULT(local_blocks, 1);
  LEMO_DEFAULT(keep_labels, true);
  if (!spec->has_online()) {  // else they follow from the run's steps and its predictor
    LEMO_DEFAULT(warmup_steps, 0);
    LEMO_DEFAULT(anneal_steps, 0);
  }
  LEMO_DEFAULT(cooldown_steps, 0);
  LEMO_DEFAULT(block, 64);
  LEMO_DEFAULT(chunk_blocks, 1);
  if (spec->scope() == "group") LEMO_DEFAULT(group_layers, 2);
  LEMO_DEFAULT(kv_all, false);
  LEMO_DEFAULT(mode, "ratio");
  if (spec->policy() == "predictor") {
    LEMO_DEFAULT(predictor, "auto");
    // A pass of all rows would take the memory that these scopes are asked for.
    LEMO_DEFAULT(recall_every_steps, !stays_out ? 10 : spec->has_online() ? 50 : 0);
  }
  if (spec->policy() == "table") LEMO_DEFAULT(table_score, "attention");
  if (spec->policy() == "oracle" || spec->policy() == "table") {
    LEMO_DEFAULT(combine, "symmetric");
    LEMO_DEFAULT(score_rope, false);
  }
#undef LEMO_DEFAULT
  if (!spec->has_online()) return;
  lemo::v1::OnlineSpec* online = spec->mutable_online();
  if (!online->has_layers_per_step()) online->set_layers_per_step(1);
  if (!online->has_learning_rate()) online->set_learning_rate(1e-3);
}

void FillWarmup(int64_t steps, bool fresh, TokensSpec* spec) {
  if (!spec->has_online()) return;
  const auto at_most = [&](int64_t wanted, int64_t bound) {
    return static_cast<int32_t>(fresh ? std::min(wanted, bound) : 0);
  };
  if (!spec->has_warmup_steps()) spec->set_warmup_steps(at_most(50, steps / 4));
  if (!spec->has_anneal_steps()) spec->set_anneal_steps(at_most(200, steps / 2));
}

void ValidateTokens(const TokensSpec& spec, Violations* violations) {
  const auto fault = [violations](const char* field, std::string reason) {
    violations->Add(absl::StrCat("tokens.", field), std::move(reason));
  };
  if (spec.has_policy()) {
    OneOf("policy", spec.policy(),
          {"dense", "predictor", "oracle", "random", "recency", "norm", "table"}, violations);
  }
  if (spec.has_scope()) {
    OneOf("scope", spec.scope(), {"layer", "group", "nested", "stack"}, violations);
  }
  if (spec.has_mlp()) OneOf("mlp", spec.mlp(), {"off", "shared", "own"}, violations);
  if (spec.has_loss_rows()) OneOf("loss_rows", spec.loss_rows(), {"all", "through"}, violations);
  if (spec.has_mode()) OneOf("mode", spec.mode(), {"ratio", "threshold"}, violations);
  if (spec.has_table_score()) {
    OneOf("table_score", spec.table_score(), {"attention", "loss", "low_loss", "entropy"},
          violations);
  }
  if (spec.has_combine()) {
    OneOf("combine", spec.combine(), {"symmetric", "column", "column_mean"}, violations);
  }
  for (int i = 0; i < spec.keep_size(); ++i) {
    if (std::isfinite(spec.keep(i)) && spec.keep(i) > 0 && spec.keep(i) <= 1) continue;
    violations->Add(absl::StrCat("tokens.keep[", i, "]"),
                    absl::StrCat("must be above 0 and at most 1, got ", spec.keep(i)));
  }
  for (int i = 0; i < spec.threshold_size(); ++i) {
    if (std::isfinite(spec.threshold(i))) continue;
    violations->Add(absl::StrCat("tokens.threshold[", i, "]"), "must be a finite number");
  }
  for (const auto& [field, given, value, least] :
       {std::tuple("sink_blocks", spec.has_sink_blocks(), spec.sink_blocks(), 0),
        std::tuple("local_blocks", spec.has_local_blocks(), spec.local_blocks(), 0),
        std::tuple("warmup_steps", spec.has_warmup_steps(), spec.warmup_steps(), 0),
        std::tuple("anneal_steps", spec.has_anneal_steps(), spec.anneal_steps(), 0),
        std::tuple("cooldown_steps", spec.has_cooldown_steps(), spec.cooldown_steps(), 0),
        std::tuple("block", spec.has_block(), spec.block(), 1),
        std::tuple("chunk_blocks", spec.has_chunk_blocks(), spec.chunk_blocks(), 1),
        std::tuple("group_layers", spec.has_group_layers(), spec.group_layers(), 1),
        std::tuple("recall_every_steps", spec.has_recall_every_steps(), spec.recall_every_steps(),
                   0)}) {
    if (given && value < least) {
      fault(field, absl::StrCat("must be at least ", least, ", got ", value));
    }
  }
  const bool allocated = spec.layers() == kAllocated;
  if (spec.has_layers() && spec.layers() != "auto" && spec.layers() != "all" && !allocated &&
      !ParseRuns(spec.layers())) {
    fault("layers", absl::StrCat("\"", spec.layers(),
                                 "\" is neither auto, all, allocated nor a list of layers "
                                 "such as 2-4,6"));
  }
  if (allocated && (spec.policy() != "predictor" || spec.scope() != "layer")) {
    fault("layers", "allocated is what a predictor's card says; for policy predictor, scope layer");
  }
  if (allocated && spec.mlp() == "own") {
    fault("mlp", "shares by layer are measured with shared or off, not with own");
  }
  const bool stack = spec.scope() == "stack", nested = spec.scope() == "nested";
  if (spec.keep_size() > 1 && stack) {
    fault("keep", "one choice for the whole stack has one share; scope nested takes a list");
  }
  if (spec.keep_size() > 1 && spec.has_layers() && spec.layers() != "auto") {
    fault("layers",
          "excludes a list of shares in tokens.keep, whose entries of 1 are the dense layers");
  }
  if (nested && !std::is_sorted(spec.keep().rbegin(), spec.keep().rend())) {
    fault("keep",
          "with scope nested rows that leave do not come back, so no share may be above the "
          "one before it");
  }
  if ((stack || nested) && spec.has_mlp() && spec.mlp() != "shared") {
    fault("mlp", absl::StrCat("scope ", spec.scope(),
                              " has one set of rows for both sub-blocks; only "
                              "shared goes with it"));
  }
  if ((stack || nested) && spec.kv_all()) {
    fault("kv_all",
          absl::StrCat("is for scopes layer and group: rows that left have no keys; scope is ",
                       spec.scope()));
  }
  if (spec.has_group_layers() && spec.scope() != "group")
    fault("group_layers", "is for scope group");
  if (spec.has_predictor() && spec.policy() != "predictor") {
    fault("predictor", "is for policy predictor");
  }
  if (spec.has_recall_every_steps() && spec.policy() != "predictor") {
    fault("recall_every_steps", "is for policy predictor: no other one guesses at true scores");
  }
  if (spec.has_online()) {
    const lemo::v1::OnlineSpec& online = spec.online();
    if (spec.policy() != "predictor") {
      fault("online", "is for policy predictor: no other one learns");
    }
    if (online.has_layers_per_step() && online.layers_per_step() < 1) {
      fault("online.layers_per_step",
            absl::StrCat("must be at least 1, got ", online.layers_per_step()));
    }
    if (online.has_learning_rate() &&
        !(std::isfinite(online.learning_rate()) && online.learning_rate() > 0)) {
      fault("online.learning_rate",
            absl::StrCat("must be above 0 and finite, got ", online.learning_rate()));
    }
    if (spec.mlp() == "own") {
      fault("mlp", "networks that choose rows of the MLP do not learn online; use shared or off");
    }
    if ((stack || nested) && spec.has_warmup_steps() && spec.warmup_steps() == 0 &&
        spec.recall_every_steps() == 0) {
      fault("online", absl::StrCat("with scope ", spec.scope(),
                                   " it learns in steps of all rows (warmup_steps) and in those "
                                   "that measure recall (recall_every_steps), and both are 0"));
    }
  }
  if (spec.has_table_score() && spec.policy() != "table")
    fault("table_score", "is for policy table");
  if (spec.policy() == "table" && spec.mlp() == "own") {
    fault(
        "mlp",
        "policy table has one score a block, so the MLP can have no rows of its own; use shared or "
        "off");
  }
  if (spec.mode() == "threshold") {
    if (spec.threshold_size() == 0 && !allocated) {
      fault("threshold", "required with mode threshold");
    }
    if (spec.threshold_size() > 0 && allocated) {
      fault("threshold", "the predictor's card has them with layers allocated; leave it out");
    }
    if (stack || nested) fault("mode", "threshold is for scopes layer and group");
    if (spec.policy() == "random" || spec.policy() == "recency") {
      fault("mode", absl::StrCat("the scores of policy ", spec.policy(),
                                 " mean nothing but their order; use ratio"));
    }
  } else if (spec.threshold_size() > 0) {
    fault("threshold", "is for mode threshold");
  }
}

TokenSettings MakeTokenSettings(const TokensSpec& spec, int64_t layers, Violations* violations) {
  TokenSettings settings;
  settings.spec = spec;
  if (spec.policy().empty() || spec.policy() == "dense") {
    settings.keep.assign(layers, 1.0);
    return settings;
  }
  settings.policy = spec.policy();
  settings.scope = ValueOf(kScopes, spec.scope());
  settings.mlp = ValueOf(kMlpRows, spec.mlp());
  settings.loss_through = spec.loss_rows() == "through";
  settings.keep_labels = spec.keep_labels();
  settings.warmup_steps = spec.warmup_steps();
  settings.anneal_steps = spec.anneal_steps();
  settings.cooldown_steps = spec.cooldown_steps();
  settings.block = spec.block();
  settings.group_layers = spec.group_layers();
  settings.kv_all = spec.kv_all();
  settings.select.sink_blocks = spec.sink_blocks();
  settings.select.local_blocks = spec.local_blocks();
  settings.select.chunk_blocks = spec.chunk_blocks();
  settings.keep = ByLayer(spec.keep(), layers, "keep", violations);
  if (spec.keep_size() == 1) {
    const std::vector<bool> sparse = SparseLayers(spec, settings.scope, layers, violations);
    for (int64_t i = 0; i < layers; ++i) {
      if (!sparse[i]) settings.keep[i] = 1;
    }
    if (settings.scope == Scope::kNested &&
        !std::is_sorted(settings.keep.rbegin(), settings.keep.rend())) {
      violations->Add("tokens.layers",
                      "with scope nested the sparse layers must go on to the last");
    }
  }
  if (spec.has_online() && std::all_of(settings.keep.begin(), settings.keep.end(),
                                       [](double share) { return share >= 1; })) {
    violations->Add("tokens.online", "no layer drops rows, so that there is nothing to learn");
  }
  if (spec.mode() == "threshold" && spec.threshold_size() > 0) {
    settings.threshold = ByLayer(spec.threshold(), layers, "threshold", violations);
  }
  return settings;
}

std::vector<double> TokenSettings::KeepAt(int64_t step, int64_t steps) const {
  if (step < warmup_steps || step >= steps - cooldown_steps) {
    return std::vector<double>(keep.size(), 1.0);
  }
  std::vector<double> now = keep;
  if (step < warmup_steps + anneal_steps) {
    const double done =
        static_cast<double>(step - warmup_steps) / static_cast<double>(anneal_steps);
    for (double& share : now) share = 1 + (share - 1) * done;
  }
  return now;
}

std::vector<double> TokenSettings::Capped(std::vector<double> shares, double most) const {
  const bool any = std::any_of(keep.begin(), keep.end(), [](double share) { return share < 1; });
  for (size_t i = 0; i < shares.size(); ++i) {
    if (!any || keep[i] < 1) shares[i] = std::min(shares[i], most);
  }
  return shares;
}

std::vector<double> TokenSettings::Raised(std::vector<double> shares, double least) const {
  for (double& share : shares) share = std::max(share, least);
  return shares;
}

std::vector<int64_t> TokenSettings::Choices() const {
  std::vector<int64_t> choices;
  double share = 1;  // that is still in the stream
  for (int64_t i = 0; i < std::ssize(keep); ++i) {
    const bool chooses = scope == Scope::kStack    ? i == 0 && keep[i] < 1
                         : scope == Scope::kNested ? keep[i] < share
                                                   : keep[i] < 1 && !ContinuesGroup(i);
    if (chooses) choices.push_back(i);
    share = std::min(share, keep[i]);
  }
  return choices;
}

std::optional<int64_t> TokenSettings::MeasuredAt(int64_t step) const {
  const int64_t every = spec.recall_every_steps();
  if (every == 0 || step % every != 0) return std::nullopt;
  const std::vector<int64_t> choices = Choices();
  if (choices.empty()) return std::nullopt;
  return choices[(step / every) % std::ssize(choices)];
}

bool TokenSettings::ContinuesGroup(int64_t layer) const {
  if (scope != Scope::kGroup || keep[layer] >= 1) return false;
  int64_t first = layer;
  while (first > 0 && keep[first - 1] < 1) --first;
  return (layer - first) % group_layers != 0;
}

}  // namespace lemo::train
