#include "worker/train/loop/rehearsal.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace lemo::train {
namespace {

void KeepLargest(Batch* batch) {
  std::vector<MicroBatch>& parts = batch->micro_batches;
  if (parts.empty()) return;
  const auto most = [&parts](auto rows_of) {
    return std::max_element(parts.begin(), parts.end(),
                            [&](const auto& a, const auto& b) { return rows_of(a) < rows_of(b); }) -
           parts.begin();
  };
  const auto largest = most([](const MicroBatch& part) { return part.rows(); });
  const auto longest = most(LongestDocument);
  const bool one = LongestDocument(parts[largest]) == LongestDocument(parts[longest]);
  std::vector<MicroBatch> kept = {std::move(parts[largest])};
  if (!one) kept.push_back(std::move(parts[longest]));
  parts = std::move(kept);
}

}  // namespace

int64_t LongestDocument(const MicroBatch& batch) {
  int64_t longest = 0;
  for (size_t d = 0; d + 1 < batch.document_starts.size(); ++d) {
    longest = std::max<int64_t>(longest, batch.document_starts[d + 1] - batch.document_starts[d]);
  }
  return longest;
}

std::vector<Rehearsal> RehearsalsOf(const BatchStream& stream, const TokenSettings& tokens,
                                    int64_t step, int64_t steps, double keep_least) {
  // A step of all rows counts more than one that drops most of them.
  const auto weight = [&](int64_t index) {
    const std::vector<double> shares =
        tokens.Raised(tokens.KeepAt(step + index, steps), keep_least);
    return std::accumulate(shares.begin(), shares.end(), 0.0) / static_cast<double>(shares.size());
  };
  std::vector<Rehearsal> rehearsals;
  for (BatchStream::BatchAhead& ahead : stream.LargestAhead(steps - step, weight)) {
    KeepLargest(&ahead.batch);
    rehearsals.push_back({step + ahead.index, std::move(ahead.batch)});
  }
  return rehearsals;
}

}  // namespace lemo::train
