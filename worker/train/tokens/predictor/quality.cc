#include "worker/train/tokens/predictor/quality.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "worker/train/tokens/selection.h"

namespace lemo::train {
namespace {

// Indices of the values, best first, ties to the lower index.
std::vector<int64_t> BestFirst(std::span<const float> values) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [values](int64_t a, int64_t b) { return values[a] > values[b]; });
  return order;
}

// Ranks from 0, equal values sharing the mean of theirs.
std::vector<double> Ranks(std::span<const float> values) {
  const std::vector<int64_t> order = BestFirst(values);
  std::vector<double> ranks(values.size());
  for (size_t i = 0; i < order.size();) {
    size_t end = i + 1;
    while (end < order.size() && values[order[end]] == values[order[i]]) ++end;
    for (size_t j = i; j < end; ++j) ranks[order[j]] = 0.5 * static_cast<double>(i + end - 1);
    i = end;
  }
  return ranks;
}

double Spearman(std::span<const float> a, std::span<const float> b) {
  const std::vector<double> x = Ranks(a), y = Ranks(b);
  const double mean = 0.5 * static_cast<double>(x.size() - 1);
  double xx = 0, yy = 0, xy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mean) * (x[i] - mean);
    yy += (y[i] - mean) * (y[i] - mean);
    xy += (x[i] - mean) * (y[i] - mean);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0.0;
}

double AboveMeanPrecision(std::span<const float> predicted, std::span<const float> actual) {
  const double threshold =
      std::accumulate(actual.begin(), actual.end(), 0.0) / static_cast<double>(actual.size());
  int64_t kept = 0, right = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (predicted[i] < threshold) continue;
    ++kept;
    right += actual[i] >= threshold;
  }
  return kept > 0 ? static_cast<double>(right) / static_cast<double>(kept) : 0.0;
}

}  // namespace

double HeadQuality::RecallAt(double share) const {
  for (size_t i = 0; i < recall.size(); ++i) {
    if (std::abs(kRecallShares[i] - share) < 1e-9) return recall[i];
  }
  return std::numeric_limits<double>::quiet_NaN();
}

double Overlap(std::span<const float> a, std::span<const float> b, int64_t count) {
  const std::vector<int64_t> best_a = BestFirst(a), best_b = BestFirst(b);
  std::vector<char> chosen(a.size(), 0);
  for (int64_t i = 0; i < count; ++i) chosen[best_a[i]] = 1;
  int64_t common = 0;
  for (int64_t i = 0; i < count; ++i) common += chosen[best_b[i]];
  return static_cast<double>(common) / static_cast<double>(count);
}

void QualityMeter::Add(std::span<const float> predicted, std::span<const float> actual,
                       const BlockLayout& blocks) {
  for (size_t d = 0; d + 1 < blocks.documents.size(); ++d) {
    const int64_t first = blocks.documents[d], count = blocks.documents[d + 1] - first;
    if (count < kLeastBlocks) continue;
    const auto guess = predicted.subspan(first, count), truth = actual.subspan(first, count);
    for (size_t i = 0; i < kRecallShares.size(); ++i) {
      const auto kept = static_cast<int64_t>(std::ceil(kRecallShares[i] * count - 1e-9));
      recall_[i] += Overlap(guess, truth, kept);
    }
    precision_ += AboveMeanPrecision(guess, truth);
    spearman_ += Spearman(guess, truth);
    ++documents_;
  }
}

void QualityMeter::AddLoss(double loss) {
  loss_ += loss;
  ++losses_;
}

HeadQuality QualityMeter::Mean() const {
  const auto n = static_cast<double>(documents_);
  HeadQuality mean{recall_, precision_ / n, spearman_ / n, loss_ / static_cast<double>(losses_)};
  for (double& recall : mean.recall) recall /= n;
  return mean;
}

}  // namespace lemo::train
