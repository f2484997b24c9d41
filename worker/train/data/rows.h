// Rows of training files: what a line of a JSONL file may say, and reading them one by one.
//
// Formats: chat      {"messages": [...], "tools": [...], "parallel_tool_calls": bool}, OpenAI's
// form
//          completion {"prompt": "...", "completion": "..."}; a prompt may be a list of messages,
//          then the
//                     completion is a string or a list of assistant messages
//          text      {"text": "..."}
//          book      a plain text file; it has no rows, see book.h
// Other keys of a row are ignored; other keys of a message reach the chat template.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/violations.h"
#include "worker/train/data/line_reader.h"

namespace lemo::train {

enum class RowFormat { kAuto, kChat, kCompletion, kText, kBook };

// `auto`, `chat`, `completion`, `text`, `book`; "" means auto. Absent for another name.
std::optional<RowFormat> RowFormatFromName(std::string_view name);
std::string RowFormatName(RowFormat format);

// One row, checked. Which fields are filled depends on the format.
struct Row {
  RowFormat format = RowFormat::kAuto;
  int64_t line = 0;

  // chat, and completion rows whose prompt is a list of messages: the whole conversation as a JSON
  // array in the form that chat templates expect: contents are strings ("" where a tool call had
  // null), tool-call arguments are objects, weights are taken out.
  std::string messages_json;
  // JSON array, or empty.
  std::string tools_json;
  // One entry a message, 0 where an assistant turn carries no loss; empty when all do.
  std::vector<uint8_t> weights;
  // Names of the functions that assistant turns call.
  std::vector<std::string> called_functions;

  // completion
  std::string prompt, completion;
  // text
  std::string text;
};

// Where a fault is reported to be.
struct RowPlace {
  std::string field;  // in the run spec: data.train[0]
  std::string file;
  int64_t line = 0;
};

// Reads one line. `named` decides when a row could be of several formats; with kAuto such a row is
// a fault. True: `row` is good. False: at least one violation was added; row->format is still set
// when it could be told. Safe on any bytes.
bool ParseRow(std::string_view line, const RowPlace& place, RowFormat named, Row* row,
              Violations* violations);

// A file of rows, opened by the user's name for it.
struct RowFile {
  std::filesystem::path path;
  RowFormat format = RowFormat::kAuto;
  std::string field;  // in the run spec: data.train[0]
  int64_t max_line_bytes = int64_t{64} << 20;
};

// Streams a file. Memory is bounded by the longest line. Not thread-safe.
class RowReader {
 public:
  // Opens the file and finds out whether it is a book or has rows: the first line that is not blank
  // is a JSON object, or the name ends in .jsonl, .json or .ndjson. Absent when the file is no use
  // (absent, no permission, not a file, empty): a violation says why.
  static std::optional<RowReader> Open(const RowFile& file, Violations* violations);

  bool is_book() const { return format_ == RowFormat::kBook; }

  // The next good row; faulty ones are added to `violations` and skipped, so that reading on to the
  // end finds them all. False at the end, or when the file cannot be read on (a violation says so).
  // A row of another format than the rows before it is a fault. Not for books.
  bool Next(Row* row, Violations* violations);

  // Lines read that were not blank, faulty ones included.
  int64_t rows_read() const { return rows_read_; }

 private:
  RowReader(const RowFile& file, LineReader lines, RowFormat format)
      : file_(file), lines_(std::move(lines)), format_(format) {}

  RowFile file_;
  LineReader lines_;
  RowFormat format_;         // kAuto until a row has shown it
  int64_t format_line_ = 0;  // the line that did; 0 when the user did
  int64_t rows_read_ = 0;
};

}  // namespace lemo::train
