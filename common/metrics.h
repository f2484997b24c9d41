// Metrics of a program, for Prometheus: every family is declared once, and only what is declared is
// served.
//
// Two kinds of values. What happens is counted as it happens (Count, Observe). What is, is asked
// for when somebody looks (a source of the registry), so that a series is there exactly as long as
// what it tells of.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"

namespace lemo::metrics {

enum class Type { kCounter, kGauge, kHistogram, kSummary };

// One name with its type, what it means, and the labels that each of its series has.
struct Family {
  Type type;
  std::string name;  // ends in its base unit, a counter's in `_total`
  std::string help;  // a sentence
  std::vector<std::string> labels = {};
  std::vector<double> bounds = {};  // of a histogram: inclusive upper bounds, ascending
};

using Families = std::vector<const Family*>;  // static ones
using Labels = std::vector<std::string>;      // values, in the order of Family::labels

// Every fault of a list: names and labels that Prometheus or our habits do not allow, a name that
// is there twice, no help, bounds that do not ascend.
absl::Status Check(const Families& families);

// Values of one scrape.
class Samples {
 public:
  // A series of a counter or a gauge; once for each combination of labels.
  void Set(const Family& family, double value, const Labels& labels = {});

 private:
  friend class Registry;
  std::map<const Family*, std::vector<prometheus::ClientMetric>> metrics_;
};

// Thread-safe. A family that is not declared, or a wrong number of labels, is a mistake of the
// program's and ends it.
class Registry : public prometheus::Collectable {
 public:
  // `families` must pass Check.
  explicit Registry(Families families);

  // Called at every scrape, by the scraping thread.
  using Source = std::function<void(Samples*)>;
  // Before the first scrape. What the source uses must outlive the registry's server.
  void AddSource(Source source);

  // Of counters. With 0 the series is there before anything has happened, as rates want it.
  void Count(const Family& family, const Labels& labels = {}, double by = 1);
  // Of histograms.
  void Observe(const Family& family, double value, const Labels& labels = {});

  // Families that have a series, in the order of the declaration.
  std::vector<prometheus::MetricFamily> Collect() const override;
  // The same in the text format.
  std::string Text() const;

 private:
  prometheus::ClientMetric& Find(const Family& family, const Labels& labels);  // under the mutex

  const Families families_;
  std::vector<Source> sources_;
  mutable std::mutex mutex_;
  std::map<const Family*, std::map<Labels, prometheus::ClientMetric>> kept_;
};

}  // namespace lemo::metrics
