#include "planner/cost_model.h"

namespace lemo::planner {
namespace {

// Forward makes two products of width D for a pair and head; flash backward makes five, as it
// rebuilds the scores.
constexpr double kBackwardOverForward = 2.5;

// Below this the normal equations say nothing about the second rate.
constexpr double kLeastDeterminant = 1e-6;

// A group of matrices that one set of rows passes: sums over its matrices.
struct Matrices {
  double elements = 0;  // in * out
  double widths = 0;    // in + out, what an adapter's matrices have for each rank

  void Add(double in, double out) {
    elements += in * out;
    widths += in + out;
  }
};

// FLOP of a group's products over some rows.
class Products {
 public:
  Products(const Matrices& matrices, int64_t rows, bool full, int64_t rank)
      : base_(2.0 * static_cast<double>(rows) * matrices.elements),
        adapters_(2.0 * static_cast<double>(rows) * matrices.widths * static_cast<double>(rank)),
        full_(full) {}

  double Forward() const { return base_ + adapters_; }
  // A frozen matrix takes one product, for its input's gradient; one that trains takes two.
  double Backward() const { return (full_ ? 2 : 1) * base_ + 2 * adapters_; }

 private:
  double base_, adapters_;
  bool full_;
};

}  // namespace

double CausalPairs(int64_t rows) {
  const auto count = static_cast<double>(rows);
  return count * (count + 1) / 2;
}

Work& Work::operator+=(const Work& other) {
  products += other.products;
  attention += other.attention;
  return *this;
}

Work StepWork::Total() const {
  Work sum = forward;
  sum += replay;
  return sum += backward;
}

StepWork LayerWork(const ModelShape& shape, const Tuning& tuning, Stored stored,
                   const LayerRows& rows) {
  const auto hidden = static_cast<double>(shape.hidden);
  const auto heads = static_cast<double>(shape.heads * shape.head_dim);
  const auto kv_heads = static_cast<double>(shape.kv_heads * shape.head_dim);
  const auto inner = static_cast<double>(shape.intermediate);
  Matrices kv_matrices, qkv_matrices, output_matrices, up_matrices, down_matrices;
  kv_matrices.Add(hidden, kv_heads);
  kv_matrices.Add(hidden, kv_heads);
  qkv_matrices = kv_matrices;
  qkv_matrices.Add(hidden, heads);
  output_matrices.Add(heads, hidden);
  up_matrices.Add(hidden, inner);
  if (shape.gated_mlp) up_matrices.Add(hidden, inner);
  down_matrices.Add(inner, hidden);

  const int64_t attention_rank = tuning.full ? 0 : tuning.attention_rank;
  const int64_t mlp_rank = tuning.full ? 0 : tuning.mlp_rank;
  const Products seen(kv_matrices, rows.seen, tuning.full, attention_rank);
  const Products qkv(qkv_matrices, rows.attention, tuning.full, attention_rank);
  const Products output(output_matrices, rows.attention, tuning.full, attention_rank);
  const Products up(up_matrices, rows.mlp, tuning.full, mlp_rank);
  const Products down(down_matrices, rows.mlp, tuning.full, mlp_rank);
  const double attention = 4.0 * heads * rows.pairs;

  StepWork work;
  // What is only seen is kept whatever the policy, and no gradient goes back through it.
  work.forward.products =
      seen.Forward() + qkv.Forward() + output.Forward() + up.Forward() + down.Forward();
  work.forward.attention = attention;
  work.backward.products = qkv.Backward() + output.Backward() + up.Backward() + down.Backward();
  work.backward.attention = kBackwardOverForward * attention;
  // The graph of a kept boundary is rebuilt without its products; only an adapter's small inner
  // activations are made again, which is left out here.
  if (stored < Stored::kAttentionOut) work.replay.attention = attention;
  if (stored < Stored::kMlp) {
    work.replay.products += qkv.Forward();
    // What the MLP read follows from x and attention's output, where it read the same rows.
    if (!rows.separate) work.replay.products += output.Forward();
  }
  if (stored < Stored::kAll) work.replay.products += up.Forward();
  return work;
}

StepWork HeadWork(const ModelShape& shape, const Tuning& tuning, int64_t rows) {
  Matrices head;
  head.Add(static_cast<double>(shape.hidden), static_cast<double>(shape.vocabulary));
  const Products products(head, rows, tuning.full, /*rank=*/0);
  StepWork work;
  work.forward.products = products.Forward();
  work.backward.products = products.Backward();
  return work;
}

double Seconds(const Work& work, const Rates& rates) {
  return work.products / rates.products + work.attention / rates.attention;
}

// Unknown are the seconds a FLOP of the two kinds, p and a. Dividing each step's equation by its
// time makes all errors relative: (products p + attention a) / seconds = 1.
std::optional<Rates> CalibrateRates(std::span<const MeasuredStep> steps) {
  double pp = 0, pa = 0, aa = 0, p1 = 0, a1 = 0, tt = 0, t1 = 0;
  for (const MeasuredStep& step : steps) {
    if (!(step.seconds > 0) || !(step.work.total() > 0)) return std::nullopt;
    const double p = step.work.products / step.seconds, a = step.work.attention / step.seconds;
    pp += p * p;
    pa += p * a;
    aa += a * a;
    p1 += p;
    a1 += a;
    tt += (p + a) * (p + a);
    t1 += p + a;
  }
  if (steps.empty()) return std::nullopt;
  const double determinant = pp * aa - pa * pa;
  if (determinant > kLeastDeterminant * pp * aa) {
    const double products = (p1 * aa - a1 * pa) / determinant;
    const double attention = (a1 * pp - p1 * pa) / determinant;
    // Noise can ask for work that takes negative time; one common rate is then the better guess.
    if (products > 0 && attention > 0) return Rates{1 / products, 1 / attention};
  }
  return Rates{tt / t1, tt / t1};
}

}  // namespace lemo::planner
