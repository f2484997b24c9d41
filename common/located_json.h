// JSON that remembers on which line each value stood and keeps duplicate keys, so that a reader can
// report them; nlohmann::json alone drops both.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json.hpp"

namespace lemo {

struct LocatedJson {
  enum class Kind { kScalar, kArray, kObject };
  Kind kind = Kind::kScalar;
  int64_t line = 0;                   // from 1; of the value's first character
  std::string key;                    // of a member of an object
  nlohmann::json scalar;              // null, boolean, number or string
  std::vector<LocatedJson> children;  // elements or members, in the order of the text

  bool is_null() const { return kind == Kind::kScalar && scalar.is_null(); }
};

struct JsonFault {
  int64_t line = 0;
  std::string reason;
};

// The value of `text`, or nothing and the fault. Text that is not UTF-8 and nesting deeper than 64
// are faults too.
std::optional<LocatedJson> ParseLocatedJson(std::string_view text, JsonFault* fault);

bool IsUtf8(const std::string& text);

// `text` with U+FFFD in place of what is not UTF-8: for messages that quote an input.
std::string ReplaceInvalidUtf8(const std::string& text);

}  // namespace lemo
