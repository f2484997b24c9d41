#include "worker/train/report/sparsity_html.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/format.h"
#include "worker/train/report/block_picture.h"
#include "worker/train/report/chart.h"

namespace lemo::train {
namespace {

using lemo::v1::SelectionEvent;
using lemo::v1::StepEvent;
using lemo::v1::TokenSparsity;
using Points = std::vector<std::pair<double, double>>;

std::string Percent(double share) { return absl::StrCat(Fixed(100 * share, 1), " %"); }

std::string Last(const Points& points) {
  return points.empty() ? "" : absl::StrCat(", last ", Percent(points.back().second));
}

// What the run was asked for.
std::string Settings(const RunReport& report) {
  const lemo::v1::TokensSpec& spec = report.facts().spec.tokens();
  if (spec.policy().empty()) return "";
  const auto code = [](const std::string& text) {
    return absl::StrCat("<code>", EscapeHtml(text), "</code>");
  };
  std::vector<std::string> parts = {"policy " + code(spec.policy())};
  if (spec.has_scope()) parts.push_back("scope " + code(spec.scope()));
  if (spec.keep_size() > 0) {
    parts.push_back("keep " + code(absl::StrJoin(spec.keep(), ", ", [](std::string* out, double x) {
                      absl::StrAppend(out, Significant(x, 3));
                    })));
  }
  if (spec.has_mlp()) parts.push_back("MLP rows " + code(spec.mlp()));
  if (spec.has_loss_rows()) parts.push_back("loss on " + code(spec.loss_rows()));
  if (spec.has_block()) parts.push_back(absl::StrCat("blocks of ", spec.block(), " rows"));
  return absl::StrCat("<p class=\"muted\">", absl::StrJoin(parts, " &middot; "), "</p>\n");
}

std::string Half(const std::string& title, const std::string& legend, const std::string& chart) {
  if (chart.empty()) return "";
  return absl::StrCat("<div><h3>", title, "</h3><div class=\"legend\">", legend, "</div>", chart,
                      "</div>\n");
}

// The curves of what was kept and of what choosing cost, by step.
std::string ByStep(const RunReport& report) {
  Points attention, mlp, never, loss, time, recall;
  bool same = true;
  int64_t bad_blocks = 0;
  for (const StepEvent& point : report.curve().points()) {
    const TokenSparsity& sparsity = point.sparsity();
    // A step of all rows says nothing: it computed everything.
    const bool sparse = point.has_sparsity();
    const auto kept = [](const auto& shares) { return shares.empty() ? 1 : shares.Get(0); };
    attention.emplace_back(point.step(), kept(sparsity.attention_kept()));
    mlp.emplace_back(point.step(), kept(sparsity.mlp_kept()));
    same = same && attention.back() == mlp.back();
    never.emplace_back(point.step(), sparsity.never_kept());
    loss.emplace_back(point.step(), sparse ? sparsity.loss_kept() : 1);
    if (sparse && point.seconds() > 0) {
      time.emplace_back(point.step(), sparsity.selection_seconds() / point.seconds());
    }
    if (!sparsity.recall().empty()) recall.emplace_back(point.step(), sparsity.recall(0));
    bad_blocks += sparsity.bad_blocks();
  }
  const ChartOptions shares = {.width = 480, .height = 190, .to_at_least = 1, .percent = true};
  const auto chart = [&](const std::string& description, std::vector<ChartSeries> series) {
    ChartOptions options = shares;
    options.description = description;
    for (ChartSeries& one : series) one.dots = one.dots || one.points.size() == 1;
    return LineChart(options, series);
  };

  std::vector<ChartSeries> computed = {
      {same ? "attention and MLP" : "attention", "blue", attention}};
  std::string legend = Legend("blue", absl::StrCat(computed[0].name, Last(attention)));
  if (!same) {
    computed.push_back({"MLP", "orange dashed", mlp});
    legend += Legend("orange dashed", absl::StrCat("MLP", Last(mlp)));
  }
  std::string out = Half("Rows computed, mean of the layers, by step", legend,
                         chart("Share of the rows that were computed, by step", computed));
  out += Half("Rows that took no part, and labels that did, by step",
              Legend("purple", absl::StrCat("never computed", Last(never))) +
                  Legend("green dashed", absl::StrCat("labels with loss", Last(loss))),
              chart("Share of the rows that were never computed and of the labelled rows that "
                    "carried loss, by step",
                    {{"never computed", "purple", never},
                     {"labelled rows with loss", "green dashed", loss}}));
  ChartOptions cost = shares;
  cost.to_at_least = 0.01;
  cost.description = "Share of the step's time that choosing took";
  out += Half("Time to choose, of the step",
              Legend("blue", absl::StrCat("time to choose", Last(time))),
              LineChart(cost, {{"time to choose", "blue", time, time.size() == 1}}));
  out += Half("Recall against true attention scores, by step",
              Legend("orange", absl::StrCat("mean of the layers measured", Last(recall))),
              chart("Recall, by step", {{"recall", "orange", recall, recall.size() <= 64}}));
  out = absl::StrCat("<div class=\"halves\">\n", out, "</div>\n");
  if (bad_blocks > 0) {
    absl::StrAppend(
        &out, "<p class=\"note worse\">", HumanCount(bad_blocks),
        bad_blocks == 1 ? " block had a score that was" : " blocks had scores that were",
        " not finite, over the whole run. They were kept.</p>\n");
  }
  return out;
}

std::string ByLayer(const StepEvent& step) {
  const TokenSparsity& sparsity = step.sparsity();
  const std::vector<double> attention(sparsity.attention_kept().begin(),
                                      sparsity.attention_kept().end());
  const std::vector<double> mlp(sparsity.mlp_kept().begin(), sparsity.mlp_kept().end());
  const bool same = attention == mlp;
  std::vector<BarSeries> series = {{same ? "attention and MLP" : "attention", "blue", attention}};
  std::string legend = Legend("blue box", series[0].name);
  if (!same) {
    series.push_back({"MLP", "orange", mlp});
    legend += Legend("orange box", "MLP");
  }
  if (!sparsity.recall().empty()) {
    std::vector<double> recall(attention.size(), std::numeric_limits<double>::quiet_NaN());
    const int count = std::min(sparsity.recall_size(), sparsity.recall_layers_size());
    for (int i = 0; i < count; ++i) {
      const int layer = sparsity.recall_layers(i);
      if (layer >= 0 && layer < static_cast<int>(recall.size())) recall[layer] = sparsity.recall(i);
    }
    series.push_back({"recall", "ink", std::move(recall), true});
    legend += Legend("ink dot", "recall, as measured last");
  }
  const std::string chart = LayerChart({.description = "Share of the rows computed, by layer",
                                        .width = 980,
                                        .height = 200,
                                        .to_at_least = 1,
                                        .percent = true},
                                       series);
  return absl::StrCat("<h3 class=\"next\">Rows computed by layer, step ", HumanCount(step.step()),
                      "</h3><div class=\"legend\">", legend, "</div>", chart);
}

std::string Picture(const SelectionEvent& selection) {
  const bool differs = MlpDiffers(selection);
  const int blocks = selection.block_starts_size() - 1;
  const int documents = selection.document_starts_size() - 1;
  const int together = BlocksOfAColumn(selection);
  std::string note =
      absl::StrCat(HumanCount(blocks), blocks == 1 ? " block" : " blocks", " of up to ",
                   HumanCount(selection.block_starts(1)), " rows, ", HumanCount(documents),
                   documents == 1 ? " document" : " documents, divided by lines", ".");
  if (together > 1) {
    absl::StrAppend(&note, " A column stands for up to ", together,
                    " blocks; the fewer of them were kept, the paler it is.");
  }
  const std::string legend =
      (differs ? Legend("blue box", "attention (above)") + Legend("orange box", "MLP (below)")
               : Legend("blue box", "computed, attention and MLP alike")) +
      Legend("out box", "left out");
  return absl::StrCat(
      "<div class=\"legend\">", legend, "</div>",
      BlockPicture(selection, absl::StrCat("Blocks computed in step ", selection.step(),
                                           ": layers down, rows of a micro-batch across")),
      "<p class=\"note muted\">", note, "</p>\n");
}

std::string Pictures(const RunReport& report) {
  const std::vector<SelectionEvent>& selections = report.selections();
  if (selections.empty()) return "";
  std::string out = absl::StrCat(
      "<h3 class=\"next\">Blocks computed in step ", HumanCount(selections.back().step()),
      ", its first micro-batch: layers down, rows across</h3>", Picture(selections.back()));
  for (size_t i = 0; i + 1 < selections.size(); ++i) {
    absl::StrAppend(&out, "<details><summary>The same in step ", HumanCount(selections[i].step()),
                    "</summary>", Picture(selections[i]), "</details>\n");
  }
  return out;
}

}  // namespace

std::string SparsityHtml(const RunReport& report) {
  if (!report.last_sparse_step()) return "";
  return absl::StrCat(Settings(report), ByStep(report), ByLayer(*report.last_sparse_step()),
                      Pictures(report));
}

}  // namespace lemo::train
