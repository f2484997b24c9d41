#include "common/message_json.h"

#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/timestamp.pb.h"
#include "google/protobuf/util/time_util.h"

namespace lemo {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::OneofDescriptor;
using google::protobuf::Reflection;
using google::protobuf::Timestamp;

bool IsTimestamp(const Descriptor* type) {
  return type->full_name() == Timestamp::descriptor()->full_name();
}

// By copying fields, since the message may be of a type that was made at run time.
std::string TimestampText(const Message& message) {
  const Reflection* reflection = message.GetReflection();
  Timestamp time;
  time.set_seconds(reflection->GetInt64(message, message.GetDescriptor()->FindFieldByNumber(1)));
  time.set_nanos(reflection->GetInt32(message, message.GetDescriptor()->FindFieldByNumber(2)));
  return google::protobuf::util::TimeUtil::ToString(time);
}

// A value that this build does not know yet keeps its number.
nlohmann::ordered_json EnumToJson(const EnumDescriptor* type, int number) {
  if (const EnumValueDescriptor* value = type->FindValueByNumber(number)) return value->name();
  return number;
}

nlohmann::ordered_json NumberToJson(double value, const MessageToJsonOptions& options) {
  if (std::isfinite(value)) return value;
  if (options.non_finite_as_null) return nullptr;
  if (std::isnan(value)) return "NaN";
  return value > 0 ? "Infinity" : "-Infinity";
}

// One value; `index` is -1 for a field that is not a list.
nlohmann::ordered_json ValueToJson(const Message& message, const FieldDescriptor* field, int index,
                                   const MessageToJsonOptions& options) {
  const Reflection* reflection = message.GetReflection();
  const bool single = index < 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return single ? reflection->GetInt32(message, field)
                    : reflection->GetRepeatedInt32(message, field, index);
    case FieldDescriptor::CPPTYPE_INT64:
      return single ? reflection->GetInt64(message, field)
                    : reflection->GetRepeatedInt64(message, field, index);
    case FieldDescriptor::CPPTYPE_UINT32:
      return single ? reflection->GetUInt32(message, field)
                    : reflection->GetRepeatedUInt32(message, field, index);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberToJson(single ? reflection->GetDouble(message, field)
                                 : reflection->GetRepeatedDouble(message, field, index),
                          options);
    case FieldDescriptor::CPPTYPE_BOOL:
      return single ? reflection->GetBool(message, field)
                    : reflection->GetRepeatedBool(message, field, index);
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string text = single ? reflection->GetString(message, field)
                                : reflection->GetRepeatedString(message, field, index);
      if (field->type() == FieldDescriptor::TYPE_BYTES) return absl::Base64Escape(text);
      return text;
    }
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumToJson(field->enum_type(),
                        single ? reflection->GetEnumValue(message, field)
                               : reflection->GetRepeatedEnumValue(message, field, index));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (IsTimestamp(field->message_type())) {
        // An absent one is null, not 1970.
        if (single && !reflection->HasField(message, field)) return nullptr;
        return TimestampText(single ? reflection->GetMessage(message, field)
                                    : reflection->GetRepeatedMessage(message, field, index));
      }
      return MessageToJson(single ? reflection->GetMessage(message, field)
                                  : reflection->GetRepeatedMessage(message, field, index),
                           options);
    default:
      return nullptr;
  }
}

nlohmann::ordered_json FieldToJson(const Message& message, const FieldDescriptor* field,
                                   const MessageToJsonOptions& options) {
  if (!field->is_repeated()) return ValueToJson(message, field, -1, options);
  const int size = message.GetReflection()->FieldSize(message, field);
  if (field->is_map()) {
    // Maps come in no order of their own; ours is that of the keys.
    std::map<std::string, nlohmann::ordered_json> entries;
    const FieldDescriptor* key = field->message_type()->map_key();
    const FieldDescriptor* value = field->message_type()->map_value();
    for (int i = 0; i < size; ++i) {
      const Message& entry = message.GetReflection()->GetRepeatedMessage(message, field, i);
      entries[entry.GetReflection()->GetString(entry, key)] =
          ValueToJson(entry, value, -1, options);
    }
    auto out = nlohmann::ordered_json::object();
    for (auto& [name, json] : entries) out[name] = std::move(json);
    return out;
  }
  auto out = nlohmann::ordered_json::array();
  for (int i = 0; i < size; ++i) out.push_back(ValueToJson(message, field, i, options));
  return out;
}

bool ShouldPrint(const Message& message, const FieldDescriptor* field, bool everything) {
  const Reflection* reflection = message.GetReflection();
  // A member of a oneof that is not set is not empty: it is another choice.
  if (field->real_containing_oneof()) return reflection->HasField(message, field);
  if (everything) return true;
  if (field->is_repeated()) return reflection->FieldSize(message, field) > 0;
  if (field->has_presence() || field->cpp_type() == FieldDescriptor::CPPTYPE_STRING ||
      field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    return reflection->HasField(message, field);
  }
  return true;
}

std::string Shortened(std::string text) {
  constexpr size_t kLongest = 60;
  if (text.size() <= kLongest) return text;
  size_t cut = kLongest;
  while (cut > 0 && (text[cut] & 0xC0) == 0x80) --cut;  // not inside a UTF-8 character
  return text.substr(0, cut) + "...";
}

// Quoted and in ASCII, so that it can be cut anywhere and shown anywhere.
std::string Quoted(const std::string& text) {
  return Shortened(
      nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
}

std::string Describe(const LocatedJson& json) {
  if (json.kind == LocatedJson::Kind::kArray) return "a list";
  if (json.kind == LocatedJson::Kind::kObject) return "an object";
  if (json.scalar.is_string()) {
    return absl::StrCat("the string ", Quoted(json.scalar.get_ref<const std::string&>()));
  }
  return Shortened(json.scalar.dump());
}

std::string Expected(std::string_view what, const LocatedJson& json) {
  return absl::StrCat("expected ", std::string(what), ", got ", Describe(json));
}

// A number in `json`: proto3 JSON also takes numbers in strings. Empty when there is none.
std::optional<double> AsDouble(const LocatedJson& json) {
  if (json.kind != LocatedJson::Kind::kScalar) return std::nullopt;
  if (json.scalar.is_number()) return json.scalar.get<double>();
  double value = 0;
  if (json.scalar.is_string() &&
      absl::SimpleAtod(json.scalar.get_ref<const std::string&>(), &value)) {
    return value;
  }
  return std::nullopt;
}

// A whole number from `least` to `most`, else the fault.
std::optional<int64_t> AsInteger(const LocatedJson& json, int64_t least, int64_t most,
                                 std::string* fault) {
  const std::optional<double> number = AsDouble(json);
  if (!number || std::isnan(*number)) {
    *fault = Expected("a whole number", json);
    return std::nullopt;
  }
  if (*number != std::floor(*number)) {
    *fault = Expected("a whole number", json);
    return std::nullopt;
  }
  // Doubles do not hold every 64-bit number, so the exact readings come first.
  int64_t value = 0;
  const bool is_string = json.scalar.is_string();
  bool exact = false;
  if (is_string) {
    exact = absl::SimpleAtoi(json.scalar.get_ref<const std::string&>(), &value);
  } else if (json.scalar.is_number_unsigned()) {
    exact =
        json.scalar.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if (exact) value = json.scalar.get<int64_t>();
  } else if (json.scalar.is_number_integer()) {
    exact = true;
    value = json.scalar.get<int64_t>();
  }
  if (!exact && std::abs(*number) < 0x1p62) {
    exact = true;
    value = static_cast<int64_t>(*number);
  }
  if (!exact || value < least || value > most) {
    *fault = absl::StrCat("out of range: ", Describe(json), " is not from ", least, " to ", most);
    return std::nullopt;
  }
  return value;
}

// The value of `type` that `json` names or numbers, else null and the fault.
const EnumValueDescriptor* AsEnum(const LocatedJson& json, const EnumDescriptor* type,
                                  std::string* fault) {
  std::vector<std::string> known;
  for (int i = 0; i < type->value_count(); ++i) known.push_back(type->value(i)->name());
  if (json.scalar.is_number_integer()) {
    const auto number = AsInteger(json, std::numeric_limits<int32_t>::min(),
                                  std::numeric_limits<int32_t>::max(), fault);
    if (number) {
      if (const auto* value = type->FindValueByNumber(static_cast<int>(*number))) return value;
    }
  } else if (json.scalar.is_string()) {
    const std::string& name = json.scalar.get_ref<const std::string&>();
    if (const auto* value = type->FindValueByName(name)) return value;
    if (const std::string nearest = NearestName(Shortened(name), known); !nearest.empty()) {
      *fault = absl::StrCat("unknown value ", Quoted(name), "; did you mean ", nearest, "?");
      return nullptr;
    }
  }
  *fault = Expected(absl::StrCat("one of ", absl::StrJoin(known, ", ")), json);
  return nullptr;
}

// Paths of the fields called `name` in `type` and below.
void CollectPaths(const Descriptor* type, const std::string& name, const std::string& path,
                  int depth, std::vector<std::string>* paths) {
  if (depth == 0) return;
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    const std::string field_path = JoinPath(path, field->name());
    if (field->name() == name || field->json_name() == name) paths->push_back(field_path);
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field->is_map()) {
      CollectPaths(field->message_type(), name, field_path, depth - 1, paths);
    }
  }
}

}  // namespace

std::string JoinPath(const std::string& path, const std::string& name) {
  return path.empty() ? name : absl::StrCat(path, ".", name);
}

std::string ElementPath(const std::string& path, size_t index) {
  return absl::StrCat(path, "[", index, "]");
}

std::string EntryPath(const std::string& path, const std::string& key) {
  return absl::StrCat(path, "[", Quoted(key), "]");
}

nlohmann::ordered_json MessageToJson(const Message& message, const MessageToJsonOptions& options) {
  auto out = nlohmann::ordered_json::object();
  const Descriptor* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (!ShouldPrint(message, field, options.everything)) continue;
    out[field->name()] = FieldToJson(message, field, options);
  }
  return out;
}

MessageReader::MessageReader(std::string file, const Descriptor* root, Violations* violations)
    : file_(std::move(file)), root_(root), violations_(violations) {}

void MessageReader::Fault(const std::string& path, int64_t line, std::string reason) {
  violations_->Add(
      Violation{.field = path, .reason = std::move(reason), .file = file_, .line = line});
}

const FieldDescriptor* MessageReader::FindField(const Descriptor* type, const std::string& name,
                                                const std::string& path, int64_t line) {
  std::vector<std::string> known;
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->name() == name || field->json_name() == name) return field;
    known.push_back(field->name());
  }
  const std::string shown = Shortened(name);
  std::string nearest = NearestName(shown, known);
  if (nearest.empty()) {
    std::vector<std::string> elsewhere;
    CollectPaths(root_, name, "", 6, &elsewhere);
    nearest = absl::StrJoin(elsewhere, " or ");
  } else {
    nearest = JoinPath(path, nearest);
  }
  Fault(JoinPath(path, shown), line,
        !nearest.empty() ? absl::StrCat("unknown field; did you mean ", nearest, "?")
        : known.empty()  ? "unknown field; there are none here"
                         : absl::StrCat("unknown field; known here: ", absl::StrJoin(known, ", ")));
  return nullptr;
}

void MessageReader::ReadMessage(const LocatedJson& json, const std::string& path,
                                Message* message) {
  if (json.kind != LocatedJson::Kind::kObject) {
    Fault(path, json.line, Expected("an object", json));
    return;
  }
  std::map<const FieldDescriptor*, int64_t> seen;  // where
  std::set<std::string> unknown;
  std::map<const OneofDescriptor*, const FieldDescriptor*> chosen;
  for (const LocatedJson& member : json.children) {
    const FieldDescriptor* field =
        FindField(message->GetDescriptor(), member.key, path, member.line);
    if (!field) {
      if (!unknown.insert(member.key).second) {
        Fault(JoinPath(path, Shortened(member.key)), member.line, "duplicate key");
      }
      continue;
    }
    const std::string field_path = JoinPath(path, field->name());
    const auto [first, is_new] = seen.emplace(field, member.line);
    if (!is_new) {
      Fault(field_path, member.line,
            absl::StrCat("duplicate key; first given on line ", first->second));
      continue;
    }
    const OneofDescriptor* oneof = field->real_containing_oneof();
    if (oneof && !member.is_null()) {
      const auto [choice, is_first] = chosen.emplace(oneof, field);
      if (!is_first) {
        Fault(field_path, member.line,
              absl::StrCat(field->name(), " and ", choice->second->name(),
                           " exclude each other; give one of them"));
        continue;
      }
    }
    ReadField(member, field_path, field, message);
  }
}

void MessageReader::ReadField(const LocatedJson& json, const std::string& path,
                              const FieldDescriptor* field, Message* message) {
  message->GetReflection()->ClearField(message, field);
  if (json.is_null()) return;
  if (field->is_map()) {
    if (json.kind != LocatedJson::Kind::kObject) {
      Fault(path, json.line, Expected("an object", json));
      return;
    }
    std::set<std::string> seen;
    for (const LocatedJson& entry : json.children) {
      const std::string entry_path = EntryPath(path, entry.key);
      if (seen.insert(entry.key).second) {
        SetMapEntry(entry, entry_path, field, message);
      } else {
        Fault(entry_path, entry.line, "duplicate key");
      }
    }
  } else if (field->is_repeated()) {
    // One number may stand for a list of it: `keep: 0.5`.
    if (json.kind == LocatedJson::Kind::kScalar && json.scalar.is_number() &&
        field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      AddElement(json, path, field, message);
      return;
    }
    if (json.kind != LocatedJson::Kind::kArray) {
      Fault(path, json.line, Expected("a list", json));
      return;
    }
    for (size_t i = 0; i < json.children.size(); ++i) {
      AddElement(json.children[i], ElementPath(path, i), field, message);
    }
  } else {
    ReadValue(json, path, field, message);
  }
}

void MessageReader::AddElement(const LocatedJson& json, const std::string& path,
                               const FieldDescriptor* field, Message* message) {
  ReadValue(json, path, field, message);
}

void MessageReader::SetMapEntry(const LocatedJson& json, const std::string& path,
                                const FieldDescriptor* field, Message* message) {
  const Reflection* reflection = message->GetReflection();
  const FieldDescriptor* key = field->message_type()->map_key();
  for (int i = reflection->FieldSize(*message, field) - 1; i >= 0; --i) {
    const Message& entry = reflection->GetRepeatedMessage(*message, field, i);
    if (entry.GetReflection()->GetString(entry, key) != json.key) continue;
    reflection->SwapElements(message, field, i, reflection->FieldSize(*message, field) - 1);
    reflection->RemoveLast(message, field);
  }
  if (json.is_null()) return;
  Message* entry = reflection->AddMessage(message, field);
  entry->GetReflection()->SetString(entry, key, json.key);
  ReadValue(json, path, field->message_type()->map_value(), entry);
}

void MessageReader::ReadValue(const LocatedJson& json, const std::string& path,
                              const FieldDescriptor* field, Message* message) {
  const Reflection* reflection = message->GetReflection();
  const bool repeated = field->is_repeated();
  std::string fault;
  auto integer = [&](int64_t least, int64_t most) { return AsInteger(json, least, most, &fault); };
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      if (auto value =
              integer(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max())) {
        repeated ? reflection->AddInt32(message, field, *value)
                 : reflection->SetInt32(message, field, *value);
      }
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      if (auto value =
              integer(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max())) {
        repeated ? reflection->AddInt64(message, field, *value)
                 : reflection->SetInt64(message, field, *value);
      }
      break;
    case FieldDescriptor::CPPTYPE_UINT32:
      if (auto value = integer(0, std::numeric_limits<uint32_t>::max())) {
        repeated ? reflection->AddUInt32(message, field, *value)
                 : reflection->SetUInt32(message, field, *value);
      }
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      if (auto value = AsDouble(json)) {
        repeated ? reflection->AddDouble(message, field, *value)
                 : reflection->SetDouble(message, field, *value);
      } else {
        fault = Expected("a number", json);
      }
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      if (json.scalar.is_boolean()) {
        repeated ? reflection->AddBool(message, field, json.scalar.get<bool>())
                 : reflection->SetBool(message, field, json.scalar.get<bool>());
      } else {
        fault = Expected("true or false", json);
      }
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      if (!json.scalar.is_string()) {
        fault = Expected("a string", json);
      } else if (field->type() == FieldDescriptor::TYPE_BYTES) {
        std::string bytes;
        if (!absl::Base64Unescape(json.scalar.get_ref<const std::string&>(), &bytes)) {
          fault = Expected("bytes as base64", json);
        } else {
          repeated ? reflection->AddString(message, field, std::move(bytes))
                   : reflection->SetString(message, field, std::move(bytes));
        }
      } else if (std::string text = json.scalar.get<std::string>(); text.find('\0') != text.npos) {
        // Strings become file names, and the system would cut those short.
        fault = "contains a NUL character";
      } else {
        repeated ? reflection->AddString(message, field, std::move(text))
                 : reflection->SetString(message, field, std::move(text));
      }
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      if (const EnumValueDescriptor* value = AsEnum(json, field->enum_type(), &fault)) {
        repeated ? reflection->AddEnum(message, field, value)
                 : reflection->SetEnum(message, field, value);
      }
      break;
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (IsTimestamp(field->message_type())) {
        Timestamp time;
        if (!json.scalar.is_string() ||
            !google::protobuf::util::TimeUtil::FromString(json.scalar.get<std::string>(), &time)) {
          fault = Expected("a time like 2026-01-31T17:05:09Z", json);
        } else {
          Message* out = repeated ? reflection->AddMessage(message, field)
                                  : reflection->MutableMessage(message, field);
          const Descriptor* type = out->GetDescriptor();
          out->GetReflection()->SetInt64(out, type->FindFieldByNumber(1), time.seconds());
          out->GetReflection()->SetInt32(out, type->FindFieldByNumber(2), time.nanos());
        }
        break;
      }
      ReadMessage(json, path,
                  repeated ? reflection->AddMessage(message, field)
                           : reflection->MutableMessage(message, field));
      break;
    default:
      fault = "has a type that run specs do not use";
  }
  if (!fault.empty()) Fault(path, json.line, std::move(fault));
}

absl::Status ReadMessageFile(const std::filesystem::path& path, int64_t bytes_max,
                             Message* message) {
  LEMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, bytes_max));
  JsonFault fault;
  const std::optional<LocatedJson> root = ParseLocatedJson(text, &fault);
  if (!root) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ":", fault.line, ": ", fault.reason));
  }
  Violations violations;
  MessageReader(path.string(), message->GetDescriptor(), &violations)
      .ReadMessage(*root, "", message);
  return violations.ToStatus();
}

}  // namespace lemo
