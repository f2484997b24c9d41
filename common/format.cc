#include "common/format.h"

#include <cmath>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lemo {
namespace {

// Beyond this a duration is a mistake, and would not fit an integer.
constexpr double kLongestSeconds = 1e12;

bool IsDuration(double seconds) {
  return std::isfinite(seconds) && seconds >= 0 && seconds < kLongestSeconds;
}

}  // namespace

std::string HumanBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (std::abs(value) >= 1024 && unit < 5) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 1, value, kUnits[unit]);
}

std::string HumanCount(int64_t count) {
  std::string digits = absl::StrCat(count);
  const int first = digits[0] == '-' ? 1 : 0;
  for (int at = static_cast<int>(digits.size()) - 3; at > first; at -= 3) digits.insert(at, 1, ',');
  return digits;
}

std::string ShortCount(double count) {
  if (!std::isfinite(count)) return "n/a";
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  int unit = 0;
  while (std::abs(count) >= 999.5 && unit < 4) {
    count /= 1000;
    ++unit;
  }
  const int digits = unit > 0 && std::abs(count) < 99.95 ? 1 : 0;
  return absl::StrFormat("%.*f%s", digits, count, kUnits[unit]);
}

std::string HumanDuration(double seconds) {
  if (!IsDuration(seconds)) return "n/a";
  if (seconds < 10) return absl::StrFormat("%.1f s", seconds);
  const int64_t s = std::llround(seconds);
  if (s < 60) return absl::StrFormat("%d s", s);
  if (s < 3600) return absl::StrFormat("%d min %d s", s / 60, s % 60);
  if (s < 86400) return absl::StrFormat("%d h %d min", s / 3600, s % 3600 / 60);
  return absl::StrFormat("%d d %d h", s / 86400, s % 86400 / 3600);
}

std::string ClockDuration(double seconds) {
  if (!IsDuration(seconds)) return "-:--";
  const int64_t s = std::llround(seconds);
  if (s < 3600) return absl::StrFormat("%d:%02d", s / 60, s % 60);
  return absl::StrFormat("%d:%02d:%02d", s / 3600, s % 3600 / 60, s % 60);
}

std::string Fixed(double value, int digits) {
  return std::isfinite(value) ? absl::StrFormat("%.*f", digits, value) : "n/a";
}

std::string Significant(double value, int digits) {
  return std::isfinite(value) ? absl::StrFormat("%.*g", digits, value) : "n/a";
}

std::string UtcTime(double unix_seconds) {
  if (!IsDuration(unix_seconds)) return "n/a";
  const std::time_t time = static_cast<std::time_t>(unix_seconds);
  std::tm parts{};
  gmtime_r(&time, &parts);
  char text[40];
  const size_t size = std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &parts);
  return std::string(text, size);
}

}  // namespace lemo
