// Plain text files as long as one likes, tokenised as one document.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "text/tokenizer.h"

namespace lemo::train {

struct BookOptions {
  // Text that is tokenised at a time, and how much of it the next piece sees again. Memory grows
  // with the window; a smaller overlap makes it likelier that a piece's border shows in the tokens.
  int64_t window_bytes = int64_t{1} << 17;
  int64_t overlap_bytes = int64_t{1} << 13;
};

// Some of the book's tokens, in order, and the line (from 1) that each starts on.
using BookSink =
    std::function<absl::Status(std::span<const int32_t> tokens, std::span<const int64_t> lines)>;

// The file's tokens, without special ones, equal to those of the whole text in one call: a
// tokenizer cannot be asked for the middle of a text, so neighbouring windows overlap, and the cut
// is made in the middle of the longest run of tokens on which both agree. (Cutting the text at
// blanks instead would be right for some pre-tokenizers and wrong for SentencePiece's and for runs
// of blanks.) Should a text be so odd that they agree nowhere, the text is cut there, on the border
// of a token.
//
// A byte order mark at the start is left out. Errors: those of common/files.h; InvalidArgument when
// the text is not UTF-8, with `*fault_line` set to the line; what the sink answers.
absl::Status TokenizeBook(const std::filesystem::path& path, const text::Tokenizer& tokenizer,
                          const BookOptions& options, const BookSink& sink, int64_t* fault_line);

}  // namespace lemo::train
