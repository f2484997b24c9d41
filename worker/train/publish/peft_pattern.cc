#include "worker/train/publish/peft_pattern.h"

#include <regex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace lemo::train {
namespace {

constexpr size_t kKeyLengthMax = 256;

std::regex::flag_type RegexFlags() {
#ifdef __GLIBCXX__
  // libstdc++ backtracks otherwise, which takes exponential time on keys such as (a*)*b.
  return std::regex_constants::ECMAScript | std::regex_constants::__polynomial;
#else
  return std::regex_constants::ECMAScript;
#endif
}

}  // namespace

bool MatchesPeftTarget(const std::string& module, const std::string& target) {
  return module == target || absl::EndsWith(module, absl::StrCat(".", target));
}

bool MatchesPeftPattern(const std::string& module, const std::string& key) {
  // {n} unrolls: a short key could make an automaton too deep for the stack.
  if (key.size() > kKeyLengthMax || key.find('{') != std::string::npos) return false;
  try {
    return std::regex_match(module,
                            std::regex(absl::StrCat("(?:.*\\.)?(?:", key, ")"), RegexFlags()));
  } catch (const std::regex_error&) {
    return false;
  }
}

}  // namespace lemo::train
