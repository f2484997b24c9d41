#include "worker/train/tokens/predictor/network.h"

#include <ATen/ATen.h>

#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/block_pool/block_pool.h"
#include "worker/train/model/random_tensor.h"

namespace lemo::train {
namespace {

at::ScalarType WideType(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor Integers(const std::vector<int32_t>& values, at::Device device) {
  return at::tensor(at::ArrayRef<int32_t>(values), at::kInt).to(device);
}

InputNorm NormOf(const Decoder& decoder, const at::Tensor& gain, const at::Tensor& bias) {
  if (decoder.config.post_norm) return {};
  return {.gain = gain, .bias = bias, .eps = decoder.config.rms_norm_eps};
}

// 1 / deviation and mean of every row [N], in the wide type; the mean for LayerNorm alone.
std::pair<at::Tensor, at::Tensor> Statistics(const InputNorm& norm, const at::Tensor& x) {
  const at::ScalarType wide = WideType(x.scalar_type());
  if (!norm.bias.defined()) {
    // The length of a row needs no wide copy of it.
    const at::Tensor square = at::linalg_vector_norm(x, 2, {1}, false, wide).square();
    return {(square / static_cast<double>(x.size(1)) + norm.eps).rsqrt(), {}};
  }
  const auto [variance, mean] =
      at::var_mean(x.to(wide), {1}, /*correction=*/at::Scalar(0), /*keepdim=*/false);
  return {(variance + norm.eps).rsqrt(), mean};
}

// The first layer of rows x [N, H] before ReLU, but for the factor `scale` [N] (undefined: 1),
// which ReLU lets pass.
struct FirstLayer {
  at::Tensor values;  // [N, r]
  at::Tensor scale;
};

FirstLayer RunFirst(const InputNorm& norm, const at::Tensor& x, const at::Tensor& first,
                    const at::Tensor& sums, const at::Tensor& offsets) {
  at::Tensor y = at::linear(x, first);
  if (!norm.gain.defined()) return {y, {}};
  auto [rstd, mean] = Statistics(norm, x);
  if (!norm.bias.defined()) return {y, rstd};
  // W1 ((x - mean) rstd gain + bias): the offsets are not scaled, so the factor is applied here.
  y = (y - mean.unsqueeze(1) * sums) * rstd.unsqueeze(1) + offsets;
  return {y, {}};
}

struct FoldedFirst {
  at::Tensor matrix, sums, offsets;
};

// `w1` [r, H] fp32 with the norm's gain in it, in `type`.
FoldedFirst Fold(const at::Tensor& w1, const InputNorm& norm, at::ScalarType type,
                 at::Device device) {
  // A gain that trains would have its graph, and with it the matrix in front of the product.
  const at::NoGradGuard no_grad;
  const at::ScalarType wide = WideType(type);
  at::Tensor matrix = w1.to(device, wide);
  FoldedFirst folded;
  if (norm.bias.defined()) folded.offsets = matrix.mv(norm.bias.to(wide));
  if (norm.gain.defined()) matrix = matrix * norm.gain.to(wide);
  folded.matrix = matrix.to(type);
  // Of what is multiplied, rounding included: what a constant row adds goes away whole.
  if (norm.bias.defined()) folded.sums = folded.matrix.to(wide).sum(1);
  return folded;
}

// `first`: with the large matrix.
PredictorPath Copy(const PredictorPath& path, bool first, at::ScalarType type, at::Device device) {
  const auto copy = [&](const at::Tensor& matrix) {
    return matrix.to(device, type, /*non_blocking=*/false, /*copy=*/true);
  };
  return {first ? copy(path.w1) : at::Tensor(), copy(path.w2), copy(path.w3)};
}

// Rows of every block side by side, a slice of the columns at a time:
// a [N, H] -> [B * slices, block * slice]. Short blocks end with rows of zeros.
at::Tensor FlatSlices(const PredictorShape& shape, const at::Tensor& a, const BlockLayout& blocks) {
  std::vector<int64_t> places;
  for (int64_t n = 0; n < blocks.blocks(); ++n) {
    for (int64_t i = 0; i < blocks.rows_of(n); ++i) places.push_back(n * shape.block + i);
  }
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(places), at::kLong).to(a.device());
  const at::Tensor padded =
      at::zeros({blocks.blocks() * shape.block, a.size(1)}, a.options()).index_copy(0, index, a);
  const int64_t slices = shape.hidden / shape.slice;
  return padded.view({blocks.blocks(), shape.block, slices, shape.slice})
      .permute({0, 2, 1, 3})
      .reshape({blocks.blocks() * slices, shape.block * shape.slice});
}

at::Tensor AfterPool(const PredictorPath& path, const at::Tensor& z, PathActivations* activations) {
  const at::Tensor second = at::linear(z, path.w2);
  if (activations != nullptr) activations->second = second.detach();
  return at::linear(second.relu(), path.w3);
}

PredictorPath DrawPath(const PredictorShape& shape, uint64_t seed, const std::string& name) {
  const auto draw = [&](int64_t rows, int64_t columns, double gain, const char* matrix) {
    return NormalTensor({rows, columns}, gain / std::sqrt(static_cast<double>(columns)), seed,
                        absl::StrCat(name, ".", matrix));
  };
  // ReLU halves the mean square of its input, so a factor of sqrt(2) keeps it; the last one makes
  // the product of two vectors of width p about 1.
  return {draw(shape.r1, shape.FirstColumns(), std::sqrt(2.0), "w1"),
          draw(shape.r2, shape.SecondColumns(shape.r1), std::sqrt(2.0), "w2"),
          draw(shape.p, shape.r2, std::pow(static_cast<double>(shape.p), -0.25), "w3")};
}

}  // namespace

at::Tensor InputNorm::Apply(const at::Tensor& x) const {
  const at::ScalarType wide = WideType(x.scalar_type());
  const at::Tensor rows = x.to(wide);
  if (!gain.defined()) return rows;
  const auto [rstd, mean] = Statistics(*this, x);
  if (!bias.defined()) return rows * rstd.unsqueeze(1) * gain.to(wide);
  return (rows - mean.unsqueeze(1)) * rstd.unsqueeze(1) * gain.to(wide) + bias.to(wide);
}

InputNorm AttentionNormOf(const Decoder& decoder, int64_t layer) {
  return NormOf(decoder, decoder.layers[layer].attention_norm,
                decoder.layers[layer].attention_norm_bias);
}

InputNorm MlpNormOf(const Decoder& decoder, int64_t layer) {
  return NormOf(decoder, decoder.layers[layer].mlp_norm, decoder.layers[layer].mlp_norm_bias);
}

AttentionPredictor DrawAttentionPredictor(const PredictorShape& shape, uint64_t seed,
                                          const std::string& name) {
  return {DrawPath(shape, seed, name + ".q"), DrawPath(shape, seed, name + ".k"), 1.0};
}

MlpPredictor DrawMlpPredictor(int64_t hidden, uint64_t seed, const std::string& name) {
  const double deviation = std::sqrt(2.0 / static_cast<double>(hidden));
  return {NormalTensor({kMlpPredictorWidth, hidden}, deviation, seed, name + ".w1"),
          NormalTensor({1, kMlpPredictorWidth}, 1.0 / std::sqrt(double{kMlpPredictorWidth}), seed,
                       name + ".w2"),
          at::zeros({1})};
}

at::Tensor PathVectors(const PredictorPath& path, const PredictorShape& shape, const at::Tensor& a,
                       const BlockLayout& blocks, PathActivations* activations) {
  const at::Tensor input = shape.flat_slice ? FlatSlices(shape, a, blocks) : a;
  const at::Tensor first = at::linear(input, path.w1);
  if (activations != nullptr) activations->first = first.detach();
  if (shape.flat_slice) {
    return AfterPool(path, first.relu(), activations).view({blocks.blocks(), -1});
  }
  return AfterPool(path, kernels::BlockMeanMax(first, StartsOf(blocks, a.device())), activations);
}

at::Tensor MlpLogScores(const MlpPredictor& predictor, const at::Tensor& a,
                        const BlockLayout& blocks) {
  const int64_t width = predictor.w1.size(0);
  const at::Tensor pooled =
      kernels::BlockMeanMax(at::linear(a, predictor.w1), StartsOf(blocks, a.device()));
  return (at::linear(pooled.narrow(1, width, width), predictor.w2) + predictor.bias).squeeze(1);
}

AttentionScorer::AttentionScorer(const AttentionPredictor& predictor, const PredictorShape& shape,
                                 const InputNorm& norm, at::ScalarType type, at::Device device)
    : shape_(shape), norm_(norm), scale_(predictor.scale) {
  const at::ScalarType wide = WideType(type);
  q_ = Copy(predictor.q, shape.flat_slice, wide, device);
  k_ = Copy(predictor.k, shape.flat_slice, wide, device);
  if (shape.flat_slice) return;
  FoldedFirst folded = Fold(at::cat({predictor.q.w1, predictor.k.w1}), norm, type, device);
  first_ = folded.matrix;
  sums_ = folded.sums;
  offsets_ = folded.offsets;
}

AttentionScorer::Vectors AttentionScorer::BlockVectors(const at::Tensor& x,
                                                       const BlockLayout& blocks) const {
  const at::NoGradGuard no_grad;
  if (shape_.flat_slice) {
    const at::Tensor a = norm_.Apply(x);
    return {PathVectors(q_, shape_, a, blocks), PathVectors(k_, shape_, a, blocks)};
  }
  const FirstLayer first = RunFirst(norm_, x, first_, sums_, offsets_);
  const std::optional<at::Tensor> scale =
      first.scale.defined() ? std::optional(first.scale) : std::nullopt;
  const at::Tensor z =
      kernels::BlockMeanMaxForward(first.values, StartsOf(blocks, x.device()), scale);
  // Means of both paths, then maxima of both.
  const int64_t all = first_.size(0), of_q = q_.w2.size(1) / 2, of_k = all - of_q;
  const auto columns = [&](int64_t begin, int64_t count) {
    return at::cat({z.narrow(1, begin, count), z.narrow(1, all + begin, count)}, 1);
  };
  return {AfterPool(q_, columns(0, of_q), nullptr), AfterPool(k_, columns(of_q, of_k), nullptr)};
}

at::Tensor AttentionScorer::Scores(const at::Tensor& x, const BlockLayout& blocks,
                                   kernels::Combine combine) const {
  const at::NoGradGuard no_grad;
  const Vectors vectors = BlockVectors(x, blocks);
  return kernels::BlockInformativenessForward(vectors.q, vectors.k, DocumentsOf(blocks, x.device()),
                                              combine)
      .mul_(scale_);
}

MlpScorer::MlpScorer(const MlpPredictor& predictor, const InputNorm& norm, at::ScalarType type,
                     at::Device device)
    : norm_(norm),
      w2_(predictor.w2.to(device, WideType(type))),
      bias_(predictor.bias.to(device, WideType(type))) {
  FoldedFirst folded = Fold(predictor.w1, norm, type, device);
  first_ = folded.matrix;
  sums_ = folded.sums;
  offsets_ = folded.offsets;
}

at::Tensor MlpScorer::Scores(const at::Tensor& x, const BlockLayout& blocks) const {
  const at::NoGradGuard no_grad;
  const FirstLayer first = RunFirst(norm_, x, first_, sums_, offsets_);
  const std::optional<at::Tensor> scale =
      first.scale.defined() ? std::optional(first.scale) : std::nullopt;
  const int64_t width = first_.size(0);
  const at::Tensor z =
      kernels::BlockMeanMaxForward(first.values, StartsOf(blocks, x.device()), scale);
  return (at::linear(z.narrow(1, width, width), w2_) + bias_).squeeze(1);
}

at::Tensor StartsOf(const BlockLayout& blocks, at::Device device) {
  return Integers(blocks.starts, device);
}

at::Tensor DocumentsOf(const BlockLayout& blocks, at::Device device) {
  return Integers(blocks.documents, device);
}

}  // namespace lemo::train
