// Which rank of a data-parallel gang trains on which sequence of a batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lemo::train {

// What a sequence costs, in rows: its rows, and for attention the square of each document's length
// over `attention_length`, the length at which attention costs a row as much as all else does (0:
// never).
double SequenceCost(std::span<const int64_t> document_lengths, double attention_length);

// The share of each sequence, so that the dearest share is not dear: the dearest sequence first, to
// the share that has least (Graham's LPT: at most 4/3 of the best division). Depends on the
// arguments alone, so that all ranks come to one answer. Shares may be empty.
std::vector<int> ShareOut(std::span<const double> costs, int shares);

}  // namespace lemo::train
