#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cross_entropy/cross_entropy_internal.h"
#include "kernels/ref.h"

namespace lemo::kernels::reference {

std::tuple<at::Tensor, at::Tensor> CrossEntropy(const at::Tensor& logits, const at::Tensor& labels,
                                                double scale, bool want_gradient) {
  CheckCrossEntropy(logits, labels);
  const int64_t rows = logits.size(0);
  const int64_t vocabulary = logits.size(1);
  const auto list = Indices(labels);
  CheckLabels(list.data(), rows, vocabulary);
  auto values = Values(logits);
  std::vector<double> loss(rows);
  std::vector<double> correct(rows);
  for (int64_t r = 0; r < rows; ++r) {
    double* z = values.data() + r * vocabulary;
    const int64_t label = list[r];
    if (label == kIgnoreLabel) {
      for (int64_t j = 0; j < vocabulary; ++j) z[j] = 0;
      continue;
    }
    int64_t best = 0;
    for (int64_t j = 1; j < vocabulary; ++j) {
      if (z[j] > z[best]) best = j;
    }
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < vocabulary; ++j) largest = std::fmax(largest, z[j]);
    double sum = 0;
    for (int64_t j = 0; j < vocabulary; ++j) sum += std::exp(z[j] - largest);
    loss[r] = std::log(sum) + (largest - z[label]);
    correct[r] = best == label && !std::isnan(loss[r]) ? 1 : 0;
    for (int64_t j = 0; j < vocabulary; ++j) {
      z[j] = (std::exp(z[j] - largest) / sum - (j == label ? 1.0 : 0.0)) * scale;
    }
  }
  if (want_gradient) logits.copy_(FromValues(values, logits.sizes(), logits.scalar_type()));
  return {FromValues(loss, {rows}, WideType(logits.scalar_type())),
          FromValues(correct, {rows}, at::kBool)};
}

at::Tensor Statistics(const at::Tensor& logits, const at::Tensor& labels) {
  CheckCrossEntropyPart(logits, labels);
  const int64_t rows = logits.size(0);
  const int64_t columns = logits.size(1);
  const auto list = Indices(labels);
  const auto values = Values(logits);
  std::vector<double> result(4 * rows);
  for (int64_t r = 0; r < rows; ++r) {
    const double* z = values.data() + r * columns;
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < columns; ++j) largest = std::fmax(largest, z[j]);
    double sum = 0;
    int64_t index = columns;
    for (int64_t j = 0; j < columns; ++j) {
      if (z[j] != -std::numeric_limits<double>::infinity()) sum += std::exp(z[j] - largest);
      if (z[j] == largest) index = std::min(index, j);
    }
    result[r] = largest;
    result[rows + r] = sum;
    if (list[r] >= 0 && list[r] < columns) result[2 * rows + r] = z[list[r]];
    if (index < columns) result[3 * rows + r] = static_cast<double>(index);
  }
  return FromValues(result, {4, rows}, at::kDouble);
}

void Gradient(const at::Tensor& logits, const at::Tensor& labels, const at::Tensor& largest,
              const at::Tensor& total, double scale) {
  CheckCrossEntropyPart(logits, labels);
  CheckRowValues("largest", largest, logits);
  CheckRowValues("total", total, logits);
  const int64_t columns = logits.size(1);
  const auto list = Indices(labels);
  const auto maxima = Values(largest), totals = Values(total);
  auto values = Values(logits);
  for (int64_t r = 0; r < logits.size(0); ++r) {
    double* z = values.data() + r * columns;
    for (int64_t j = 0; j < columns; ++j) {
      z[j] = (std::exp(z[j] - maxima[r]) / totals[r] - (j == list[r] ? 1.0 : 0.0)) * scale;
    }
  }
  logits.copy_(FromValues(values, logits.sizes(), logits.scalar_type()));
}

}  // namespace lemo::kernels::reference
