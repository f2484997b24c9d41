#include "worker/train/calibrate/trials.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rope/rope.h"
#include "kernels/rows/rows.h"
#include "kernels/swiglu/swiglu.h"
#include "worker/train/model/attention.h"
#include "worker/train/optim/adamw.h"

namespace lemo::train {
namespace {

using planner::Operator;

// Of rows that are read element by element.
constexpr int64_t kRowWidth = 512;
constexpr int64_t kHeadWidth = 64;  // of rotated heads
constexpr int64_t kWords = 4096;
constexpr double kBackwardOverForward = 2.5;

// Sizes of what a CPU does out of its caches and out of memory; a GPU is not busy with less than
// millions.
struct Sizes {
  std::vector<int64_t> elements, matrices, documents;
  int64_t rows;  // of a product
};
Sizes SizesOf(bool cpu) {
  if (cpu) {
    return {{1 << 15, 1 << 18, 1 << 20, 1 << 22},
            {8, 32, 128, 512, 1024, 2048},
            {128, 512, 2048},
            1024};
  }
  return {{1 << 18, 1 << 22, 1 << 25}, {8, 64, 512, 2048, 8192}, {512, 2048, 8192}, 8192};
}

class Trials {
 public:
  explicit Trials(const Compute& compute)
      : sizes_(SizesOf(compute.device.is_cpu())),
        options_(at::TensorOptions().dtype(compute.type).device(compute.device)),
        statistics_(options_.dtype(compute.type == at::kDouble ? at::kDouble : at::kFloat)) {
    const int64_t most = sizes_.elements.back();
    for (int i = 0; i < 3; ++i) {
      // Neither zero nor large, so that no kernel takes a shorter way.
      pool_.push_back(at::linspace(0.1, 0.9, most, statistics_).to(options_));
    }
  }

  std::vector<Trial> Make() {
    for (const int64_t width : sizes_.matrices) AddProducts(width);
    for (const int64_t width : {32, 64, 128}) {
      for (const int64_t rows : sizes_.documents) AddAttention(rows, width);
    }
    for (const int64_t elements : sizes_.elements) AddElementwise(elements);
    return std::move(trials_);
  }

 private:
  at::Tensor Pool(int i, int64_t elements, int64_t width) const {
    return pool_[i].narrow(0, 0, elements).view({elements / width, width});
  }
  void Add(Operator op, double size, double amount, std::function<void()> work, double width = 0) {
    trials_.push_back({op, width, size, amount, std::move(work)});
  }

  // Forward, and backward for both of its factors, of a matrix whose smaller width is `width`.
  void AddProducts(int64_t width) {
    const int64_t in = std::max<int64_t>(width, 512);
    const int64_t rows = width > 1024 ? sizes_.rows / 2 : sizes_.rows;
    const at::Tensor x = at::full({rows, in}, 0.5, options_);
    const at::Tensor weight = at::full({width, in}, 0.5, options_);
    const at::Tensor dy = at::full({rows, width}, 0.5, options_);
    const double flop = 3 * 2.0 * static_cast<double>(rows * in * width);
    Add(Operator::kProducts, static_cast<double>(width), flop, [x, weight, dy] {
      at::linear(x, weight);
      dy.matmul(weight);
      dy.t().matmul(x);
    });
  }

  void AddAttention(int64_t rows, int64_t width) {
    constexpr int64_t kHeads = 4;
    // Short documents come in numbers.
    const int64_t documents = std::max<int64_t>(1, 512 / rows);
    Segments segments{.longest = rows};
    for (int64_t i = 0; i <= documents; ++i) segments.starts.push_back(i * rows);
    const at::Tensor starts = at::arange(documents + 1, at::kInt) * rows;
    segments.cumulative = starts.to(at::kInt).to(options_.device());
    const at::Tensor q = at::full({documents * rows, kHeads, width}, 0.5, options_);
    const auto result = std::make_shared<AttentionResult>(AttentionForward(q, q, q, segments));
    const double flop =
        4.0 * static_cast<double>(kHeads * width * documents) * planner::CausalPairs(rows);
    Add(
        Operator::kAttention, static_cast<double>(rows), flop,
        [q, segments] { AttentionForward(q, q, q, segments); }, static_cast<double>(width));
    Add(
        Operator::kAttentionBackward, static_cast<double>(rows), kBackwardOverForward * flop,
        [q, segments, result] { AttentionBackward(q, q, q, q, result->o, result->lse, segments); },
        static_cast<double>(width));
  }

  void AddElementwise(int64_t elements) {
    const auto size = static_cast<double>(elements);
    const at::Tensor a = Pool(0, elements, kRowWidth), b = Pool(1, elements, kRowWidth);
    const at::Tensor c = Pool(2, elements, kRowWidth);
    const at::Tensor weight = at::ones({kRowWidth}, options_);
    constexpr double kEpsilon = 1e-5;
    Add(Operator::kNorm, size, size, [a, weight] { kernels::RmsNorm(a, weight, kEpsilon); });
    const at::Tensor rstd = std::get<1>(kernels::RmsNormForward(a, weight, kEpsilon));
    Add(Operator::kNormBackward, size, size, [a, b, rstd, weight] {
      kernels::RmsNormBackward(b, a, rstd, weight, /*need_weight_grad=*/false);
    });
    Add(Operator::kActivation, size, size, [a, b] { kernels::SwiGluForward(a, b); });
    Add(Operator::kActivationBackward, size, size, [a, b, c] { kernels::SwiGluBackward(c, a, b); });
    const int64_t rows = elements / kRowWidth;
    const at::Tensor heads = a.view({rows, kRowWidth / kHeadWidth, kHeadWidth});
    const at::Tensor turn = at::full({rows, kHeadWidth / 2}, 0.7, statistics_);
    Add(Operator::kRotation, size, size,
        [heads, turn] { kernels::RopeForward(heads, turn, turn, /*inverse=*/false); });
    if (rows >= 2) {
      const at::Tensor every_second =
          at::arange(0, rows, 2, at::TensorOptions().dtype(at::kInt).device(options_.device()));
      Add(Operator::kGather, size / 2, size / 2,
          [a, every_second] { kernels::GatherRows(a, every_second); });
    }
    Add(Operator::kScatter, size, size, [b, c] { kernels::ScatterAddRows(c, std::nullopt, b); });
    Add(Operator::kCopy, size, size, [b, c] { c.copy_(b); });
    if (elements >= kWords) {
      const at::Tensor logits = Pool(1, elements, kWords);
      const at::Tensor labels = at::zeros(
          {elements / kWords}, at::TensorOptions().dtype(at::kLong).device(options_.device()));
      Add(Operator::kLoss, size, size,
          [logits, labels] { kernels::CrossEntropyInPlace(logits, labels, {.scale = 1}); });
    }
    AddUpdate(elements);
  }

  // Adapters are many small tensors, full tuning has large ones.
  void AddUpdate(int64_t elements) {
    const int64_t pieces = 16;
    std::vector<OptimizerPiece> of;
    for (int64_t i = 0; i < pieces; ++i) {
      of.push_back({at::full({elements / pieces}, 0.5, statistics_),
                    at::full({elements / pieces}, 0.01, statistics_)});
    }
    const auto optimizer = std::make_shared<AdamW>(of, AdamWOptions{});
    const auto size = static_cast<double>(elements);
    Add(Operator::kUpdate, size, size, [optimizer, of] {
      for (const OptimizerPiece& piece : of) piece.grad.norm();
      optimizer->Step(1e-6, 1.0);
    });
  }

  const Sizes sizes_;
  const at::TensorOptions options_, statistics_;
  std::vector<at::Tensor> pool_;
  std::vector<Trial> trials_;
};

}  // namespace

std::vector<Trial> OperatorTrials(const Compute& compute) { return Trials(compute).Make(); }

}  // namespace lemo::train
