// What became of the rows of the data: for the report, so that nothing is dropped in silence.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace lemo::train {

// Plain numbers only: it is stored in the token cache as it is. A document is what is trained on as
// one: a row, or a piece of a row that was split. A label is a position that carries loss.
struct DataCounts {
  int64_t files = 0;
  int64_t files_from_cache = 0;  // tokenised in an earlier run
  int64_t rows = 0;              // a book is one row
  int64_t documents = 0;
  int64_t tokens = 0;  // of the documents
  int64_t labels = 0;  // of the documents
  int64_t longest_document = 0;

  // What data.overlong did.
  int64_t rows_truncated = 0;
  int64_t rows_split = 0;
  int64_t rows_dropped = 0;
  int64_t pieces_without_labels = 0;  // pieces of split rows that were left out
  int64_t tokens_lost = 0;            // of rows truncated, dropped, and of pieces left out
  int64_t labels_lost = 0;            // the same, and the first token of each further piece

  // Rows whose tool calls the chat template leaves out, so that nothing is learnt from them.
  int64_t rows_with_unrendered_tool_calls = 0;

  // [k]: documents of 2^k up to 2^(k+1) - 1 tokens.
  std::array<int64_t, 32> length_histogram = {};

  DataCounts& operator+=(const DataCounts& other);
  // For people: one line, only what is not zero beyond the first few numbers.
  std::string ToString() const;
};

}  // namespace lemo::train
