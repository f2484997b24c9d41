#include "worker/train/data/counts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace lemo::train {

DataCounts& DataCounts::operator+=(const DataCounts& other) {
  files += other.files;
  files_from_cache += other.files_from_cache;
  rows += other.rows;
  documents += other.documents;
  tokens += other.tokens;
  labels += other.labels;
  longest_document = std::max(longest_document, other.longest_document);
  rows_truncated += other.rows_truncated;
  rows_split += other.rows_split;
  rows_dropped += other.rows_dropped;
  pieces_without_labels += other.pieces_without_labels;
  tokens_lost += other.tokens_lost;
  labels_lost += other.labels_lost;
  rows_with_unrendered_tool_calls += other.rows_with_unrendered_tool_calls;
  for (size_t i = 0; i < length_histogram.size(); ++i) {
    length_histogram[i] += other.length_histogram[i];
  }
  return *this;
}

std::string DataCounts::ToString() const {
  std::string out = absl::StrCat(files, files == 1 ? " file, " : " files, ", rows,
                                 rows == 1 ? " row, " : " rows, ", documents,
                                 documents == 1 ? " document, " : " documents, ", tokens,
                                 " tokens (", labels, " trained), longest ", longest_document);
  const auto add = [&out](int64_t count, const char* what) {
    if (count > 0) absl::StrAppend(&out, "; ", count, " ", what);
  };
  add(rows_truncated, "rows truncated");
  add(rows_split, "rows split");
  add(rows_dropped, "rows dropped");
  add(pieces_without_labels, "pieces without trained tokens left out");
  add(tokens_lost, "tokens lost");
  add(labels_lost, "trained tokens lost");
  add(rows_with_unrendered_tool_calls, "rows whose tool calls the chat template does not show");
  return out;
}

}  // namespace lemo::train
