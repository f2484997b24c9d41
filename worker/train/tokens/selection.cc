#include "worker/train/tokens/selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace lemo::train {
namespace {

constexpr double kLeastShare = 0.1;  // of threshold mode

// Blocks of a document of `blocks` blocks that `share` comes to.
int64_t Wanted(int64_t blocks, double share) {
  // The sum of a ratio's rounding errors must not add a block: 0.6 * 5 is 3.
  return std::clamp<int64_t>(static_cast<int64_t>(std::ceil(share * blocks - 1e-9)), 1, blocks);
}

bool KeptWhole(int64_t blocks, const SelectOptions& options) {
  return blocks < kLeastBlocks || (!options.use_threshold && options.keep >= 1);
}

// The share that is kept of a document whatever the scores.
double CertainShare(const SelectOptions& options) {
  return options.use_threshold ? kLeastShare : options.keep;
}

// Marks the mandatory blocks of the document [first, last) and answers their number.
int64_t MarkMandatory(const BlockMask& always, const SelectOptions& options, int64_t first,
                      int64_t last, BlockMask* kept) {
  int64_t count = 0;
  for (int64_t n = first; n < last; ++n) {
    const bool mandatory = n - first < options.sink_blocks || last - n <= options.local_blocks ||
                           (!always.empty() && always[n]);
    if (mandatory) (*kept)[n] = 1;
    count += (*kept)[n];
  }
  return count;
}

// Keeps the best free blocks of the document [first, last) until `count` blocks are kept.
void FillByRank(std::span<const float> scores, const SelectOptions& options, int64_t first,
                int64_t last, int64_t count, BlockMask* kept) {
  int64_t have = std::count(kept->begin() + first, kept->begin() + last, uint8_t{1});
  const int64_t size = std::max<int64_t>(1, options.chunk_blocks);
  const int64_t chunks = (last - first + size - 1) / size;
  std::vector<double> means(chunks);
  std::vector<int64_t> order(chunks);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = first + c * size, end = std::min(last, begin + size);
    for (int64_t n = begin; n < end; ++n) means[c] += scores[n];
    means[c] /= static_cast<double>(end - begin);  // at the end, so that equal sums are ties
    if (!std::isfinite(means[c])) means[c] = std::numeric_limits<double>::infinity();
  }
  std::stable_sort(order.begin(), order.end(),
                   [&means](int64_t a, int64_t b) { return means[a] > means[b]; });
  for (const int64_t c : order) {
    for (int64_t n = first + c * size; n < std::min(last, first + (c + 1) * size); ++n) {
      if (have >= count) return;
      have += (*kept)[n] == 0;
      (*kept)[n] = 1;
    }
  }
}

}  // namespace

BlockMask LabelBlocks(const BlockLayout& blocks, std::span<const uint8_t> labelled) {
  BlockMask mask(blocks.blocks(), 0);
  for (size_t i = 0; i + 1 < blocks.documents.size(); ++i) {
    const int64_t first = blocks.documents[i], last = blocks.documents[i + 1];
    int64_t count = 0;
    for (int64_t n = first; n < last; ++n) {
      mask[n] = std::any_of(labelled.begin() + blocks.starts[n],
                            labelled.begin() + blocks.starts[n + 1], [](uint8_t l) { return l; });
      count += mask[n];
    }
    if (4 * count >= last - first) std::fill(mask.begin() + first, mask.begin() + last, 0);
  }
  return mask;
}

int64_t MostRows(const BlockLayout& blocks, const BlockMask& always, const SelectOptions& options) {
  int64_t rows = 0;
  BlockMask mandatory(blocks.blocks(), 0);
  for (size_t i = 0; i + 1 < blocks.documents.size(); ++i) {
    const int64_t first = blocks.documents[i], last = blocks.documents[i + 1];
    const int64_t all = blocks.starts[last] - blocks.starts[first];
    if (options.use_threshold || KeptWhole(last - first, options)) {
      rows += all;
      continue;
    }
    const int64_t count = std::max(MarkMandatory(always, options, first, last, &mandatory),
                                   Wanted(last - first, options.keep));
    // Blocks are equally long, but for the last one.
    rows += std::min(all, count * blocks.rows_of(first));
  }
  return rows;
}

int64_t LeastRows(const BlockLayout& blocks, const BlockMask& always,
                  const SelectOptions& options) {
  int64_t rows = 0;
  BlockMask mandatory(blocks.blocks(), 0);
  for (size_t i = 0; i + 1 < blocks.documents.size(); ++i) {
    const int64_t first = blocks.documents[i], last = blocks.documents[i + 1];
    if (KeptWhole(last - first, options)) {
      rows += blocks.starts[last] - blocks.starts[first];
      continue;
    }
    const int64_t count = std::max(MarkMandatory(always, options, first, last, &mandatory),
                                   Wanted(last - first, CertainShare(options)));
    // The last block, which may be shorter, may be among them.
    rows += (count - 1) * blocks.rows_of(first) + blocks.rows_of(last - 1);
  }
  return rows;
}

BlockChoice SelectBlocks(std::span<const float> scores, const BlockLayout& blocks,
                         const BlockMask& always, const SelectOptions& options,
                         std::span<const int64_t> whole) {
  BlockChoice choice;
  choice.kept.assign(blocks.blocks(), 0);
  choice.bad_blocks = std::count_if(scores.begin(), scores.end(),
                                    [](float score) { return !std::isfinite(score); });
  for (size_t i = 0; i + 1 < blocks.documents.size(); ++i) {
    const int64_t first = blocks.documents[i], last = blocks.documents[i + 1];
    const int64_t size = whole.empty() ? last - first : whole[i];
    if (KeptWhole(size, options)) {
      std::fill(choice.kept.begin() + first, choice.kept.begin() + last, 1);
      continue;
    }
    MarkMandatory(always, options, first, last, &choice.kept);
    if (options.use_threshold) {
      for (int64_t n = first; n < last; ++n) {
        choice.kept[n] |= !std::isfinite(scores[n]) || scores[n] >= options.threshold;
      }
    }
    FillByRank(scores, options, first, last, Wanted(size, CertainShare(options)), &choice.kept);
  }
  return choice;
}

ChoiceRecall RecallOf(const BlockMask& kept, std::span<const float> truth,
                      const BlockLayout& blocks, const BlockMask& always,
                      const SelectOptions& options, std::span<const int64_t> whole) {
  ChoiceRecall recall;
  BlockMask mandatory(blocks.blocks(), 0);
  for (size_t i = 0; i + 1 < blocks.documents.size(); ++i) {
    const int64_t first = blocks.documents[i], last = blocks.documents[i + 1];
    if (KeptWhole(whole.empty() ? last - first : whole[i], options)) continue;
    MarkMandatory(always, options, first, last, &mandatory);
    BlockMask best = mandatory;
    const int64_t count = std::count(kept.begin() + first, kept.begin() + last, uint8_t{1});
    FillByRank(truth, options, first, last, count, &best);
    for (int64_t n = first; n < last; ++n) {
      if (mandatory[n] || !best[n]) continue;
      ++recall.wanted;
      recall.kept += kept[n];
    }
  }
  return recall;
}

}  // namespace lemo::train
