// The networks that guess which blocks matter, before anything of the sub-block is computed
// (lemo-spec sections 4 and 8).
//
// True scores compare every row with every row. The networks look at each block alone and give it
// two short vectors, in place of its queries and of its keys; the score of a pair of blocks is
// their product, and the sums of scores that a block's informativeness is made of are then products
// of sums: linear in the number of blocks.
//
//   token_pool   u_t = ReLU(W1 a_t)          every row by itself; a = the sub-block's normed input
//                z_n = [mean u ; max u]      over the rows of block n
//                q_n = W3 ReLU(W2 z_n)       and k_n by matrices of its own
//   flat_slice   the columns of `a` in slices of a head's width; the block's rows of a slice in one
//                vector; q_n = [W3 ReLU(W2 ReLU(W1 s))] for each slice s, one after another
//
// Letters in shapes: N rows, H hidden, B blocks, P width of q and k.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/block_scan/block_scan.h"
#include "worker/train/model/decoder.h"
#include "worker/train/tokens/blocks.h"

namespace lemo::train {

// What `a` is: the norm in front of a sub-block.
struct InputNorm {
  at::Tensor gain;  // [H]; undefined where nothing is normalised (post-norm models)
  at::Tensor bias;  // [H]; defined for LayerNorm, which subtracts the mean, alone
  double eps = 0;

  // fp32 (fp64 for fp64) [N, H] of x [N, H].
  at::Tensor Apply(const at::Tensor& x) const;
};

InputNorm AttentionNormOf(const Decoder& decoder, int64_t layer);
InputNorm MlpNormOf(const Decoder& decoder, int64_t layer);

// What the matrices of a path look like.
struct PredictorShape {
  bool flat_slice = false;
  int64_t hidden = 0;  // H
  int64_t block = 64;  // rows
  int64_t slice = 0;   // columns of a slice, flat_slice alone
  // Widths of the two hidden layers and of W3's result.
  int64_t r1 = 128, r2 = 128, p = 64;

  int64_t FirstColumns() const { return flat_slice ? block * slice : hidden; }
  // Of W2, after a first layer of `width` neurons.
  int64_t SecondColumns(int64_t width) const { return flat_slice ? width : 2 * width; }
};

// The matrices that lead to q, or to k. No biases. Widths may differ between paths and layers
// (elastic size), so they are those of the tensors.
struct PredictorPath {
  at::Tensor w1;  // [r1, FirstColumns]
  at::Tensor w2;  // [r2, SecondColumns(r1)]
  at::Tensor w3;  // [p, r2]

  std::vector<at::Tensor*> Matrices() { return {&w1, &w2, &w3}; }
};

// Predicts M_mn / scale as q_m . k_n.
struct AttentionPredictor {
  PredictorPath q, k;
  double scale = 1;  // c of lemo-spec section 5

  std::vector<at::Tensor*> Matrices() { return {&q.w1, &q.w2, &q.w3, &k.w1, &k.w2, &k.w3}; }
};

// Predicts log(J + kMlpScoreFloor) of a block: the largest ReLU(W1 a_t) of its rows, then one
// product.
struct MlpPredictor {
  at::Tensor w1;    // [r, H]
  at::Tensor w2;    // [1, r]
  at::Tensor bias;  // [1]: the logarithm of a small share is far from 0

  std::vector<at::Tensor*> Matrices() { return {&w1, &w2, &bias}; }
};
inline constexpr int64_t kMlpPredictorWidth = 64;
inline constexpr double kMlpScoreFloor = 1e-6;

// Starting values, fp32 on the CPU; they depend on the seed and `name` alone. Predictions begin at
// about the size of their targets.
AttentionPredictor DrawAttentionPredictor(const PredictorShape& shape, uint64_t seed,
                                          const std::string& name);
MlpPredictor DrawMlpPredictor(int64_t hidden, uint64_t seed, const std::string& name);

// Activations of the two hidden layers of a path, for counting dead neurons.
struct PathActivations {
  at::Tensor first;   // [N, r1] before ReLU; flat_slice: [B * slices, r1]
  at::Tensor second;  // [B, r2] before ReLU; flat_slice: [B * slices, r2]
};

// q or k [B, P] from the normed rows `a` [N, H], recorded for autograd when grad mode is on: what
// training computes. `activations` may be null.
at::Tensor PathVectors(const PredictorPath& path, const PredictorShape& shape, const at::Tensor& a,
                       const BlockLayout& blocks, PathActivations* activations = nullptr);
// log J [B].
at::Tensor MlpLogScores(const MlpPredictor& predictor, const at::Tensor& a,
                        const BlockLayout& blocks);

// A predictor as a policy runs it: the gain of the norm folded into the first matrix, so that the
// stream is read once and no normalised copy is made; the first matrices of both paths in one, in
// the compute type; the small ones in fp32. Immutable; no gradient passes.
class AttentionScorer {
 public:
  // Copies to the decoder's type and device.
  AttentionScorer(const AttentionPredictor& predictor, const PredictorShape& shape,
                  const InputNorm& norm, at::ScalarType type, at::Device device);

  struct Vectors {
    at::Tensor q, k;  // [B, P], fp32 (fp64 for fp64)
  };
  Vectors BlockVectors(const at::Tensor& x, const BlockLayout& blocks) const;

  // Predicted I of every block [B], in the units of true ones (times `scale`), for the rows x [N,
  // H] before the norm.
  at::Tensor Scores(const at::Tensor& x, const BlockLayout& blocks, kernels::Combine combine) const;

 private:
  PredictorShape shape_;
  InputNorm norm_;      // flat_slice, which needs `a` itself
  at::Tensor first_;    // [r1 of q + r1 of k, H], gain folded in
  at::Tensor sums_;     // [..]: of every row of first_, for LayerNorm
  at::Tensor offsets_;  // [..]: what the norm's bias adds
  PredictorPath q_, k_;
  double scale_;
};

// The same for rows of the MLP.
class MlpScorer {
 public:
  MlpScorer(const MlpPredictor& predictor, const InputNorm& norm, at::ScalarType type,
            at::Device device);
  // Predicted log J [B], fp32 (fp64 for fp64).
  at::Tensor Scores(const at::Tensor& x, const BlockLayout& blocks) const;

 private:
  InputNorm norm_;
  at::Tensor first_, sums_, offsets_, w2_, bias_;
};

// The rows' and documents' boundaries as the kernels take them, int32.
at::Tensor StartsOf(const BlockLayout& blocks, at::Device device);
at::Tensor DocumentsOf(const BlockLayout& blocks, at::Device device);

}  // namespace lemo::train
