// Charts as inline SVG, without scripts. Colours come from the page's style sheet: a series is
// drawn with the class it names.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace lemo::train {

struct ChartSeries {
  std::string name;  // shown in the tool tip of its points
  std::string css_class;
  std::vector<std::pair<double, double>> points;  // ascending in x; those not finite are left out
  bool dots = false;                              // mark each point
};

struct ChartOptions {
  std::string description;  // for people who do not see it
  int width = 720;
  int height = 240;
  bool from_zero = false;  // the y axis starts at 0
  double to_at_least = 0;  // and ends there or higher, when more than 0
  bool percent = false;    // y is a share, shown in percent
};

// "" when no series has a point.
std::string LineChart(const ChartOptions& options, const std::vector<ChartSeries>& series);

struct BarSeries {
  std::string name;
  std::string css_class;
  std::vector<double> values;  // one a layer, from 0; those not finite are left out
  bool dots = false;           // marks over the bars instead of bars
};

// Bars side by side for every layer of a model, layers across. "" when there is no value.
std::string LayerChart(const ChartOptions& options, const std::vector<BarSeries>& series);

// An entry of a chart's legend.
std::string Legend(const std::string& css_class, const std::string& text);

// Text for HTML, in elements and quoted attributes. Control characters and bytes that are not UTF-8
// are replaced.
std::string EscapeHtml(const std::string& text);

}  // namespace lemo::train
