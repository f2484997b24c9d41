#include "worker/train/data/split.h"

#include <utility>

namespace lemo::train {

std::vector<DocumentRange> SplitDocuments(std::span<const int32_t> document_starts, int64_t rows) {
  std::vector<DocumentRange> parts;
  for (size_t d = 0; d + 1 < document_starts.size(); ++d) {
    const auto number = static_cast<int64_t>(d);
    if (parts.empty() || document_starts[d + 1] - document_starts[parts.back().first] > rows) {
      parts.push_back({number, number});
    }
    parts.back().last = number + 1;
  }
  return parts;
}

MicroBatch PartOf(const MicroBatch& batch, const DocumentRange& documents) {
  const int32_t begin = batch.document_starts[documents.first];
  const int32_t end = batch.document_starts[documents.last];
  MicroBatch part;
  part.tokens.assign(batch.tokens.begin() + begin, batch.tokens.begin() + end);
  part.labels.assign(batch.labels.begin() + begin, batch.labels.begin() + end);
  part.positions.assign(batch.positions.begin() + begin, batch.positions.begin() + end);
  for (int64_t d = documents.first; d <= documents.last; ++d) {
    part.document_starts.push_back(batch.document_starts[d] - begin);
  }
  for (const auto& [from, to] : {std::pair(&batch.document_rows, &part.document_rows),
                                 std::pair(&batch.document_places, &part.document_places)}) {
    if (from->empty()) continue;
    to->assign(from->begin() + documents.first, from->begin() + documents.last);
  }
  return part;
}

}  // namespace lemo::train
