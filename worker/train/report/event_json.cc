#include "common/message_json.h"
#include "google/protobuf/descriptor.h"
#include "worker/train/report/event_sink.h"

namespace lemo::train {

std::string EventToJson(const lemo::v1::RunEvent& event) {
  nlohmann::ordered_json out;
  out["type"] = "";
  out["sequence"] = event.sequence();
  out["unix_seconds"] = event.unix_seconds();
  const auto* type = lemo::v1::RunEvent::descriptor();
  const auto* reflection = lemo::v1::RunEvent::GetReflection();
  if (const auto* field =
          reflection->GetOneofFieldDescriptor(event, type->FindOneofByName("event"))) {
    out["type"] = field->name();
    const nlohmann::ordered_json fields = MessageToJson(
        reflection->GetMessage(event, field), {.everything = true, .non_finite_as_null = true});
    for (const auto& [name, value] : fields.items()) out[name] = value;
  }
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace lemo::train
