#include "common/message_json.h"
#include "google/protobuf/descriptor.h"
#include "worker/train/report/event_sink.h"
#include "worker/train/report/sparsity.h"

namespace lemo::train {

void EraseAbsent(const google::protobuf::Message& message, nlohmann::ordered_json* json) {
  if (const auto* step = google::protobuf::DynamicCastToGenerated<lemo::v1::StepEvent>(&message)) {
    if (!step->has_sparsity()) json->erase("sparsity");
    if (!step->has_gang()) json->erase("gang");
    if (!step->has_memory()) json->erase("memory");
  }
  if (const auto* result =
          google::protobuf::DynamicCastToGenerated<lemo::v1::ResultEvent>(&message)) {
    if (!result->has_forecast()) json->erase("forecast");
  }
  if (const auto* eval = google::protobuf::DynamicCastToGenerated<lemo::v1::EvalEvent>(&message)) {
    if (eval->recall().empty()) json->erase("recall");
    if (HasSparseLoss(*eval)) return;
    json->erase("sparse_loss");
    json->erase("sparse_perplexity");
  }
}

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
    const google::protobuf::Message& message = reflection->GetMessage(event, field);
    nlohmann::ordered_json fields =
        MessageToJson(message, {.everything = true, .non_finite_as_null = true});
    EraseAbsent(message, &fields);
    for (const auto& [name, value] : fields.items()) out[name] = value;
  }
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace lemo::train
