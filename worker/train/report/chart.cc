#include "worker/train/report/chart.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/format.h"
#include "nlohmann/json.hpp"

namespace lemo::train {
namespace {

constexpr int kLeft = 58;
constexpr int kRight = 14;
constexpr int kTop = 10;
constexpr int kBottom = 24;
constexpr size_t kMostTips = 160;  // invisible circles that carry tool tips, a series

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void Include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  double At(double value) const { return high > low ? (value - low) / (high - low) : 0.5; }
};

bool IsDrawable(const std::pair<double, double>& point) {
  // Differences of larger numbers are not finite any more.
  constexpr double kLargest = 1e300;
  return std::abs(point.first) < kLargest && std::abs(point.second) < kLargest;
}

// A round step (1, 2 or 5 times a power of ten) that cuts `span` into about `count` parts.
double TickStep(double span, int count) {
  const double raw = span / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power) return factor * power;
  }
  return 10 * power;
}

std::vector<double> Ticks(const Range& range, int count) {
  if (!(range.high > range.low)) return {range.low};
  const double step = TickStep(range.high - range.low, count);
  std::vector<double> ticks;
  if (!std::isnormal(step)) return {range.low, range.high};
  const double first = std::ceil(range.low / step - 1e-9);
  const double last = std::floor(range.high / step + 1e-9);
  for (double i = first; i <= last && ticks.size() < 20; ++i)
    ticks.push_back(i * step + 0.0);  // no -0
  return ticks;
}

std::string TickLabel(double value, bool percent) {
  if (percent) return absl::StrFormat("%.4g %%", 100 * value);
  if (std::abs(value) >= 10000) return ShortCount(value);
  return absl::StrFormat("%.4g", value);
}

std::string TipValue(double value, bool percent) {
  return percent ? absl::StrCat(Fixed(100 * value, 1), " %") : Significant(value, 5);
}

// The opening tag of a chart and its horizontal grid.
std::string Frame(const ChartOptions& options, const Range& y,
                  const std::function<double(double)>& py) {
  std::string svg = absl::StrFormat(
      "<svg class=\"chart\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n", options.width,
      options.height, EscapeHtml(options.description));
  for (double tick : Ticks(y, 4)) {
    absl::StrAppendFormat(
        &svg,
        "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
        "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
        kLeft, options.width - kRight, py(tick), py(tick), kLeft - 8, py(tick) + 4,
        TickLabel(tick, options.percent));
  }
  return svg;
}

void Include(const ChartOptions& options, Range* y) {
  if (options.from_zero || options.to_at_least > 0) y->Include(0);
  if (options.to_at_least > 0) y->Include(options.to_at_least);
}

}  // namespace

std::string Legend(const std::string& css_class, const std::string& text) {
  return absl::StrCat("<span class=\"", css_class, "\"><em>", EscapeHtml(text), "</em></span>");
}

std::string EscapeHtml(const std::string& text) {
  // The JSON library checks UTF-8 and replaces what is not; quotes and escapes go away again.
  const nlohmann::json clean = nlohmann::json::parse(
      nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), nullptr,
      false);
  std::string out;
  for (char c : clean.get_ref<const std::string&>()) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out +=
            (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f ? '?' : c;
    }
  }
  return out;
}

std::string LineChart(const ChartOptions& options, const std::vector<ChartSeries>& series) {
  Range x, y;
  for (const ChartSeries& one : series) {
    for (const auto& point : one.points) {
      if (!IsDrawable(point)) continue;
      x.Include(point.first);
      y.Include(point.second);
    }
  }
  if (!(x.low <= x.high)) return "";
  Include(options, &y);
  const double margin = y.high > y.low ? 0.04 * (y.high - y.low) : 0;
  if (!options.from_zero) y.low -= margin;
  y.high += margin;

  const double inner_width = options.width - kLeft - kRight;
  const double inner_height = options.height - kTop - kBottom;
  auto px = [&](double value) { return kLeft + inner_width * x.At(value); };
  auto py = [&](double value) { return kTop + inner_height * (1 - y.At(value)); };

  std::string svg = Frame(options, y, py);
  for (double tick : Ticks(x, 7)) {
    absl::StrAppendFormat(
        &svg, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
        px(tick), options.height - 6, TickLabel(tick, false));
  }
  for (const ChartSeries& one : series) {
    std::string path;
    std::string marks;
    const size_t stride = one.points.size() / kMostTips + 1;
    for (size_t i = 0; i < one.points.size(); ++i) {
      const auto& point = one.points[i];
      if (!IsDrawable(point)) continue;
      const double at_x = px(point.first);
      const double at_y = py(point.second);
      absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", at_x, at_y);
      if (one.dots) {
        absl::StrAppendFormat(&marks, "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>",
                              at_x, at_y);
      }
      if (i % stride == 0 || i + 1 == one.points.size()) {
        absl::StrAppendFormat(
            &marks,
            "<circle class=\"tip\" cx=\"%.1f\" cy=\"%.1f\" r=\"7\"><title>%s, step %s: %s</title>"
            "</circle>",
            at_x, at_y, EscapeHtml(one.name), Significant(point.first, 12),
            TipValue(point.second, options.percent));
      }
    }
    absl::StrAppend(&svg, "<g class=\"", one.css_class, "\"><path d=\"", path, "\"/>", marks,
                    "</g>\n");
  }
  return svg + "</svg>\n";
}

std::string LayerChart(const ChartOptions& options, const std::vector<BarSeries>& series) {
  constexpr double kLeastLabel = 22;  // of width, for a layer's number
  size_t layers = 0;
  int bars = 0;
  Range y;
  for (const BarSeries& one : series) {
    layers = std::max(layers, one.values.size());
    bars += !one.dots;
    for (const double value : one.values) {
      if (IsDrawable({0, value})) y.Include(value);
    }
  }
  if (!(y.low <= y.high)) return "";
  Include(options, &y);
  y.Include(0);
  y.high += 0.04 * (y.high - y.low);

  const double inner_height = options.height - kTop - kBottom;
  const double pitch =
      static_cast<double>(options.width - kLeft - kRight) / static_cast<double>(layers);
  const double group = std::min(0.78 * pitch, 60.0);
  auto py = [&](double value) { return kTop + inner_height * (1 - y.At(value)); };
  auto middle = [&](size_t layer) { return kLeft + pitch * (static_cast<double>(layer) + 0.5); };

  std::string svg = Frame(options, y, py);
  const auto apart = static_cast<size_t>(std::ceil(kLeastLabel / pitch));
  for (size_t layer = 0; layer < layers; layer += apart) {
    absl::StrAppendFormat(
        &svg, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%d</text>\n",
        middle(layer), options.height - 6, layer);
  }
  int bar = 0;
  for (const BarSeries& one : series) {
    absl::StrAppend(&svg, "<g class=\"", one.css_class, "\">");
    for (size_t layer = 0; layer < one.values.size(); ++layer) {
      const double value = one.values[layer];
      if (!IsDrawable({0, value})) continue;
      const std::string tip = absl::StrCat("<title>", EscapeHtml(one.name), ", layer ", layer, ": ",
                                           TipValue(value, options.percent), "</title>");
      if (one.dots) {
        absl::StrAppendFormat(&svg,
                              "<circle class=\"dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\">%s</circle>",
                              middle(layer), py(value), tip);
      } else {
        const double width = group / bars;
        absl::StrAppendFormat(
            &svg,
            "<rect class=\"bar\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\">%s</rect>",
            middle(layer) - group / 2 + bar * width, py(value), 0.92 * width, py(0) - py(value),
            tip);
      }
    }
    bar += !one.dots;
    svg += "</g>\n";
  }
  return svg + "</svg>\n";
}

}  // namespace lemo::train
