#include "worker/train/report/report_html.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/format.h"
#include "worker/train/report/chart.h"
#include "worker/train/report/sparsity.h"
#include "worker/train/report/sparsity_html.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

constexpr char kStyle[] = R"css(
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --muted: #5d6878; --line: #e3e7ed;
  --blue: #2563c9; --orange: #c2570c; --green: #18794e; --purple: #7a48c4; --red: #b42318;
  --code: #f1f3f7; --good-bg: #e3f4ea; --warn-bg: #fdf0d9; --warn-ink: #7a4a06;
  --bad-bg: #fde5e2; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0f1319; --card: #171c24; --ink: #e5e9f0; --muted: #97a3b4; --line: #2a323e;
  --blue: #6ea8fe; --orange: #f2a35e; --green: #5fc996; --purple: #b795f0; --red: #f58d83;
  --code: #10151c; --good-bg: #143324; --warn-bg: #3a2c12; --warn-ink: #f3cd8b;
  --bad-bg: #43201d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 36px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
h3 { font-size: 13px; font-weight: 600; margin: 0 0 4px; color: var(--muted); }
p { margin: 0 0 10px; } .muted { color: var(--muted); } small { color: var(--muted); }
header p { color: var(--muted); margin: 8px 0 0; max-width: 80ch; }
.title { display: flex; gap: 12px; align-items: center; flex-wrap: wrap; }
.status { font-size: 13px; font-weight: 600; padding: 2px 11px; border-radius: 999px;
  background: var(--warn-bg); color: var(--warn-ink); }
.status.succeeded { background: var(--good-bg); color: var(--green); }
.status.failed { background: var(--bad-bg); color: var(--red); }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 20px 22px; margin-top: 16px; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin-top: 22px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 23px; line-height: 1.3; font-weight: 650;
  letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile i { font-style: normal; font-size: 15px; font-weight: 400; color: var(--muted); }
.better { color: var(--green); } .worse { color: var(--red); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th { font-size: 13px; font-weight: 600; color: var(--muted); white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
td.name { white-space: nowrap; } td.path { overflow-wrap: anywhere; min-width: 12ch; }
td.bar { width: 45%; min-width: 120px; padding: 6px 0 6px 10px; }
.track { display: block; height: 9px; margin-top: 7px; border-radius: 5px;
  background: var(--code); }
.track span { display: block; height: 100%; border-radius: 5px; background: var(--blue);
  min-width: 2px; }
.halves { display: grid; gap: 24px; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr));
  margin-top: 18px; }
.chart { width: 100%; height: auto; display: block; }
.chart .grid { stroke: var(--line); } .chart .tick { fill: var(--muted); font-size: 11px; }
.chart path { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.chart .dot { fill: var(--card); stroke: currentColor; stroke-width: 2; }
.chart .tip { fill: transparent; } .chart .tip:hover { fill: currentColor; fill-opacity: 0.35; }
.blue { color: var(--blue); } .orange { color: var(--orange); } .green { color: var(--green); }
.purple { color: var(--purple); } .ink { color: var(--ink); } .out { color: var(--line); }
.chart .faint path { stroke-width: 1; stroke-opacity: 0.45; }
.chart .dashed path { stroke-dasharray: 7 5; }
.chart .bar { fill: currentColor; } .chart .bar:hover { fill-opacity: 0.7; }
.chart rect.out { fill: currentColor; } .chart .divide { stroke: var(--card); stroke-width: 5; }
.chart .mark { stroke: var(--ink); stroke-width: 1; }
.blocks path { stroke-linejoin: miter; shape-rendering: crispEdges; }
.blocks rect { shape-rendering: crispEdges; } .blocks .tip:hover { fill-opacity: 0.12; }
h3.next { margin-top: 24px; } p.note { margin: 8px 0; }
.legend { display: flex; gap: 18px; flex-wrap: wrap; margin: 0 0 6px; font-size: 13px;
  color: var(--muted); }
.legend span::before { content: ""; display: inline-block; width: 18px; height: 3px;
  border-radius: 2px;
  background: currentColor; margin-right: 7px; vertical-align: middle; }
.legend .dashed::before {
  background: repeating-linear-gradient(90deg, currentColor 0 5px, transparent 5px 8px); }
.legend .box::before { width: 14px; height: 14px; border-radius: 3px; }
.legend .dot::before { width: 9px; height: 9px; border-radius: 50%;
  background: none; border: 2px solid currentColor; }
.legend em { font-style: normal; color: var(--muted); }
code, pre {
  font: 13px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { background: var(--code); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px;
  padding: 13px 16px; margin: 6px 0 14px; overflow-x: auto; }
.warnings { background: var(--warn-bg); color: var(--warn-ink); border-color: transparent; }
.failure { background: var(--bad-bg); border-color: transparent; }
.warnings ul, .failure ul { margin: 0; padding-left: 20px; }
details > summary { cursor: pointer; font-weight: 600; font-size: 15px; padding: 4px 0; }
details + details { margin-top: 6px; } details[open] > summary { margin-bottom: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 20px; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
dl.metrics { gap: 9px 20px; } dl.metrics dt { color: var(--ink); font-weight: 600; }
@media (max-width: 600px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 8px; } }
@media print { body { background: none; } section, .tile { break-inside: avoid; } }
)css";

std::string Element(const std::string& tag, const std::string& html) {
  return absl::StrCat("<", tag, ">", html, "</", tag, ">");
}

std::string Section(const std::string& title, const std::string& html) {
  if (html.empty()) return "";
  return absl::StrCat("<section>\n<h2>", EscapeHtml(title), "</h2>\n", html, "</section>\n");
}

std::string Cell(const std::string& html, const std::string& css_class = "") {
  return css_class.empty() ? Element("td", html)
                           : absl::StrCat("<td class=\"", css_class, "\">", html, "</td>");
}

std::string Number(const std::string& text) { return Cell(EscapeHtml(text), "n"); }

// `columns` that begin with '#' hold numbers.
std::string Table(const std::vector<std::string>& columns, const std::string& rows) {
  std::string head;
  for (const std::string& column : columns) {
    const bool number = column.substr(0, 1) == "#";
    absl::StrAppend(&head, number ? "<th class=\"n\">" : "<th>",
                    EscapeHtml(number ? column.substr(1) : column), "</th>");
  }
  return absl::StrCat("<table><thead><tr>", head, "</tr></thead><tbody>\n", rows,
                      "</tbody></table>\n");
}

std::string BarCell(double share) {
  const double percent = std::isfinite(share) ? std::clamp(100 * share, 0.0, 100.0) : 0;
  return absl::StrFormat(
      "<td class=\"bar\"><span class=\"track\"><span style=\"width:%.1f%%\"></span></span></td>",
      percent);
}

std::string Folded(const std::string& title, const std::string& html) {
  return absl::StrCat("<details><summary>", EscapeHtml(title), "</summary>\n", html,
                      "</details>\n");
}

std::string Definition(const std::string& name, const std::string& html) {
  return html.empty() ? ""
                      : absl::StrCat(Element("dt", EscapeHtml(name)), Element("dd", html), "\n");
}

std::string Hash(const std::string& hash) {
  return hash.empty() ? "" : Element("code", EscapeHtml(hash));
}

// "out/almayer/" -> "almayer".
std::string BaseName(const std::string& path) {
  std::filesystem::path p(path);
  if (!p.has_filename()) p = p.parent_path();
  return p.filename().string();
}

std::string Title(const RunReport& report) {
  const auto& spec = report.facts().spec;
  std::string title = BaseName(spec.model().path());
  if (title.empty()) title = "Training run";
  if (spec.data().train_size() > 0) {
    absl::StrAppend(&title, " on ", BaseName(spec.data().train(0).path()));
    if (const int more = spec.data().train_size() - 1; more > 0) {
      absl::StrAppend(&title, " and ", more, " more");
    }
  }
  return title;
}

std::string TunerSentence(const ReportFacts& facts) {
  std::string out;
  if (facts.spec.tuner().has_lora()) {
    const auto& lora = facts.spec.tuner().lora();
    out = absl::StrCat("LoRA, rank ", lora.rank(), ", alpha ", Significant(lora.alpha(), 4),
                       ", on ", absl::StrJoin(lora.targets(), ", "));
  } else if (facts.spec.tuner().has_full()) {
    out = "Full fine-tuning";
  }
  if (facts.parameters > 0 && facts.trainable_parameters > 0) {
    absl::StrAppend(&out, out.empty() ? "" : "; ", ShortCount(facts.trainable_parameters), " of ",
                    ShortCount(facts.parameters), " parameters trained (",
                    Significant(100.0 * facts.trainable_parameters / facts.parameters, 3), " %)");
  }
  return out;
}

std::string Header(const RunReport& report) {
  const ReportFacts& facts = report.facts();
  std::vector<std::string> parts;
  auto add = [&parts](const std::string& text) {
    if (!text.empty()) parts.push_back(EscapeHtml(text));
  };
  add(facts.architecture);
  add(TunerSentence(facts));
  std::string where = facts.device;
  if (!facts.compute_type.empty()) absl::StrAppend(&where, " in ", facts.compute_type);
  add(where);
  if (report.started_unix_seconds() > 0) add(UtcTime(report.started_unix_seconds()));
  return absl::StrCat("<header><div class=\"title\"><h1>", EscapeHtml(Title(report)),
                      "</h1><span class=\"status ", report.Status(), "\">", report.Status(),
                      "</span></div>\n<p>", absl::StrJoin(parts, " &middot; "), "</p></header>\n");
}

std::string Tile(const std::string& name, const std::string& value_html,
                 const std::string& note_html) {
  return absl::StrCat("<div class=\"tile\">", Element("h3", EscapeHtml(name)),
                      Element("b", value_html), Element("small", note_html), "</div>\n");
}

std::string ChangeTile(const std::string& name, double before, double after, int digits) {
  if (!std::isfinite(after)) return "";
  if (!std::isfinite(before)) return Tile(name, Fixed(after, digits), "held-out text");
  std::string note = "held-out text";
  if (before != 0) {
    const double change = 100 * (after / before - 1);
    note = absl::StrFormat("<span class=\"%s\">%+.1f %%</span> on held-out text",
                           change <= 0 ? "better" : "worse", change);
  }
  return Tile(
      name, absl::StrCat("<i>", Fixed(before, digits), " &rarr;</i> ", Fixed(after, digits)), note);
}

std::string Tiles(const RunReport& report) {
  if (!report.result()) return "";
  const auto& result = *report.result();
  const auto& points = report.curve().points();
  const int32_t planned = points.empty() ? result.steps() : points.back().steps();
  std::string out = ChangeTile("Perplexity", result.perplexity_before(), result.perplexity(), 2);
  out += ChangeTile("Eval loss", result.eval_loss_before(), result.eval_loss(), 3);
  out += Tile(
      "Steps", HumanCount(result.steps()),
      absl::StrCat(result.steps() < planned ? absl::StrCat("of ", HumanCount(planned), ", ") : "",
                   ShortCount(result.tokens()), " tokens, ", ShortCount(result.labelled_tokens()),
                   " with loss"));
  out += Tile("Time", HumanDuration(result.seconds()),
              absl::StrCat(ShortCount(result.tokens_per_second()), " tokens/s in training"));
  if (const auto& sparse = report.last_sparse_step()) {
    out +=
        Tile("Rows computed", absl::StrCat(Fixed(100 * RowsComputed(sparse->sparsity()), 0), " %"),
             absl::StrCat("in attention and MLPs, step ", HumanCount(sparse->step())));
  }
  out += Tile("Peak memory", HumanBytes(result.peak_bytes().total()), "all tensors of the run");
  return absl::StrCat("<div class=\"tiles\">\n", out, "</div>\n");
}

std::string Troubles(const RunReport& report) {
  std::string out;
  if (report.error()) {
    std::string body = Element("p", EscapeHtml(report.error()->message()));
    std::string items;
    for (const auto& violation : report.error()->violations()) {
      items += Element(
          "li", EscapeHtml(absl::StrCat(violation.field(), violation.field().empty() ? "" : ": ",
                                        violation.file(), violation.file().empty() ? "" : ": ",
                                        violation.reason())));
    }
    if (!items.empty()) body += Element("ul", items);
    if (!report.error()->advice().empty()) {
      body += Element("p", "What to do: " + EscapeHtml(report.error()->advice()));
    }
    absl::StrAppend(&out, "<section class=\"failure\"><h2>The run failed</h2>", body,
                    "</section>\n");
  }
  if (report.result() && report.result()->interrupted()) {
    out +=
        "<section class=\"warnings\"><h2>Stopped early</h2>A signal ended the run after it had "
        "saved a "
        "checkpoint. The same command with <code>--resume auto</code> goes on from "
        "there.</section>\n";
  }
  if (!report.warnings().empty()) {
    std::string items;
    for (const auto& warning : report.warnings()) {
      items += Element(
          "li",
          (warning.field().empty() ? "" : Element("code", EscapeHtml(warning.field())) + " ") +
              EscapeHtml(warning.message()));
    }
    absl::StrAppend(&out, "<section class=\"warnings\"><h2>Warnings</h2><ul>", items,
                    "</ul></section>\n");
  }
  return out;
}

using Points = std::vector<std::pair<double, double>>;

// Exponential moving average with the bias of its start taken out.
Points Smoothed(const Points& points, double decay) {
  Points out;
  double mean = 0, weight = 0;
  for (const auto& [x, y] : points) {
    if (!std::isfinite(y)) continue;
    mean = decay * mean + (1 - decay) * y;
    weight = decay * weight + (1 - decay);
    out.emplace_back(x, mean / weight);
  }
  return out;
}

std::string Curves(const RunReport& report) {
  // With fewer points, or points that are means already, the line reads well by itself.
  constexpr size_t kSmoothFrom = 60;
  constexpr double kDecay = 0.9;
  Points loss, rate, norm, eval, sparse_eval;
  for (const auto& point : report.curve().points()) {
    loss.emplace_back(point.step(), point.loss());
    rate.emplace_back(point.step(), point.learning_rate());
    norm.emplace_back(point.step(), point.grad_norm());
  }
  for (const auto& one : report.evals()) {
    eval.emplace_back(one.step(), one.loss());
    if (HasSparseLoss(one)) sparse_eval.emplace_back(one.step(), one.sparse_loss());
  }
  if (loss.empty() && eval.size() < 2) return "";

  std::vector<ChartSeries> series;
  std::string legend;
  if (!loss.empty()) {
    const bool smooth = loss.size() >= kSmoothFrom && report.curve().window() == 1;
    series.push_back({"training loss", smooth ? "blue faint" : "blue", loss, loss.size() == 1});
    legend += Legend("blue", absl::StrCat("training loss, last ", Fixed(loss.back().second, 4)));
    if (smooth) {
      series.push_back({"training loss, smoothed", "blue", Smoothed(loss, kDecay)});
      legend += Element("em", "thin: as measured; thick: moving average over about 10 points");
    }
  }
  if (!eval.empty()) {
    series.push_back({"eval loss", "orange", eval, true});
    legend += Legend("orange", absl::StrCat("eval loss, last ", Fixed(eval.back().second, 4)));
  }
  if (!sparse_eval.empty()) {
    series.push_back({"eval loss with rows dropped", "purple dashed", sparse_eval, true});
    legend += Legend("purple dashed", absl::StrCat("eval loss with rows dropped, last ",
                                                   Fixed(sparse_eval.back().second, 4)));
  }
  std::string out = absl::StrCat(
      "<h3>Loss, nats per labelled token, by step</h3><div class=\"legend\">", legend, "</div>",
      LineChart(
          {.description = "Training and evaluation loss by step", .width = 980, .height = 300},
          series));
  auto half = [](const std::string& title, const std::string& css_class, const Points& points) {
    return Element(
        "div", Element("h3", title) +
                   LineChart({.description = title, .width = 480, .height = 190, .from_zero = true},
                             {{title, css_class, points, points.size() == 1}}));
  };
  if (!rate.empty()) {
    absl::StrAppend(&out, "<div class=\"halves\">", half("Learning rate", "green", rate),
                    half("Gradient norm before clipping", "purple", norm), "</div>");
  }
  if (report.curve().window() > 1) {
    absl::StrAppend(&out, "<p class=\"muted\">One point stands for ", report.curve().window(),
                    " steps.</p>");
  }
  return out;
}

std::string Evaluations(const RunReport& report) {
  constexpr size_t kShown = 12;
  std::string rows;
  const auto best =
      std::min_element(report.evals().begin(), report.evals().end(),
                       [](const auto& a, const auto& b) { return a.loss() < b.loss(); });
  const bool sparse = std::any_of(report.evals().begin(), report.evals().end(), HasSparseLoss);
  for (const auto& eval : report.evals()) {
    std::string with_rows_dropped;
    if (sparse) {
      with_rows_dropped =
          Number(HasSparseLoss(eval) ? Significant(eval.sparse_perplexity(), 5) : "");
    }
    absl::StrAppend(&rows, "<tr>", Number(HumanCount(eval.step())), Number(Fixed(eval.loss(), 4)),
                    Number(Significant(eval.perplexity(), 5)), with_rows_dropped,
                    Number(Fixed(100 * eval.token_accuracy(), 1) + " %"),
                    Number(HumanCount(eval.labelled_tokens())),
                    Number(HumanDuration(eval.seconds())),
                    Cell(&eval == &*best ? "<span class=\"better\">best</span>" : ""), "</tr>\n");
  }
  if (rows.empty()) return "";
  std::vector<std::string> columns = {"#Step", "#Loss", "#Perplexity"};
  if (sparse) columns.push_back("#With rows dropped");
  columns.insert(columns.end(), {"#Token accuracy", "#Labelled tokens", "#Time", ""});
  const std::string table = Table(columns, rows);
  const size_t count = report.evals().size();
  return count > kShown ? Folded(absl::StrCat(count, " evaluations"), table) : table;
}

// A string literal of Python.
std::string Python(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string HowToLoad(const RunReport& report) {
  if (!report.result()) return "";
  const auto& result = *report.result();
  std::string out;
  if (!result.adapter_dir().empty()) {
    absl::StrAppend(
        &out, "<p>The adapter is in <code>", EscapeHtml(result.adapter_dir()),
        "</code>, in the format of PEFT, with the tokenizer and chat template it was trained "
        "with.</p><pre>",
        EscapeHtml(absl::StrCat(
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            "base = AutoModelForCausalLM.from_pretrained(",
            Python(report.facts().spec.model().path()),
            ")\nmodel = PeftModel.from_pretrained(base, ", Python(result.adapter_dir()),
            ")\ntokenizer = AutoTokenizer.from_pretrained(", Python(result.adapter_dir()), ")")),
        "</pre>\n");
  }
  if (!result.model_dir().empty()) {
    absl::StrAppend(&out, "<p>The ",
                    result.adapter_dir().empty() ? "model" : "model with the adapter merged in",
                    " is in <code>", EscapeHtml(result.model_dir()), "</code>.</p><pre>",
                    EscapeHtml(absl::StrCat(
                        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                        "model = AutoModelForCausalLM.from_pretrained(",
                        Python(result.model_dir()), ")\ntokenizer = AutoTokenizer.from_pretrained(",
                        Python(result.model_dir()), ")")),
                    "</pre>\n");
  }
  if (!out.empty() && std::isfinite(result.publish_max_logit_difference())) {
    absl::StrAppend(&out,
                    "<p>Checked: the files were loaded again and give the live model's logits on "
                    "held-out rows within <b>",
                    Significant(result.publish_max_logit_difference(), 2), "</b>.</p>\n");
  }
  return out;
}

std::string Memory(const RunReport& report) {
  if (!report.result()) return "";
  const auto& peak = report.result()->peak_bytes();
  const double total = static_cast<double>(std::max<int64_t>(peak.total(), 1));
  std::string rows;
  auto row = [&](const char* name, const char* what, int64_t bytes) {
    absl::StrAppend(
        &rows, "<tr>", Cell(absl::StrCat(name, "<br><small>", what, "</small>"), "name"),
        Number(HumanBytes(bytes)), BarCell(static_cast<double>(bytes) / total), "</tr>\n");
  };
  row("Weights", "frozen parameters", peak.weights());
  row("Trainable", "parameters, gradients, optimizer", peak.trainable());
  row("Saved activations", "kept from forward for backward", peak.saved_activations());
  row("Transient", "temporaries of one layer", peak.transient());
  row("Loss", "segments of the output layer", peak.loss());
  absl::StrAppend(&rows, "<tr>", Cell("<b>Peak of the sum</b>", "name"),
                  Number(HumanBytes(peak.total())), BarCell(1), "</tr>\n");
  std::string out = Table({"Category", "#Its own peak", "Share of the peak"}, rows);
  const lemo::v1::RunForecast& forecast = report.result()->forecast();
  std::vector<std::string> foretold;
  if (forecast.predicted_peak_bytes() > 0) {
    foretold.push_back(absl::StrCat("a peak of <b>", HumanBytes(forecast.predicted_peak_bytes()),
                                    "</b> and at most ", HumanBytes(forecast.high_peak_bytes())));
  }
  const auto time = [&foretold](const char* what, double predicted, double measured) {
    if (!(predicted > 0)) return;
    foretold.push_back(absl::StrCat("<b>", Significant(predicted, 3), " s</b> ", what,
                                    ", which took ", Significant(measured, 3), " s in the mean"));
  };
  time("a step", forecast.predicted_step_seconds(), forecast.measured_step_seconds());
  time("an evaluation", forecast.predicted_evaluation_seconds(),
       forecast.measured_evaluation_seconds());
  if (!foretold.empty()) {
    absl::StrAppend(&out, "<p>Foretold before the run: ", absl::StrJoin(foretold, "; "), ".</p>\n");
  }
  return out;
}

// What the governor did, and what came of it.
std::string Amendments(const RunReport& report) {
  if (report.amendments().empty()) return "";
  std::string rows;
  const auto seconds = [](double value) {
    return value > 0 ? absl::StrCat(Significant(value, 3), " s") : std::string();
  };
  for (const auto& amendment : report.amendments()) {
    const std::string where =
        amendment.layers().empty() ? "" : absl::StrCat(", layers ", amendment.layers());
    absl::StrAppend(
        &rows, "<tr>", Number(HumanCount(amendment.step())),
        Cell(absl::StrCat(amendment.back() ? "<span class=\"better\">back</span>: " : "",
                          EscapeHtml(absl::StrCat(amendment.action(), where)),
                          amendment.exact() ? "" : "<br><small>changes what is computed</small>")),
        Cell(EscapeHtml(amendment.from())), Cell(EscapeHtml(amendment.to())),
        Cell(EscapeHtml(amendment.reason())), Number(HumanBytes(amendment.budget_bytes())),
        Number(HumanBytes(amendment.predicted_bytes_before())),
        Number(HumanBytes(amendment.predicted_bytes_after())),
        Number(HumanBytes(amendment.measured_peak_bytes())),
        Number(seconds(amendment.predicted_seconds_before())),
        Number(seconds(amendment.predicted_seconds_after())),
        Number(seconds(amendment.measured_seconds())), "</tr>\n");
  }
  std::string out = Table({"#Step", "What", "From", "To", "Because of", "#Budget", "#As it was",
                           "#Now", "#Measured", "#As it was", "#Now", "#Measured"},
                          rows);
  if (const int64_t left_out = report.amendments_total() - std::ssize(report.amendments());
      left_out > 0) {
    absl::StrAppend(&out, "<p class=\"muted\">", HumanCount(left_out),
                    " more in the middle of the run are left out.</p>");
  }
  return out;
}

// What was run before the first step, of each process of the run.
std::string Rehearsals(const RunReport& report) {
  std::string rows;
  for (const auto& rehearsal : report.rehearsals()) {
    std::string changes;
    for (const std::string& change : rehearsal.changes()) {
      absl::StrAppend(&changes, changes.empty() ? "" : "<br>", EscapeHtml(change));
    }
    absl::StrAppend(
        &rows, "<tr>", Number(HumanCount(rehearsal.step())), Number(HumanCount(rehearsal.rows())),
        Number(HumanCount(rehearsal.longest())), Number(HumanBytes(rehearsal.budget_bytes())),
        Number(HumanBytes(rehearsal.predicted_bytes())), Number(HumanBytes(rehearsal.peak_bytes())),
        Number(absl::StrCat(Significant(rehearsal.seconds(), 3), " s")), Cell(changes),
        Cell(rehearsal.refused() ? "the forecast was too low, and is corrected" : ""), "</tr>\n");
  }
  if (rows.empty()) return "";
  return Table({"#Pass of step", "#Rows", "#Longest document", "#Budget", "#Forecast", "#Measured",
                "#Time", "Other than the spec says", ""},
               rows);
}

// All rows beside the kept ones, on the same labelled rows of a held-out sample.
std::string Shadows(const RunReport& report) {
  std::string rows;
  for (const auto& shadow : report.shadows()) {
    absl::StrAppend(&rows, "<tr>", Number(HumanCount(shadow.step())),
                    Number(Fixed(shadow.dense_loss(), 4)), Number(Fixed(shadow.sparse_loss(), 4)),
                    Number(absl::StrFormat("%+.4f", shadow.gap())),
                    Number(shadow.bound() > 0 ? Fixed(shadow.bound(), 4) : std::string()),
                    Cell(shadow.verdict() == "raised"   ? "more rows are kept from here on"
                         : shadow.verdict() == "cannot" ? "more rows would not fit in the budget"
                                                        : ""),
                    "</tr>\n");
  }
  if (rows.empty()) return "";
  return Table({"#Step", "#Loss with all rows", "#With the kept ones", "#Gap", "#Bound", ""}, rows);
}

std::string Data(const RunReport& report) {
  std::string rows;
  for (const ReportDataFile& file : report.facts().data) {
    std::vector<std::string> overlong;
    auto count = [&overlong](int64_t n, const char* what) {
      if (n > 0) overlong.push_back(absl::StrCat(HumanCount(n), " ", what));
    };
    count(file.split_rows, "split");
    count(file.truncated_rows, "truncated");
    count(file.dropped_rows, "dropped");
    const double share = file.tokens > 0 ? 100.0 * file.labelled_tokens / file.tokens : 0;
    absl::StrAppend(
        &rows, "<tr>",
        Cell(absl::StrCat(EscapeHtml(file.path), "<br><small>sha256 ",
                          EscapeHtml(file.sha256.substr(0, 16)), "</small>"),
             "path"),
        Cell(EscapeHtml(file.role)), Cell(EscapeHtml(file.format)), Number(HumanCount(file.rows)),
        Number(HumanCount(file.sequences)), Number(HumanCount(file.tokens)),
        Number(absl::StrCat(HumanCount(file.labelled_tokens), " (", Fixed(share, 1), " %)")),
        Cell(overlong.empty() ? "none" : EscapeHtml(absl::StrJoin(overlong, ", "))), "</tr>\n");
  }
  if (rows.empty()) return "";
  return Table(
      {"File", "Use", "Format", "#Rows", "#Sequences", "#Tokens", "#With loss", "Overlong rows"},
      rows);
}

std::string Times(const RunReport& report) {
  double total = 0;
  for (const ReportPhase& phase : report.phases()) total += phase.seconds;
  std::string rows;
  for (const ReportPhase& phase : report.phases()) {
    if (phase.name == "done") continue;
    absl::StrAppend(&rows, "<tr>", Cell(EscapeHtml(phase.name), "name"),
                    Number(HumanDuration(phase.seconds)),
                    BarCell(total > 0 ? phase.seconds / total : 0), "</tr>\n");
  }
  if (rows.empty()) return "";
  std::string out = Table({"Phase", "#Time", "Share"}, rows);
  std::string saved;
  for (const auto& checkpoint : report.checkpoints()) {
    absl::StrAppend(&saved, "<tr>", Number(HumanCount(checkpoint.step())),
                    Cell(EscapeHtml(checkpoint.reason())),
                    Cell(EscapeHtml(checkpoint.path()), "path"),
                    Number(HumanBytes(checkpoint.bytes())),
                    Number(HumanDuration(checkpoint.seconds())), "</tr>\n");
  }
  if (!saved.empty()) {
    out += Folded(absl::StrCat("Checkpoints (", report.checkpoints().size(), ")"),
                  Table({"#Step", "Reason", "Path", "#Size", "#Time"}, saved));
  }
  return out;
}

std::string Metrics(const RunReport& report) {
  std::string out;
  for (const auto& [name, formula] : MetricDefinitions()) {
    out += Definition(name, EscapeHtml(formula));
  }
  for (const auto& [name, formula] : SparsityDefinitions()) {
    if (report.last_sparse_step()) out += Definition(name, EscapeHtml(formula));
  }
  return absl::StrCat("<dl class=\"metrics\">\n", out, "</dl>\n");
}

std::string Reproduce(const RunReport& report) {
  const ReportFacts& facts = report.facts();
  std::string list;
  list += Definition("Model", EscapeHtml(facts.spec.model().path()));
  list += Definition("Tokenizer, sha256", Hash(facts.tokenizer_sha256));
  list += Definition("Chat template, sha256", Hash(facts.template_sha256));
  for (const auto& [name, version] : facts.versions) {
    list += Definition(name, EscapeHtml(version));
  }
  std::string out = absl::StrCat("<dl>\n", list, "</dl>\n<p></p>");
  if (!facts.trainable_tensors.empty()) {
    out += Folded(absl::StrCat("Trained tensors (", facts.trainable_tensors.size(), ")"),
                  Element("pre", EscapeHtml(absl::StrJoin(facts.trainable_tensors, "\n"))));
  }
  out += Folded("Effective run spec, every default filled in",
                Element("pre", EscapeHtml(RunSpecToJson(facts.spec))));
  return out;
}

}  // namespace

std::string RenderReportHtml(const RunReport& report) {
  return absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
      "style-src 'unsafe-inline'\">\n<title>",
      EscapeHtml(Title(report)), "</title>\n<style>", kStyle, "</style></head>\n<body><main>\n",
      Header(report), Tiles(report), Troubles(report), Section("Curves", Curves(report)),
      Section("Rows that took part", SparsityHtml(report)), Section("Use it", HowToLoad(report)),
      Section("On held-out text", Evaluations(report)),
      Section("Memory by category", Memory(report)),
      Section("All rows beside the kept ones", Shadows(report)),
      Section("Rehearsed before the first step", Rehearsals(report)),
      Section("What the governor did", Amendments(report)), Section("Data", Data(report)),
      Section("Where the time went", Times(report)),
      Section("What the numbers mean", Metrics(report)),
      Section("To reproduce it", Reproduce(report)), "</main></body></html>\n");
}

}  // namespace lemo::train
