// JSON files of Hugging Face directories: read with a bound on size and depth, written with the
// order of their members kept, so that a copy differs from its source only where it was changed.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lemo::train {

using OrderedJson = nlohmann::ordered_json;

// InvalidArgument with `path`: not JSON, not an object, nested deeper than any real file.
absl::StatusOr<OrderedJson> ParseJsonObject(std::string_view text,
                                            const std::filesystem::path& path);
// The same for a file; NotFound when there is none.
absl::StatusOr<OrderedJson> ReadJsonObject(const std::filesystem::path& path);

// Indented, with a newline at the end; text that is not UTF-8 becomes U+FFFD.
std::string JsonText(const OrderedJson& json);
absl::Status WriteJson(const std::filesystem::path& path, const OrderedJson& json);

// A number without a fraction as an integer (16, not 16.0): what Python wrote and expects.
OrderedJson PlainNumber(double value);

}  // namespace lemo::train
