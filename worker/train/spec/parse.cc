#include "common/assignment.h"
#include "common/located_json.h"
#include "common/message_json.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {

lemo::v1::RunSpec ParseRunSpec(const std::string& json, const std::string& file,
                               Violations* violations) {
  lemo::v1::RunSpec spec;
  JsonFault fault;
  const std::optional<LocatedJson> root = ParseLocatedJson(json, &fault);
  if (!root) {
    violations->Add(Violation{.reason = fault.reason, .file = file, .line = fault.line});
    return spec;
  }
  MessageReader reader(file, lemo::v1::RunSpec::descriptor(), violations);
  reader.ReadMessage(*root, "", &spec);
  return spec;
}

void ApplyOverrides(const std::vector<std::string>& assignments, lemo::v1::RunSpec* spec,
                    Violations* violations) {
  for (const std::string& text : assignments) {
    ApplyAssignment(text, "train.steps=100", spec, violations);
  }
}

std::string RunSpecToJson(const lemo::v1::RunSpec& spec) {
  return MessageToJson(spec, {}).dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace lemo::train
