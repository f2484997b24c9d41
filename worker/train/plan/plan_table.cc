#include "worker/train/plan/plan_table.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/format.h"
#include "worker/train/plan/row_chooser.h"

namespace lemo::train {
namespace {

using planner::LayerStorage;
using planner::Offer;
using planner::OfferRequest;

std::string Row(const OfferRequest& request, const Offer& offer, bool preferred) {
  return absl::StrFormat(
      "%s %s  %9s %9s  %8.3g s %10.0f  %8.3g h  %5.1f %%  %6d  %5d  %s\n", preferred ? "*" : " ",
      offer.id.substr(0, 8), HumanBytes(offer.memory.expected.total),
      HumanBytes(offer.memory.high.total), offer.step.Total(), offer.tokens_per_second,
      offer.finish_seconds / 3600, 100 * offer.kept_share, offer.window,
      offer.micro_batch_sequences, request.learning ? "" : StorageInWords(offer.storage));
}

constexpr const char* kHead =
    "  offer     expected   at most      step     tokens/s    finish     kept  window  micro  "
    "stored for backward\n";

// Each operator's amount, the rate that it comes to, and its seconds.
std::string OperatorLines(const Offer& offer) {
  std::string text;
  for (const planner::OperatorSeconds& of : offer.operators) {
    if (of.seconds > 0) {
      absl::StrAppendFormat(&text, "    %-20s %9.3g at %9.3g a second  %8.3g s\n", of.name,
                            of.amount, of.amount / of.seconds, of.seconds);
    } else {
      absl::StrAppendFormat(&text, "    %-20s %9.3g, of which no rate is known\n", of.name,
                            of.amount);
    }
  }
  return text;
}

std::string Details(const OfferRequest& request, const Offer& offer, const std::string& rates) {
  const planner::CategoryBytes& bytes = offer.memory.expected;
  const planner::StepSeconds& step = offer.step;
  std::string text = absl::StrCat(
      "\nOffer ", offer.id, "\n  bytes: weights ", HumanBytes(bytes.weights), ", trainable ",
      HumanBytes(bytes.trainable), ", saved activations ", HumanBytes(bytes.saved_activations),
      ", transient ", HumanBytes(bytes.transient), ", loss ", HumanBytes(bytes.loss), "\n");
  absl::StrAppendFormat(
      &text,
      "  seconds of a step: forward %.3g, again %.3g, backward %.3g, head %.3g, "
      "choice of rows %.3g, update %.3g, ranks %.3g, copies %.3g, overhead %.3g\n",
      step.forward, step.replay, step.backward, step.head, step.selection, step.optimizer,
      step.communication, step.offload, step.overhead);
  if (step.ratio != 1) {
    absl::StrAppendFormat(&text, "    x%.3g, as earlier runs took\n", step.ratio);
  }
  if (!request.device.operators.empty()) absl::StrAppend(&text, OperatorLines(offer));
  absl::StrAppendFormat(
      &text,
      "  seconds of the run: %d steps %.3g, evaluations %.3g, shadows %.3g, before them a table of "
      "blocks %.3g and the largest micro-batch %.3g\n",
      request.steps, step.Total() * static_cast<double>(request.steps), offer.evaluation_seconds,
      offer.shadow_seconds, offer.scoring_seconds, offer.rehearsal_seconds);
  if (!rates.empty()) absl::StrAppend(&text, "  rates: ", rates, "\n");
  if (offer.kept_share < 1) {
    absl::StrAppend(&text, "  quality: ", QualityOf(request, offer), "\n");
  }
  for (const std::string& override : OverridesOf(request, offer)) {
    absl::StrAppend(&text, "  --set '", override, "'\n");
  }
  return text;
}

}  // namespace

std::string PolicyName(const LayerStorage& storage) {
  const char* name = "all";
  switch (storage.stored) {
    case planner::Stored::kInput:
      name = "input";
      break;
    case planner::Stored::kAttentionOut:
      name = "attn_out";
      break;
    case planner::Stored::kMlp:
      name = "mlp";
      break;
    case planner::Stored::kAll:
      break;
  }
  return absl::StrCat(name, storage.offload ? "+offload" : "");
}

std::vector<size_t> StorageRuns(const std::vector<LayerStorage>& storage) {
  std::vector<size_t> starts;
  for (size_t l = 0; l < storage.size(); ++l) {
    if (l == 0 || !(storage[l] == storage[l - 1])) starts.push_back(l);
  }
  starts.push_back(storage.size());
  return starts;
}

std::string ShardName(planner::Sharding sharding) {
  switch (sharding) {
    case planner::Sharding::kNone:
      break;
    case planner::Sharding::kOptimizer:
      return "optimizer";
    case planner::Sharding::kGradients:
      return "gradients";
    case planner::Sharding::kParameters:
      return "parameters";
  }
  return "none";
}

std::string StorageInWords(const std::vector<LayerStorage>& storage) {
  const std::vector<size_t> starts = StorageRuns(storage);
  std::vector<std::string> runs;
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    runs.push_back(absl::StrCat(PolicyName(storage[starts[i]]), " x", starts[i + 1] - starts[i]));
  }
  return absl::StrJoin(runs, ", ");
}

std::vector<std::string> OverridesOf(const OfferRequest& request, const Offer& offer) {
  std::vector<std::string> overrides = {
      absl::StrCat("data.max_length=", offer.window),
      absl::StrCat("train.micro_batch_tokens=", offer.window * offer.micro_batch_sequences)};
  if (request.learning) return overrides;
  const std::vector<size_t> starts = StorageRuns(offer.storage);
  overrides.push_back(absl::StrCat("memory.policy=", PolicyName(offer.storage.front())));
  std::vector<std::string> layers;
  for (size_t i = 1; i + 1 < starts.size(); ++i) {
    layers.push_back(absl::StrCat("{\"first\":", starts[i], ",\"last\":", starts[i + 1] - 1,
                                  ",\"policy\":\"", PolicyName(offer.storage[starts[i]]), "\"}"));
  }
  overrides.push_back(absl::StrCat("memory.layers=[", absl::StrJoin(layers, ","), "]"));
  if (offer.token_choice < 0 && !request.tokens.empty()) overrides.push_back("tokens=null");
  if (offer.token_choice >= 0) {
    const std::vector<double>& keep = request.tokens[offer.token_choice].spec_keep;
    if (!keep.empty()) {
      overrides.push_back(absl::StrCat("tokens.keep=[", absl::StrJoin(keep, ","), "]"));
    }
  }
  return overrides;
}

std::string QualityOf(const OfferRequest& request, const Offer& offer) {
  if (request.learning) return "a predictor's is in its card, once it is trained";
  if (offer.token_choice < 0) {
    if (offer.window == request.window) return "every row is computed";
    const std::string evidence = ShortWindowEvidence(static_cast<double>(offer.window) /
                                                     static_cast<double>(request.window));
    return absl::StrCat(
        "every row of a shorter window is computed; what the shorter window costs was ",
        evidence.empty() ? "not measured" : evidence);
  }
  const std::string& evidence = request.tokens[offer.token_choice].evidence;
  return evidence.empty() ? "not measured" : evidence;
}

std::string PlanTable(const OfferRequest& request, const planner::Offers& offers,
                      const std::string& rates) {
  std::string text;
  if (!offers.preferred) {
    absl::StrAppend(&text, "Nothing of ", offers.candidates,
                    " candidates is within the bounds. Nearest:\n", kHead);
    for (const Offer& offer : offers.nearest) absl::StrAppend(&text, Row(request, offer, false));
    for (const planner::BoundAdvice& advice : offers.advice) {
      const bool bytes = advice.bound == "memory_bytes_max";
      const auto number = [bytes](double value) {
        return bytes ? HumanBytes(static_cast<int64_t>(value)) : absl::StrFormat("%.4g", value);
      };
      absl::StrAppend(&text, "  ", advice.bound, " is ", number(advice.asked), "; ",
                      advice.needed ? absl::StrCat(number(*advice.needed), " would do")
                                    : std::string("it alone is not what is in the way"),
                      "\n");
    }
    return text;
  }
  absl::StrAppend(&text, offers.front.size(), " offers of ", offers.candidates, " candidates; ",
                  offers.front.front().ranks(), " rank(s)\n", kHead);
  for (size_t i = 0; i < offers.front.size(); ++i) {
    absl::StrAppend(&text, Row(request, offers.front[i], i == *offers.preferred));
  }
  absl::StrAppend(&text, Details(request, offers.front[*offers.preferred], rates));
  return text;
}

}  // namespace lemo::train
