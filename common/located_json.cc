#include "common/located_json.h"

#include <cstddef>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lemo {
namespace {

constexpr size_t kMaxDepth = 64;

// Tells the handler below how far the parser has read: SAX callbacks carry no position.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, const char** consumed) : at_(at), consumed_(consumed) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    *consumed_ = ++at_;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** consumed_;
};

class TreeBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  TreeBuilder(const char* begin, const char* const* consumed)
      : counted_to_(begin), consumed_(consumed) {}

  bool null() override { return AddScalar(nullptr); }
  bool boolean(bool value) override { return AddScalar(value); }
  bool number_integer(number_integer_t value) override { return AddScalar(value); }
  bool number_unsigned(number_unsigned_t value) override { return AddScalar(value); }
  bool number_float(number_float_t value, const string_t&) override { return AddScalar(value); }
  bool string(string_t& value) override { return AddScalar(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return Open(LocatedJson::Kind::kObject); }
  bool start_array(std::size_t) override { return Open(LocatedJson::Kind::kArray); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& value) override {
    key_ = std::move(value);
    return true;
  }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 3, column 5: the reason"
    std::string_view reason = error.what();
    if (const size_t end = reason.find("] "); end != reason.npos) reason.remove_prefix(end + 2);
    if (reason.substr(0, 11) == "parse error") {
      if (const size_t end = reason.find(": "); end != reason.npos) reason.remove_prefix(end + 2);
    }
    // It quotes the text.
    fault_ = {Line(), absl::StrCat("not valid JSON: ", ReplaceInvalidUtf8(std::string(reason)))};
    return false;
  }

  LocatedJson TakeRoot() { return std::move(root_); }
  JsonFault TakeFault() { return std::move(fault_); }

 private:
  // The parser stands right behind the current token, or one character further after a number. A
  // token never ends with a newline, so a newline just read belongs to what follows.
  int64_t Line() {
    const char* end = *consumed_;
    if (end > counted_to_ && end[-1] == '\n') --end;
    for (; counted_to_ < end; ++counted_to_) {
      if (*counted_to_ == '\n') ++line_;
    }
    return line_;
  }

  LocatedJson* Add(LocatedJson node) {
    node.line = Line();
    node.key = std::exchange(key_, {});
    if (open_.empty()) {
      root_ = std::move(node);
      return &root_;
    }
    // Pointers in `open_` stay good: only the innermost open node gets children.
    open_.back()->children.push_back(std::move(node));
    return &open_.back()->children.back();
  }

  bool AddScalar(nlohmann::json value) {
    LocatedJson node;
    node.scalar = std::move(value);
    Add(std::move(node));
    return true;
  }

  bool Open(LocatedJson::Kind kind) {
    if (open_.size() == kMaxDepth) {
      fault_ = {Line(), absl::StrCat("nested deeper than ", kMaxDepth, " levels")};
      return false;
    }
    LocatedJson node;
    node.kind = kind;
    open_.push_back(Add(std::move(node)));
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  const char* counted_to_;
  const char* const* consumed_;
  int64_t line_ = 1;
  std::string key_;
  LocatedJson root_;
  std::vector<LocatedJson*> open_;
  JsonFault fault_;
};

}  // namespace

bool IsUtf8(const std::string& text) {
  try {
    nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

std::string ReplaceInvalidUtf8(const std::string& text) {
  const std::string json =
      nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return nlohmann::json::parse(json).get<std::string>();
}

std::optional<LocatedJson> ParseLocatedJson(std::string_view text, JsonFault* fault) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  const char* consumed = begin;
  TreeBuilder builder(begin, &consumed);
  if (!nlohmann::json::sax_parse(CountingIterator(begin, &consumed),
                                 CountingIterator(end, &consumed), &builder)) {
    *fault = builder.TakeFault();
    return std::nullopt;
  }
  return builder.TakeRoot();
}

}  // namespace lemo
