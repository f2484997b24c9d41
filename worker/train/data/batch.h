// What one step trains on, as plain integers: no padding anywhere, documents lie one after another.
#pragma once

#include <cstdint>
#include <vector>

namespace lemo::train {

// Label of a row that carries no loss.
inline constexpr int32_t kIgnoreLabel = -100;

// The rows of one forward and backward pass. The first three vectors have one entry a row.
struct MicroBatch {
  std::vector<int32_t> tokens;
  // The token that the row must predict: the next token of the same document where that token is
  // trained, else kIgnoreLabel. The last row of a document is always kIgnoreLabel.
  std::vector<int32_t> labels;
  // Position in the document: 0, 1, 2, ... from its first row on, but for a training stream that
  // skips some (PositionSkip), where it still ascends.
  std::vector<int32_t> positions;
  // First row of every document, and the number of rows at the end: attention stays inside.
  std::vector<int32_t> document_starts;
  // Number of every document in its data set; empty where nobody needs to know.
  std::vector<int64_t> document_rows;
  // Where every document begins in the effective batch, counted in rows: the name of a row that no
  // division of the batch changes, which random draws go by. Empty in evaluation.
  std::vector<int64_t> document_places;

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

// One optimizer step's worth (the effective batch). The counts are those of the whole batch, the
// micro-batches those of this rank's share, which may be none.
struct Batch {
  std::vector<MicroBatch> micro_batches;
  int64_t rounds = 0;  // the most micro-batches that a share has
  int64_t sequences = 0;
  int64_t tokens = 0;
  int64_t labelled_tokens = 0;
};

// Where a data stream stands; everything it needs to go on exactly there. Part of a checkpoint.
struct DataCursor {
  int64_t epoch = 0;     // passes over the data finished
  int64_t sequence = 0;  // sequences of this epoch already given out
};

}  // namespace lemo::train
