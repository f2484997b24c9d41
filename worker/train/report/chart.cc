#include "worker/train/report/chart.h"

#include <algorithm>
#include <cmath>
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

std::string TickLabel(double value) {
  if (std::abs(value) >= 10000) return ShortCount(value);
  return absl::StrFormat("%.4g", value);
}

}  // namespace

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
  if (options.from_zero) y.Include(0);
  const double margin = y.high > y.low ? 0.04 * (y.high - y.low) : 0;
  if (!options.from_zero) y.low -= margin;
  y.high += margin;

  const double inner_width = options.width - kLeft - kRight;
  const double inner_height = options.height - kTop - kBottom;
  auto px = [&](double value) { return kLeft + inner_width * x.At(value); };
  auto py = [&](double value) { return kTop + inner_height * (1 - y.At(value)); };

  std::string svg = absl::StrFormat(
      "<svg class=\"chart\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n", options.width,
      options.height, EscapeHtml(options.description));
  for (double tick : Ticks(y, 4)) {
    absl::StrAppendFormat(
        &svg,
        "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
        "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
        kLeft, options.width - kRight, py(tick), py(tick), kLeft - 8, py(tick) + 4,
        TickLabel(tick));
  }
  for (double tick : Ticks(x, 7)) {
    absl::StrAppendFormat(
        &svg, "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
        px(tick), options.height - 6, TickLabel(tick));
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
            Significant(point.second, 5));
      }
    }
    absl::StrAppend(&svg, "<g class=\"", one.css_class, "\"><path d=\"", path, "\"/>", marks,
                    "</g>\n");
  }
  return svg + "</svg>\n";
}

}  // namespace lemo::train
