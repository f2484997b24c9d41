#include "common/rates_file.h"

#include <cstdlib>

namespace lemo {

namespace fs = std::filesystem;

fs::path DefaultRatesFile() {
  if (const char* file = std::getenv("LEMO_RATES"); file != nullptr) return file;
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return fs::path(cache) / "lemo" / "rates.json";
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') return {};
  return fs::path(home) / ".cache" / "lemo" / "rates.json";
}

}  // namespace lemo
