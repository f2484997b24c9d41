#include "cli/assignment.h"

#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/message_json.h"

namespace lemo::cli {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

LocatedJson StringValue(const std::string& text) {
  LocatedJson json;
  json.scalar = text;
  return json;
}

void ClearLines(LocatedJson* json) {
  json->line = 0;
  for (LocatedJson& child : json->children) ClearLines(&child);
}

// Where the path ends: the first '=' that is not inside a quoted key.
size_t FindEquals(const std::string& text) {
  const size_t equals = text.find('=');
  const size_t quoted = text.find("[\"");
  if (quoted == text.npos || quoted > equals) return equals;
  const size_t close = text.find("\"]=", quoted);
  return close == text.npos ? close : close + 2;
}

class Assignment {
 public:
  Assignment(const Descriptor* root, Violations* violations)
      : root_(root), reader_(kAssignmentSource, root, violations) {}

  void Apply(const std::string& text, LocatedJson* node) {
    const size_t equals = FindEquals(text);
    if (equals == text.npos || equals == 0) {
      return reader_.Fault(text, 0, "expected field=value, for example run.train.steps=100");
    }
    value_ = text.substr(equals + 1);
    std::string rest = text.substr(0, equals);
    std::string path;
    const Descriptor* type = root_;
    for (;;) {
      const size_t end = rest.find_first_of(".[");
      const std::string name = rest.substr(0, end);
      rest = end == rest.npos ? "" : rest.substr(end);
      const FieldDescriptor* field = reader_.FindField(type, name, path, 0);
      if (!field) return;
      path = JoinPath(path, field->name());
      node = Member(node, path, field->name(), field->json_name());
      if (!node) return;
      if (field->is_map() && !rest.empty()) {
        node = Entry(rest, path, node);
        if (node) Assign(path, field->message_type()->map_value(), false, node);
        return;
      }
      bool is_list = field->is_repeated();
      if (!rest.empty() && rest[0] == '[' && is_list) {
        node = Element(&rest, path, node);
        if (!node) return;
        is_list = false;
      }
      if (rest.empty()) return Assign(path, field, is_list, node);
      if (rest[0] != '.' || is_list || field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
        return reader_.Fault(path, 0,
                             absl::StrCat("has nothing called \"", rest, "\"",
                                          is_list ? "; reach into lists with [0]" : ""));
      }
      rest.erase(0, 1);
      type = field->message_type();
    }
  }

 private:
  // `node` as `kind`; what is not given yet becomes an empty one. Null after a fault.
  LocatedJson* As(LocatedJson::Kind kind, const std::string& path, LocatedJson* node) {
    if (node->is_null()) node->kind = kind;
    if (node->kind == kind) return node;
    reader_.Fault(path, 0, "cannot be reached into: the file gives a value of another kind");
    return nullptr;
  }

  LocatedJson* Member(LocatedJson* node, const std::string& path, const std::string& name,
                      const std::string& other_name) {
    if (!As(LocatedJson::Kind::kObject, path, node)) return nullptr;
    for (LocatedJson& child : node->children) {
      if (child.key == name || child.key == other_name) return &child;
    }
    node->children.emplace_back().key = name;
    return &node->children.back();
  }

  LocatedJson* Entry(const std::string& rest, const std::string& path, LocatedJson* node) {
    const size_t size = rest.size();
    std::string key;
    if (rest[0] == '.') {
      key = rest.substr(1);
    } else if (size >= 4 && rest.substr(0, 2) == "[\"" && rest.substr(size - 2) == "\"]") {
      key = rest.substr(2, size - 4);
    } else {
      reader_.Fault(path, 0, "expected a key such as [\"q_proj\"]");
      return nullptr;
    }
    return Member(node, path, key, key);
  }

  LocatedJson* Element(std::string* rest, const std::string& path, LocatedJson* node) {
    const size_t close = rest->find(']');
    uint32_t index = 0;
    if (close == rest->npos || !absl::SimpleAtoi(rest->substr(1, close - 1), &index)) {
      reader_.Fault(path, 0, "expected an index such as [0]");
      return nullptr;
    }
    rest->erase(0, close + 1);
    if (!As(LocatedJson::Kind::kArray, path, node)) return nullptr;
    const size_t size = node->children.size();
    if (index > size) {
      reader_.Fault(path, 0,
                    absl::StrCat("index ", index, " is out of range; the list has ", size,
                                 " elements, [", size, "] appends one"));
      return nullptr;
    }
    if (index == size) node->children.emplace_back();
    return &node->children[index];
  }

  void Assign(const std::string& path, const FieldDescriptor* field, bool is_list,
              LocatedJson* node) {
    const bool is_string = field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    std::optional<LocatedJson> value;
    if (is_list && is_string && value_.substr(0, 1) != "[" && value_ != "null") {
      value.emplace();  // targets=all-linear
      value->kind = LocatedJson::Kind::kArray;
      value->children.push_back(StringValue(value_));
    } else {
      value = ParseValue(path, is_string && !is_list);
    }
    if (!value) return;
    value->key = node->key;
    *node = *std::move(value);
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

  const Descriptor* const root_;
  MessageReader reader_;
  std::string value_;
};

}  // namespace

void ApplyAssignment(const std::string& text, const Descriptor* type, LocatedJson* root,
                     Violations* violations) {
  Assignment(type, violations).Apply(text, root);
}

}  // namespace lemo::cli
