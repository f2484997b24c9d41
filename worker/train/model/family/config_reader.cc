#include "worker/train/model/family/config_reader.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lemo::train {

std::string ConfigReader::Describe(const nlohmann::json& value) {
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  constexpr size_t kShown = 80;
  std::string text =
      value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return text;
}

const nlohmann::json* ConfigReader::Find(const char* key) const {
  const auto at = object_.find(key);
  return at == object_.end() ? nullptr : &*at;
}

bool ConfigReader::IsNull(const char* key) const {
  const nlohmann::json* value = Find(key);
  return value != nullptr && value->is_null();
}

void ConfigReader::Fault(const char* key, std::string reason) const {
  violations_.Add(absl::StrCat(prefix_, key), std::move(reason));
}

int64_t ConfigReader::RequiredCount(const char* key, int64_t max) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_null()) {
    Fault(key, "is missing");
    return 0;
  }
  return Count(key, 0, max);
}

int64_t ConfigReader::Count(const char* key, int64_t fallback, int64_t max, int64_t min) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_null()) return fallback;
  // An unsigned number beyond int64 is above every bound used here.
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() &&
                      value->get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()});
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    Fault(key,
          absl::StrCat("must be an integer from ", min, " to ", max, ", found ", Describe(*value)));
    return fallback;
  }
  return value->get<int64_t>();
}

std::optional<double> ConfigReader::OptionalNumber(const char* key, double min, double max) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_null()) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= min && number <= max)) {
    Fault(key,
          absl::StrCat("must be a number from ", min, " to ", max, ", found ", Describe(*value)));
    return std::nullopt;
  }
  return number;
}

double ConfigReader::Number(const char* key, double fallback, double min, double max) const {
  return OptionalNumber(key, min, max).value_or(fallback);
}

bool ConfigReader::Bool(const char* key, bool fallback) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_null()) return fallback;
  if (!value->is_boolean()) {
    Fault(key, absl::StrCat("must be true or false, found ", Describe(*value)));
    return fallback;
  }
  return value->get<bool>();
}

std::string ConfigReader::String(const char* key, std::string fallback) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr || value->is_null()) return fallback;
  if (!value->is_string()) {
    Fault(key, absl::StrCat("must be a string, found ", Describe(*value)));
    return fallback;
  }
  return value->get<std::string>();
}

}  // namespace lemo::train
