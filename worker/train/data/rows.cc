#include "worker/train/data/rows.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "worker/train/data/utf8.h"

namespace lemo::train {
namespace {

// Keys keep their order, which chat templates show.
using Json = nlohmann::ordered_json;

// Deeper rows are refused: writing JSON out is recursive, and so is the reader on the template's
// side.
constexpr int kMaxDepth = 48;
// An ordered object looks a key up by walking over all, so their number has to be bounded.
constexpr size_t kMaxKeys = 10'000;
constexpr size_t kMaxQuotedBytes = 200;

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

constexpr std::array<std::pair<RowFormat, const char*>, 5> kFormats = {{
    {RowFormat::kAuto, "auto"},
    {RowFormat::kChat, "chat"},
    {RowFormat::kCompletion, "completion"},
    {RowFormat::kText, "text"},
    {RowFormat::kBook, "book"},
}};

std::string Shorten(std::string_view text) {
  const std::string kept(Utf8Prefix(text, kMaxQuotedBytes));
  return kept.size() < text.size() ? kept + "..." : kept;
}

std::string_view StripBlanks(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n\v\f";
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

// What a value is, for "expected x, found y".
std::string Describe(const Json& value) {
  if (value.is_string())
    return absl::StrCat("\"", Shorten(value.get_ref<const std::string&>()), "\"");
  if (value.is_number() || value.is_boolean() || value.is_null()) return value.dump();
  return value.is_array() ? "a list" : "an object";
}

// Adds the faults of one line.
class Faults {
 public:
  Faults(const RowPlace& place, Violations* violations) : place_(place), violations_(violations) {}

  void Add(std::string json_path, std::string reason) {
    any_ = true;
    violations_->Add(Violation{.field = place_.field,
                               .reason = std::move(reason),
                               .file = place_.file,
                               .line = place_.line,
                               .json_path = std::move(json_path)});
  }
  bool any() const { return any_; }

 private:
  const RowPlace& place_;
  Violations* violations_;
  bool any_ = false;
};

// The library's words without its own numbering.
std::string JsonReason(std::string_view what) {
  const size_t bracket = what.find("] ");
  if (what.starts_with("[json") && bracket != std::string_view::npos) {
    what.remove_prefix(bracket + 2);
  }
  for (const std::string_view prefix : {"parse error at ", "parse error: ", "line 1, "}) {
    if (what.starts_with(prefix)) what.remove_prefix(prefix.size());
  }
  // It quotes what it last read byte by byte, so that a character may be cut.
  std::string out;
  for (size_t invalid; (invalid = FindInvalidUtf8(what)) != std::string_view::npos;) {
    out += what.substr(0, invalid);
    absl::StrAppend(&out, "\\x", absl::Hex(static_cast<unsigned char>(what[invalid])));
    what.remove_prefix(invalid + 1);
  }
  out += what;
  return Shorten(out);
}

// Follows the parser through a document: where it is, and which keys the open objects have had.
class KeyWatch {
 public:
  KeyWatch(std::string root, Faults* faults) : root_(std::move(root)), faults_(faults) {}

  // The parser's callback; false leaves the value out.
  bool On(int depth, Json::parse_event_t event, const Json& value) {
    const auto at = static_cast<size_t>(depth);
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth >= kMaxDepth) {
          if (!too_deep_) {
            faults_->Add(Path(at + 1),
                         absl::StrCat("is nested deeper than ", kMaxDepth, " levels"));
          }
          too_deep_ = true;
          return false;
        }
        CountElement(at);
        if (levels_.size() <= at + 1) levels_.resize(at + 2);
        levels_[at + 1] = Level{.is_array = event == Json::parse_event_t::array_start};
        return true;
      case Json::parse_event_t::value:
        CountElement(at);
        return true;
      case Json::parse_event_t::key: {
        if (depth > kMaxDepth || too_deep_) return true;
        Level& level = levels_[at];
        level.key = value.get<std::string>();
        if (level.keys.size() == kMaxKeys) {
          if (!too_many_) {
            faults_->Add(Path(at), absl::StrCat("the object has more than ", kMaxKeys, " keys"));
          }
          too_many_ = true;
          return false;
        }
        if (!level.keys.insert(level.key).second) {
          faults_->Add(Path(at + 1), "the key appears twice in one object");
        }
        return true;
      }
      default:
        return true;
    }
  }

 private:
  struct Level {
    bool is_array = false;
    int64_t index = -1;
    std::string key;
    std::set<std::string> keys;
  };

  void CountElement(size_t depth) {
    if (depth < levels_.size()) ++levels_[depth].index;
  }

  // Of the value inside the `depth - 1` outermost containers.
  std::string Path(size_t depth) const {
    std::string path = root_;
    for (size_t i = 1; i < std::min(depth, levels_.size()); ++i) {
      if (levels_[i].is_array) {
        absl::StrAppend(&path, "[", levels_[i].index, "]");
      } else {
        absl::StrAppend(&path, path.empty() ? "" : ".", Shorten(levels_[i].key));
      }
    }
    return path;
  }

  std::string root_;
  Faults* faults_;
  std::vector<Level> levels_ = std::vector<Level>(1);
  bool too_deep_ = false;
  bool too_many_ = false;
};

// The JSON value of `text`, which stands at `path` of the row ("" for the row itself). Absent, with
// faults, when it does not parse, repeats a key or is too deep.
std::optional<Json> ParseJson(std::string_view text, const std::string& path, Faults* faults) {
  KeyWatch watch(path, faults);
  Faults& out = *faults;
  try {
    Json value = Json::parse(text.begin(), text.end(),
                             [&watch](int depth, Json::parse_event_t event, Json& parsed) {
                               return watch.On(depth, event, parsed);
                             });
    if (out.any() || value.is_discarded()) return std::nullopt;
    return value;
  } catch (const Json::exception& error) {
    out.Add(path, absl::StrCat("is not JSON: ", JsonReason(error.what())));
    return std::nullopt;
  }
}

// A member, or null when it is absent or null.
Json* Member(Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

// Reads the conversations of one row.
class Conversation {
 public:
  explicit Conversation(Faults* faults) : faults_(*faults) {}

  // Appends the messages of `list`, which stands at `path`. `carries_loss` is what assistant turns
  // do when they name no weight; `assistant_only` refuses other roles.
  void Read(Json& list, const std::string& path, bool carries_loss, bool assistant_only) {
    if (!list.is_array()) {
      faults_.Add(path, absl::StrCat("must be a list of messages, found ", Describe(list)));
      return;
    }
    if (list.empty()) {
      faults_.Add(path, "has no messages");
      return;
    }
    for (size_t i = 0; i < list.size(); ++i) {
      ReadMessage(list[i], absl::StrCat(path, "[", i, "]"), carries_loss, assistant_only);
      messages_.push_back(std::move(list[i]));
    }
  }

  void AddAssistant(std::string content) {
    messages_.push_back(Json{{"role", "assistant"}, {"content", std::move(content)}});
    weights_.push_back(1);
  }

  void MoveTo(Row* row) {
    row->messages_json = messages_.dump();
    if (std::find(weights_.begin(), weights_.end(), 0) != weights_.end()) {
      row->weights = std::move(weights_);
    }
    row->called_functions = std::move(called_functions_);
  }

 private:
  void ReadMessage(Json& message, const std::string& path, bool carries_loss, bool assistant_only) {
    weights_.push_back(carries_loss ? 1 : 0);
    if (!message.is_object()) {
      faults_.Add(path, absl::StrCat("must be an object, found ", Describe(message)));
      return;
    }
    const std::string role = ReadRole(message, path, assistant_only);
    ReadKeys(message, path);
    ReadWeight(message, path, role);
    const bool calls = ReadToolCalls(message, path, role);
    ReadContent(message, path, role == "assistant" && calls);
    for (const char* key : {"name", "tool_call_id"}) {
      Json* value = Member(message, key);
      if (value == nullptr) {
        message.erase(key);
      } else if (!value->is_string()) {
        faults_.Add(absl::StrCat(path, ".", key),
                    absl::StrCat("must be a string, found ", Describe(*value)));
      }
    }
  }

  std::string ReadRole(Json& message, const std::string& path, bool assistant_only) {
    static constexpr std::array<const char*, 6> kRoles = {"system",    "developer", "user",
                                                          "assistant", "tool",      "function"};
    const std::string role_path = absl::StrCat(path, ".role");
    const Json* role = Member(message, "role");
    if (role == nullptr) {
      faults_.Add(role_path, "is missing");
      return "";
    }
    if (!role->is_string()) {
      faults_.Add(role_path, absl::StrCat("must be a string, found ", Describe(*role)));
      return "";
    }
    std::string name = role->get<std::string>();
    if (std::find(kRoles.begin(), kRoles.end(), name) == kRoles.end()) {
      faults_.Add(role_path, absl::StrCat("unknown role ", Describe(*role), "; the roles are ",
                                          absl::StrJoin(kRoles, ", ")));
    } else if (assistant_only && name != "assistant") {
      faults_.Add(role_path,
                  absl::StrCat("must be \"assistant\" in a completion, found ", Describe(*role)));
    }
    return name;
  }

  // A misspelt `weight` would silently train what was not meant to be. (A misspelt role or content
  // shows as missing.) Keys that resemble none of ours are for the template.
  void ReadKeys(const Json& message, const std::string& path) {
    static const std::vector<std::string> kKnown = {"weight", "tool_calls", "tool_call_id"};
    for (const auto& [key, value] : message.items()) {
      if (std::find(kKnown.begin(), kKnown.end(), key) != kKnown.end()) continue;
      if (key == "function_call") {
        faults_.Add(absl::StrCat(path, ".function_call"), "is not supported; use tool_calls");
        continue;
      }
      const std::string near = NearestName(key, kKnown);
      if (!near.empty()) {
        faults_.Add(absl::StrCat(path, ".", Shorten(key)),
                    absl::StrCat("unknown field; did you mean \"", near, "\"?"));
      }
    }
  }

  void ReadWeight(Json& message, const std::string& path, const std::string& role) {
    if (const Json* weight = Member(message, "weight")) {
      const std::string weight_path = absl::StrCat(path, ".weight");
      if (!weight->is_number() || (*weight != 0 && *weight != 1)) {
        faults_.Add(weight_path, absl::StrCat("must be 0 or 1, found ", Describe(*weight)));
      } else if (role != "assistant") {
        faults_.Add(weight_path, "only an assistant message has a weight");
      } else {
        weights_.back() = *weight == 1 ? 1 : 0;
      }
    }
    message.erase("weight");
  }

  // True when the message calls functions.
  bool ReadToolCalls(Json& message, const std::string& path, const std::string& role) {
    Json* calls = Member(message, "tool_calls");
    if (calls == nullptr) {
      message.erase("tool_calls");
      return false;
    }
    const std::string calls_path = absl::StrCat(path, ".tool_calls");
    if (role != "assistant") faults_.Add(calls_path, "only an assistant message calls tools");
    if (!calls->is_array()) {
      faults_.Add(calls_path, absl::StrCat("must be a list, found ", Describe(*calls)));
      return true;
    }
    if (calls->empty()) {
      message.erase("tool_calls");
      return false;
    }
    for (size_t i = 0; i < calls->size(); ++i) {
      ReadToolCall((*calls)[i], absl::StrCat(calls_path, "[", i, "]"));
    }
    return true;
  }

  void ReadToolCall(Json& call, const std::string& path) {
    if (!call.is_object()) {
      faults_.Add(path, absl::StrCat("must be an object, found ", Describe(call)));
      return;
    }
    const Json* type = Member(call, "type");
    if (type != nullptr && *type != "function") {
      faults_.Add(absl::StrCat(path, ".type"),
                  absl::StrCat("must be \"function\", found ", Describe(*type)));
    }
    const std::string function_path = absl::StrCat(path, ".function");
    Json* function = Member(call, "function");
    if (function == nullptr || !function->is_object()) {
      faults_.Add(function_path, function == nullptr ? std::string("is missing")
                                                     : absl::StrCat("must be an object, found ",
                                                                    Describe(*function)));
      return;
    }
    const Json* name = Member(*function, "name");
    if (name == nullptr || !name->is_string() || name->get_ref<const std::string&>().empty()) {
      faults_.Add(absl::StrCat(function_path, ".name"), "must be the function's name");
    } else {
      called_functions_.push_back(name->get<std::string>());
    }
    ReadArguments(*function, absl::StrCat(function_path, ".arguments"));
  }

  // OpenAI's form has the arguments as JSON in a string; chat templates want the object.
  void ReadArguments(Json& function, const std::string& path) {
    Json* arguments = Member(function, "arguments");
    if (arguments == nullptr) {
      function["arguments"] = Json::object();
      return;
    }
    if (arguments->is_string()) {
      const std::string text = arguments->get<std::string>();
      if (StripBlanks(text).empty()) {
        *arguments = Json::object();
      } else if (std::optional<Json> parsed = ParseJson(text, path, &faults_)) {
        *arguments = *std::move(parsed);
      } else {
        return;
      }
    }
    if (!arguments->is_object()) {
      faults_.Add(path, absl::StrCat("must be an object, as JSON in a string or as it is, found ",
                                     Describe(*arguments)));
    }
  }

  void ReadContent(Json& message, const std::string& path, bool may_be_absent) {
    const std::string content_path = absl::StrCat(path, ".content");
    Json* content = Member(message, "content");
    if (content == nullptr) {
      if (!may_be_absent) {
        faults_.Add(content_path,
                    message.contains("content")
                        ? "is null; only a message with tool_calls may have no content"
                        : "is missing");
      }
      message["content"] = "";
      return;
    }
    if (content->is_string()) return;
    if (!content->is_array()) {
      faults_.Add(content_path, absl::StrCat("must be a string or a list of text parts, found ",
                                             Describe(*content)));
      return;
    }
    std::string joined;
    for (size_t i = 0; i < content->size(); ++i) {
      Json& part = (*content)[i];
      const std::string part_path = absl::StrCat(content_path, "[", i, "]");
      if (!part.is_object()) {
        faults_.Add(part_path, absl::StrCat("must be an object, found ", Describe(part)));
        continue;
      }
      const Json* type = Member(part, "type");
      const Json* text = Member(part, "text");
      if (type == nullptr || *type != "text") {
        faults_.Add(absl::StrCat(part_path, ".type"),
                    absl::StrCat("only text parts can be trained on, found ",
                                 type == nullptr ? "none" : Describe(*type)));
      } else if (text == nullptr || !text->is_string()) {
        faults_.Add(absl::StrCat(part_path, ".text"), "must be a string");
      } else {
        joined += text->get_ref<const std::string&>();
      }
    }
    *content = std::move(joined);
  }

  Faults& faults_;
  Json messages_ = Json::array();
  std::vector<uint8_t> weights_;
  std::vector<std::string> called_functions_;
};

void ReadTools(Json& row, Row* out, Faults* faults) {
  if (row.contains("functions")) faults->Add("functions", "is not supported; use tools");
  const Json* parallel = Member(row, "parallel_tool_calls");
  if (parallel != nullptr && !parallel->is_boolean()) {
    faults->Add("parallel_tool_calls",
                absl::StrCat("must be true or false, found ", Describe(*parallel)));
  }
  Json* tools = Member(row, "tools");
  if (tools == nullptr) return;
  if (!tools->is_array()) {
    faults->Add("tools", absl::StrCat("must be a list, found ", Describe(*tools)));
    return;
  }
  for (size_t i = 0; i < tools->size(); ++i) {
    Json& tool = (*tools)[i];
    const std::string path = absl::StrCat("tools[", i, "]");
    if (!tool.is_object()) {
      faults->Add(path, absl::StrCat("must be an object, found ", Describe(tool)));
      continue;
    }
    Json* function = Member(tool, "function");
    if (function == nullptr || !function->is_object()) {
      faults->Add(absl::StrCat(path, ".function"), "must be an object");
      continue;
    }
    const Json* name = Member(*function, "name");
    if (name == nullptr || !name->is_string()) {
      faults->Add(absl::StrCat(path, ".function.name"), "must be a string");
    }
  }
  if (!tools->empty()) out->tools_json = tools->dump();
}

// A required string; absent with a fault.
const std::string* ReadString(Json& row, const char* key, Faults* faults) {
  const auto found = row.find(key);
  if (found == row.end()) {
    faults->Add(key, "is missing");
    return nullptr;
  }
  if (!found->is_string()) {
    faults->Add(key, absl::StrCat("must be a string, found ", Describe(*found)));
    return nullptr;
  }
  return &found->get_ref<const std::string&>();
}

void ReadChat(Json& json, Row* row, Faults* faults) {
  const auto found = json.find("messages");
  if (found == json.end()) {
    faults->Add("messages", "is missing");
    return;
  }
  Conversation conversation(faults);
  conversation.Read(*found, "messages", /*carries_loss=*/true, /*assistant_only=*/false);
  ReadTools(json, row, faults);
  if (!faults->any()) conversation.MoveTo(row);
}

void ReadCompletion(Json& json, Row* row, Faults* faults) {
  const auto prompt = json.find("prompt");
  if (prompt == json.end() || !prompt->is_array()) {
    const std::string* prompt_text = ReadString(json, "prompt", faults);
    const std::string* completion = ReadString(json, "completion", faults);
    if (completion != nullptr && completion->empty()) faults->Add("completion", "is empty");
    if (faults->any()) return;
    row->prompt = *prompt_text;
    row->completion = *completion;
    return;
  }
  Conversation conversation(faults);
  conversation.Read(*prompt, "prompt", /*carries_loss=*/false, /*assistant_only=*/false);
  const auto completion = json.find("completion");
  if (completion != json.end() && completion->is_array()) {
    conversation.Read(*completion, "completion", /*carries_loss=*/true, /*assistant_only=*/true);
  } else if (const std::string* text = ReadString(json, "completion", faults)) {
    if (text->empty()) faults->Add("completion", "is empty");
    conversation.AddAssistant(*text);
  }
  ReadTools(json, row, faults);
  if (!faults->any()) conversation.MoveTo(row);
}

// The format that a row's keys show; kAuto, with a fault, when none or several.
RowFormat FindFormat(const Json& json, Faults* faults) {
  std::vector<RowFormat> found;
  if (json.contains("messages")) found.push_back(RowFormat::kChat);
  if (json.contains("completion")) found.push_back(RowFormat::kCompletion);
  if (json.contains("text")) found.push_back(RowFormat::kText);
  // A prompt without a completion is a broken completion row, or one more column of another format.
  if (found.empty() && json.contains("prompt")) found.push_back(RowFormat::kCompletion);
  if (found.size() == 1) return found[0];
  if (found.empty()) {
    std::vector<std::string> keys;
    for (const auto& [key, value] : json.items()) {
      if (keys.size() < 8) keys.push_back(Shorten(key));
    }
    faults->Add("",
                absl::StrCat("has neither `messages`, nor `prompt` and `completion`, nor `text`; "
                             "its keys are: ",
                             keys.empty() ? "none" : absl::StrJoin(keys, ", ")));
  } else {
    std::vector<std::string> names;
    names.reserve(found.size());
    for (const RowFormat format : found) names.push_back(RowFormatName(format));
    faults->Add("", absl::StrCat("could be a row of several formats (", absl::StrJoin(names, ", "),
                                 "); name the file's format"));
  }
  return RowFormat::kAuto;
}

bool IsBlank(std::string_view line) { return StripBlanks(line).empty(); }

bool HasJsonName(const std::filesystem::path& path) {
  const std::string extension = absl::AsciiStrToLower(path.extension().string());
  return extension == ".jsonl" || extension == ".json" || extension == ".ndjson";
}

// Whether a line begins as a JSON object does, which prose hardly ever does.
bool LooksLikeObject(std::string_view line) {
  line = StripBlanks(line);
  if (!line.starts_with('{')) return false;
  line = StripBlanks(line.substr(1));
  return line.starts_with('"') || line.starts_with('}');
}

}  // namespace

std::optional<RowFormat> RowFormatFromName(std::string_view name) {
  if (name.empty()) return RowFormat::kAuto;
  for (const auto& [format, format_name] : kFormats) {
    if (name == format_name) return format;
  }
  return std::nullopt;
}

std::string RowFormatName(RowFormat format) {
  for (const auto& [candidate, name] : kFormats) {
    if (candidate == format) return name;
  }
  return "";
}

bool ParseRow(std::string_view line, const RowPlace& place, RowFormat named, Row* row,
              Violations* violations) {
  *row = Row{};
  row->line = place.line;
  Faults faults(place, violations);
  const size_t invalid = FindInvalidUtf8(line);
  if (invalid != std::string_view::npos) {
    faults.Add("", absl::StrCat("is not UTF-8 (byte ", invalid + 1, " of the line)"));
    return false;
  }
  std::optional<Json> json = ParseJson(line, "", &faults);
  if (!json) return false;
  if (!json->is_object()) {
    faults.Add("", json->is_array() ? "is a JSON list; one object a line is expected"
                                    : "is not a JSON object");
    return false;
  }
  // Found even when the user named a format, so that a row of another one is told as such.
  const bool as_named = (named == RowFormat::kChat && json->contains("messages")) ||
                        (named == RowFormat::kCompletion && json->contains("completion")) ||
                        (named == RowFormat::kText && json->contains("text"));
  row->format = as_named ? named : FindFormat(*json, &faults);
  switch (row->format) {
    case RowFormat::kChat:
      ReadChat(*json, row, &faults);
      break;
    case RowFormat::kCompletion:
      ReadCompletion(*json, row, &faults);
      break;
    case RowFormat::kText:
      if (const std::string* text = ReadString(*json, "text", &faults)) row->text = *text;
      break;
    case RowFormat::kAuto:
    case RowFormat::kBook:
      break;
  }
  return !faults.any();
}

std::optional<RowReader> RowReader::Open(const RowFile& file, Violations* violations) {
  const auto fail = [&](std::string reason, int64_t line) {
    violations->Add(Violation{.field = file.field,
                              .reason = std::move(reason),
                              .file = file.path.string(),
                              .line = line});
    return std::nullopt;
  };
  const auto open = [&] { return LineReader::Open(file.path, file.max_line_bytes); };

  absl::StatusOr<LineReader> probe = open();
  if (!probe.ok()) return fail(std::string(probe.status().message()), 0);
  std::string_view line;
  LineReader::Result result;
  do {
    absl::StatusOr<LineReader::Result> next = probe->Next(&line);
    if (!next.ok()) return fail(std::string(next.status().message()), 0);
    result = *next;
    if (probe->line_number() == 1 && line.starts_with(kByteOrderMark)) {
      line.remove_prefix(kByteOrderMark.size());
    }
  } while (result == LineReader::Result::kLine && IsBlank(line));
  if (result == LineReader::Result::kEnd) return fail("is empty", 0);

  RowFormat format = file.format;
  if (format == RowFormat::kAuto && !HasJsonName(file.path) && !LooksLikeObject(line)) {
    format = RowFormat::kBook;
  }
  // One answer for the file rather than one a line.
  const bool rows = format != RowFormat::kAuto && format != RowFormat::kBook;
  const std::string_view start = StripBlanks(line);
  if (rows && !HasJsonName(file.path) && !start.starts_with('{') && !start.starts_with('[')) {
    return fail(absl::StrCat("is plain text; rows of format ", RowFormatName(format),
                             " are JSON objects, one a line. For the text of a book leave the "
                             "format out, or name book"),
                probe->line_number());
  }
  if (format == RowFormat::kBook && file.format == RowFormat::kAuto &&
      result == LineReader::Result::kTooLong) {
    // Prose in one line, or rows in one line: the start that could tell was not kept.
    return fail(absl::StrCat("the line is longer than ", file.max_line_bytes,
                             " bytes; name the file's format"),
                probe->line_number());
  }
  absl::StatusOr<LineReader> lines = open();
  if (!lines.ok()) return fail(std::string(lines.status().message()), 0);
  return RowReader(file, *std::move(lines), format);
}

bool RowReader::Next(Row* row, Violations* violations) {
  RowPlace place{.field = file_.field, .file = file_.path.string()};
  const auto add = [&](std::string reason) {
    violations->Add(Violation{
        .field = place.field, .reason = std::move(reason), .file = place.file, .line = place.line});
  };
  for (;;) {
    std::string_view line;
    absl::StatusOr<LineReader::Result> result = lines_.Next(&line);
    place.line = lines_.line_number();
    if (!result.ok()) {
      add(std::string(result.status().message()));
      return false;
    }
    if (*result == LineReader::Result::kEnd) return false;
    if (*result == LineReader::Result::kTooLong) {
      ++rows_read_;
      add(absl::StrCat("the line is longer than ", file_.max_line_bytes, " bytes"));
      continue;
    }
    if (place.line == 1 && line.starts_with(kByteOrderMark)) {
      line.remove_prefix(kByteOrderMark.size());
    }
    if (IsBlank(line)) continue;
    ++rows_read_;
    const bool good = ParseRow(line, place, format_, row, violations);
    if (row->format == RowFormat::kAuto) continue;
    if (format_ == RowFormat::kAuto) {
      format_ = row->format;
      format_line_ = place.line;
    }
    if (row->format != format_) {
      add(absl::StrCat("is a ", RowFormatName(row->format), " row in a file of ",
                       RowFormatName(format_), " rows (",
                       format_line_ == 0 ? std::string("the format named for it")
                                         : absl::StrCat("as line ", format_line_, " is"),
                       "); a file has one format"));
      continue;
    }
    if (good) return true;
  }
}

}  // namespace lemo::train
