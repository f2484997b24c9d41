#include "common/assignment.h"

#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/located_json.h"
#include "common/message_json.h"
#include "google/protobuf/descriptor.h"

namespace lemo {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

LocatedJson StringValue(const std::string& text) {
  LocatedJson json;
  json.scalar = text;
  return json;
}

// Where the path ends: the first '=' that is not inside a quoted map key.
size_t FindAssignment(const std::string& text) {
  const size_t equals = text.find('=');
  const size_t quoted = text.find("[\"");
  if (quoted == text.npos || quoted > equals) return equals;
  const size_t close = text.find("\"]=", quoted);
  return close == text.npos ? close : close + 2;
}

class Assignment {
 public:
  Assignment(const std::string& text, const Message& root, Violations* violations)
      : text_(text), reader_("--set", root.GetDescriptor(), violations) {}

  void Apply(const std::string& example, Message* root) {
    if (!IsUtf8(text_)) return reader_.Fault("", 0, "an assignment is not UTF-8");
    const size_t equals = FindAssignment(text_);
    if (equals == text_.npos || equals == 0) {
      return reader_.Fault(text_, 0, "expected field=value, for example " + example);
    }
    value_ = text_.substr(equals + 1);
    Walk(std::string_view(text_).substr(0, equals), root);
  }

 private:
  void Walk(std::string_view rest, Message* message) {
    std::string path;
    while (true) {
      const size_t end = rest.find_first_of(".[");
      const std::string name(rest.substr(0, end));
      rest.remove_prefix(name.size());
      const FieldDescriptor* field = reader_.FindField(message->GetDescriptor(), name, path, 0);
      if (!field) return;
      path = JoinPath(path, field->name());
      if (field->is_map() && !rest.empty()) return AssignEntry(rest, path, field, message);
      std::optional<size_t> index;
      if (field->is_repeated() && !rest.empty() && rest.front() == '[') {
        index = TakeIndex(&rest, path, field, *message);
        if (!index) return;
        path = ElementPath(path, *index);
      }
      if (rest.empty()) return Assign(path, field, index, message);
      if (rest.front() != '.' || field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE ||
          (field->is_repeated() && !index)) {
        return reader_.Fault(
            path, 0,
            absl::StrCat("has nothing called \"", std::string(rest), "\"",
                         field->is_repeated() ? "; reach into lists with [0]" : ""));
      }
      rest.remove_prefix(1);
      message = Descend(path, field, index, message);
      if (!message) return;
    }
  }

  // "[3]..." -> 3, if that element exists or is the next one.
  std::optional<size_t> TakeIndex(std::string_view* rest, const std::string& path,
                                  const FieldDescriptor* field, const Message& message) {
    const size_t close = rest->find(']');
    uint32_t index = 0;
    if (close == rest->npos || !absl::SimpleAtoi(std::string(rest->substr(1, close - 1)), &index)) {
      reader_.Fault(path, 0, "expected an index such as [0]");
      return std::nullopt;
    }
    rest->remove_prefix(close + 1);
    const uint32_t size = message.GetReflection()->FieldSize(message, field);
    if (index > size) {
      reader_.Fault(path, 0,
                    absl::StrCat("index ", index, " is out of range; the list has ", size,
                                 " elements, [", size, "] appends one"));
      return std::nullopt;
    }
    return index;
  }

  Message* Descend(const std::string& path, const FieldDescriptor* field,
                   std::optional<size_t> index, Message* message) {
    const Reflection* reflection = message->GetReflection();
    if (index) {
      return static_cast<int>(*index) == reflection->FieldSize(*message, field)
                 ? reflection->AddMessage(message, field)
                 : reflection->MutableRepeatedMessage(message, field, *index);
    }
    // A setting for one tuner must not turn a run into one with that tuner.
    if (const auto* oneof = field->real_containing_oneof()) {
      const FieldDescriptor* chosen = reflection->GetOneofFieldDescriptor(*message, oneof);
      if (chosen && chosen != field) {
        reader_.Fault(path, 0,
                      absl::StrCat("the spec chooses ", chosen->name(), "; assign ", path,
                                   "={...} as a whole to replace it"));
        return nullptr;
      }
    }
    return reflection->MutableMessage(message, field);
  }

  void Assign(const std::string& path, const FieldDescriptor* field, std::optional<size_t> index,
              Message* message) {
    const bool list_of_strings =
        field->is_repeated() && field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    if (!index && list_of_strings && value_.substr(0, 1) != "[" && value_ != "null") {
      // targets=all-linear
      LocatedJson list;
      list.kind = LocatedJson::Kind::kArray;
      list.children.push_back(StringValue(value_));
      return reader_.ReadField(list, path, field, message);
    }
    const bool is_string =
        field->cpp_type() == FieldDescriptor::CPPTYPE_STRING && (index || !field->is_repeated());
    const std::optional<LocatedJson> json = ParseValue(path, is_string);
    if (!json) return;
    if (!index) return reader_.ReadField(*json, path, field, message);
    const Reflection* reflection = message->GetReflection();
    const int before = reflection->FieldSize(*message, field);
    reader_.AddElement(*json, path, field, message);
    const int after = reflection->FieldSize(*message, field);
    if (after > before && static_cast<int>(*index) < before) {
      reflection->SwapElements(message, field, *index, before);
      reflection->RemoveLast(message, field);
    }
  }

  // The rest of the path is a key of a map: `.layers.0.q_proj` or `["layers.0.q_proj"]`.
  void AssignEntry(std::string_view rest, const std::string& path, const FieldDescriptor* field,
                   Message* message) {
    std::string key;
    if (rest.front() == '.') {
      key = std::string(rest.substr(1));
    } else if (rest.size() >= 4 && rest.substr(0, 2) == "[\"" &&
               rest.substr(rest.size() - 2) == "\"]") {
      key = std::string(rest.substr(2, rest.size() - 4));
    } else {
      return reader_.Fault(path, 0, "expected a key such as [\"q_proj\"]");
    }
    const FieldDescriptor* value = field->message_type()->map_value();
    std::optional<LocatedJson> json =
        ParseValue(path, value->cpp_type() == FieldDescriptor::CPPTYPE_STRING);
    if (!json) return;
    json->key = key;
    reader_.SetMapEntry(*json, EntryPath(path, key), field, message);
  }

  // JSON, or a bare string. For a field that holds a string only quotes make it JSON, so that a
  // directory may be called 123.
  std::optional<LocatedJson> ParseValue(const std::string& path, bool is_string) {
    if (is_string && value_ != "null" && value_.substr(0, 1) != "\"") return StringValue(value_);
    JsonFault fault;
    std::optional<LocatedJson> json = ParseLocatedJson(value_, &fault);
    if (json) {
      ClearLines(&*json);
      return json;
    }
    if (!value_.empty() && (value_[0] == '{' || value_[0] == '[' || value_[0] == '"')) {
      reader_.Fault(path, 0, fault.reason);
      return std::nullopt;
    }
    return StringValue(value_);
  }

  // A command line has no lines worth telling.
  static void ClearLines(LocatedJson* json) {
    json->line = 0;
    for (LocatedJson& child : json->children) ClearLines(&child);
  }

  const std::string& text_;
  std::string value_;
  MessageReader reader_;
};

}  // namespace

void ApplyAssignment(const std::string& text, const std::string& example, Message* message,
                     Violations* violations) {
  Assignment(text, *message, violations).Apply(example, message);
}

}  // namespace lemo
