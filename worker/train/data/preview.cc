#include "worker/train/data/preview.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

// Text from a file must not steer the terminal.
std::string Printable(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7F) {
      absl::StrAppendFormat(&out, "\\x%02X", byte);
    } else {
      out += c;
    }
  }
  return out;
}

size_t CommonPrefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(std::min(a.size(), b.size())),
                    b.begin())
          .first -
      a.begin());
}

// Decoders treat the start of what they are given in a special way, so a run's text is what
// decoding it along with all before it adds.
absl::StatusOr<std::string> MarkTrained(const Document& document, size_t shown,
                                        const text::ModelText& text,
                                        const PreviewOptions& options) {
  std::string out;
  std::string before;
  for (size_t begin = 0; begin < shown;) {
    const bool trained = document.trained[begin] != 0;
    size_t end = begin;
    while (end < shown && (document.trained[end] != 0) == trained) ++end;
    const std::vector<int32_t> ids(document.tokens.begin(),
                                   document.tokens.begin() + static_cast<ptrdiff_t>(end));
    LEMO_ASSIGN_OR_RETURN(std::string whole,
                          text.tokenizer().Decode(ids, /*skip_special_tokens=*/false));
    const std::string run = Printable(std::string_view(whole).substr(CommonPrefix(before, whole)));
    if (!trained) {
      out += run;
    } else if (options.colour) {
      absl::StrAppend(&out, "\x1b[32m", run, "\x1b[0m");
    } else {
      absl::StrAppend(&out, "[[", run, "]]");
    }
    before = std::move(whole);
    begin = end;
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> PreviewRows(const Dataset& data, const text::ModelText& text,
                                        const PreviewOptions& options) {
  std::string out;
  for (int64_t i = 0; i < std::min(options.rows, data.rows()); ++i) {
    const Document document = data.row(i);
    const int64_t tokens = static_cast<int64_t>(document.tokens.size());
    const int64_t shown = std::min(tokens, options.max_tokens);
    absl::StrAppend(&out, "--- ", data.path(document.file), ":", document.line, ": ", tokens,
                    " tokens, ", document.labels, " trained\n");
    LEMO_ASSIGN_OR_RETURN(const std::string marked,
                          MarkTrained(document, static_cast<size_t>(shown), text, options));
    absl::StrAppend(&out, marked, "\n");
    if (shown < tokens) absl::StrAppend(&out, "... and ", tokens - shown, " more tokens\n");
  }
  return out;
}

}  // namespace lemo::train
