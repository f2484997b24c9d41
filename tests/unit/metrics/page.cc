#include "tests/unit/metrics/page.h"

#include <algorithm>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace lemo::metrics {
namespace {

constexpr char kBegin[] =
    R"(<!-- Made from the list of metrics that each program declares: LEMO_UPDATE_GOLDEN=1 ./dev test -R metrics_test -->
# Metrics

`lemo-coordinator` and `lemo-worker` serve metrics for Prometheus when started with `--metrics-listen HOST:PORT`. They
print where (`metrics on http://127.0.0.1:7411/metrics`) and write it to `DIR/metrics_address`; port 0 takes a free
one, as `lemo up` does. Another address than loopback needs `--insecure-listen`: nothing is encrypted, and everybody
who reaches the port can read it.

```yaml
scrape_configs:
  - job_name: lemo-coordinator
    static_configs: [{targets: ["127.0.0.1:7411"]}]
  - job_name: lemo-worker
    static_configs: [{targets: ["127.0.0.1:7412"]}]
rule_files: [deploy/prometheus/alerts.yml]
```

`job_name` in a series is the job's resource name (`jobs/...`); it is not called `job`, since Prometheus calls the
scrape job so. Series of a job, an attempt or a worker are there while it is: ended jobs are counted in
`lemo_jobs_ended_total` and leave no series behind. Counters begin at 0 with each start of a program.

)";

constexpr char kEnd[] =
    R"(## Alerts

[deploy/prometheus/alerts.yml](../../deploy/prometheus/alerts.yml), to begin with:

```yaml
)";

const char* TypeName(Type type) {
  switch (type) {
    case Type::kCounter:
      return "counter";
    case Type::kGauge:
      return "gauge";
    case Type::kHistogram:
      return "histogram";
    case Type::kSummary:
      return "summary";
  }
  return "";
}

// A name ends in its unit; what has none is counted.
std::string Unit(const Family& family) {
  absl::string_view name = family.name;
  absl::ConsumeSuffix(&name, "_total");
  if (absl::EndsWith(name, "_per_second")) return "1/s";
  if (absl::EndsWith(name, "_seconds")) return "s";
  if (absl::EndsWith(name, "_bytes")) return "bytes";
  return "";
}

void Table(const Families& families, std::ostream& page) {
  page << "| metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n";
  for (const Family* family : families) {
    page << "| `" << family->name << "` | " << TypeName(family->type) << " | " << Unit(*family)
         << " | ";
    for (const std::string& label : family->labels) {
      page << (label == family->labels.front() ? "`" : ", `") << label << "`";
    }
    page << " | " << family->help;
    if (!family->bounds.empty()) {
      page << " Buckets:";
      for (const double bound : family->bounds) page << " " << bound;
      page << ".";
    }
    page << " |\n";
  }
  page << "\n";
}

}  // namespace

std::string MetricsPage(const Families& coordinator, const Families& agent,
                        const std::string& alerts) {
  Families both, only_coordinator, only_agent;
  for (const Family* family : coordinator) {
    const bool shared = std::find(agent.begin(), agent.end(), family) != agent.end();
    (shared ? both : only_coordinator).push_back(family);
  }
  for (const Family* family : agent) {
    if (std::find(both.begin(), both.end(), family) == both.end()) only_agent.push_back(family);
  }
  std::ostringstream page;
  page.precision(12);
  page << kBegin << "## Coordinator\n\n";
  Table(only_coordinator, page);
  page << "## Worker\n\nSeries of ranks are those of rank 0, which is the one that tells.\n\n";
  Table(only_agent, page);
  page << "## Both\n\n";
  Table(both, page);
  page << kEnd << alerts << "```\n";
  return page.str();
}

}  // namespace lemo::metrics
