// What a program tells of itself, whatever it does.
#pragma once

#include <string>

#include "common/metrics.h"

namespace lemo::metrics {

// lemo_build_info, and the process_* families by the names that all of Prometheus' clients use.
Families ProcessFamilies();

// Of the calling process, as /proc has it now.
void AddProcessSamples(const std::string& version, Samples* samples);

}  // namespace lemo::metrics
