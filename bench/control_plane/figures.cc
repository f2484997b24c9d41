#include "bench/control_plane/figures.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lemo::bench {
namespace {

std::string Number(double value) {
  if (std::abs(value) >= 1000) return absl::StrFormat("%.0f", value);
  return absl::StrFormat("%.3g", value);
}

const char* Sign(Figure::Bound bound) { return bound == Figure::Bound::kAtMost ? "≤" : "≥"; }

std::string FirstLine(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

}  // namespace

bool Figure::met() const {
  return bound == Bound::kAtMost ? measured <= goal : bound == Bound::kNone || measured >= goal;
}

Samples::Samples(std::vector<double> values) : values_(std::move(values)) {
  std::sort(values_.begin(), values_.end());
}

double Samples::Quantile(double share) const {
  if (values_.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double rank = std::ceil(share * static_cast<double>(values_.size())) - 1;
  return values_[static_cast<size_t>(std::max(rank, 0.0))];
}

nlohmann::ordered_json Samples::ToJson() const {
  return {{"count", size()},      {"min", Quantile(0)},    {"p50", Quantile(0.5)},
          {"p90", Quantile(0.9)}, {"p99", Quantile(0.99)}, {"max", Quantile(1)}};
}

std::string Samples::Summary(double scale) const {
  return absl::StrCat("p50 ", Number(Quantile(0.5) / scale), ", p90 ",
                      Number(Quantile(0.9) / scale), ", max ", Number(Quantile(1) / scale), " of ",
                      size());
}

std::string Table(const std::vector<Figure>& figures) {
  std::string table = "| what | goal | measured | met | |\n| --- | --- | --- | --- | --- |\n";
  for (const Figure& figure : figures) {
    const bool has_goal = figure.bound != Figure::Bound::kNone;
    absl::StrAppend(
        &table, "| ", figure.what, " | ",
        has_goal ? absl::StrCat(Sign(figure.bound), " ", Number(figure.goal), " ", figure.unit)
                 : "",
        " | ", Number(figure.measured), " ", figure.unit, " | ",
        has_goal ? (figure.met() ? "yes" : "**no**") : "", " | ", figure.remark, " |\n");
  }
  return table;
}

nlohmann::ordered_json ToJson(const std::vector<Figure>& figures) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const Figure& figure : figures) {
    nlohmann::ordered_json one = {
        {"what", figure.what}, {"unit", figure.unit}, {"measured", figure.measured}};
    if (figure.bound != Figure::Bound::kNone) {
      one["goal"] = absl::StrCat(Sign(figure.bound), " ", Number(figure.goal));
      one["met"] = figure.met();
    }
    one["remark"] = figure.remark;
    one["detail"] = figure.detail;
    all.push_back(std::move(one));
  }
  return all;
}

nlohmann::ordered_json DescribeMachine() {
  std::string processor = "unknown";
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(": ") != line.npos) {
      processor = line.substr(line.find(": ") + 2);
      break;
    }
  }
  utsname system{};
  ::uname(&system);
  return {{"processor", processor},
          {"cores", ::sysconf(_SC_NPROCESSORS_ONLN)},
          {"memory_gib", ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE) >> 30},
          {"kernel", system.release},
          {"load_before", FirstLine("/proc/loadavg")}};
}

}  // namespace lemo::bench
