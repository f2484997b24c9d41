#include "worker/train/data/book.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <string_view>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/train/data/utf8.h"

namespace lemo::train {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

struct Token {
  int32_t id = 0;
  int64_t begin = 0;  // bytes of the book
  int64_t end = 0;
  bool operator==(const Token&) const = default;
};

// Where to go from `left` to `right`: left[0, first) and right[second, end) make the whole. Both
// cover the same stretch of text. False when they agree nowhere.
bool FindCut(const std::vector<Token>& left, const std::vector<Token>& right, size_t* first,
             size_t* second) {
  size_t best_run = 0;
  size_t run = 0;
  for (size_t i = 0, j = 0; i < left.size() && j < right.size();) {
    if (left[i] == right[j]) {
      ++run, ++i, ++j;
      if (run > best_run) {
        best_run = run;
        *first = i - (run + 1) / 2;
        *second = j - (run + 1) / 2;
      }
      continue;
    }
    run = 0;
    const int64_t left_begin = left[i].begin;
    const int64_t right_begin = right[j].begin;
    if (left_begin <= right_begin) ++i;
    if (right_begin <= left_begin) ++j;
  }
  return best_run > 0;
}

class BookTokenizer {
 public:
  BookTokenizer(int fd, const std::filesystem::path& path, const text::Tokenizer& tokenizer,
                const BookOptions& options, const BookSink& sink, int64_t* fault_line)
      : fd_(fd),
        path_(path),
        tokenizer_(tokenizer),
        options_(options),
        sink_(sink),
        fault_line_(fault_line) {}

  absl::Status Run() {
    for (;;) {
      LEMO_RETURN_IF_ERROR(Fill());
      LEMO_ASSIGN_OR_RETURN(std::vector<Token> tokens, EncodeWindow());
      size_t keep_pending = 0, skip = 0;
      if (!pending_.empty() && !FindCut(pending_, tokens, &keep_pending, &skip)) {
        // Go on from the end of the last token, as if the book began there.
        const int64_t end = pending_.back().end;
        LEMO_RETURN_IF_ERROR(Emit(pending_, pending_.size()));
        pending_.clear();
        LEMO_RETURN_IF_ERROR(DropUpTo(end));
        if (at_end_ && window_.empty()) return absl::OkStatus();
        continue;
      }
      LEMO_RETURN_IF_ERROR(Emit(pending_, keep_pending));
      tokens.erase(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(skip));
      if (at_end_) return Emit(tokens, tokens.size());

      int64_t overlap = base_ + static_cast<int64_t>(window_.size()) - options_.overlap_bytes;
      while (overlap > base_ && IsContinuation(overlap)) --overlap;
      const auto in_overlap = std::find_if(
          tokens.begin(), tokens.end(), [&](const Token& token) { return token.begin >= overlap; });
      LEMO_RETURN_IF_ERROR(Emit(tokens, static_cast<size_t>(in_overlap - tokens.begin())));
      pending_.assign(in_overlap, tokens.end());
      // Where one long token covers the overlap there is nothing to agree on.
      const bool covered = pending_.empty() && !tokens.empty();
      LEMO_RETURN_IF_ERROR(DropUpTo(covered ? std::max(overlap, tokens.back().end) : overlap));
    }
  }

 private:
  bool IsContinuation(int64_t at) const {
    return (static_cast<unsigned char>(window_[static_cast<size_t>(at - base_)]) & 0xC0) == 0x80;
  }

  // Reads until the window is full or the file ends, and checks what is new. A character that the
  // window's end cuts waits in `cut_`.
  absl::Status Fill() {
    const size_t had = window_.size();
    window_ += cut_;
    cut_.clear();
    const auto want = static_cast<size_t>(options_.window_bytes);
    while (window_.size() < want && !at_end_) {
      const size_t used = window_.size();
      window_.resize(want);
      ssize_t got;
      do {
        got = ::read(fd_, window_.data() + used, want - used);
      } while (got < 0 && errno == EINTR);
      window_.resize(used + (got > 0 ? static_cast<size_t>(got) : 0));
      if (got < 0) return ErrnoStatus(errno, "read", path_);
      at_end_ = got == 0;
    }
    if (first_ && window_.starts_with(kByteOrderMark)) window_.erase(0, kByteOrderMark.size());
    first_ = false;
    if (!at_end_) {
      const size_t whole = WholeUtf8Prefix(window_);
      cut_ = window_.substr(whole);
      window_.resize(whole);
    }
    const size_t from = std::min(had, window_.size());
    const size_t invalid = FindInvalidUtf8(std::string_view(window_).substr(from));
    if (invalid == std::string_view::npos) return absl::OkStatus();
    const auto end = window_.begin() + static_cast<ptrdiff_t>(from + invalid);
    const int64_t line = line_ + std::count(window_.begin() + (line_at_ - base_), end, '\n');
    *fault_line_ = line;
    return absl::InvalidArgumentError("is not UTF-8");
  }

  absl::StatusOr<std::vector<Token>> EncodeWindow() const {
    LEMO_ASSIGN_OR_RETURN(const text::Encoding encoding,
                          tokenizer_.Encode(window_, /*add_special_tokens=*/false));
    std::vector<Token> tokens(encoding.ids.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = {encoding.ids[i], base_ + encoding.offsets[i].begin,
                   base_ + encoding.offsets[i].end};
    }
    return tokens;
  }

  // Gives out the first `count` tokens, all of which lie in the window.
  absl::Status Emit(const std::vector<Token>& tokens, size_t count) {
    std::vector<int32_t> ids(count);
    std::vector<int64_t> lines(count);
    for (size_t i = 0; i < count; ++i) {
      ids[i] = tokens[i].id;
      AdvanceLine(tokens[i].begin);
      lines[i] = line_;
    }
    return count == 0 ? absl::OkStatus() : sink_(ids, lines);
  }

  void AdvanceLine(int64_t to) {
    if (to <= line_at_) return;
    line_ += std::count(window_.begin() + (line_at_ - base_), window_.begin() + (to - base_), '\n');
    line_at_ = to;
  }

  // Forgets the text before byte `at`.
  absl::Status DropUpTo(int64_t at) {
    if (at <= base_) return absl::InternalError("a window of a book made no headway");
    AdvanceLine(at);
    window_.erase(0, static_cast<size_t>(at - base_));
    base_ = at;
    return absl::OkStatus();
  }

  int fd_;
  const std::filesystem::path& path_;
  const text::Tokenizer& tokenizer_;
  const BookOptions options_;
  const BookSink& sink_;
  int64_t* fault_line_;

  std::string window_;
  std::string cut_;
  int64_t base_ = 0;  // byte of the book that the window starts at
  bool first_ = true;
  bool at_end_ = false;
  // Tokens of the window before this one that lie in the overlap and were not given out yet.
  std::vector<Token> pending_;
  int64_t line_ = 1;     // of byte line_at_
  int64_t line_at_ = 0;  // not before base_
};

}  // namespace

absl::Status TokenizeBook(const std::filesystem::path& path, const text::Tokenizer& tokenizer,
                          const BookOptions& options, const BookSink& sink, int64_t* fault_line) {
  *fault_line = 0;
  if (options.overlap_bytes < 8 || options.window_bytes < 4 * options.overlap_bytes) {
    return absl::InvalidArgumentError("a book's window must be at least 4 overlaps of 8 bytes");
  }
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open", path);
  absl::Cleanup close = [fd] { ::close(fd); };
  return BookTokenizer(fd, path, tokenizer, options, sink, fault_line).Run();
}

}  // namespace lemo::train
