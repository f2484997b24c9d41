#include "coordinator/core/contract.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/format.h"
#include "common/model_files.h"
#include "coordinator/core/timestamp.h"

namespace lemo::coordinator {

using lemo::v1::Offer;
using lemo::v1::PlanResult;
using lemo::v1::PlanSpec;

namespace {

// Of an id; fewer would soon fit another offer too.
constexpr size_t kDigitsLeast = 8, kDigitsMost = 32;
constexpr int kWorldsMost = 16, kRanksMost = 4096;
constexpr size_t kNearestShown = 3;

std::optional<absl::Time> FinishBy(const PlanSpec& plan) {
  absl::Time time;
  std::string ignored;
  if (!plan.has_finish_by() ||
      !absl::ParseTime(absl::RFC3339_full, plan.finish_by(), &time, &ignored)) {
    return std::nullopt;
  }
  return time;
}

// As the planner prefers, of offers that it made; `by_end`: by when the run will have ended, in the
// place of how long it takes. An end of which nobody can say comes last.
bool Better(const std::string& prefer, bool by_end, const Offer& a, const Offer& b) {
  if (prefer == "smallest" && a.high().total() != b.high().total()) {
    return a.high().total() < b.high().total();
  }
  if (prefer == "most_exact" && a.kept() != b.kept()) return a.kept() > b.kept();
  const auto key = [by_end](const Offer& offer) {
    const bool ends = by_end && offer.has_finish_time();
    const double end = ends ? static_cast<double>(offer.finish_time().seconds()) : 0;
    return std::make_tuple(by_end && !ends, end, offer.run_seconds(), offer.high().total());
  };
  return key(a) < key(b);
}

bool IsOfSeveralTypes(const PlanResult& plan) {
  return std::any_of(plan.offers().begin(), plan.offers().end(), [&](const Offer& offer) {
    return offer.device_type() != plan.offers(0).device_type();
  });
}

std::string InWords(const std::string& bound, double value) {
  if (bound == "max_memory_bytes") return HumanBytes(static_cast<int64_t>(value));
  if (bound == "max_run_seconds") return HumanDuration(value);
  if (bound == "finish_by") return absl::StrCat("in ", HumanDuration(value));
  if (bound == "max_device_hours") return absl::StrFormat("%.4g h", value);
  return absl::StrFormat("%.4g", value);
}

lemo::v1::Failure UserError(std::string message, std::string advice) {
  lemo::v1::Failure failure;
  failure.set_kind(lemo::v1::Failure::USER_ERROR);
  failure.set_message(std::move(message));
  failure.set_advice(std::move(advice));
  return failure;
}

void AddViolation(const std::string& field, std::string reason, lemo::v1::Failure* failure) {
  lemo::v1::Violation& violation = *failure->add_violations();
  violation.set_field(field);
  violation.set_reason(std::move(reason));
}

lemo::v1::Failure NothingWithin(const PlanResult& plan) {
  lemo::v1::Failure failure =
      UserError("no way to run this job is within the bounds of plan",
                "Change a bound as said, or leave it out; `lemo plan` shows what there is.");
  for (const lemo::v1::BoundAdvice& advice : plan.advice()) {
    std::string way = "to change it alone would not be enough";
    if (advice.has_needed()) {
      way = absl::StrCat(InWords(advice.bound(), advice.needed()),
                         " would do, with the other bounds as they are");
    } else if (advice.bound() == "finish_by") {
      way = "nobody can say when the job would start";
    }
    AddViolation("plan." + advice.bound(),
                 absl::StrCat("is ", InWords(advice.bound(), advice.asked()), "; ", way), &failure);
  }
  return failure;
}

// As the planner has it: a run of all rows means them, one that leaves some out means to be fast.
std::string PreferOf(const lemo::v1::JobSpec& spec) {
  if (spec.plan().has_prefer()) return spec.plan().prefer();
  const lemo::v1::TokensSpec& tokens = spec.run().tokens();
  return tokens.has_policy() && tokens.policy() != "dense" ? "fastest" : "most_exact";
}

scheduler::Request RequestOf(const JobRecord& record, const Offer& offer) {
  JobRecord planned;
  planned.job.set_name(record.job.name());
  planned.model_path = record.model_path;
  *planned.job.mutable_contract()->mutable_offer() = offer;
  planned.job.mutable_contract()->set_memory_bytes(offer.high().total());
  planned.model_files = record.model_files;
  *planned.job.mutable_spec()->mutable_run() = record.job.spec().run();
  planned.job.mutable_spec()->mutable_resources()->set_device_type(
      record.job.spec().resources().device_type());
  NameBase(planned, planned.job.mutable_contract());
  ApplyContract(planned.job.contract(), planned.job.mutable_spec());
  return SchedulerRequest(planned);
}

}  // namespace

void CheckPlan(const lemo::v1::JobSpec& spec, absl::Time now, Violations* violations) {
  if (!spec.has_plan()) return;
  const PlanSpec& plan = spec.plan();
  if (plan.has_prefer() && plan.prefer() != "fastest" && plan.prefer() != "smallest" &&
      plan.prefer() != "most_exact") {
    violations->Add("plan.prefer", "expected fastest, smallest or most_exact");
  }
  if (plan.has_offer()) {
    const bool digits = std::all_of(plan.offer().begin(), plan.offer().end(), [](char c) {
      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    });
    if (!digits || plan.offer().size() < kDigitsLeast || plan.offer().size() > kDigitsMost) {
      violations->Add("plan.offer",
                      absl::StrCat("expected the first ", kDigitsLeast, " to ", kDigitsMost,
                                   " hexadecimal digits of an offer's id"));
    }
    if (plan.has_prefer()) violations->Add("plan.prefer", "is not needed with plan.offer");
  }
  const auto positive = [&](bool given, double value, const char* field) {
    if (given && !(value > 0 && std::isfinite(value))) {
      violations->Add(field, absl::StrCat("must be above 0, got ", value));
    }
  };
  positive(plan.has_max_memory_bytes(), static_cast<double>(plan.max_memory_bytes()),
           "plan.max_memory_bytes");
  positive(plan.has_min_memory_bytes(), static_cast<double>(plan.min_memory_bytes()),
           "plan.min_memory_bytes");
  positive(plan.has_max_run_seconds(), plan.max_run_seconds(), "plan.max_run_seconds");
  positive(plan.has_max_device_hours(), plan.max_device_hours(), "plan.max_device_hours");
  if (plan.has_min_keep() && !(plan.min_keep() > 0 && plan.min_keep() <= 1)) {
    violations->Add("plan.min_keep",
                    absl::StrCat("must be above 0 and at most 1, got ", plan.min_keep()));
  }
  for (int i = 0; i < plan.keep_size(); ++i) {
    if (plan.keep(i) > 0 && plan.keep(i) < 1) continue;
    violations->Add(absl::StrCat("plan.keep[", i, "]"),
                    absl::StrCat("must be above 0 and below 1, got ", plan.keep(i)));
  }
  if (plan.has_finish_by()) {
    const std::optional<absl::Time> finish_by = FinishBy(plan);
    if (!finish_by) {
      violations->Add("plan.finish_by", "expected a time such as 2026-01-31T17:05:09Z");
    } else if (*finish_by <= now) {
      violations->Add("plan.finish_by", "is over");
    }
  }
  if (plan.ranks_size() > kWorldsMost) {
    violations->Add("plan.ranks", absl::StrCat("at most ", kWorldsMost, " numbers"));
  }
  for (const int32_t ranks : plan.ranks()) {
    if (ranks < 1 || ranks > kRanksMost) {
      violations->Add("plan.ranks", absl::StrCat("must be 1 to ", kRanksMost, ", got ", ranks));
    }
  }

  const lemo::v1::ResourceSpec& resources = spec.resources();
  if (resources.has_memory_bytes()) {
    violations->Add("resources.memory_bytes",
                    "is set by the offer; plan.max_memory_bytes is a bound for it");
  }
  if (resources.has_ranks() && plan.ranks_size() > 0) {
    violations->Add("resources.ranks", "is set by the offer; plan.ranks has what it may be");
  }
  if (resources.has_min_ranks() && resources.min_ranks() < resources.ranks()) {
    violations->Add("resources.min_ranks",
                    "fewer ranks need more memory each than the contract gives; leave it out");
  }
  if (resources.device() == "cuda") {
    violations->Add("resources.device", "offers are made for CPUs only yet");
  }
  if (plan.has_min_memory_bytes() && !plan.elastic()) {
    violations->Add("plan.min_memory_bytes", "is for plan.elastic");
  }
}

PlanSpec PlanQuestion(const lemo::v1::JobSpec& spec, absl::Time now) {
  PlanSpec question = spec.plan();
  if (question.ranks().empty()) question.add_ranks(std::max(spec.resources().ranks(), 1));
  if (const std::optional<absl::Time> finish_by = FinishBy(question)) {
    // What cannot be kept even without waiting need not be looked at.
    const double left = std::max(absl::ToDoubleSeconds(*finish_by - now), 1.0);
    if (!question.has_max_run_seconds() || left < question.max_run_seconds()) {
      question.set_max_run_seconds(left);
    }
  }
  question.clear_finish_by();
  question.clear_elastic();
  question.clear_min_memory_bytes();
  return question;
}

void AddTimes(const scheduler::Scheduler& scheduler, const scheduler::Outlook& outlook,
              const JobRecord& record, absl::Time now, PlanResult* plan) {
  // Offers of one size start at the same time.
  std::map<std::tuple<int, int, int64_t, std::string, int64_t, std::string>, scheduler::Start>
      starts;
  const auto add = [&](Offer* offer) -> std::optional<double> {
    const scheduler::Request request = RequestOf(record, *offer);
    const auto [found, is_new] =
        starts.try_emplace({request.ranks, request.multiple, request.memory_bytes,
                            request.base.name, request.base.bytes, request.type});
    if (is_new) found->second = scheduler::ForecastStart(scheduler, outlook, request);
    const scheduler::Start& start = found->second;
    offer->set_start_reason(start.text);
    if (!start.seconds) return std::nullopt;
    const double end = *start.seconds + offer->run_seconds();
    *offer->mutable_start_time() = ToTimestamp(now + absl::Seconds(*start.seconds));
    *offer->mutable_finish_time() = ToTimestamp(now + absl::Seconds(end));
    return end;
  };

  const PlanSpec& wish = record.job.spec().plan();
  const std::optional<absl::Time> finish_by = FinishBy(wish);
  const double left = finish_by ? absl::ToDoubleSeconds(*finish_by - now) : 0;
  for (Offer& offer : *plan->mutable_nearest()) add(&offer);
  // What lemo-train was told as a time of running.
  const bool told = finish_by && (!wish.has_max_run_seconds() || left < wish.max_run_seconds());
  for (lemo::v1::BoundAdvice& advice : *plan->mutable_advice()) {
    if (told && advice.bound() == "max_run_seconds") advice.set_bound("finish_by");
  }
  std::vector<Offer> kept, late;
  std::optional<double> soonest;
  for (Offer& offer : *plan->mutable_offers()) {
    const std::optional<double> end = add(&offer);
    if (end) soonest = std::min(soonest.value_or(*end), *end);
    const bool in_time = !finish_by || (end && *end <= left);
    (in_time ? kept : late).push_back(std::move(offer));
  }
  plan->clear_offers();
  for (Offer& offer : kept) *plan->add_offers() = std::move(offer);
  // The fast device may be the one that is busy: which type it is to be, the ends decide.
  const bool by_end = IsOfSeveralTypes(*plan);
  const bool has_preferred =
      std::any_of(plan->offers().begin(), plan->offers().end(),
                  [&](const Offer& offer) { return offer.id() == plan->preferred(); });
  if (has_preferred && !by_end) return;
  plan->clear_preferred();
  if (plan->offers_size() > 0) {
    const std::string prefer = PreferOf(record.job.spec());
    const auto best = std::min_element(
        plan->offers().begin(), plan->offers().end(),
        [&](const Offer& a, const Offer& b) { return Better(prefer, by_end, a, b); });
    plan->set_preferred(best->id());
    return;
  }
  if (late.empty()) return;
  // The one that ends first is nearest.
  std::stable_sort(late.begin(), late.end(), [](const Offer& a, const Offer& b) {
    return a.run_seconds() < b.run_seconds();
  });
  for (Offer& offer : late) {
    if (static_cast<size_t>(plan->nearest_size()) == kNearestShown) break;
    *plan->add_nearest() = std::move(offer);
  }
  lemo::v1::BoundAdvice& advice = *plan->add_advice();
  advice.set_bound("finish_by");
  advice.set_asked(left);
  if (soonest) advice.set_needed(*soonest);
}

Acceptance Accept(const lemo::v1::JobSpec& spec, const PlanResult& plan, absl::Time now) {
  Acceptance acceptance;
  const PlanSpec& wish = spec.plan();
  if (wish.has_offer() && plan.offers_size() > 1) {
    acceptance.failure = UserError(absl::StrCat("offer ", wish.offer(), " is not one alone"),
                                   "Give more digits of its id.");
    AddViolation("plan.offer",
                 absl::StrCat("ids of ", plan.offers_size(), " offers begin so: ",
                              absl::StrJoin(plan.offers(), ", ",
                                            [](std::string* out, const Offer& offer) {
                                              absl::StrAppend(out, offer.id());
                                            })),
                 &acceptance.failure);
    return acceptance;
  }
  const auto chosen =
      std::find_if(plan.offers().begin(), plan.offers().end(),
                   [&](const Offer& offer) { return offer.id() == plan.preferred(); });
  if (chosen == plan.offers().end()) {
    acceptance.failure = NothingWithin(plan);
    return acceptance;
  }
  lemo::v1::Contract& contract = acceptance.contract.emplace();
  *contract.mutable_offer() = *chosen;
  contract.set_memory_bytes(chosen->high().total());
  *contract.mutable_accept_time() = ToTimestamp(now);
  return acceptance;
}

void NameBase(const JobRecord& record, lemo::v1::Contract* contract) {
  contract->clear_base();
  contract->clear_base_bytes();
  const lemo::v1::RunSpec& run = record.job.spec().run();
  const Offer& offer = contract->offer();
  // Weights that train, or are drawn for each run, are its own; and which part of the model a rank
  // of a tensor group has, no device knows beforehand.
  if (!run.tuner().has_lora() || run.model().has_random_init() || offer.device() != "cpu" ||
      offer.overrides().parallel().tensor() > 1) {
    return;
  }
  std::vector<std::pair<std::string, std::string>> files;
  for (const lemo::v1::ModelFile& file : record.model_files) {
    files.emplace_back(file.path(), file.sha256());
  }
  const std::string digest = WeightsDigest(std::move(files));
  const std::string type = offer.overrides().model().has_compute_type()
                               ? offer.overrides().model().compute_type()
                               : run.model().compute_type();
  // What `auto` comes to is each worker's own affair.
  if (digest.empty() || type.empty() || type == "auto" || offer.high().base() <= 0) return;
  contract->set_base(
      Sha256Hex(absl::StrCat(digest, Sha256Hex(record.model_path), type)).substr(0, 32));
  contract->set_base_bytes(offer.high().base());
}

scheduler::Base BaseOf(const lemo::v1::Contract& contract) {
  return {contract.base(), contract.base_bytes()};
}

void ApplyContract(const lemo::v1::Contract& contract, lemo::v1::JobSpec* spec) {
  const Offer& offer = contract.offer();
  const lemo::v1::RunSpec& overrides = offer.overrides();
  lemo::v1::RunSpec& run = *spec->mutable_run();
  // Lists of a message that is merged would be appended.
  if (overrides.has_memory()) run.mutable_memory()->clear_layers();
  if (overrides.tokens().has_policy()) run.clear_tokens();
  if (overrides.tokens().keep_size() > 0) run.mutable_tokens()->clear_keep();
  run.MergeFrom(overrides);
  lemo::v1::ResourceSpec& resources = *spec->mutable_resources();
  resources.set_ranks(offer.ranks());
  resources.clear_min_ranks();
  resources.set_device(offer.device());
  if (!offer.device_type().empty()) resources.set_device_type(offer.device_type());
  resources.set_memory_bytes(contract.memory_bytes());
}

std::optional<lemo::v1::RunTime> RunTimeOf(const lemo::v1::Job& job) {
  const lemo::v1::RunForecast& foretold = job.contract().offer().forecast();
  if (job.state() != lemo::v1::Job::SUCCEEDED || !(foretold.predicted_step_seconds() > 0)) {
    return std::nullopt;
  }
  const lemo::v1::ResultEvent& result = job.result();
  double measured = result.forecast().measured_step_seconds();
  // A run of one step has that one alone.
  if (!(measured > 0) && result.steps() > 0) measured = result.seconds() / result.steps();
  if (!(measured > 0) || !std::isfinite(measured)) return std::nullopt;
  lemo::v1::RunTime run;
  run.set_job(job.name());
  *run.mutable_end_time() = job.end_time();
  *run.mutable_forecast() = foretold;
  run.mutable_forecast()->set_measured_step_seconds(measured);
  run.mutable_forecast()->set_measured_evaluation_seconds(
      result.forecast().measured_evaluation_seconds());
  run.mutable_forecast()->set_measured_peak_bytes(result.peak_bytes().total());
  return run;
}

}  // namespace lemo::coordinator
