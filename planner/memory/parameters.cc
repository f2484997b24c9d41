#include "planner/memory/parameters.h"

#include <algorithm>

namespace lemo::planner {
namespace {

// Adds up tensors and remembers the largest.
class Counter {
 public:
  void Add(int64_t elements) {
    sum_ += elements;
    largest_ = std::max(largest_, elements);
  }
  int64_t sum() const { return sum_; }
  int64_t largest() const { return largest_; }

 private:
  int64_t sum_ = 0, largest_ = 0;
};

}  // namespace

ModelShape PartOf(const ModelShape& shape, int64_t ranks) {
  ModelShape part = shape;
  part.heads /= ranks;
  part.kv_heads = std::max<int64_t>(1, shape.kv_heads / ranks);
  part.intermediate /= ranks;
  part.vocabulary = (shape.vocabulary + ranks - 1) / ranks;
  return part;
}

ParameterCount CountWeights(const ModelShape& shape) {
  const int64_t hidden = shape.hidden, query = shape.heads * shape.head_dim,
                key = shape.kv_heads * shape.head_dim, inner = shape.intermediate,
                width = shape.embedding_width > 0 ? shape.embedding_width : hidden;
  const auto norm = [&](Counter* counter) {
    counter->Add(hidden);
    if (shape.layer_norm) counter->Add(hidden);
  };
  const auto matrix = [](Counter* counter, int64_t in, int64_t out, bool bias) {
    counter->Add(in * out);
    if (bias) counter->Add(out);
  };
  Counter attention, mlp;
  norm(&attention);
  matrix(&attention, hidden, query, shape.qkv_bias);
  matrix(&attention, hidden, key, shape.qkv_bias);
  matrix(&attention, hidden, key, shape.qkv_bias);
  matrix(&attention, query, hidden, shape.o_bias);
  if (shape.qk_norm) {
    attention.Add(shape.head_dim);
    attention.Add(shape.head_dim);
  }
  norm(&mlp);
  matrix(&mlp, hidden, inner, shape.mlp_bias);
  if (shape.gated_mlp) matrix(&mlp, hidden, inner, shape.mlp_bias);
  matrix(&mlp, inner, hidden, shape.mlp_bias);

  Counter front, back;
  front.Add(shape.vocabulary * width);
  if (shape.position_rows > 0) front.Add(shape.position_rows * hidden);
  if (shape.final_norm) norm(&back);
  if (width != hidden) {
    front.Add(width * hidden);
    back.Add(width * hidden);
  }
  if (!shape.tied_embeddings) back.Add(shape.vocabulary * width);
  return {
      .all = shape.layers * (attention.sum() + mlp.sum()) + front.sum() + back.sum(),
      .largest = std::max({attention.largest(), mlp.largest(), front.largest(), back.largest()}),
      .attention = attention.sum(),
      .mlp = mlp.sum(),
      .ends = std::max(front.sum(), back.sum())};
}

ParameterCount CountTrained(const ModelShape& shape, const MemoryTuning& tuning) {
  if (tuning.full) return CountWeights(shape);
  const int64_t hidden = shape.hidden, query = shape.heads * shape.head_dim,
                key = shape.kv_heads * shape.head_dim, inner = shape.intermediate;
  Counter attention, mlp;
  const auto pair = [](Counter* counter, int64_t in, int64_t out, int64_t rank) {
    counter->Add(rank * in);
    counter->Add(rank * out);
  };
  const AdapterRanks& ranks = tuning.adapters;
  pair(&attention, hidden, query, ranks.q);
  pair(&attention, hidden, key, ranks.k);
  pair(&attention, hidden, key, ranks.v);
  pair(&attention, query, hidden, ranks.o);
  if (shape.gated_mlp) pair(&mlp, hidden, inner, ranks.gate);
  pair(&mlp, hidden, inner, ranks.up);
  pair(&mlp, inner, hidden, ranks.down);
  return {.all = shape.layers * (attention.sum() + mlp.sum()),
          .largest = std::max(attention.largest(), mlp.largest()),
          .attention = attention.sum(),
          .mlp = mlp.sum(),
          .ends = 0};
}

int64_t CountParameters(const ModelShape& shape) { return CountWeights(shape).all; }

int64_t CountTrainable(const ModelShape& shape, const MemoryTuning& tuning) {
  return CountTrained(shape, tuning).all;
}

bool TensorRanksFit(const ModelShape& shape, int64_t ranks) {
  if (ranks == 1) return true;
  const bool projected = shape.embedding_width > 0 && shape.embedding_width != shape.hidden;
  return ranks > 1 && !shape.post_norm && !projected && shape.heads % ranks == 0 &&
         (shape.kv_heads % ranks == 0 || ranks % shape.kv_heads == 0) &&
         shape.intermediate % ranks == 0;
}

}  // namespace lemo::planner
