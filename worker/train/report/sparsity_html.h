// The report's section on the rows that took part.
#pragma once

#include <string>

#include "worker/train/report/report.h"

namespace lemo::train {

// HTML for a card of the page; "" for a run in which every step took all rows.
std::string SparsityHtml(const RunReport& report);

}  // namespace lemo::train
