// YAML that becomes the same tree as JSON, lines kept.
#pragma once

#include <optional>
#include <string>

#include "common/located_json.h"

namespace lemo::cli {

// One document of maps with scalar keys, lists and scalars of YAML 1.2's core schema (so `yes` and
// `no` are strings). A member stands on the line of its key. Anchors and aliases work up to 100,000
// nodes in all and 64 levels, so that an alias bomb is a fault; tags other than `!!str` are faults.
std::optional<LocatedJson> ParseYaml(const std::string& text, JsonFault* fault);

// `json` as YAML that ParseYaml and every other reader take back. Ends with a newline.
std::string ToYaml(const nlohmann::ordered_json& json);

}  // namespace lemo::cli
