// What was measured beside what is to be reached, as a table for people and JSON for programs.
#pragma once

#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace lemo::bench {

struct Figure {
  std::string what;
  std::string unit;
  double measured = 0;
  double goal = 0;
  enum class Bound { kAtMost, kAtLeast, kNone } bound = Bound::kNone;  // kNone: for information
  std::string remark;             // spread, number of samples, what else happened
  nlohmann::ordered_json detail;  // raw figures

  bool met() const;
};

// Sorted samples and what one asks of them.
class Samples {
 public:
  explicit Samples(std::vector<double> values);
  bool empty() const { return values_.empty(); }
  size_t size() const { return values_.size(); }
  // `share` from 0 (least) to 1 (most); NaN when there are none.
  double Quantile(double share) const;
  double Median() const { return Quantile(0.5); }
  // {"count", "min", "p50", "p90", "p99", "max"}
  nlohmann::ordered_json ToJson() const;
  // "p50 1.2, p90 2.0, max 7.1 of 1000" in units of `scale`.
  std::string Summary(double scale) const;

 private:
  std::vector<double> values_;
};

// Markdown: goal, measured, whether it is met.
std::string Table(const std::vector<Figure>& figures);
nlohmann::ordered_json ToJson(const std::vector<Figure>& figures);

// Processor, cores, memory, kernel and load of this machine.
nlohmann::ordered_json DescribeMachine();

}  // namespace lemo::bench
