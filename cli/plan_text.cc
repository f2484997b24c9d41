#include "cli/plan_text.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/format.h"
#include "cli/output.h"

namespace lemo::cli {
namespace {

using lemo::v1::Offer;
using lemo::v1::PlanResult;

constexpr size_t kDigits = 8;  // of an id, at least
constexpr double kSecondsAnHour = 3600;

using Offers = google::protobuf::RepeatedPtrField<Offer>;

// So many digits as no two of the ids share.
size_t DigitsOf(const Offers& offers) {
  for (size_t digits = kDigits;; ++digits) {
    std::set<std::string> seen;
    size_t longest = 0;
    for (const Offer& offer : offers) {
      seen.insert(offer.id().substr(0, digits));
      longest = std::max(longest, offer.id().size());
    }
    if (seen.size() == static_cast<size_t>(offers.size()) || digits >= longest) return digits;
  }
}

std::string QualityCell(const Offer& offer) {
  if (offer.has_loss_gap()) return absl::StrFormat("%+.3g nats", offer.loss_gap());
  // Of a predictor's training it is what the card will say.
  if (offer.storage().empty()) return "its card";
  return offer.kept() >= 1 ? "exact" : "not measured";
}

std::string StartCell(const Offer& offer, absl::Time now) {
  if (!offer.has_start_time()) return "?";
  const double wait = Seconds(offer.start_time()) - absl::ToDoubleSeconds(now - absl::UnixEpoch());
  return offer.start_reason().empty() ? "now" : "in " + HumanDuration(std::max(wait, 0.0));
}

std::string OffersTable(const Offers& offers, const std::string& preferred, absl::Time now) {
  std::vector<std::string> head = {
      "",     "offer", "at most", "step",  "tokens/s", "runs",  "starts",
      "ends", "kept",  "quality", "ranks", "window",   "micro", "stored for backward"};
  const bool typed = std::any_of(offers.begin(), offers.end(),
                                 [](const Offer& offer) { return !offer.device_type().empty(); });
  if (typed) head.push_back("device");
  Table table(head);
  const size_t digits = DigitsOf(offers);
  for (const Offer& offer : offers) {
    std::vector<std::string> row = {offer.id() == preferred ? "*" : "",
                                    offer.id().substr(0, digits),
                                    HumanBytes(offer.high().total()),
                                    absl::StrCat(Significant(offer.step().total(), 3), " s"),
                                    ShortCount(offer.tokens_per_second()),
                                    HumanDuration(offer.run_seconds()),
                                    StartCell(offer, now),
                                    offer.has_finish_time() ? Time(offer.finish_time()) : "?",
                                    absl::StrFormat("%.1f %%", 100 * offer.kept()),
                                    QualityCell(offer),
                                    absl::StrCat(offer.ranks()),
                                    absl::StrCat(offer.window()),
                                    absl::StrCat(offer.micro_batch_sequences()),
                                    StorageText(offer)};
    if (typed) row.push_back(Printable(offer.device_type()));
    table.Add(std::move(row));
  }
  return table.ToString();
}

std::string BoundText(const std::string& bound, double value) {
  if (bound == "max_memory_bytes") return HumanBytes(static_cast<int64_t>(value));
  if (bound == "max_run_seconds") return HumanDuration(value);
  if (bound == "finish_by") return absl::StrCat(HumanDuration(value), " from now");
  if (bound == "max_device_hours") return absl::StrFormat("%.4g h", value);
  return absl::StrFormat("%.4g", value);
}

// Why starts are not known, or not now; each reason once.
std::string WaitText(const Offers& offers) {
  std::set<std::string> reasons;
  for (const Offer& offer : offers) {
    if (!offer.start_reason().empty()) reasons.insert(Printable(offer.start_reason()));
  }
  return reasons.empty() ? "" : absl::StrCat("starts: ", absl::StrJoin(reasons, "; "), "\n");
}

const char* UnitOf(const std::string& name) {
  if (name == "products" || name == "attention" || name == "attention_backward") return "FLOP";
  if (name == "update") return "parameters";
  return name == "sums" || name == "copies" ? "bytes" : "elements";
}

// The step by operator: amount, rate, seconds.
std::string OperatorsText(const Offer& offer) {
  if (offer.operators().empty()) return "";
  Table table({"  operator", "work of a step", "at, a second", "seconds"});
  for (const lemo::v1::OperatorSeconds& of : offer.operators()) {
    const bool known = of.seconds() > 0;
    table.Add({absl::StrCat("  ", Printable(of.name())),
               absl::StrCat(Significant(of.amount(), 3), " ", UnitOf(of.name())),
               known ? Significant(of.amount() / of.seconds(), 3) : "not known",
               known ? Significant(of.seconds(), 3) : ""});
  }
  return table.ToString();
}

std::string RatesText(const lemo::v1::DeviceRates& rates) {
  std::string text = absl::StrFormat(
      "  rates: %s, %s, %d threads: %.3g operations/s in products, %.3g in attention\n",
      Printable(rates.type()), Printable(rates.compute_type()), rates.threads(), rates.products(),
      rates.attention());
  if (!rates.has_calibration()) {
    return absl::StrCat(text,
                        "    two kernels were timed; `lemo-train calibrate` measures every "
                        "operator\n");
  }
  const lemo::v1::Calibration& calibration = rates.calibration();
  absl::StrAppendFormat(
      &text, "    measured by operator on %s at %s by lemo %s, %s at a load of %.1f\n",
      Printable(calibration.host()), Time(calibration.time()), Printable(calibration.version()),
      HumanDuration(calibration.seconds()), calibration.load());
  for (const lemo::v1::LinkRate& link : calibration.links()) {
    absl::StrAppendFormat(&text, "    sums over %d ranks: %.3g ms and %s a second\n", link.ranks(),
                          1e3 * link.latency_seconds(),
                          HumanBytes(static_cast<int64_t>(link.bytes_per_second())));
  }
  return text;
}

// The runs that times are corrected by, or that are too few for it.
std::string HistoryText(const PlanResult& plan) {
  if (plan.history().empty()) return "";
  Table table({"  finished run", "ended", "step foretold", "took", "ratio"});
  for (const lemo::v1::RunTime& run : plan.history()) {
    const lemo::v1::RunForecast& of = run.forecast();
    table.Add({absl::StrCat("  ", Printable(run.job())), Time(run.end_time()),
               absl::StrCat(Significant(of.predicted_step_seconds(), 3), " s"),
               absl::StrCat(Significant(of.measured_step_seconds(), 3), " s"),
               absl::StrFormat("%.3g", of.measured_step_seconds() / of.predicted_step_seconds())});
  }
  return table.ToString();
}

}  // namespace

std::string CorrectionText(const lemo::v1::TimeCorrection& correction) {
  if (correction.runs() < 2 || correction.ratio() <= 0) return "";
  return absl::StrFormat("x%.3g from %d finished runs", correction.ratio(), correction.runs());
}

std::string StorageText(const Offer& offer) {
  if (offer.storage().empty()) return "nothing";  // there is no backward pass through the layers
  return absl::StrJoin(offer.storage(), ", ",
                       [](std::string* out, const lemo::v1::LayerPolicy& run) {
                         absl::StrAppend(out, run.policy(), " x", run.last() - run.first() + 1);
                       });
}

std::string PlanText(const PlanResult& plan, absl::Time now) {
  std::string text;
  const bool any = plan.offers_size() > 0;
  const Offers& shown = any ? plan.offers() : plan.nearest();
  if (any) {
    absl::StrAppend(
        &text, plan.offers_size(), plan.offers_size() == 1 ? " offer" : " offers",
        plan.candidates() > 0 ? absl::StrCat(" of ", plan.candidates(), " candidates") : "", "\n");
  } else {
    absl::StrAppend(&text, "Nothing of ", plan.candidates(),
                    " candidates is within the bounds. Nearest:\n");
  }
  absl::StrAppend(&text, OffersTable(shown, plan.preferred(), now), WaitText(shown));
  // Runs of different numbers of ranks are corrected apart.
  std::set<std::string> corrections;
  for (const Offer& offer : shown) {
    const std::string correction = CorrectionText(offer.correction());
    if (correction.empty()) continue;
    corrections.insert(absl::StrCat(correction, offer.ranks() > 1
                                                    ? absl::StrCat(" of ", offer.ranks(), " ranks")
                                                    : std::string()));
  }
  if (!corrections.empty()) {
    absl::StrAppend(&text, "times: ", absl::StrJoin(corrections, "; "), "\n");
  }
  if (!any) {
    for (const lemo::v1::BoundAdvice& advice : plan.advice()) {
      std::string way = "to change it alone would not be enough";
      if (advice.has_needed()) {
        way = absl::StrCat(BoundText(advice.bound(), advice.needed()), " would do");
      } else if (advice.bound() == "finish_by") {
        way = "nobody can say when the job would start";
      }
      absl::StrAppend(&text, "  ", advice.bound(), " is ",
                      BoundText(advice.bound(), advice.asked()), "; ", way, "\n");
    }
  }
  for (const std::string& note : plan.notes()) {
    absl::StrAppend(&text, "note: ", Printable(note), "\n");
  }
  return text;
}

std::string ExplainText(const Offer& offer, const PlanResult& plan) {
  std::string text = absl::StrCat("\noffer ", offer.id(), "\n");
  Table bytes({"  memory of a rank", "low", "expected", "at most"});
  const auto row = [&](const char* name, int64_t (lemo::v1::PeakBytes::*get)() const) {
    bytes.Add({absl::StrCat("  ", name), HumanBytes((offer.low().*get)()),
               HumanBytes((offer.expected().*get)()), HumanBytes((offer.high().*get)())});
  };
  row("weights", &lemo::v1::PeakBytes::weights);
  row("trainable", &lemo::v1::PeakBytes::trainable);
  row("saved activations", &lemo::v1::PeakBytes::saved_activations);
  row("transient", &lemo::v1::PeakBytes::transient);
  row("loss", &lemo::v1::PeakBytes::loss);
  row("peak of the sum", &lemo::v1::PeakBytes::total);
  absl::StrAppend(&text, bytes.ToString());
  const lemo::v1::StepSeconds& step = offer.step();
  const double foretold = step.forward() + step.replay() + step.backward() + step.head() +
                          step.selection() + step.optimizer() + step.communication() +
                          step.offload() + step.overhead();
  absl::StrAppendFormat(
      &text,
      "  step: forward %.3g + again %.3g + backward %.3g + head %.3g + choice of rows %.3g + "
      "update %.3g + ranks %.3g + copies %.3g + overhead %.3g = %.3g s\n",
      step.forward(), step.replay(), step.backward(), step.head(), step.selection(),
      step.optimizer(), step.communication(), step.offload(), step.overhead(), foretold);
  if (const std::string correction = CorrectionText(offer.correction()); !correction.empty()) {
    absl::StrAppendFormat(&text, "  %s of %s, %s: %.3g s\n", correction,
                          Printable(offer.forecast().family()),
                          Printable(offer.forecast().shape_class()), step.total());
  }
  absl::StrAppend(&text, OperatorsText(offer));
  if (step.total() > 0) {
    absl::StrAppendFormat(&text, "  tokens/s: %.5g of a step / %.3g s = %.5g\n",
                          offer.tokens_per_second() * step.total(), step.total(),
                          offer.tokens_per_second());
    const double steps = offer.run_seconds() - offer.evaluation_seconds() - offer.shadow_seconds() -
                         offer.rehearsal_seconds() - offer.scoring_seconds();
    absl::StrAppendFormat(&text, "  runs: %.0f steps x %.3g s", steps / step.total(), step.total());
    const auto beside = [&text](const std::string& what, double seconds) {
      if (seconds > 0) absl::StrAppendFormat(&text, " + %s %.3g s", what, seconds);
    };
    beside("a table of blocks", offer.scoring_seconds());
    beside("the largest micro-batch first", offer.rehearsal_seconds());
    beside(absl::StrCat(offer.evaluations(), " evaluations"), offer.evaluation_seconds());
    beside("shadows", offer.shadow_seconds());
    absl::StrAppend(&text, " = ", HumanDuration(offer.run_seconds()), "\n");
  }
  absl::StrAppendFormat(&text, "  cost: %d rank%s x %.4g h = %.4g device-hours\n", offer.ranks(),
                        offer.ranks() == 1 ? "" : "s", offer.run_seconds() / kSecondsAnHour,
                        offer.device_seconds() / kSecondsAnHour);
  absl::StrAppend(&text, RatesText(plan.rates()), HistoryText(plan));
  absl::StrAppend(&text, "  quality: ", Printable(offer.quality()), "\n");
  absl::StrAppend(&text, "  sets: ", ToJson(offer.overrides()).dump(), "\n");
  return text;
}

std::string PlanPlot(const PlanResult& plan) {
  constexpr double kWidth = 760, kHeight = 460, kLeft = 90, kRight = 30, kTop = 40, kBottom = 60;
  double bytes_max = 1, seconds_max = 1e-9;
  for (const Offer& offer : plan.offers()) {
    bytes_max = std::max(bytes_max, 1.08 * static_cast<double>(offer.high().total()));
    seconds_max = std::max(seconds_max, 1.08 * offer.run_seconds());
  }
  const auto x = [&](double bytes) {
    return kLeft + (kWidth - kLeft - kRight) * bytes / bytes_max;
  };
  const auto y = [&](double seconds) {
    return kHeight - kBottom - (kHeight - kTop - kBottom) * seconds / seconds_max;
  };
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
      "height=\"%.0f\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n"
      "<text x=\"%.0f\" y=\"22\" font-size=\"14\">Offers: memory of a rank at most, and time of "
      "running</text>\n",
      kWidth, kHeight, kWidth, kHeight, kLeft);
  for (int tick = 0; tick <= 4; ++tick) {
    const double bytes = bytes_max * tick / 4, seconds = seconds_max * tick / 4;
    absl::StrAppendFormat(&svg,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" "
                          "stroke=\"#dddddd\"/>\n<text x=\"%.1f\" y=\"%.1f\" "
                          "text-anchor=\"middle\">%s</text>\n",
                          x(bytes), kTop, x(bytes), kHeight - kBottom, x(bytes),
                          kHeight - kBottom + 18, HumanBytes(static_cast<int64_t>(bytes)));
    absl::StrAppendFormat(&svg,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" "
                          "stroke=\"#dddddd\"/>\n<text x=\"%.1f\" y=\"%.1f\" "
                          "text-anchor=\"end\">%s</text>\n",
                          kLeft, y(seconds), kWidth - kRight, y(seconds), kLeft - 8, y(seconds) + 4,
                          HumanDuration(seconds));
  }
  for (const Offer& offer : plan.offers()) {
    // The more rows are left out, the lighter.
    const int grey = static_cast<int>(std::lround(170 * (1 - std::clamp(offer.kept(), 0.0, 1.0))));
    const bool preferred = offer.id() == plan.preferred();
    absl::StrAppendFormat(
        &svg,
        "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"rgb(%d,%d,200)\"%s><title>%s: %s, %s, "
        "%.1f %% of the rows</title></circle>\n<text x=\"%.1f\" y=\"%.1f\" "
        "fill=\"#444444\">%s</text>\n",
        x(static_cast<double>(offer.high().total())), y(offer.run_seconds()), preferred ? 7 : 5,
        grey, grey, preferred ? " stroke=\"#cc3300\" stroke-width=\"2\"" : "",
        offer.id().substr(0, kDigits), HumanBytes(offer.high().total()),
        HumanDuration(offer.run_seconds()), 100 * offer.kept(),
        x(static_cast<double>(offer.high().total())) + 9, y(offer.run_seconds()) - 6,
        offer.id().substr(0, kDigits));
  }
  absl::StrAppendFormat(&svg,
                        "<text x=\"%.0f\" y=\"%.0f\" fill=\"#444444\">Lighter: fewer rows are "
                        "computed. Ringed: what the preference takes.</text>\n</svg>\n",
                        kLeft, kHeight - 14);
  return svg;
}

}  // namespace lemo::cli
