// docs/operators/metrics.md, made from what the programs declare.
#pragma once

#include <string>

#include "common/metrics.h"

namespace lemo::metrics {

// `alerts` is the text of deploy/prometheus/alerts.yml.
std::string MetricsPage(const Families& coordinator, const Families& agent,
                        const std::string& alerts);

}  // namespace lemo::metrics
