#include "cli/yaml_json.h"

#include <algorithm>
#include <cctype>
#include <limits>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "yaml-cpp/eventhandler.h"
#include "yaml-cpp/yaml.h"

namespace lemo::cli {
namespace {

constexpr int kMaxDepth = 64;
constexpr int kMaxNodes = 100'000;
// Readers look for the colon behind a key no further than 1024 characters.
constexpr size_t kLongKey = 1000;
// yaml-cpp turns \N and \_ into bytes of Latin-1.
constexpr char kBadEscape[] = "not UTF-8 behind an escape; write \\u and four digits";
constexpr char kStringTag[] = "tag:yaml.org,2002:str";

bool IsDigits(const std::string& text, size_t from) {
  if (from >= text.size()) return false;
  for (size_t i = from; i < text.size(); ++i) {
    if (!std::isdigit(static_cast<unsigned char>(text[i]))) return false;
  }
  return true;
}

// [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?
bool IsFloat(const std::string& text) {
  size_t at = 0;
  auto digits = [&] {
    const size_t from = at;
    while (at < text.size() && std::isdigit(static_cast<unsigned char>(text[at]))) ++at;
    return at - from;
  };
  if (at < text.size() && (text[at] == '-' || text[at] == '+')) ++at;
  size_t mantissa = digits();
  if (at < text.size() && text[at] == '.') {
    ++at;
    mantissa += digits();
  }
  if (mantissa == 0) return false;
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    ++at;
    if (at < text.size() && (text[at] == '-' || text[at] == '+')) ++at;
    if (digits() == 0) return false;
  }
  return at == text.size();
}

// A plain scalar by the core schema.
nlohmann::json PlainScalar(const std::string& text) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") {
    return nullptr;
  }
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  const bool has_sign = text[0] == '-' || text[0] == '+';
  if (IsDigits(text, has_sign ? 1 : 0)) {
    int64_t number = 0;
    if (absl::SimpleAtoi(text, &number)) return number;
  }
  const std::string unsigned_part = text.substr(has_sign ? 1 : 0);
  if (unsigned_part == ".inf" || unsigned_part == ".Inf" || unsigned_part == ".INF") {
    return text[0] == '-' ? "-Infinity" : "Infinity";
  }
  if (text == ".nan" || text == ".NaN" || text == ".NAN") return "NaN";
  double number = 0;
  if (IsFloat(text) && absl::SimpleAtod(text, &number)) return number;
  return text;
}

class Converter {
 public:
  explicit Converter(JsonFault* fault) : fault_(fault) {}

  bool Convert(const YAML::Node& node, int64_t line, int depth, LocatedJson* out) {
    out->line = line;
    if (++nodes_ > kMaxNodes) {
      return Fail(line, absl::StrCat("more than ", kMaxNodes, " values, aliases counted"));
    }
    if (depth > kMaxDepth) {
      return Fail(line, absl::StrCat("nested deeper than ", kMaxDepth, " levels"));
    }
    // "?" is a plain scalar and any collection without a tag, "!" a quoted scalar.
    const std::string& tag = node.Tag();
    if (!tag.empty() && tag != "?" && tag != "!" && tag != kStringTag) {
      return Fail(line, absl::StrCat("the tag ", tag, " is not used here"));
    }
    switch (node.Type()) {
      case YAML::NodeType::Undefined:
      case YAML::NodeType::Null:
        return true;
      case YAML::NodeType::Scalar:
        if (!IsUtf8(node.Scalar())) return Fail(line, kBadEscape);
        out->scalar = tag == "?" ? PlainScalar(node.Scalar()) : nlohmann::json(node.Scalar());
        return true;
      case YAML::NodeType::Sequence:
        out->kind = LocatedJson::Kind::kArray;
        for (const YAML::Node& element : node) {
          out->children.emplace_back();
          if (!Convert(element, LineOf(element, line), depth + 1, &out->children.back())) {
            return false;
          }
        }
        return true;
      case YAML::NodeType::Map:
        out->kind = LocatedJson::Kind::kObject;
        for (const auto& member : node) {
          const int64_t key_line = LineOf(member.first, line);
          if (!member.first.IsScalar()) return Fail(key_line, "a key is not a plain word");
          if (!IsUtf8(member.first.Scalar())) return Fail(key_line, kBadEscape);
          out->children.emplace_back();
          out->children.back().key = member.first.Scalar();
          if (!Convert(member.second, key_line, depth + 1, &out->children.back())) return false;
        }
        return true;
    }
    return true;
  }

  bool Fail(int64_t line, std::string reason) {
    *fault_ = {line, std::move(reason)};
    return false;
  }

 private:
  static int64_t LineOf(const YAML::Node& node, int64_t otherwise) {
    const YAML::Mark mark = node.Mark();
    return mark.is_null() ? otherwise : mark.line + 1;
  }

  JsonFault* const fault_;
  int nodes_ = 0;
};

// Where documents begin. YAML::LoadAll would tell too, but finds documents without end in `{}, x`.
class DocumentCounter : public YAML::EventHandler {
 public:
  int count() const { return count_; }
  int64_t last_line() const { return last_line_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    ++count_;
    last_line_ = mark.line + 1;
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}

 private:
  int count_ = 0;
  int64_t last_line_ = 1;
};

// Whether `text` may stand without quotes and still be a string to every reader, YAML 1.1's too.
bool IsPlainWord(const std::string& text) {
  if (text.empty() || !std::isalpha(static_cast<unsigned char>(text[0]))) return false;
  for (char c : text) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-' && c != '.' &&
        c != '/') {
      return false;
    }
  }
  static const char* const kWords[] = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"};
  std::string lower = text;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const char* word : kWords) {
    if (lower == word) return false;
  }
  return true;
}

std::string Dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string ScalarToYaml(const nlohmann::ordered_json& json) {
  if (!json.is_string()) return Dump(json);  // numbers, true, null, [] and {} are YAML as they are
  const std::string& text = json.get_ref<const std::string&>();
  return IsPlainWord(text) ? text : Dump(json);
}

void WriteYaml(const nlohmann::ordered_json& json, int indent, bool after_dash, std::string* out) {
  const std::string margin(indent, ' ');
  bool first = true;
  // Behind "- " the first member stands on the dash's own line.
  auto start = [&] {
    if (!(std::exchange(first, false) && after_dash)) *out += margin;
  };
  auto is_nested = [](const nlohmann::ordered_json& value) {
    return value.is_structured() && !value.empty();
  };
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      start();
      const std::string name = ScalarToYaml(key);
      if (name.size() < kLongKey) {
        absl::StrAppend(out, name, ":");
      } else {
        absl::StrAppend(out, "? ", name, "\n", margin, ":");
      }
      if (is_nested(value)) {
        *out += '\n';
        WriteYaml(value, indent + 2, false, out);
      } else {
        absl::StrAppend(out, " ", ScalarToYaml(value), "\n");
      }
    }
    return;
  }
  for (const nlohmann::ordered_json& value : json) {
    start();
    *out += "- ";
    if (is_nested(value)) {
      WriteYaml(value, indent + 2, true, out);
    } else {
      absl::StrAppend(out, ScalarToYaml(value), "\n");
    }
  }
}

}  // namespace

std::optional<LocatedJson> ParseYaml(const std::string& text, JsonFault* fault) {
  Converter converter(fault);
  if (!IsUtf8(text)) {
    converter.Fail(1, "not valid YAML: not UTF-8");
    return std::nullopt;
  }
  // YAML has none, and yaml-cpp takes NUL for an escape.
  const auto control = std::find_if(text.begin(), text.end(), [](unsigned char c) {
    return c < 0x20 && c != '\t' && c != '\n' && c != '\r';
  });
  if (control != text.end()) {
    converter.Fail(1 + std::count(text.begin(), control, '\n'),
                   "not valid YAML: a control character");
    return std::nullopt;
  }
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    DocumentCounter documents;
    while (documents.count() < 2 && parser.HandleNextDocument(documents)) {
    }
    if (documents.count() > 1) {
      converter.Fail(documents.last_line(), "a second document; only one is read");
      return std::nullopt;
    }
    LocatedJson root;
    root.line = 1;
    if (documents.count() == 0) return root;
    const YAML::Node document = YAML::Load(text);
    // A document of comments alone has no place of its own.
    if (!converter.Convert(document, std::max(document.Mark().line + 1, 1), 1, &root)) {
      return std::nullopt;
    }
    return root;
  } catch (const YAML::Exception& error) {
    converter.Fail(error.mark.is_null() ? 1 : error.mark.line + 1,
                   absl::StrCat("not valid YAML: ", ReplaceInvalidUtf8(error.msg)));
    return std::nullopt;
  }
}

std::string ToYaml(const nlohmann::ordered_json& json) {
  std::string out;
  if (json.is_structured() && !json.empty()) {
    WriteYaml(json, 0, false, &out);
  } else {
    out = ScalarToYaml(json) + "\n";
  }
  return out;
}

}  // namespace lemo::cli
