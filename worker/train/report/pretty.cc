#include "worker/train/report/pretty.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/format.h"
#include "worker/train/report/sparsity.h"

namespace lemo::train {
namespace {

constexpr char kBold[] = "\x1b[1m";
constexpr char kDim[] = "\x1b[2m";
constexpr char kRed[] = "\x1b[1;31m";
constexpr char kGreen[] = "\x1b[1;32m";
constexpr char kYellow[] = "\x1b[33m";
constexpr char kReset[] = "\x1b[0m";
constexpr char kEraseLine[] = "\r\x1b[K";

// Steps faster than this are not all drawn: nobody could read them, and writing takes time.
constexpr double kRedrawSeconds = 0.1;
constexpr double kLineSeconds = 1.0;

std::string Printable(std::string text) {
  for (char& c : text) {
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n') || c == 0x7f) c = '?';
  }
  return text;
}

// Every line of `text` behind `indent`.
std::string Indented(const std::string& text, const std::string& indent) {
  std::string out = indent;
  for (char c : text) {
    out += c;
    if (c == '\n') out += indent;
  }
  return out;
}

std::string Bar(double done, int columns) {
  const int inside = columns - 2;
  const int filled = std::clamp(static_cast<int>(done * inside), 0, inside);
  std::string bar(inside, '.');
  std::fill_n(bar.begin(), filled, '=');
  if (filled > 0 && filled < inside) bar[filled - 1] = '>';
  return absl::StrCat("[", bar, "]");
}

// Empty for a step of all rows.
std::string Kept(const lemo::v1::StepEvent& step) {
  if (!step.has_sparsity()) return "";
  const lemo::v1::TokenSparsity& sparsity = step.sparsity();
  std::string kept = absl::StrFormat("kept %.0f %%", 100 * RowsComputed(sparsity));
  if (sparsity.recall().empty()) return kept;
  return absl::StrFormat("%s (recall %.0f %%)", kept, 100 * MeanOfLayers(sparsity).recall(0));
}

std::string ProgressLine(const lemo::v1::StepEvent& step, int width) {
  constexpr int kShortestBar = 10;
  constexpr int kLongestBar = 32;
  // In the order shown; `rank` is the order in which they give way on a narrow terminal.
  struct Piece {
    std::string text;
    int rank;
  };
  const std::vector<Piece> pieces = {
      {absl::StrCat("step ", step.step(), "/", step.steps()), 0},
      {absl::StrCat("loss ", Fixed(step.loss(), 4)), 0},
      {absl::StrCat(ShortCount(step.tokens_per_second()), " tok/s"), 2},
      {Kept(step), 4},
      {HumanBytes(step.peak_bytes()), 3},
      {absl::StrCat("ETA ", ClockDuration(step.eta_seconds())), 1},
      {absl::StrCat("lr ", absl::StrFormat("%.2e", step.learning_rate())), 5},
  };
  const int columns = std::max(width - 1, 1);  // the last column makes some terminals wrap
  auto join = [&](int rank) {
    std::string line;
    for (const Piece& piece : pieces) {
      if (piece.rank > rank || piece.text.empty()) continue;
      absl::StrAppend(&line, line.empty() ? "" : "  ", piece.text);
    }
    return line;
  };
  std::string line;
  for (int rank = 5; rank >= 0; --rank) {
    line = join(rank);
    if (static_cast<int>(line.size()) <= columns) break;
  }
  const int room = columns - static_cast<int>(line.size()) - 2;
  if (room >= kShortestBar) {
    const double done = step.steps() > 0 ? static_cast<double>(step.step()) / step.steps() : 0;
    line = absl::StrCat(Bar(done, std::min(room, kLongestBar)), "  ", line);
  }
  return line.substr(0, columns);
}

std::string ViolationText(const lemo::v1::Violation& violation) {
  std::string out;
  auto part = [&out](const std::string& text) {
    if (!text.empty()) absl::StrAppend(&out, out.empty() ? "" : ": ", text);
  };
  part(violation.field());
  part(violation.line() > 0 ? absl::StrCat(violation.file(), ":", violation.line())
                            : violation.file());
  part(violation.json_path());
  part(violation.reason());
  return out;
}

std::string Row(const std::string& name, const std::string& value) {
  return absl::StrFormat("  %-16s%s\n", name, Printable(value));
}

std::string Change(double before, double after) {
  if (!std::isfinite(before) || !std::isfinite(after) || before == 0) return "";
  return absl::StrFormat("  (%+.1f %%)", 100 * (after / before - 1));
}

}  // namespace

PrettyOptions DetectTerminal(int fd) {
  PrettyOptions options;
  const char* term = std::getenv("TERM");
  options.terminal = isatty(fd) == 1 && !(term && std::string_view(term) == "dumb");
  const char* no_color = std::getenv("NO_COLOR");
  options.color = options.terminal && !(no_color && *no_color);
  winsize size{};
  if (options.terminal && ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    options.width = size.ws_col;
  }
  return options;
}

std::string PrettyFormatter::Paint(const char* code, const std::string& text) const {
  return options_.color ? absl::StrCat(code, text, kReset) : text;
}

std::string PrettyFormatter::Format(const lemo::v1::RunEvent& event) {
  using Event = lemo::v1::RunEvent;
  if (event.event_case() == Event::kStep) return Step(event.step(), event.unix_seconds());
  std::string text;
  switch (event.event_case()) {
    case Event::kPhase: {
      const auto& phase = event.phase();
      text = absl::StrCat(Paint(kBold, absl::StrFormat("%-9s", Printable(phase.name()))), " ",
                          Paint(kDim, Printable(phase.detail())));
      while (!text.empty() && text.back() == ' ') text.pop_back();
      text += '\n';
      break;
    }
    case Event::kEval:
      text = Eval(event.eval());
      break;
    case Event::kCheckpoint: {
      const auto& checkpoint = event.checkpoint();
      text = checkpoint.reason() == "resumed"
                 ? absl::StrCat("  resumed at step ", checkpoint.step(), " from ",
                                Printable(checkpoint.path()), "\n")
                 : absl::StrCat("  saved step ", checkpoint.step(), "  ",
                                Printable(checkpoint.path()), "  (", HumanBytes(checkpoint.bytes()),
                                ", ", HumanDuration(checkpoint.seconds()), ")\n");
      break;
    }
    case Event::kWarning: {
      const auto& warning = event.warning();
      text = absl::StrCat(Paint(kYellow, "warning:"), " ",
                          warning.field().empty() ? "" : Printable(warning.field()) + ": ",
                          Printable(warning.message()), "\n");
      break;
    }
    case Event::kResult:
      text = Result(event.result());
      break;
    case Event::kError:
      text = Error(event.error());
      break;
    case Event::kAmendment:
      text = Amendment(event.amendment());
      break;
    case Event::kShadow:
      text = Shadow(event.shadow());
      break;
    case Event::kRehearsal:
      text = Rehearsal(event.rehearsal());
      break;
    case Event::kSelection:  // a picture, which the report draws
    case Event::kStep:
    case Event::EVENT_NOT_SET:
      return "";
  }
  if (!std::exchange(progress_shown_, false)) return text;
  // Phases and evaluations take the place of the progress line, which the next step draws again
  // below; at the end it stays.
  const bool last = event.has_result() || event.has_error();
  return absl::StrCat(last ? "\n" : kEraseLine, text);
}

std::string PrettyFormatter::Step(const lemo::v1::StepEvent& step, double now) {
  const bool last = step.step() == step.steps();
  const double interval = options_.terminal ? kRedrawSeconds : kLineSeconds;
  if (std::exchange(any_step_, true) && !last && std::abs(now - last_step_time_) < interval) {
    return "";
  }
  last_step_time_ = now;
  if (options_.terminal) {
    progress_shown_ = !last;
    return absl::StrCat(kEraseLine, ProgressLine(step, options_.width), last ? "\n" : "");
  }
  const std::string kept = Kept(step);
  return absl::StrFormat(
      "  step %d/%d  loss %s  lr %.2e  grad norm %s  %s tok/s%s%s  peak %s  ETA %s\n", step.step(),
      step.steps(), Fixed(step.loss(), 4), step.learning_rate(), Significant(step.grad_norm(), 3),
      ShortCount(step.tokens_per_second()), kept.empty() ? "" : "  ", kept,
      HumanBytes(step.peak_bytes()), ClockDuration(step.eta_seconds()));
}

std::string PrettyFormatter::Eval(const lemo::v1::EvalEvent& eval) const {
  if (!eval.recall().empty()) {  // of a predictor
    const double recall =
        std::accumulate(eval.recall().begin(), eval.recall().end(), 0.0) / eval.recall_size();
    return absl::StrFormat("  eval at step %d  loss %s  recall %s %%, mean of %d layers  (%s)\n",
                           eval.step(), Paint(kBold, Fixed(eval.loss(), 4)),
                           Paint(kBold, Fixed(100 * recall, 1)), eval.recall_size(),
                           HumanDuration(eval.seconds()));
  }
  const std::string sparse =
      HasSparseLoss(eval)
          ? absl::StrCat("  dropping rows: perplexity ", Significant(eval.sparse_perplexity(), 5))
          : "";
  return absl::StrFormat(
      "  eval at step %d  loss %s  perplexity %s  accuracy %s %%%s  (%s tokens, %s)%s\n",
      eval.step(), Paint(kBold, Fixed(eval.loss(), 4)),
      Paint(kBold, Significant(eval.perplexity(), 5)), Fixed(100 * eval.token_accuracy(), 1),
      sparse, HumanCount(eval.labelled_tokens()), HumanDuration(eval.seconds()),
      eval.best() ? Paint(kGreen, "  best") : "");
}

std::string PrettyFormatter::Shadow(const lemo::v1::ShadowEvent& shadow) const {
  std::string out = absl::StrFormat(
      "  shadow at step %d  loss %s with all rows, %s with the kept ones: %+.4f", shadow.step(),
      Fixed(shadow.dense_loss(), 4), Fixed(shadow.sparse_loss(), 4), shadow.gap());
  if (shadow.bound() > 0) absl::StrAppendFormat(&out, " of %.4f", shadow.bound());
  if (shadow.verdict() == "cannot") {
    out += Paint(kYellow, "  more rows would not fit in the budget");
  } else if (shadow.verdict() == "raised") {
    out += Paint(kYellow, absl::StrFormat("  from now on at least %.3g of the blocks are kept",
                                          shadow.keep_least()));
  }
  return absl::StrCat(out, "\n");
}

std::string PrettyFormatter::Amendment(const lemo::v1::AmendmentEvent& amendment) const {
  // Which way, and why: what a person wants to know first.
  std::string what = absl::StrCat(amendment.back() ? "  back at step " : "  amended at step ",
                                  amendment.step(), "  ");
  if (!amendment.layers().empty()) absl::StrAppend(&what, "layers ", amendment.layers(), ": ");
  absl::StrAppend(&what, amendment.from(), " -> ", amendment.to());
  std::string out = Paint(amendment.back() ? kGreen : kYellow, Printable(what));
  // A run without a budget has none of these numbers.
  if (amendment.predicted_bytes_after() > 0) {
    absl::StrAppend(&out, "  (", HumanBytes(amendment.predicted_bytes_before()), " -> ",
                    HumanBytes(amendment.predicted_bytes_after()), ", measured ",
                    HumanBytes(amendment.measured_peak_bytes()), ", of ",
                    HumanBytes(amendment.budget_bytes()));
    if (amendment.predicted_seconds_before() > 0) {
      absl::StrAppend(&out, "; ", Significant(amendment.predicted_seconds_before(), 3), " -> ",
                      Significant(amendment.predicted_seconds_after(), 3), " s, measured ",
                      Significant(amendment.measured_seconds(), 3), " s");
    }
    out += ")";
  }
  return absl::StrCat(out, amendment.exact() ? "" : "  changes what is computed", "\n");
}

std::string PrettyFormatter::Rehearsal(const lemo::v1::RehearsalEvent& rehearsal) const {
  std::string out = absl::StrFormat(
      "  rehearsed a pass of step %d  %s rows, the longest document %s: forecast %s, measured %s, "
      "of "
      "%s (%s)",
      rehearsal.step(), HumanCount(rehearsal.rows()), HumanCount(rehearsal.longest()),
      HumanBytes(rehearsal.predicted_bytes()), HumanBytes(rehearsal.peak_bytes()),
      HumanBytes(rehearsal.budget_bytes()), HumanDuration(rehearsal.seconds()));
  for (const std::string& change : rehearsal.changes()) {
    absl::StrAppend(&out, "  ", Paint(kYellow, Printable(change)));
  }
  if (rehearsal.refused()) out += Paint(kYellow, "  the forecast was too low, and is corrected");
  return absl::StrCat(out, "\n");
}

std::string PrettyFormatter::Result(const lemo::v1::ResultEvent& result) const {
  std::string out = "\n";
  absl::StrAppend(
      &out,
      result.interrupted()
          ? Paint(kYellow, absl::StrCat("Stopped by a signal after step ", result.steps()))
          : Paint(kGreen, absl::StrCat("Finished: ", HumanCount(result.steps()),
                                       result.steps() == 1 ? " step" : " steps")),
      ", ", HumanCount(result.tokens()), " tokens (", HumanCount(result.labelled_tokens()),
      " with loss) in ", HumanDuration(result.seconds()), ", ",
      ShortCount(result.tokens_per_second()), " tokens/s\n\n");
  auto before_after = [&](const char* name, double before, double after, auto format) {
    if (std::isfinite(before) && std::isfinite(after)) {
      absl::StrAppend(&out, Row(name, absl::StrCat(format(before), " -> ", format(after),
                                                   Change(before, after))));
    } else if (std::isfinite(after)) {
      absl::StrAppend(&out, Row(name, format(after)));
    } else if (std::isfinite(before)) {
      absl::StrAppend(&out, Row(name, absl::StrCat(format(before), " (before)")));
    }
  };
  before_after("eval loss", result.eval_loss_before(), result.eval_loss(),
               [](double value) { return Fixed(value, 4); });
  before_after("perplexity", result.perplexity_before(), result.perplexity(),
               [](double value) { return Significant(value, 5); });
  if (std::isfinite(result.train_loss())) {
    absl::StrAppend(&out, Row("train loss", Fixed(result.train_loss(), 4)));
  }
  const auto& peak = result.peak_bytes();
  absl::StrAppend(&out, Row("peak memory", HumanBytes(peak.total())));
  absl::StrAppend(&out, Row("", absl::StrCat("weights ", HumanBytes(peak.weights()), ", trainable ",
                                             HumanBytes(peak.trainable()), ", saved activations ",
                                             HumanBytes(peak.saved_activations()), ", transient ",
                                             HumanBytes(peak.transient()), ", loss ",
                                             HumanBytes(peak.loss()))));
  const lemo::v1::RunForecast& forecast = result.forecast();
  if (forecast.predicted_peak_bytes() > 0) {
    absl::StrAppend(&out,
                    Row("", absl::StrCat("foretold ", HumanBytes(forecast.predicted_peak_bytes()),
                                         ", at most ", HumanBytes(forecast.high_peak_bytes()))));
  }
  const auto time = [&out](const char* name, double measured, double predicted) {
    if (!(measured > 0)) return;
    std::string text = absl::StrCat(Significant(measured, 3), " s");
    if (predicted > 0) {
      absl::StrAppend(&text, ", foretold ", Significant(predicted, 3), " s",
                      Change(predicted, measured));
    }
    absl::StrAppend(&out, Row(name, text));
  };
  time("step", forecast.measured_step_seconds(), forecast.predicted_step_seconds());
  time("evaluation", forecast.measured_evaluation_seconds(),
       forecast.predicted_evaluation_seconds());
  auto path = [&](const char* name, const std::string& value) {
    if (!value.empty()) absl::StrAppend(&out, Row(name, value));
  };
  path("adapter", result.adapter_dir());
  path("model", result.model_dir());
  path("predictor", result.predictor_dir());
  if ((!result.adapter_dir().empty() || !result.model_dir().empty()) &&
      std::isfinite(result.publish_max_logit_difference())) {
    absl::StrAppend(
        &out, Row("checked", absl::StrCat("what was written, loaded again, differs by at most ",
                                          Significant(result.publish_max_logit_difference(), 2),
                                          " in the logits")));
  }
  path("report", result.report());
  out += '\n';
  if (result.interrupted() && result.steps() == 0) {
    return out + "No step was done; run the same command again.\n";
  }
  if (result.interrupted()) {
    return out + "Run the same command with --resume auto to go on from the checkpoint.\n";
  }
  if (!result.adapter_dir().empty()) {
    return absl::StrCat(out, "Load it: PeftModel.from_pretrained(base_model, \"",
                        Printable(result.adapter_dir()), "\")\n");
  }
  if (!result.model_dir().empty()) {
    return absl::StrCat(out, "Load it: AutoModelForCausalLM.from_pretrained(\"",
                        Printable(result.model_dir()), "\")\n");
  }
  return out;
}

std::string PrettyFormatter::Error(const lemo::v1::ErrorEvent& error) const {
  std::string out =
      absl::StrCat("\n", Paint(kRed, "error:"), " ", Printable(error.message()), "\n");
  for (const auto& violation : error.violations()) {
    const std::string text = ViolationText(violation);
    if (absl::StrContains(error.message(), text)) continue;  // the message is that very list
    absl::StrAppend(&out, Indented(Printable(text), "  "), "\n");
  }
  if (!error.advice().empty()) {
    absl::StrAppend(&out, Paint(kBold, "What to do:"), " ", Printable(error.advice()), "\n");
  }
  return out;
}

}  // namespace lemo::train
