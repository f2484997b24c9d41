// Where a person's rates are kept: what devices were measured to do (PlanOptions with `rates`
// alone).
#pragma once

#include <cstdint>
#include <filesystem>

namespace lemo {

inline constexpr int64_t kRatesBytesMax = int64_t{1} << 20;  // of a file that is read

// $LEMO_RATES, else lemo/rates.json in $XDG_CACHE_HOME or ~/.cache. Empty where there is none:
// LEMO_RATES is set to nothing, or there is no home.
std::filesystem::path DefaultRatesFile();

}  // namespace lemo
