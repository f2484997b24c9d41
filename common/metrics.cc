#include "common/metrics.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "prometheus/text_serializer.h"

namespace lemo::metrics {
namespace {

bool IsWord(const std::string& word) {
  return !word.empty() && absl::ascii_islower(static_cast<unsigned char>(word[0])) &&
         std::all_of(word.begin(), word.end(), [](unsigned char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_';
         });
}

void CheckFamily(const Family& family, std::vector<std::string>* faults) {
  const auto fault = [&](const std::string& what) {
    faults->push_back(absl::StrCat(family.name, ": ", what));
  };
  if (!IsWord(family.name)) fault("a name has small letters, digits and _");
  if (!absl::StartsWith(family.name, "lemo_") && !absl::StartsWith(family.name, "process_") &&
      !absl::StartsWith(family.name, "exposer_")) {
    fault("a name begins with lemo_");
  }
  if (absl::EndsWith(family.name, "_total") != (family.type == Type::kCounter)) {
    fault("counters end in _total, and nothing else does");
  }
  for (const char* part : {"_bucket", "_count", "_sum", "_ms", "_milliseconds", "_kib", "_mib"}) {
    if (absl::EndsWith(family.name, part)) fault(absl::StrCat("must not end in ", part));
  }
  if (family.help.empty()) fault("no help");
  std::set<std::string> seen;
  for (const std::string& label : family.labels) {
    if (!IsWord(label) || label == "le" || label == "quantile") fault("bad label " + label);
    if (!seen.insert(label).second) fault(label + " is there twice");
  }
  if ((family.type == Type::kHistogram) == family.bounds.empty()) {
    fault("histograms have bounds, and nothing else does");
  }
  if (std::adjacent_find(family.bounds.begin(), family.bounds.end(), std::greater_equal<>()) !=
      family.bounds.end()) {
    fault("its bounds do not ascend");
  }
}

[[noreturn]] void Mistake(const Family& family, const char* what) {
  std::cerr << "metric " << family.name << ": " << what << std::endl;
  std::abort();
}

prometheus::ClientMetric Labelled(const Family& family, const Labels& labels) {
  if (labels.size() != family.labels.size()) Mistake(family, "wrong number of labels");
  prometheus::ClientMetric metric;
  for (size_t i = 0; i < labels.size(); ++i) metric.label.push_back({family.labels[i], labels[i]});
  return metric;
}

prometheus::MetricType TypeOf(const Family& family) {
  switch (family.type) {
    case Type::kCounter:
      return prometheus::MetricType::Counter;
    case Type::kGauge:
      return prometheus::MetricType::Gauge;
    case Type::kHistogram:
      return prometheus::MetricType::Histogram;
    case Type::kSummary:
      return prometheus::MetricType::Summary;
  }
  return prometheus::MetricType::Untyped;
}

}  // namespace

absl::Status Check(const Families& families) {
  std::vector<std::string> faults;
  std::set<std::string> names;
  for (const Family* family : families) {
    CheckFamily(*family, &faults);
    if (!names.insert(family->name).second) faults.push_back(family->name + ": is there twice");
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
}

void Samples::Set(const Family& family, double value, const Labels& labels) {
  prometheus::ClientMetric metric = Labelled(family, labels);
  (family.type == Type::kCounter ? metric.counter.value : metric.gauge.value) = value;
  metrics_[&family].push_back(std::move(metric));
}

Registry::Registry(Families families) : families_(std::move(families)) {}

void Registry::AddSource(Source source) { sources_.push_back(std::move(source)); }

prometheus::ClientMetric& Registry::Find(const Family& family, const Labels& labels) {
  if (std::find(families_.begin(), families_.end(), &family) == families_.end()) {
    Mistake(family, "is not declared");
  }
  auto& series = kept_[&family];
  const auto found = series.find(labels);
  if (found != series.end()) return found->second;
  prometheus::ClientMetric metric = Labelled(family, labels);
  for (const double bound : family.bounds) metric.histogram.bucket.push_back({0, bound});
  if (family.type == Type::kHistogram) metric.histogram.bucket.push_back({0, INFINITY});
  return series.emplace(labels, std::move(metric)).first->second;
}

void Registry::Count(const Family& family, const Labels& labels, double by) {
  const std::lock_guard lock(mutex_);
  Find(family, labels).counter.value += by;
}

void Registry::Observe(const Family& family, double value, const Labels& labels) {
  const std::lock_guard lock(mutex_);
  prometheus::ClientMetric::Histogram& histogram = Find(family, labels).histogram;
  ++histogram.sample_count;
  histogram.sample_sum += value;
  // The last bucket takes what is in none of the others, NaN too.
  for (auto bucket = histogram.bucket.rbegin(); bucket != histogram.bucket.rend(); ++bucket) {
    if (bucket != histogram.bucket.rbegin() && !(value <= bucket->upper_bound)) break;
    ++bucket->cumulative_count;
  }
}

std::vector<prometheus::MetricFamily> Registry::Collect() const {
  Samples samples;
  for (const Source& source : sources_) source(&samples);
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [family, series] : kept_) {
      auto& metrics = samples.metrics_[family];
      for (const auto& [labels, metric] : series) metrics.push_back(metric);
    }
  }
  std::vector<prometheus::MetricFamily> collected;
  for (const Family* family : families_) {
    auto found = samples.metrics_.extract(family);
    if (found.empty()) continue;
    collected.push_back({family->name, family->help, TypeOf(*family), std::move(found.mapped())});
  }
  if (!samples.metrics_.empty()) Mistake(*samples.metrics_.begin()->first, "is not declared");
  return collected;
}

std::string Registry::Text() const { return prometheus::TextSerializer().Serialize(Collect()); }

}  // namespace lemo::metrics
