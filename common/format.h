// Numbers as people read them, on a terminal and in a report. ASCII only.
#pragma once

#include <cstdint>
#include <string>

namespace lemo {

// "412.3 MiB".
std::string HumanBytes(int64_t bytes);
// "81,920".
std::string HumanCount(int64_t count);
// "950", "5.2k", "1.3M".
std::string ShortCount(double count);
// "3.4 s", "1 min 23 s", "2 h 5 min", "3 d 4 h".
std::string HumanDuration(double seconds);
// "0:32", "1:02:03"; "-:--" when it is not known.
std::string ClockDuration(double seconds);
// `digits` after the point; "n/a" for what is not finite.
std::string Fixed(double value, int digits);
// Significant digits; "n/a" for what is not finite.
std::string Significant(double value, int digits);
// Seconds since 1970 as "2025-01-31 17:05:09 UTC".
std::string UtcTime(double unix_seconds);

}  // namespace lemo
