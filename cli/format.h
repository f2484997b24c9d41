// Times and foreign text as people read them on a terminal; numbers are common/format.h's. ASCII
// only.
#pragma once

#include <string>

#include "common/format.h"
#include "google/protobuf/timestamp.pb.h"

namespace lemo::cli {

// `text` with every control character but the newline as '?', so that it cannot move the cursor.
std::string Printable(std::string text);

// "2026-01-31T17:05:09Z"; "-" when it is not set.
std::string Time(const google::protobuf::Timestamp& time);
double Seconds(const google::protobuf::Timestamp& time);

}  // namespace lemo::cli
