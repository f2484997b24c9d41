#include "worker/train/plan/row_chooser.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lemo::train {
namespace {

// bench/results/2026-11-30-quality.md: perplexity above the dense run's, in percent, with half of
// the rows. Task a reads on in a novel, at 2,048 tokens and, with three seeds, at 8,192; task b
// does so at four times the length that the base knew. NaN: not run.
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
struct Studied {
  Scope scope;
  const char* policy;
  MlpRows mlp;
  bool all_layers;
  double reading, stretched, long_reading = kNan;
  bool taught = false;  // by a predictor of as many steps as kTaughtSteps
};
constexpr int64_t kTaughtSteps = 2000;
constexpr Studied kStudied[] = {
    {Scope::kStack, "random", MlpRows::kShared, true, 1.8, 1.4, 2.3},
    {Scope::kStack, "recency", MlpRows::kShared, true, 1.0, 1.7, 1.0},
    {Scope::kStack, "norm", MlpRows::kShared, true, 2.0, 1.4},
    {Scope::kStack, "table", MlpRows::kShared, true, 1.5, 0.5, 1.8},
    {Scope::kStack, "predictor", MlpRows::kShared, true, 1.6, kNan, 2.3},
    {Scope::kStack, "predictor", MlpRows::kShared, true, 2.4, kNan, 1.8, true},
    {Scope::kStack, "oracle", MlpRows::kShared, true, 1.4, 0.4, 1.9},
    {Scope::kNested, "random", MlpRows::kShared, false, 1.8, 1.8},
    {Scope::kNested, "predictor", MlpRows::kShared, false, 1.7, kNan},
    {Scope::kNested, "oracle", MlpRows::kShared, false, 1.2, kNan},
    {Scope::kGroup, "random", MlpRows::kShared, false, 4.1, 5.7},
    {Scope::kLayer, "random", MlpRows::kAll, false, 2.6, 5.4, 4.8},
    {Scope::kLayer, "random", MlpRows::kAll, true, 6.8, 20.0},
    {Scope::kLayer, "random", MlpRows::kShared, false, 3.9, 6.2},
    {Scope::kLayer, "random", MlpRows::kShared, true, 24.6, 21.2},
    {Scope::kLayer, "norm", MlpRows::kAll, false, 2.9, 2.9},
    {Scope::kLayer, "norm", MlpRows::kShared, false, 5.1, 4.1},
    {Scope::kLayer, "norm", MlpRows::kShared, true, 2.0, 1.7},
    {Scope::kLayer, "predictor", MlpRows::kAll, false, 2.5, kNan},
    {Scope::kLayer, "oracle", MlpRows::kAll, false, 2.7, 5.9, 4.5},
    {Scope::kLayer, "oracle", MlpRows::kAll, true, 7.2, 9.8},
    {Scope::kLayer, "oracle", MlpRows::kShared, true, 24.6, 17.3},
};
// Shares of the window's length.
struct StudiedWindow {
  double share, reading, stretched, long_reading = kNan;
};
constexpr StudiedWindow kStudiedWindows[] = {
    {0.8, 0.2, -0.4}, {0.6, 0.6, 0.4}, {0.5, 0.6, 1.1, 1.0}, {0.4, 1.8, 1.9}, {0.3, 2.0, 3.5}};
// Figures stand for shares that are no further off.
constexpr double kNear = 0.051;
// Of a layer whose blocks pass a threshold: it leaves all of them in at most by chance.
constexpr double kLeastShare = 0.01, kMostShare = 0.99;

template <typename Found>
std::string StudyText(double share, const Found& found) {
  std::string text = absl::StrFormat(
      "not measured on this model; the study of 2026-11-30 (3M parameters) found at %.2g: "
      "perplexity ",
      share);
  // Of one seed where there are no three.
  if (std::isnan(found.long_reading)) {
    absl::StrAppendFormat(&text, "%+.1f %% reading on at 2,048 tokens, one seed", found.reading);
  } else {
    absl::StrAppendFormat(&text, "%+.1f %% reading on at 8,192 tokens, three seeds",
                          found.long_reading);
  }
  if (!std::isnan(found.stretched)) {
    absl::StrAppendFormat(&text, ", %+.1f %% at a length the base did not know", found.stretched);
  }
  return text;
}

// The thresholds are those of the card, with which it was measured what passes.
bool ThresholdsOfCard(const TokenSettings& settings,
                      const std::optional<PredictorFacts>& predictor) {
  return predictor && !settings.threshold.empty() &&
         predictor->allocated.threshold == settings.threshold;
}

std::string ThresholdEvidence(const TokenSettings& settings,
                              const std::optional<PredictorFacts>& predictor) {
  if (!ThresholdsOfCard(settings, predictor)) {
    return "how many blocks pass the thresholds is known when they have: seconds are as if "
           "tokens.keep of them did, bytes are for all; what that does to the loss was not "
           "measured";
  }
  const AllocatedShares& card = predictor->allocated;
  const double mean = std::accumulate(card.keep.begin(), card.keep.end(), 0.0) /
                      static_cast<double>(card.keep.size());
  return absl::StrFormat(
      "seconds are as if the share passed the thresholds that did when the predictor's card was "
      "written (%.2f), bytes are for all blocks; the loss of this model was then %+.3f nats higher "
      "before any tuning, on %d sequences",
      mean, card.loss_gap, card.sequences);
}

// At most.
int64_t LayersOfAChoice(const TokenSettings& settings) {
  const int64_t layers = std::ssize(settings.keep);
  if (!settings.RowsComeBack()) {
    const auto first = std::find_if(settings.keep.begin(), settings.keep.end(),
                                    [](double keep) { return keep < 1; });
    return settings.keep.end() - first;
  }
  int64_t most = 1, run = 0;
  for (int64_t l = 0; l < layers; ++l) {
    run = settings.ContinuesGroup(l) ? run + 1 : 1;
    most = std::max(most, run);
  }
  return most;
}

}  // namespace

std::vector<double> SharesForTimeOf(const TokenSettings& settings,
                                    const std::optional<PredictorFacts>& predictor) {
  if (!ThresholdsOfCard(settings, predictor)) return settings.keep;
  std::vector<double> shares = predictor->allocated.keep;
  for (double& share : shares) share = std::clamp(share, kLeastShare, kMostShare);
  return shares;
}

planner::RowChooser ChooserOf(const TokenSettings& settings,
                              const std::optional<PredictorFacts>& predictor) {
  planner::RowChooser chooser;
  if (settings.policy == "norm") chooser.by = planner::RowChooser::By::kNorm;
  if (settings.policy == "predictor") {
    const PredictorFacts facts = predictor.value_or(PredictorFacts());
    chooser = {.by = planner::RowChooser::By::kPredictor,
               .held_bytes = facts.held_bytes,
               .first_width = facts.first_width,
               .flat_slice = facts.flat_slice};
  }
  if (settings.policy == "oracle") {
    chooser.by = planner::RowChooser::By::kScores;
    chooser.layers = LayersOfAChoice(settings);
    chooser.rotated = settings.spec.score_rope();
    chooser.mlp = settings.mlp == MlpRows::kOwn;
    chooser.block = settings.block;
  }
  // Rows that will not be embedded are embedded to be looked at.
  chooser.own_stream =
      chooser.by != planner::RowChooser::By::kPlace && settings.scope == Scope::kStack;
  return chooser;
}

planner::Lessons LessonsOf(const TokenSettings& settings,
                           const std::optional<PredictorFacts>& predictor) {
  if (!settings.spec.has_online() || !predictor) return {};
  planner::Lessons lessons{.heads = predictor->heads,
                           .parameters = predictor->parameters,
                           .start_bytes = predictor->file_bytes};
  if (!settings.RowsComeBack()) {
    lessons.joint = std::ssize(settings.Choices());
    lessons.layers = LayersOfAChoice(settings);
  }
  return lessons;
}

double LessonsAStep(const TokenSettings& settings, double dense_share) {
  if (!settings.spec.has_online()) return 0;
  int64_t layers = std::ssize(settings.Choices());  // before which heads learn
  if (settings.RowsComeBack()) {
    layers = std::count_if(settings.keep.begin(), settings.keep.end(),
                           [](double keep) { return keep < 1; });
  }
  const auto lessons =
      static_cast<double>(std::min<int64_t>(settings.spec.online().layers_per_step(), layers));
  if (settings.RowsComeBack()) return lessons;
  // Steps that leave rows out teach where they measure.
  const int every = settings.spec.recall_every_steps();
  return dense_share * lessons + (every > 0 ? (1 - dense_share) / every : 0);
}

std::optional<planner::ScoredRows> TableOf(const TokenSettings& settings) {
  if (settings.policy != "table") return std::nullopt;
  const std::string& score = settings.spec.table_score();
  using By = planner::ScoredRows::By;
  const By by = score == "entropy"                       ? By::kEntropy
                : score == "loss" || score == "low_loss" ? By::kLoss
                                                         : By::kAttention;
  return planner::ScoredRows{.by = by, .rotated = settings.spec.score_rope()};
}

double DenseShare(const TokenSettings& settings, int64_t steps) {
  const double dense = static_cast<double>(settings.warmup_steps + settings.cooldown_steps) +
                       static_cast<double>(settings.anneal_steps) / 2;
  return std::min(1.0, dense / static_cast<double>(std::max<int64_t>(1, steps)));
}

std::optional<double> LossGapOf(const TokenSettings& settings,
                                const std::optional<PredictorFacts>& predictor) {
  if (settings.policy != "predictor" || settings.scope != Scope::kLayer || !predictor) return {};
  const LossRises& rises = predictor->allocated.rises;
  const bool alike = predictor->allocated.mlp == (settings.mlp == MlpRows::kAll ? "off" : "shared");
  if (rises.rise.size() != settings.keep.size() || !alike || settings.mlp == MlpRows::kOwn)
    return {};
  double gap = 0;
  for (size_t l = 0; l < settings.keep.size(); ++l) {
    if (settings.keep[l] < rises.shares.front()) return {};
    gap += rises.At(static_cast<int64_t>(l), settings.keep[l]);
  }
  return gap;
}

std::string EvidenceOf(const TokenSettings& settings,
                       const std::optional<PredictorFacts>& predictor) {
  std::vector<double> sparse;
  std::copy_if(settings.keep.begin(), settings.keep.end(), std::back_inserter(sparse),
               [](double keep) { return keep < 1; });
  if (sparse.empty()) return "";
  if (!settings.threshold.empty()) return ThresholdEvidence(settings, predictor);
  const bool all_layers = sparse.size() == settings.keep.size();
  const bool half = std::all_of(sparse.begin(), sparse.end(),
                                [](double keep) { return std::abs(keep - 0.5) < kNear; });
  const bool by_attention =
      settings.spec.table_score().empty() || settings.spec.table_score() == "attention";
  const bool taught = predictor && predictor->steps >= kTaughtSteps;
  std::string text;
  // Of two that are alike the later one is of a predictor that has learnt for longer.
  for (const Studied& row : kStudied) {
    const bool alike = row.scope == settings.scope && row.policy == settings.policy &&
                       row.mlp == settings.mlp && row.all_layers == all_layers &&
                       row.taught <= taught;
    if (alike && half && by_attention) text = StudyText(0.5, row);
  }
  if (settings.policy == "predictor" && predictor && predictor->recall > 0) {
    absl::StrAppendFormat(
        &text,
        "%sits predictor keeps %.0f %% of the blocks that true scores would keep, by its card",
        text.empty() ? "" : "; ", 100 * predictor->recall);
    if (const std::optional<double> gap = LossGapOf(settings, predictor)) {
      absl::StrAppendFormat(
          &text,
          "; with its rows left out the loss of this model is %+.3f nats before any tuning (each "
          "layer by itself, added up; all at once at a mean of %.2f: %+.3f), on %d sequences",
          *gap, predictor->allocated.mean, predictor->allocated.loss_gap,
          predictor->allocated.sequences);
    } else {
      absl::StrAppend(&text, "; what that does to the loss was not measured");
    }
  }
  return text;
}

std::string ShortWindowEvidence(double share) {
  for (const StudiedWindow& row : kStudiedWindows) {
    if (std::abs(share - row.share) < kNear) {
      return StudyText(row.share, row);
    }
  }
  return "";
}

}  // namespace lemo::train
