#include "worker/train/loop/plan_run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/message_json.h"
#include "common/status_macros.h"
#include "planner/cost_model.h"
#include "worker/train/data/rows.h"
#include "worker/train/loop/predictor_run.h"
#include "worker/train/loop/publisher.h"
#include "worker/train/loop/spec_options.h"
#include "worker/train/plan/forecast.h"
#include "worker/train/plan/plan_message.h"
#include "worker/train/plan/plan_table.h"
#include "worker/train/plan/rates.h"

namespace lemo::train {
namespace {

using planner::OfferRequest;

constexpr int kGoes = 5;

// Median of several goes, after one that warms up.
double SecondsOf(at::Device device, const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i <= kGoes; ++i) {
    Synchronize(device);
    const auto start = std::chrono::steady_clock::now();
    work();
    Synchronize(device);
    const double taken =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) seconds.push_back(taken);
  }
  std::nth_element(seconds.begin(), seconds.begin() + kGoes / 2, seconds.end());
  return seconds[kGoes / 2];
}

// What this device does now, with whatever else runs on it. Of other sizes than a run's, so that a
// step may take some tens of percent more or less; bytes do not depend on it.
planner::Rates MeasureRates(const Compute& compute) {
  const at::NoGradGuard no_grad;
  const auto options = at::TensorOptions().dtype(compute.type).device(compute.device);
  const int64_t size = compute.device.is_cpu() ? 1024 : 8192;
  const at::Tensor a = at::ones({size, size}, options), b = at::ones({size, size}, options);
  const double cube = static_cast<double>(size) * static_cast<double>(size * size);
  planner::Rates rates;
  rates.products = 2 * cube / SecondsOf(compute.device, [&] { at::matmul(a, b); });

  constexpr int64_t kHeads = 8, kWidth = 64;
  const at::Tensor q = at::ones({1, kHeads, size, kWidth}, options);
  const double pairs = planner::CausalPairs(size);
  rates.attention = 4 * kHeads * kWidth * pairs / SecondsOf(compute.device, [&] {
                      at::scaled_dot_product_attention(q, q, q, {}, /*dropout_p=*/0.0,
                                                       /*is_causal=*/true);
                    });
  return rates;
}

struct KnownRates {
  lemo::v1::DeviceRates rates;
  RatesList shared;  // from the same place
  std::vector<std::string> notes;
};

// Those of the device that is planned for, else those that are given for this one and its type, or
// that the default file has, or measured ones.
KnownRates RatesOf(const Compute& compute, const lemo::v1::PlannedDevice& device,
                   const lemo::v1::PlanOptions& options) {
  KnownRates known{DeviceOf(compute), {}, {}};
  if (device.threads() > 0) {
    lemo::v1::DeviceRates wanted = known.rates;
    wanted.set_threads(device.threads());
    for (const RatesList* list : {&device.rates(), &options.rates()}) {
      if (const auto* given = FindRates(*list, wanted, kLemoVersion)) {
        return {*given,
                SharedRates(*list, *given, kLemoVersion),
                {absl::StrCat("times are those of ", device.source())}};
      }
    }
    known.notes.push_back(absl::StrCat("times are of this machine: ", device.source(),
                                       " is not calibrated in ", wanted.compute_type(), " by lemo ",
                                       kLemoVersion));
  }
  if (const auto* given = FindRates(options.rates(), known.rates, kLemoVersion)) {
    known.rates = *given;
    known.rates.set_packs_keys(PacksKeys(compute));
    known.shared = SharedRates(options.rates(), *given, kLemoVersion);
    return known;
  }
  RatesList kept;
  if (const std::filesystem::path file = DefaultRatesFile(); !file.empty()) {
    absl::StatusOr<RatesList> read = ReadRatesFile(file);
    if (read.ok()) {
      kept = *std::move(read);
    } else if (!absl::IsNotFound(read.status())) {
      known.notes.push_back(absl::StrCat("rates are not read: ", read.status().message()));
    }
  }
  if (const auto* found = FindRates(kept, known.rates, kLemoVersion)) {
    known.rates = *found;
    known.rates.set_packs_keys(PacksKeys(compute));
    known.shared = SharedRates(kept, *found, kLemoVersion);
    return known;
  }
  for (const RatesList* list : {&options.rates(), static_cast<const RatesList*>(&kept)}) {
    for (const lemo::v1::DeviceRates& other : *list) {
      if (!SameDevice(other, known.rates) || !other.has_calibration()) continue;
      known.notes.push_back(absl::StrCat("what lemo ", other.calibration().version(),
                                         " measured of this device is not used by ", kLemoVersion,
                                         ": run lemo-train calibrate again"));
    }
  }
  const planner::Rates measured = MeasureRates(compute);
  known.rates.set_products(measured.products);
  known.rates.set_attention(measured.attention);
  return known;
}

// Whether rows that are longer than a window are split, and not refused or cut.
bool Splits(const lemo::v1::DataSpec& data) {
  if (data.overlong() != "auto") return data.overlong() == "split";
  Violations ignored;
  const auto is_book = [&ignored](const lemo::v1::DataFile& file) {
    const std::optional<RowReader> reader =
        RowReader::Open({.path = file.path(),
                         .format = RowFormatFromName(file.format()).value_or(RowFormat::kAuto),
                         .field = "data"},
                        &ignored);
    return reader && reader->is_book();
  };
  return std::all_of(data.train().begin(), data.train().end(), is_book) &&
         std::all_of(data.eval().begin(), data.eval().end(), is_book);
}

}  // namespace

lemo::v1::DeviceRates DeviceOf(const Compute& compute) {
  lemo::v1::DeviceRates device;
  device.set_type(compute.device.str());
  device.set_compute_type(TypeName(compute.type));
  device.set_threads(at::get_num_threads());
  device.set_packs_keys(PacksKeys(compute));
  return device;
}

PlanFacts FactsOf(const Inputs& inputs, const Compute& compute, planner::DeviceRates device) {
  std::map<int64_t, int64_t> lengths;
  for (int64_t i = 0; i < inputs.train->rows(); ++i) ++lengths[inputs.train->length(i)];
  PlanFacts facts;
  for (const auto& [length, count] : lengths) facts.documents.push_back({length, count});
  facts.labelled_share =
      static_cast<double>(inputs.train->labels()) / static_cast<double>(inputs.train->tokens());
  facts.element_bytes = static_cast<int64_t>(c10::elementSize(compute.type));
  facts.device = std::move(device);
  if (inputs.eval) {
    const int64_t most = inputs.spec.eval().max_sequences();
    const int64_t count = most > 0 ? std::min(most, inputs.eval->rows()) : inputs.eval->rows();
    // Every document must fit a window, also one that is not evaluated.
    facts.evaluated.longest = inputs.eval->longest();
    const int64_t shadowed = ShadowSequences(inputs.spec.eval());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t rows = inputs.eval->length(i);
      facts.evaluated.rows += rows;
      facts.evaluated.pairs += planner::CausalPairs(rows);
      if (i < shadowed) facts.evaluated.shadow_rows += rows;
    }
    facts.evaluated.rows = std::max(facts.evaluated.rows, facts.evaluated.longest);
  }
  facts.splits = Splits(inputs.spec.data());
  facts.predictor = PredictorFactsOf(inputs, compute.type);
  return facts;
}

namespace {

// The offers of one device, or of one type of them.
struct DevicePlan {
  OfferRequest request;
  planner::Offers offers;
  PlanTimes times;
};

absl::StatusOr<DevicePlan> PlanFor(const lemo::v1::PlannedDevice& device,
                                   const lemo::v1::PlanOptions& options, const PlanWishes& wishes,
                                   const Inputs& inputs, const Compute& compute, PlanFacts facts) {
  KnownRates known = RatesOf(compute, device, options);
  facts.device = PlannerRates(known.rates, /*own_memory=*/!compute.device.is_cpu(), known.shared);
  // Offers of two types are two, though both were measured to be equally fast.
  if (!device.type().empty()) absl::StrAppend(&facts.device.type, ", ", device.type());
  if (compute.device.is_cpu() && device.most_threads() > 0) {
    facts.device.threads = device.most_threads();
  }
  DevicePlan plan;
  LEMO_ASSIGN_OR_RETURN(plan.request, PlanRequestOf(inputs.spec, inputs.config, facts, wishes));
  OfferRequest& request = plan.request;
  for (const lemo::v1::DeviceRates& of : known.shared) {
    known.notes.push_back(absl::StrCat("offers of ", of.ranks(), " ranks: ", RatesInWords(of)));
  }
  plan.times = {.rates = std::move(known.rates),
                .device_type = device.type(),
                .notes = std::move(known.notes)};
  plan.times.kind = ForecastKind(request, inputs.config.family, plan.times.rates);
  for (const int64_t ranks : request.world_sizes) {
    lemo::v1::RunForecast kind = plan.times.kind;
    kind.set_ranks(static_cast<int32_t>(ranks));
    HistoryOfKind& history = plan.times.history[ranks];
    history = FindHistory(options.history(), kind);
    request.time_ratios.push_back({.ranks = ranks, .ratio = history.correction.ratio});
  }
  if (wishes.offer.empty()) {
    plan.offers = planner::MakeOffers(request);
  } else {
    plan.offers.front = planner::OffersNamed(request, wishes.offer);
    if (!plan.offers.front.empty()) plan.offers.preferred = 0;
  }
  return plan;
}

}  // namespace

absl::StatusOr<std::string> PlanRun(const lemo::v1::RunSpec& spec, const PlanRunOptions& options,
                                    Violations* violations) {
  PlanWishes wishes = WishesOf(options.options.plan(), "plan", violations);
  LEMO_RETURN_IF_ERROR(violations->ToStatus());
  int64_t& most = wishes.bounds.memory_bytes_max;
  if (options.memory_bytes_max > 0 && (most == 0 || options.memory_bytes_max < most)) {
    most = options.memory_bytes_max;
  }
  Inputs inputs;
  LEMO_RETURN_IF_ERROR(Validate(spec, &inputs, violations));
  LEMO_ASSIGN_OR_RETURN(const Compute compute,
                        ChooseCompute(spec.device(), spec.model().compute_type()));
  // A run may train a predictor; a plan only looks for one.
  const auto quiet = [](const lemo::v1::RunEvent&) {};
  const bool allocated = inputs.spec.tokens().layers() == kAllocated;
  const bool begins_anew = BeginsAnew(inputs.spec.tokens());
  const absl::Status found = ResolvePredictor(compute, /*may_train=*/false, quiet, &inputs);
  if (!(absl::IsNotFound(found) && begins_anew)) LEMO_RETURN_IF_ERROR(found);
  PlanFacts facts = FactsOf(inputs, compute, /*device=*/{});
  facts.allocated = allocated;
  std::vector<lemo::v1::PlannedDevice> devices(options.options.devices().begin(),
                                               options.options.devices().end());
  if (devices.empty()) devices.push_back(options.options.device());
  std::vector<DevicePlan> plans;
  for (const lemo::v1::PlannedDevice& device : devices) {
    LEMO_ASSIGN_OR_RETURN(DevicePlan plan,
                          PlanFor(device, options.options, wishes, inputs, compute, facts));
    plans.push_back(std::move(plan));
  }
  const bool any = std::any_of(plans.begin(), plans.end(),
                               [](const DevicePlan& plan) { return !plan.offers.front.empty(); });
  if (!wishes.offer.empty() && !any) {
    violations->Add("plan.offer", absl::StrCat("no offer of this run that is within the bounds ",
                                               "begins with ", wishes.offer));
    return violations->ToStatus();
  }
  if (!options.json) {
    std::string text;
    for (const DevicePlan& plan : plans) {
      if (!plan.times.device_type.empty()) {
        absl::StrAppend(&text, text.empty() ? "" : "\n", plan.times.device_type, ":\n");
      }
      absl::StrAppend(&text, PlanTable(plan.request, plan.offers, RatesInWords(plan.times.rates)));
      for (const std::string& note : plan.times.notes) {
        absl::StrAppend(&text, "note: ", note, "\n");
      }
    }
    for (const std::string& note : options.options.notes()) {
      absl::StrAppend(&text, "note: ", note, "\n");
    }
    return text;
  }
  // First the one whose preferred offer is liked most.
  std::stable_sort(plans.begin(), plans.end(), [](const DevicePlan& a, const DevicePlan& b) {
    if (!a.offers.preferred || !b.offers.preferred) {
      return a.offers.preferred.has_value() && !b.offers.preferred.has_value();
    }
    return planner::Prefers(a.request.preference, a.offers.front[*a.offers.preferred],
                            b.offers.front[*b.offers.preferred]);
  });
  std::vector<lemo::v1::PlanResult> results;
  results.reserve(plans.size());
  for (const DevicePlan& plan : plans) {
    results.push_back(PlanMessage(plan.request, plan.offers, plan.times));
  }
  lemo::v1::PlanResult result = MergedPlans(std::move(results));
  result.mutable_notes()->MergeFrom(options.options.notes());
  return MessageToJson(result, {}).dump(1) + "\n";
}

}  // namespace lemo::train
