#include "worker/train/plan/plan_message.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/train/plan/plan_table.h"

namespace lemo::train {
namespace {

using planner::Offer;
using planner::OfferRequest;

constexpr double kSecondsAnHour = 3600;

lemo::v1::PeakBytes BytesOf(const planner::CategoryBytes& bytes) {
  lemo::v1::PeakBytes message;
  message.set_weights(bytes.weights);
  message.set_trainable(bytes.trainable);
  message.set_saved_activations(bytes.saved_activations);
  message.set_transient(bytes.transient);
  message.set_loss(bytes.loss);
  message.set_total(bytes.total);
  message.set_base(bytes.base);
  return message;
}

lemo::v1::Offer OfferMessage(const OfferRequest& request, const Offer& offer,
                             const PlanTimes& times) {
  const lemo::v1::DeviceRates& rates = times.rates;
  lemo::v1::Offer message;
  message.set_id(offer.id);
  message.set_ranks(static_cast<int32_t>(offer.ranks()));
  message.set_window(static_cast<int32_t>(offer.window));
  message.set_micro_batch_sequences(static_cast<int32_t>(offer.micro_batch_sequences));
  const std::vector<size_t> starts = StorageRuns(offer.storage);
  for (size_t i = 0; i + 1 < starts.size() && !request.learning; ++i) {
    lemo::v1::LayerPolicy& run = *message.add_storage();
    run.set_first(static_cast<int32_t>(starts[i]));
    run.set_last(static_cast<int32_t>(starts[i + 1] - 1));
    run.set_policy(PolicyName(offer.storage[starts[i]]));
  }
  *message.mutable_overrides() = OverrideSpecOf(request, offer, rates.compute_type());
  message.set_device(rates.type().substr(0, rates.type().find(':')));
  message.set_device_type(times.device_type);
  *message.mutable_low() = BytesOf(offer.memory.low);
  *message.mutable_expected() = BytesOf(offer.memory.expected);
  *message.mutable_high() = BytesOf(offer.memory.high);
  message.set_host_bytes(offer.memory.host_bytes);
  lemo::v1::StepSeconds& step = *message.mutable_step();
  step.set_total(offer.step.Total());
  step.set_forward(offer.step.forward);
  step.set_replay(offer.step.replay);
  step.set_backward(offer.step.backward);
  step.set_head(offer.step.head);
  step.set_selection(offer.step.selection);
  step.set_optimizer(offer.step.optimizer);
  step.set_communication(offer.step.communication);
  step.set_offload(offer.step.offload);
  step.set_overhead(offer.step.overhead);
  *message.mutable_forecast() = ForecastOfOffer(request, offer, times.kind);
  message.mutable_correction()->set_ratio(offer.step.ratio);
  if (const auto of = times.history.find(offer.ranks()); of != times.history.end()) {
    message.mutable_correction()->set_runs(static_cast<int32_t>(of->second.correction.runs));
  }
  if (rates.has_calibration()) {
    for (const planner::OperatorSeconds& of : offer.operators) {
      lemo::v1::OperatorSeconds& part = *message.add_operators();
      part.set_name(of.name);
      part.set_amount(of.amount);
      part.set_seconds(of.seconds);
    }
  }
  message.set_tokens_per_second(offer.tokens_per_second);
  message.set_run_seconds(offer.finish_seconds);
  message.set_evaluation_seconds(offer.evaluation_seconds);
  if (offer.evaluation_seconds > 0) {
    message.set_evaluations(static_cast<int32_t>(request.evaluated.times));
  }
  message.set_shadow_seconds(offer.shadow_seconds);
  message.set_rehearsal_seconds(offer.rehearsal_seconds);
  message.set_scoring_seconds(offer.scoring_seconds);
  message.set_device_seconds(offer.device_seconds);
  message.set_kept(offer.kept_share);
  message.set_quality(QualityOf(request, offer));
  if (offer.token_choice >= 0 && request.tokens[offer.token_choice].loss_gap) {
    message.set_loss_gap(*request.tokens[offer.token_choice].loss_gap);
  }
  return message;
}

// The bound as PlanSpec names it and counts it.
lemo::v1::BoundAdvice AdviceMessage(const planner::BoundAdvice& advice) {
  lemo::v1::BoundAdvice message;
  double unit = 1;
  if (advice.bound == "memory_bytes_max") message.set_bound("max_memory_bytes");
  if (advice.bound == "finish_seconds_max") message.set_bound("max_run_seconds");
  if (advice.bound == "keep_min") message.set_bound("min_keep");
  if (advice.bound == "device_seconds_max") {
    message.set_bound("max_device_hours");
    unit = kSecondsAnHour;
  }
  message.set_asked(advice.asked / unit);
  if (advice.needed) message.set_needed(*advice.needed / unit);
  return message;
}

// The easier of two ways to change one bound.
void MergeAdvice(const lemo::v1::BoundAdvice& other, lemo::v1::BoundAdvice* advice) {
  if (!other.has_needed()) return;
  const bool least = other.bound() == "min_keep";
  const double more = !advice->has_needed() ? other.needed()
                      : least               ? std::max(advice->needed(), other.needed())
                                            : std::min(advice->needed(), other.needed());
  advice->set_needed(more);
}

}  // namespace

lemo::v1::RunSpec OverrideSpecOf(const OfferRequest& request, const Offer& offer,
                                 const std::string& compute_type) {
  lemo::v1::RunSpec spec;
  spec.mutable_model()->set_compute_type(compute_type);
  spec.mutable_data()->set_max_length(static_cast<int32_t>(offer.window));
  spec.mutable_train()->set_micro_batch_tokens(
      static_cast<int32_t>(offer.window * offer.micro_batch_sequences));
  if (request.learning) return spec;
  lemo::v1::MemorySpec& memory = *spec.mutable_memory();
  const std::vector<size_t> starts = StorageRuns(offer.storage);
  memory.set_policy(PolicyName(offer.storage.front()));
  for (size_t i = 1; i + 1 < starts.size(); ++i) {
    lemo::v1::LayerPolicy& layers = *memory.add_layers();
    layers.set_first(static_cast<int32_t>(starts[i]));
    layers.set_last(static_cast<int32_t>(starts[i + 1] - 1));
    layers.set_policy(PolicyName(offer.storage[starts[i]]));
  }
  if (offer.token_choice < 0 && !request.tokens.empty()) spec.mutable_tokens()->set_policy("dense");
  if (offer.token_choice >= 0) {
    const std::vector<double>& keep = request.tokens[offer.token_choice].spec_keep;
    if (!keep.empty()) *spec.mutable_tokens()->mutable_keep() = {keep.begin(), keep.end()};
  }
  lemo::v1::ParallelSpec& parallel = *spec.mutable_parallel();
  parallel.set_tensor(static_cast<int32_t>(offer.tensor_ranks));
  parallel.set_data(static_cast<int32_t>(offer.data_ranks));
  parallel.set_shard(ShardName(offer.sharding));
  if (request.sequence) parallel.set_sequence(offer.tensor_ranks > 1);
  return spec;
}

lemo::v1::PlanResult PlanMessage(const OfferRequest& request, const planner::Offers& offers,
                                 const PlanTimes& times) {
  lemo::v1::PlanResult message;
  for (const Offer& offer : offers.front) {
    *message.add_offers() = OfferMessage(request, offer, times);
  }
  if (offers.preferred) message.set_preferred(offers.front[*offers.preferred].id);
  for (const Offer& offer : offers.nearest) {
    *message.add_nearest() = OfferMessage(request, offer, times);
  }
  for (const planner::BoundAdvice& advice : offers.advice) {
    *message.add_advice() = AdviceMessage(advice);
  }
  message.set_candidates(offers.candidates);
  *message.mutable_rates() = times.rates;
  for (const auto& [ranks, history] : times.history) {
    for (const lemo::v1::RunTime& run : history.runs) *message.add_history() = run;
  }
  message.add_notes(absl::StrCat("times are those of a device like the ", times.rates.type(),
                                 " that was measured, with nothing else on it; bytes do not depend "
                                 "on it"));
  const std::string of_type = times.device_type.empty() ? "" : times.device_type + ": ";
  for (const std::string& note : times.notes) message.add_notes(absl::StrCat(of_type, note));
  const bool any_alone = std::any_of(
      request.world_sizes.begin(), request.world_sizes.end(), [&request](int64_t ranks) {
        const auto& shared = request.device.shared;
        return ranks > 1 && std::none_of(shared.begin(), shared.end(),
                                         [ranks](const auto& of) { return of.ranks == ranks; });
      });
  if (any_alone) {
    message.add_notes(absl::StrCat(
        "each rank is taken to have such a device for itself",
        request.device.links.empty() ? ", and sums between ranks to be free" : "",
        "; `mpirun -n RANKS lemo-train calibrate` measures what they do to one another"));
  }
  return message;
}

lemo::v1::PlanResult MergedPlans(std::vector<lemo::v1::PlanResult> plans) {
  lemo::v1::PlanResult merged = std::move(plans.front());
  std::vector<lemo::v1::BoundAdvice> advice(merged.advice().begin(), merged.advice().end());
  for (size_t p = 1; p < plans.size(); ++p) {
    const lemo::v1::PlanResult& plan = plans[p];
    // Bounds, and so advice, are the same for all.
    for (int i = 0; i < plan.advice_size(); ++i) {
      const auto known = std::find_if(advice.begin(), advice.end(), [&](const auto& of) {
        return of.bound() == plan.advice(i).bound();
      });
      known == advice.end() ? advice.push_back(plan.advice(i))
                            : MergeAdvice(plan.advice(i), &*known);
    }
    merged.mutable_offers()->MergeFrom(plan.offers());
    merged.mutable_nearest()->MergeFrom(plan.nearest());
    merged.mutable_history()->MergeFrom(plan.history());
    merged.set_candidates(merged.candidates() + plan.candidates());
    for (const std::string& note : plan.notes()) {
      const auto& notes = merged.notes();
      if (std::find(notes.begin(), notes.end(), note) == notes.end()) merged.add_notes(note);
    }
  }
  merged.clear_advice();
  if (merged.offers_size() > 0) {
    // What is not within the bounds on one type is on another.
    merged.clear_nearest();
    std::stable_sort(merged.mutable_offers()->begin(), merged.mutable_offers()->end(),
                     [](const lemo::v1::Offer& a, const lemo::v1::Offer& b) {
                       return a.high().total() < b.high().total();
                     });
  } else {
    for (const lemo::v1::BoundAdvice& of : advice) *merged.add_advice() = of;
  }
  return merged;
}

}  // namespace lemo::train
