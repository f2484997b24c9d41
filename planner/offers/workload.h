// The rows of a run: what its mean step computes, and what its largest micro-batch is made of.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/offers/offers.h"

namespace lemo::planner {

// Sums over all documents, cut into pieces of the window's length.
struct Workload {
  int64_t window = 0;
  int64_t rows = 0;       // of the data
  double pairs = 0;       // of a row and one that it sees, where all are computed
  int64_t sequences = 0;  // that they make
  // Of each layer, added up over the data.
  std::vector<LayerRows> layers;
  int64_t head_rows = 0;   // rows of the stream that the head sees and that carry loss
  double scored_rows = 0;  // that choices of rows look at
  // Of choices by true scores: rows of queries and keys, and pairs of them; and what passes through
  // whole layers to get there.
  double score_rows = 0, score_pairs = 0;
  LayerRows passed;
  double kept_share = 1;          // of the rows of the request's own window
  std::vector<double> most_kept;  // share of a document's rows, by layer
  std::vector<double> least_kept;
  std::vector<int64_t> longest;  // rows of the longest document, longest first, with repetitions
  std::vector<int64_t> longest_kept;  // by layer, of the longest document
};

// `choice` null for all rows.
Workload WorkloadOf(const OfferRequest& request, int64_t window, const TokenChoice* choice);

// Rows of the largest micro-batch where it may have those of `sequences` whole windows.
int64_t MostRows(const OfferRequest& request, const Workload& workload, int64_t sequences);

// The layers of that micro-batch, stored in the fastest way.
std::vector<LayerMemory> LargestLayers(const OfferRequest& request, const Workload& workload,
                                       const TokenChoice* choice, int64_t rows);

}  // namespace lemo::planner
