// Typed, checked access to the keys of a config.json; every fault goes to one list, by its key.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "common/violations.h"
#include "nlohmann/json.hpp"

namespace lemo::train {

// Each getter answers with the fallback when the key is absent, and with the fallback plus a
// violation when its value has the wrong type or is out of range. `null` counts as absent where the
// getter is not told otherwise. Keeps references to both arguments.
class ConfigReader {
 public:
  // `prefix` stands before a key in messages: `rope_scaling.`.
  ConfigReader(const nlohmann::json& object, Violations* violations, std::string prefix = "")
      : object_(object), violations_(*violations), prefix_(std::move(prefix)) {}

  // Null when the key is absent.
  const nlohmann::json* Find(const char* key) const;
  bool IsNull(const char* key) const;

  // An integer in [1, max]; a violation when absent. 0 after any fault.
  int64_t RequiredCount(const char* key, int64_t max) const;
  int64_t Count(const char* key, int64_t fallback, int64_t max, int64_t min = 1) const;
  // A finite number in [min, max].
  double Number(const char* key, double fallback, double min, double max) const;
  std::optional<double> OptionalNumber(const char* key, double min, double max) const;
  bool Bool(const char* key, bool fallback) const;
  std::string String(const char* key, std::string fallback) const;

  void Fault(const char* key, std::string reason) const;

  // A value fit for a message: scalars in short form, lists and objects by kind only.
  static std::string Describe(const nlohmann::json& value);

 private:
  const nlohmann::json& object_;
  Violations& violations_;
  std::string prefix_;
};

}  // namespace lemo::train
