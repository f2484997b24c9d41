#include "coordinator/store/job_filter.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "common/violations.h"

namespace lemo::coordinator {
namespace {

constexpr size_t kFilterBytesMax = 4096;
constexpr size_t kTermsMax = 32;
constexpr char kFields[] = "state, display_name, labels.KEY, create_time";

struct Token {
  std::string text;
  bool quoted = false;
  size_t begin = 0;  // bytes of the filter
  size_t end = 0;

  bool Is(std::string_view word) const { return !quoted && text == word; }
};

bool IsOperatorByte(char c) { return c == '=' || c == '<' || c == '>' || c == '!' || c == ':'; }

absl::Status Fault(std::string_view where, std::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(
      "filter: ", absl::Utf8SafeCEscape(std::string(where)), ": ", std::string(reason)));
}

// Words, quoted texts and operators.
absl::StatusOr<std::vector<Token>> Tokenize(const std::string& text) {
  std::vector<Token> tokens;
  size_t i = 0;
  while (i < text.size()) {
    if (absl::ascii_isspace(static_cast<unsigned char>(text[i]))) {
      ++i;
      continue;
    }
    Token token;
    token.begin = i;
    if (text[i] == '"') {
      token.quoted = true;
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] == '\\' && i + 1 < text.size()) ++i;
        token.text += text[i];
      }
      if (i == text.size()) {
        return Fault(std::string_view(text).substr(token.begin), "the quote is not closed");
      }
      ++i;
    } else if (IsOperatorByte(text[i])) {
      while (i < text.size() && IsOperatorByte(text[i])) token.text += text[i++];
    } else {
      while (i < text.size() && text[i] != '"' && !IsOperatorByte(text[i]) &&
             !absl::ascii_isspace(static_cast<unsigned char>(text[i]))) {
        token.text += text[i++];
      }
      // Times have colons, and may be written without quotes after an operator.
      const bool value =
          !tokens.empty() && !tokens.back().quoted && IsOperatorByte(tokens.back().text[0]);
      while (value && i < text.size() && text[i] != '"' &&
             !absl::ascii_isspace(static_cast<unsigned char>(text[i]))) {
        token.text += text[i++];
      }
    }
    token.end = i;
    tokens.push_back(std::move(token));
  }
  return tokens;
}

class Parser {
 public:
  Parser(const std::string& text, std::vector<Token> tokens)
      : text_(text), tokens_(std::move(tokens)) {}

  absl::StatusOr<JobFilter> Parse() {
    if (tokens_.empty()) return JobFilter();
    for (size_t terms = 1;; ++terms) {
      if (terms > kTermsMax) {
        return Fault("all of it", absl::StrCat("more than ", kTermsMax, " terms"));
      }
      LEMO_RETURN_IF_ERROR(Term());
      if (next_ == tokens_.size()) break;
      if (!tokens_[next_].Is("AND")) {
        return Fault(Tail(next_),
                     tokens_[next_].Is("OR") ? "OR joins states only" : "expected AND before this");
      }
      ++next_;
    }
    for (auto& [key, value] : labels_) filter_.labels.emplace_back(key, std::move(value));
    return std::move(filter_);
  }

 private:
  struct Condition {
    std::string field;  // `labels` for labels
    std::string key;    // of a label
    std::string op;
    std::string value;
    std::string text;  // as written
  };

  std::string_view Tail(size_t token) const {
    return std::string_view(text_).substr(tokens_[token].begin);
  }

  absl::StatusOr<Condition> ReadCondition() {
    if (next_ == tokens_.size()) return Fault("the end", "expected a term after AND or OR");
    const size_t first = next_;
    Condition condition;
    condition.field = tokens_[next_++].text;
    if (condition.field.rfind("labels.", 0) == 0 && !tokens_[first].quoted) {
      condition.key = condition.field.substr(7);
      condition.field = "labels";
      const bool quoted_key = condition.key.empty() && next_ < tokens_.size() &&
                              tokens_[next_].quoted && tokens_[next_].begin == tokens_[first].end;
      if (quoted_key) condition.key = tokens_[next_++].text;
      if (condition.key.empty()) return Fault(Tail(first), "expected a key after `labels.`");
    }
    if (next_ == tokens_.size() || tokens_[next_].quoted ||
        !IsOperatorByte(tokens_[next_].text[0])) {
      return Fault(Tail(first), "expected an operator after the field, as in `state = RUNNING`");
    }
    condition.op = tokens_[next_++].text;
    if (next_ == tokens_.size() || tokens_[next_].Is("AND") || tokens_[next_].Is("OR")) {
      return Fault(Tail(first), "expected a value after the operator");
    }
    condition.value = tokens_[next_].text;
    condition.text = text_.substr(tokens_[first].begin, tokens_[next_].end - tokens_[first].begin);
    ++next_;
    return condition;
  }

  absl::Status Term() {
    LEMO_ASSIGN_OR_RETURN(const Condition condition, ReadCondition());
    if (condition.field == "state") return States(condition);
    if (condition.field == "create_time") return CreateTime(condition);
    if (condition.field != "display_name" && condition.field != "labels") {
      return Fault(condition.text,
                   absl::StrCat("unknown field `", absl::Utf8SafeCEscape(condition.field),
                                "`; there are ", kFields));
    }
    if (condition.op != "=") return WrongOperator(condition, "=");
    if (condition.field == "labels") {
      const auto [found, added] = labels_.emplace(condition.key, condition.value);
      if (added || found->second == condition.value) return absl::OkStatus();
      return Fault(condition.text, "the label has another value in an earlier term");
    }
    if (filter_.display_name && *filter_.display_name != condition.value) {
      return Fault(condition.text, "the name is another one in an earlier term");
    }
    filter_.display_name = condition.value;
    return absl::OkStatus();
  }

  absl::Status WrongOperator(const Condition& condition, std::string_view right) {
    return Fault(condition.text, absl::StrCat("the operator `", condition.op, "` does not go with ",
                                              condition.field, "; use ", std::string(right)));
  }

  // `first` and what OR joins to it.
  absl::Status States(const Condition& first) {
    if (!filter_.states.empty()) {
      return Fault(first.text, "a job has one state; join states with OR");
    }
    LEMO_RETURN_IF_ERROR(AddState(first));
    while (next_ < tokens_.size() && tokens_[next_].Is("OR")) {
      ++next_;
      LEMO_ASSIGN_OR_RETURN(const Condition other, ReadCondition());
      if (other.field != "state") return Fault(other.text, "OR joins states only");
      LEMO_RETURN_IF_ERROR(AddState(other));
    }
    return absl::OkStatus();
  }

  absl::Status AddState(const Condition& condition) {
    if (condition.op != "=") return WrongOperator(condition, "=");
    lemo::v1::Job::State state;
    if (lemo::v1::Job::State_Parse(absl::AsciiStrToUpper(condition.value), &state) &&
        state != lemo::v1::Job::STATE_UNSPECIFIED) {
      if (std::find(filter_.states.begin(), filter_.states.end(), state) == filter_.states.end()) {
        filter_.states.push_back(state);
      }
      return absl::OkStatus();
    }
    std::vector<std::string> names;
    for (int i = 1; i <= lemo::v1::Job::State_MAX; ++i) {
      names.push_back(lemo::v1::Job::State_Name(i));
    }
    const std::string nearest = NearestName(absl::AsciiStrToUpper(condition.value), names);
    return Fault(condition.text,
                 absl::StrCat("no such state", nearest.empty() ? "" : "; did you mean ", nearest));
  }

  absl::Status CreateTime(const Condition& condition) {
    absl::Time time;
    std::string error;
    // RFC 3339 only: without the zone, or `infinite-future`, is not what the caller means.
    if (condition.value.empty() || !absl::ascii_isdigit(condition.value[0]) ||
        !absl::ParseTime(absl::RFC3339_full, condition.value, &time, &error)) {
      return Fault(condition.text, "expected a time such as \"2026-01-31T12:00:00Z\"");
    }
    // Stored times are whole nanoseconds, so "not before" is "after the nanosecond before".
    if (condition.op == ">") {
      filter_.created_after = std::max(filter_.created_after, time);
    } else if (condition.op == ">=") {
      filter_.created_after = std::max(filter_.created_after, time - absl::Nanoseconds(1));
    } else if (condition.op == "<") {
      filter_.created_before = std::min(filter_.created_before, time);
    } else if (condition.op == "<=") {
      filter_.created_before = std::min(filter_.created_before, time + absl::Nanoseconds(1));
    } else {
      return WrongOperator(condition, ">, >=, < or <=");
    }
    return absl::OkStatus();
  }

  const std::string& text_;
  const std::vector<Token> tokens_;
  size_t next_ = 0;
  JobFilter filter_;
  std::map<std::string, std::string> labels_;
};

}  // namespace

absl::StatusOr<JobFilter> ParseJobFilter(const std::string& text) {
  if (text.size() > kFilterBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("filter: longer than ", kFilterBytesMax, " bytes"));
  }
  LEMO_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(text));
  return Parser(text, std::move(tokens)).Parse();
}

absl::StatusOr<bool> ParseJobOrder(const std::string& text) {
  const std::vector<std::string> words =
      absl::StrSplit(text, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (words.empty() || words == std::vector<std::string>{"create_time", "desc"}) return true;
  if (words == std::vector<std::string>{"create_time"} ||
      words == std::vector<std::string>{"create_time", "asc"}) {
    return false;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("order_by: `", absl::Utf8SafeCEscape(text),
                   "`: expected `create_time` or `create_time desc`"));
}

}  // namespace lemo::coordinator
