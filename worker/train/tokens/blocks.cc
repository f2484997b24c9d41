#include "worker/train/tokens/blocks.h"

#include <algorithm>

namespace lemo::train {

BlockLayout MakeBlocks(std::span<const int32_t> document_starts, int64_t block_rows) {
  BlockLayout layout;
  for (size_t i = 0; i + 1 < document_starts.size(); ++i) {
    layout.documents.push_back(static_cast<int32_t>(layout.starts.size()));
    for (int64_t row = document_starts[i]; row < document_starts[i + 1]; row += block_rows) {
      layout.starts.push_back(static_cast<int32_t>(row));
    }
  }
  layout.documents.push_back(static_cast<int32_t>(layout.starts.size()));
  layout.starts.push_back(document_starts.empty() ? 0 : document_starts.back());
  return layout;
}

BlockLayout KeepBlocks(const BlockLayout& blocks, const BlockMask& kept) {
  BlockLayout layout;
  int32_t rows = 0;
  for (size_t i = 0; i + 1 < blocks.documents.size(); ++i) {
    const auto first = static_cast<int32_t>(layout.starts.size());
    for (int32_t n = blocks.documents[i]; n < blocks.documents[i + 1]; ++n) {
      if (!kept[n]) continue;
      layout.starts.push_back(rows);
      rows += static_cast<int32_t>(blocks.rows_of(n));
    }
    if (static_cast<int32_t>(layout.starts.size()) > first) layout.documents.push_back(first);
  }
  layout.documents.push_back(static_cast<int32_t>(layout.starts.size()));
  layout.starts.push_back(rows);
  return layout;
}

BlockMask Others(const BlockMask& kept) {
  BlockMask others(kept.size());
  std::transform(kept.begin(), kept.end(), others.begin(), [](uint8_t k) { return k ? 0 : 1; });
  return others;
}

std::vector<int32_t> RowsOf(const BlockLayout& blocks, const BlockMask& kept) {
  std::vector<int32_t> rows;
  rows.reserve(CountRows(blocks, kept));
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    if (!kept[n]) continue;
    for (int32_t row = blocks.starts[n]; row < blocks.starts[n + 1]; ++row) rows.push_back(row);
  }
  return rows;
}

int64_t CountRows(const BlockLayout& blocks, const BlockMask& kept) {
  int64_t rows = 0;
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    if (kept[n]) rows += blocks.rows_of(n);
  }
  return rows;
}

std::vector<int64_t> CountRows(const BlockLayout& blocks, const BlockMask& kept,
                               std::span<const int64_t> bounds) {
  std::vector<int64_t> counts(bounds.size() - 1, 0);
  size_t part = 0;
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    for (int64_t row = blocks.starts[n]; row < blocks.starts[n + 1];) {
      while (bounds[part + 1] <= row) ++part;
      const int64_t end = std::min<int64_t>(blocks.starts[n + 1], bounds[part + 1]);
      if (kept[n]) counts[part] += end - row;
      row = end;
    }
  }
  return counts;
}

}  // namespace lemo::train
