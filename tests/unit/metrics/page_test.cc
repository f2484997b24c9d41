// The operators' page is what the programs declare, and alerts ask for what there is.
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "coordinator/runtime/metrics.h"
#include "tests/support/golden.h"
#include "tests/unit/metrics/page.h"
#include "worker/agent/metrics.h"

namespace lemo::metrics {
namespace {

std::string Alerts() {
  return testing::ReadText(std::string(LEMO_SOURCE_DIR) + "/deploy/prometheus/alerts.yml");
}

TEST(MetricsPage, IsWhatTheProgramsDeclare) {
  testing::ExpectGolden(
      "docs/operators/metrics.md",
      MetricsPage(coordinator::MetricFamilies(), agent::MetricFamilies(), Alerts()));
}

TEST(MetricsPage, BothListsKeepTheRules) {
  EXPECT_TRUE(Check(coordinator::MetricFamilies()).ok()) << Check(coordinator::MetricFamilies());
  EXPECT_TRUE(Check(agent::MetricFamilies()).ok()) << Check(agent::MetricFamilies());
}

// With one meaning each, whoever serves it.
TEST(MetricsPage, ANameOfBothProgramsHasOneTypeAndLabels) {
  std::map<std::string, const Family*> seen;
  for (const Family* family : coordinator::MetricFamilies()) seen[family->name] = family;
  for (const Family* family : agent::MetricFamilies()) {
    const auto found = seen.find(family->name);
    if (found == seen.end()) continue;
    EXPECT_EQ(found->second->type, family->type) << family->name;
    EXPECT_EQ(found->second->labels, family->labels) << family->name;
  }
}

TEST(MetricsPage, AlertsAskForDeclaredMetrics) {
  std::set<std::string> names;
  for (const Families& families : {coordinator::MetricFamilies(), agent::MetricFamilies()}) {
    for (const Family* family : families) {
      names.insert(family->name);
      if (family->type == Type::kHistogram) names.insert(family->name + "_bucket");
    }
  }
  const std::string alerts = Alerts();
  const std::regex word("lemo_[a-z_]+");
  int asked = 0;
  for (std::sregex_iterator match(alerts.begin(), alerts.end(), word), end; match != end;
       ++match, ++asked) {
    EXPECT_TRUE(names.contains(match->str())) << match->str();
  }
  EXPECT_GT(asked, 5);
}

}  // namespace
}  // namespace lemo::metrics
