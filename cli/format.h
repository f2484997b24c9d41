// Numbers, times and foreign text as people read them on a terminal. ASCII only.
#pragma once

#include <cstdint>
#include <string>

#include "google/protobuf/timestamp.pb.h"

namespace lemo::cli {

// `text` with every control character but the newline as '?', so that it cannot move the cursor.
std::string Printable(std::string text);

// "412.3 MiB".
std::string HumanBytes(int64_t bytes);
// "81,920".
std::string HumanCount(int64_t count);
// "950", "5.2k", "1.3M".
std::string ShortCount(double count);
// "3.4 s", "1 min 23 s", "2 h 5 min", "3 d 4 h"; "n/a" when it is not known.
std::string HumanDuration(double seconds);
// "0:32", "1:02:03"; "-:--" when it is not known.
std::string ClockDuration(double seconds);
// `digits` after the point; "n/a" for what is not finite.
std::string Fixed(double value, int digits);
// Significant digits; "n/a" for what is not finite.
std::string Significant(double value, int digits);
// "2026-01-31T17:05:09Z"; "-" when it is not set.
std::string Time(const google::protobuf::Timestamp& time);
double Seconds(const google::protobuf::Timestamp& time);

}  // namespace lemo::cli
