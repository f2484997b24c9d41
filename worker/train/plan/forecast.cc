#include "worker/train/plan/forecast.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/strip.h"
#include "worker/train/plan/rates.h"

namespace lemo::train {
namespace {

using planner::LayerStorage;
using planner::Stored;

LayerStorage StorageNamed(const std::string& policy) {
  LayerStorage storage;
  std::string_view name = policy;
  constexpr std::string_view kOffload = "+offload";
  if (name.size() > kOffload.size() && name.substr(name.size() - kOffload.size()) == kOffload) {
    storage.offload = true;
    name.remove_suffix(kOffload.size());
  }
  storage.stored = name == "input"      ? Stored::kInput
                   : name == "attn_out" ? Stored::kAttentionOut
                   : name == "mlp"      ? Stored::kMlp
                                        : Stored::kAll;
  return storage;
}

std::vector<LayerStorage> StorageOf(const lemo::v1::MemorySpec& memory, int64_t layers) {
  std::vector<LayerStorage> storage(layers, StorageNamed(memory.policy()));
  for (const lemo::v1::LayerPolicy& run : memory.layers()) {
    for (int64_t i = run.first(); i <= std::min<int64_t>(run.last(), layers - 1); ++i) {
      storage[i] = StorageNamed(run.policy());
    }
  }
  return storage;
}

}  // namespace

lemo::v1::RunForecast ForecastKind(const planner::OfferRequest& request, const std::string& family,
                                   const lemo::v1::DeviceRates& rates) {
  lemo::v1::RunForecast kind;
  kind.set_family(family);
  kind.set_shape_class(planner::ShapeClassOf(request));
  kind.set_device(rates.type());
  kind.set_rates(RatesName(rates));
  kind.set_ranks(1);
  return kind;
}

lemo::v1::RunForecast ForecastOfOffer(const planner::OfferRequest& request,
                                      const planner::Offer& offer, lemo::v1::RunForecast kind) {
  kind.set_ranks(static_cast<int32_t>(offer.ranks()));
  kind.set_predicted_step_seconds(offer.step.Foretold());
  if (request.evaluated.times > 0) {
    kind.set_predicted_evaluation_seconds(offer.evaluation_seconds / offer.step.ratio /
                                          static_cast<double>(request.evaluated.times));
  }
  kind.set_predicted_peak_bytes(offer.memory.expected.total);
  kind.set_high_peak_bytes(offer.memory.high.total);
  return kind;
}

lemo::v1::RunForecast ForecastOfRun(const lemo::v1::RunSpec& spec, const DecoderConfig& config,
                                    const PlanFacts& facts, const lemo::v1::DeviceRates& rates) {
  lemo::v1::RunForecast forecast;
  forecast.set_family(config.family);
  forecast.set_device(rates.type());
  PlanFacts known = facts;
  // Bytes need no rates.
  if (!rates.has_calibration()) known.device.compute = {.products = 1, .attention = 1};
  const absl::StatusOr<planner::OfferRequest> request = PlanRequestOf(spec, config, known);
  if (!request.ok()) return forecast;
  const auto rows = std::max<int64_t>(spec.train().micro_batch_tokens(), 1);
  planner::Offer run{.window = request->window,
                     .token_choice = request->tokens.empty() ? -1 : 0,
                     .tensor_ranks = std::max(1, spec.parallel().tensor()),
                     .data_ranks = std::max(1, spec.parallel().data()),
                     .sharding = request->shardings.front(),
                     .loss_segment_rows = request->loss_segments.front(),
                     .storage = StorageOf(spec.memory(), request->shape.layers)};
  const int64_t of_rank = (request->batch_sequences + run.data_ranks - 1) / run.data_ranks;
  run.micro_batch_sequences = std::clamp<int64_t>(rows / request->window, 1, of_rank);
  forecast = ForecastOfOffer(*request, planner::PriceRun(*request, run),
                             ForecastKind(*request, config.family, rates));
  if (spec.memory().has_budget_bytes() && !spec.has_predictor()) {
    const int64_t budget = spec.memory().budget_bytes();
    forecast.set_predicted_peak_bytes(std::min(forecast.predicted_peak_bytes(), budget));
    forecast.set_high_peak_bytes(std::min(forecast.high_peak_bytes(), budget));
  }
  if (!rates.has_calibration()) {
    forecast.clear_rates();
    forecast.clear_predicted_step_seconds();
    forecast.clear_predicted_evaluation_seconds();
  }
  return forecast;
}

HistoryOfKind FindHistory(const google::protobuf::RepeatedPtrField<lemo::v1::RunTime>& history,
                          const lemo::v1::RunForecast& kind) {
  HistoryOfKind found;
  std::vector<double> ratios;
  std::set<std::string> jobs;
  for (const lemo::v1::RunTime& run : history) {
    const lemo::v1::RunForecast& of = run.forecast();
    if (of.family() != kind.family() || of.shape_class() != kind.shape_class() ||
        of.device() != kind.device() || of.rates() != kind.rates() || of.ranks() != kind.ranks()) {
      continue;
    }
    if (!(of.predicted_step_seconds() > 0) || !(of.measured_step_seconds() > 0)) continue;
    if (!jobs.insert(run.job()).second) continue;
    found.runs.push_back(run);
    ratios.push_back(of.measured_step_seconds() / of.predicted_step_seconds());
    if (std::ssize(found.runs) == planner::kMostRuns) break;
  }
  found.correction = planner::CorrectionOf(ratios);
  return found;
}

}  // namespace lemo::train
