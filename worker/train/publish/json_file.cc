#include "worker/train/publish/json_file.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

constexpr int64_t kJsonBytesMax = 64 << 20;
// Writing JSON recurses; hostile nesting must not reach it.
constexpr int kDepthMax = 64;

}  // namespace

absl::StatusOr<OrderedJson> ParseJsonObject(std::string_view text,
                                            const std::filesystem::path& path) {
  bool too_deep = false;
  const auto bound_depth = [&too_deep](int depth, OrderedJson::parse_event_t, OrderedJson&) {
    too_deep = too_deep || depth > kDepthMax;
    return !too_deep;
  };
  OrderedJson json = OrderedJson::parse(text, bound_depth, /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), " nests deeper than ", kDepthMax, " levels"));
  }
  if (json.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), " is not JSON, or is torn"));
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), " is not a JSON object, but ", json.type_name()));
  }
  return json;
}

absl::StatusOr<OrderedJson> ReadJsonObject(const std::filesystem::path& path) {
  LEMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kJsonBytesMax));
  return ParseJsonObject(text, path);
}

std::string JsonText(const OrderedJson& json) {
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

absl::Status WriteJson(const std::filesystem::path& path, const OrderedJson& json) {
  return WriteFileAtomic(path, JsonText(json));
}

OrderedJson PlainNumber(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<int64_t>(value);
  return value;
}

}  // namespace lemo::train
