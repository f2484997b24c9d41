// The page of a finished run.
#pragma once

#include <string>

#include "worker/train/report/report.h"

namespace lemo::train {

// One HTML file that needs nothing else: styles and charts are inside, there are no scripts,
// nothing is fetched. Everything that comes from files or users is escaped.
std::string RenderReportHtml(const RunReport& report);

}  // namespace lemo::train
