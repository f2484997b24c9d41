#include "planner/operators.h"

#include <algorithm>
#include <cmath>

namespace lemo::planner {
namespace {

constexpr std::string_view kNames[kOperators] = {"products",
                                                 "attention",
                                                 "attention_backward",
                                                 "norm",
                                                 "norm_backward",
                                                 "activation",
                                                 "activation_backward",
                                                 "rotation",
                                                 "gather",
                                                 "scatter",
                                                 "copy",
                                                 "loss",
                                                 "update"};

// Flash backward makes five products where forward makes two.
constexpr double kBackwardOverForward = 2.5;
// Rows of the MLP that go through it at a time on a CPU; of others only the size of a call differs.
constexpr double kTileRows = 1024;

double Clamped(double low, double high, double at) {
  return std::clamp((at - low) / (high - low), 0.0, 1.0);
}

// One side of a layer's accounts.
class Account {
 public:
  explicit Account(std::vector<OperatorWork>* list) : list_(list) {}

  // `times` passes over rows x width elements.
  void Elements(Operator op, double rows, double width, double rows_of_call, double times = 1) {
    if (rows * width * times > 0) {
      list_->push_back({op, rows * width * times, std::max(1.0, rows_of_call * width), 0});
    }
  }
  // Products of rows with an in x out matrix, `times` of them.
  void Products(double rows, double in, double out, double times = 1) {
    if (rows * times > 0) {
      list_->push_back({Operator::kProducts, 2 * rows * in * out * times, std::min(in, out), 0});
    }
  }
  void Attention(Operator op, double flop, double length, double width) {
    if (flop > 0) list_->push_back({op, flop, std::max(1.0, length), width});
  }

 private:
  std::vector<OperatorWork>* list_;
};

// A projection with its adapter, if it has one.
struct Linear {
  double in, out;
  double rank;  // 0 for none
  bool full;
  double divided;  // by so many ranks

  void Forward(double rows, double rows_of_call, std::vector<OperatorWork>* list) const {
    Account account(list);
    account.Products(rows, in, out / divided);
    if (rank > 0) {
      account.Products(rows / divided, in, rank);
      account.Products(rows / divided, rank, out);
      account.Elements(Operator::kCopy, rows, out / divided, rows_of_call);
    }
  }
  // `again`: the adapter's inner activation was not there.
  void Backward(double rows, bool again, std::vector<OperatorWork>* list) const {
    Account account(list);
    account.Products(rows, in, out / divided, full ? 2 : 1);
    if (rank > 0) {
      account.Products(rows / divided, in, rank, again ? 3 : 2);
      account.Products(rows / divided, rank, out, 2);
    }
  }
};

// Head and loss with so many gradients: of the rows, and of the matrix.
std::vector<OperatorWork> HeadWith(int gradients, const ModelShape& shape, int64_t rows,
                                   int64_t embedded, const PassShape& pass) {
  std::vector<OperatorWork> list;
  Account account(&list);
  const auto ranks = static_cast<double>(pass.tensor_ranks);
  const auto hidden = static_cast<double>(shape.hidden);
  const double words = static_cast<double>(shape.vocabulary) / ranks;
  const auto labelled = static_cast<double>(rows);
  const double of_call = std::min(labelled / pass.passes, kTileRows);
  const double in = static_cast<double>(embedded) / pass.passes;
  // With a learned table a second row is added to each.
  account.Elements(Operator::kGather, static_cast<double>(embedded), hidden, in,
                   shape.position_rows > 0 ? 2 : 1);
  account.Elements(Operator::kGather, labelled, hidden, of_call, gradients > 0 ? 2 : 1);
  if (shape.final_norm) {
    account.Elements(Operator::kNorm, labelled, hidden, of_call);
    if (gradients > 0) account.Elements(Operator::kNormBackward, labelled, hidden, of_call);
  }
  account.Products(labelled, hidden, words, 1 + gradients);
  account.Elements(Operator::kLoss, labelled, words, of_call);
  return list;
}

}  // namespace

std::string_view OperatorName(Operator op) { return kNames[static_cast<int>(op)]; }

std::optional<Operator> OperatorNamed(std::string_view name) {
  const auto* const found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) return std::nullopt;
  return static_cast<Operator>(found - std::begin(kNames));
}

void OperatorRates::Set(Operator op, double width, const std::vector<RatePoint>& points) {
  std::vector<Curve>& curves = curves_[static_cast<int>(op)];
  Curve curve{std::log(std::max(width, 1.0)), {}};
  for (const RatePoint& point : points) {
    curve.points.push_back({std::log(point.size), std::log(point.rate)});
  }
  std::erase_if(curves, [&](const Curve& other) { return other.log_width == curve.log_width; });
  if (curve.points.empty()) return;
  const auto place = std::find_if(curves.begin(), curves.end(), [&](const Curve& other) {
    return other.log_width > curve.log_width;
  });
  curves.insert(place, std::move(curve));
}

double OperatorRates::At(Operator op, double size, double width) const {
  const std::vector<Curve>& curves = curves_[static_cast<int>(op)];
  if (curves.empty()) return 0;
  const double log_size = std::log(std::max(size, 1.0));
  const auto along = [log_size](const std::vector<Point>& points) {
    const auto above = std::find_if(points.begin(), points.end(), [log_size](const Point& point) {
      return point.log_size >= log_size;
    });
    if (above == points.begin()) return points.front().log_rate;
    if (above == points.end()) return points.back().log_rate;
    const Point &low = *(above - 1), &high = *above;
    const double part = Clamped(low.log_size, high.log_size, log_size);
    return low.log_rate + part * (high.log_rate - low.log_rate);
  };
  if (curves.size() == 1) return std::exp(along(curves.front().points));
  const double log_width = std::log(std::max(width, 1.0));
  const auto above = std::find_if(curves.begin(), curves.end(), [log_width](const Curve& curve) {
    return curve.log_width >= log_width;
  });
  if (above == curves.begin()) return std::exp(along(curves.front().points));
  if (above == curves.end()) return std::exp(along(curves.back().points));
  const Curve &low = *(above - 1), &high = *above;
  const double part = Clamped(low.log_width, high.log_width, log_width);
  const double of_low = along(low.points);
  return std::exp(of_low + part * (along(high.points) - of_low));
}

bool OperatorRates::empty() const {
  return std::all_of(std::begin(curves_), std::end(curves_),
                     [](const std::vector<Curve>& curves) { return curves.empty(); });
}

LayerOperators OperatorsOf(const ModelShape& shape, const Tuning& tuning, const LayerRows& rows,
                           const PassShape& pass) {
  const auto ranks = static_cast<double>(pass.tensor_ranks);
  const auto hidden = static_cast<double>(shape.hidden);
  const auto width = static_cast<double>(shape.head_dim);
  const auto heads = static_cast<double>(shape.heads * shape.head_dim);
  const auto kv_heads = static_cast<double>(shape.kv_heads * shape.head_dim);
  const auto inner = static_cast<double>(shape.intermediate);
  const double matrices = shape.gated_mlp ? 2 : 1;
  const auto attention = static_cast<double>(rows.attention);
  const auto mlp = static_cast<double>(rows.mlp);
  const auto seen = static_cast<double>(rows.seen);
  const double of_call = attention / pass.passes;
  const double of_tile = std::min(mlp / pass.passes, kTileRows);
  const double turned = (heads + kv_heads) / ranks;  // elements of a row that are rotated
  const double flop = 4.0 * heads * rows.pairs / ranks;
  // Of the document that a pair is of, in the mean over pairs.
  const double length = attention > 0 ? 2 * rows.pairs / attention - 1 : 0;
  const auto attention_rank = static_cast<double>(tuning.full ? 0 : tuning.attention_rank);
  const auto mlp_rank = static_cast<double>(tuning.full ? 0 : tuning.mlp_rank);
  const auto linear = [&](double in, double out, double rank) {
    return Linear{in, out, rank, tuning.full, ranks};
  };
  const Linear q = linear(hidden, heads, attention_rank);
  const Linear k = linear(hidden, kv_heads, attention_rank), v = k;
  const Linear o = linear(heads, hidden, attention_rank);
  const Linear up = linear(hidden, inner, mlp_rank), down = linear(inner, hidden, mlp_rank);

  LayerOperators layer;
  Account forward(&layer.forward), backward(&layer.backward);
  // --- forward
  if (rows.indexed) {
    forward.Elements(Operator::kGather, attention, hidden, of_call);
    if (!rows.separate) forward.Elements(Operator::kGather, mlp, hidden, of_tile);
  }
  forward.Elements(Operator::kNorm, attention, hidden, of_call);
  for (const Linear* projection : {&q, &k, &v}) {
    projection->Forward(attention, of_call, &layer.forward);
  }
  if (shape.qk_norm) forward.Elements(Operator::kNorm, attention, turned, of_call);
  const bool rotates = shape.position_rows == 0;
  if (rotates) forward.Elements(Operator::kRotation, attention, turned, of_call);
  // Rows that are only seen, and their keys and values among those of the rows that ask: on the way
  // down these are put together once more.
  const double seen_of_call = seen / pass.passes;
  forward.Elements(Operator::kGather, seen, hidden, seen_of_call);
  forward.Elements(Operator::kNorm, seen, hidden, seen_of_call);
  k.Forward(seen, seen_of_call, &layer.forward);
  v.Forward(seen, seen_of_call, &layer.forward);
  if (rotates) forward.Elements(Operator::kRotation, seen, kv_heads / ranks, seen_of_call);
  if (rows.seen > 0) {
    for (Account* way : {&forward, &backward}) {
      way->Elements(Operator::kCopy, attention + seen, 2 * kv_heads / ranks, of_call);
    }
  }
  forward.Attention(Operator::kAttention, flop, length, width);
  o.Forward(attention, of_call, &layer.forward);
  forward.Elements(Operator::kScatter, attention, hidden, of_call);
  forward.Elements(Operator::kNorm, mlp, hidden, of_tile);
  for (int i = 0; i < matrices; ++i) up.Forward(mlp, of_tile, &layer.forward);
  forward.Elements(Operator::kActivation, mlp, inner / ranks, of_tile);
  down.Forward(mlp, of_tile, &layer.forward);
  forward.Elements(Operator::kScatter, mlp, hidden, of_tile);

  // --- what is kept, and what is made again for want of it
  for (const Stored stored : {Stored::kInput, Stored::kAttentionOut, Stored::kMlp, Stored::kAll}) {
    const int i = static_cast<int>(stored);
    Account kept(&layer.kept[i]), replay(&layer.replay[i]);
    kept.Elements(Operator::kCopy, attention, hidden, of_call, shape.post_norm ? 3 : 1);
    kept.Elements(Operator::kCopy, seen, 2 * kv_heads / ranks, seen_of_call);
    if (stored >= Stored::kAttentionOut) {
      kept.Elements(Operator::kCopy, attention, heads / ranks, of_call);
    }
    if (stored >= Stored::kMlp) {
      kept.Elements(Operator::kCopy, attention, (heads + 2 * kv_heads) / ranks, of_call);
    }
    if (!shape.post_norm && (stored >= Stored::kMlp || rows.separate)) {
      kept.Elements(Operator::kCopy, mlp, hidden, of_tile);
    }
    if (stored == Stored::kAll) {
      kept.Elements(Operator::kCopy, mlp, inner / ranks, of_tile, matrices);
    }
    if (stored < Stored::kAttentionOut) {
      replay.Attention(Operator::kAttention, flop, length, width);
    }
    if (stored < Stored::kMlp) {
      // A norm of heads needs its projections in any case: see below.
      if (!shape.qk_norm) {
        q.Forward(attention, of_call, &layer.replay[i]);
        k.Forward(attention, of_call, &layer.replay[i]);
      }
      v.Forward(attention, of_call, &layer.replay[i]);
      if (rotates) replay.Elements(Operator::kRotation, attention, turned, of_call);
      if (!rows.separate) {
        o.Forward(attention, of_call, &layer.replay[i]);
        replay.Elements(Operator::kCopy, attention, hidden, of_call);
      }
    }
    if (stored < Stored::kAll) {
      for (int n = 0; n < matrices; ++n) up.Forward(mlp, of_tile, &layer.replay[i]);
    }
  }

  // --- backward
  if (rows.indexed) {
    backward.Elements(Operator::kGather, attention, hidden, of_call);
    if (!rows.separate) backward.Elements(Operator::kGather, mlp, hidden, of_tile);
  }
  backward.Elements(Operator::kNorm, mlp, hidden, of_tile);
  backward.Elements(Operator::kActivation, mlp, inner / ranks, of_tile);
  down.Backward(mlp, /*again=*/true, &layer.backward);
  backward.Elements(Operator::kActivationBackward, mlp, inner / ranks, of_tile);
  for (int i = 0; i < matrices; ++i) up.Backward(mlp, /*again=*/false, &layer.backward);
  backward.Elements(Operator::kCopy, mlp, hidden, of_tile, matrices - 1);
  backward.Elements(Operator::kNormBackward, mlp, hidden, of_tile);
  backward.Elements(Operator::kScatter, mlp, hidden, of_tile);
  o.Backward(attention, /*again=*/false, &layer.backward);
  backward.Elements(Operator::kNorm, attention, hidden, of_call);
  if (shape.qk_norm) {
    q.Forward(attention, of_call, &layer.backward);
    k.Forward(attention, of_call, &layer.backward);
    backward.Elements(Operator::kNorm, attention, turned, of_call);
    backward.Elements(Operator::kNormBackward, attention, turned, of_call);
  }
  backward.Attention(Operator::kAttentionBackward, kBackwardOverForward * flop, length, width);
  if (rotates) backward.Elements(Operator::kRotation, attention, turned, of_call);
  for (const Linear* projection : {&q, &k, &v}) {
    projection->Backward(attention, /*again=*/false, &layer.backward);
  }
  backward.Elements(Operator::kCopy, attention, hidden, of_call, 2);
  backward.Elements(Operator::kNormBackward, attention, hidden, of_call);
  backward.Elements(Operator::kScatter, attention, hidden, of_call);
  return layer;
}

std::vector<OperatorWork> HeadOperators(const ModelShape& shape, const Tuning& tuning, int64_t rows,
                                        int64_t embedded, const PassShape& pass) {
  return HeadWith(tuning.full ? 2 : 1, shape, rows, embedded, pass);
}

std::vector<OperatorWork> LossOperators(const ModelShape& shape, int64_t rows, int64_t embedded,
                                        const PassShape& pass) {
  return HeadWith(0, shape, rows, embedded, pass);
}

std::vector<OperatorWork> SelectionOperators(const ModelShape& shape, double rows, int64_t width,
                                             bool reads_stream, const PassShape& pass) {
  std::vector<OperatorWork> list;
  if (!reads_stream) return list;
  Account account(&list);
  const auto hidden = static_cast<double>(shape.hidden), neurons = static_cast<double>(width);
  const double of_call = rows / pass.passes;
  account.Elements(Operator::kNorm, rows, hidden, of_call);
  if (width > 0) {
    account.Products(rows, hidden, neurons);
    account.Elements(Operator::kCopy, rows, neurons, of_call);  // pooled
  }
  return list;
}

std::vector<OperatorWork> ScoreOperators(const ModelShape& shape, double rows, double pairs) {
  std::vector<OperatorWork> list;
  if (rows <= 0) return list;
  const auto heads = static_cast<double>(shape.heads * shape.head_dim);
  Account(&list).Attention(Operator::kAttention, 2 * heads * pairs, 2 * pairs / rows - 1,
                           static_cast<double>(shape.head_dim));
  return list;
}

std::vector<OperatorWork> QueryKeyOperators(const ModelShape& shape, const Tuning& tuning,
                                            double rows, const PassShape& pass) {
  std::vector<OperatorWork> list;
  Account account(&list);
  const auto hidden = static_cast<double>(shape.hidden);
  const auto heads = static_cast<double>(shape.heads * shape.head_dim);
  const auto kv_heads = static_cast<double>(shape.kv_heads * shape.head_dim);
  const auto rank = static_cast<double>(tuning.full ? 0 : tuning.attention_rank);
  const double of_call = rows / pass.passes;
  account.Elements(Operator::kNorm, rows, hidden, of_call);
  Linear{hidden, heads, rank, tuning.full, 1}.Forward(rows, of_call, &list);
  Linear{hidden, kv_heads, rank, tuning.full, 1}.Forward(rows, of_call, &list);
  if (shape.qk_norm) account.Elements(Operator::kNorm, rows, heads + kv_heads, of_call);
  if (shape.position_rows == 0) {
    account.Elements(Operator::kRotation, rows, heads + kv_heads, of_call);
  }
  return list;
}

std::vector<OperatorWork> LearningOperators(const ModelShape& shape, double rows, int64_t width,
                                            const PassShape& pass) {
  std::vector<OperatorWork> list;
  Account account(&list);
  const auto hidden = static_cast<double>(shape.hidden), neurons = static_cast<double>(width);
  const double of_call = rows / pass.passes;
  // The norm is two products of the rows with factors; the first layer's values are pooled, and
  // their gradient is spread again.
  account.Elements(Operator::kCopy, rows, 2 * hidden + 2 * neurons, of_call);
  account.Products(rows, hidden, neurons);  // up
  account.Products(rows, hidden, neurons);  // the matrix's gradient
  return list;
}

double Seconds(const OperatorWork& work, const OperatorRates& rates, const Rates& flat) {
  double rate = rates.At(work.op, work.size, work.width);
  if (rate <= 0 && work.op == Operator::kProducts) rate = flat.products;
  if (rate <= 0 && (work.op == Operator::kAttention || work.op == Operator::kAttentionBackward)) {
    rate = flat.attention;
  }
  return rate > 0 ? work.amount / rate : 0;
}

double Seconds(const std::vector<OperatorWork>& work, const OperatorRates& rates,
               const Rates& flat) {
  double seconds = 0;
  for (const OperatorWork& part : work) seconds += Seconds(part, rates, flat);
  return seconds;
}

}  // namespace lemo::planner
