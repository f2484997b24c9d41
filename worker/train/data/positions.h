// Positions of a document with gaps: training on positional skips (PoSE, arXiv 2309.10400).
//
// A model learns the positions of a long window from windows of a short one: a document keeps its
// text, and its parts are told to lie apart. Distances within a part are true ones, those between
// parts are any that the long window has. (Parts that were really so far apart would be chunks of a
// longer document; that is token sparsity in scope `stack`.)
#pragma once

#include <cstdint>
#include <vector>

namespace lemo::train {

struct PositionSkip {
  int64_t target = 0;  // positions lie in [0, target); 0: none are skipped
  int64_t chunks = 1;  // parts of a document, each with consecutive positions
};

// Appends the positions of a document of `length` tokens, ascending from 0. Its parts begin at
// places drawn evenly from [1, length); two at one place leave a part empty. The positions skipped
// before the i-th part are u_0 = 0 and u_i drawn evenly from {u_(i-1), ..., target - length}, all
// from `key` alone. A document longer than `target` has none skipped.
void AppendPositions(const PositionSkip& skip, uint64_t key, int64_t length,
                     std::vector<int32_t>* positions);

}  // namespace lemo::train
