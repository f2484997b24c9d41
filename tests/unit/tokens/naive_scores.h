// Scores of blocks written down once more, in loops over pairs of rows and from the plain model.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/plain_model.h"
#include "tests/support/tiny_model.h"
#include "worker/train/model/rope.h"
#include "worker/train/tokens/blocks.h"

namespace lemo::train::testing {

// A model in double whose adapters do something, and the same as plain parameters.
struct ScoredModel {
  explicit ScoredModel(const std::string& name)
      : config(TinyConfig(name)),
        weights(RandomWeights(config, 5, at::kDouble, at::kCPU)),
        decoder(config, weights) {
    tuner = *MakeTuner(LoraSpec());
    trainables = *tuner->Attach(decoder, 7);
    MoveOffZero(trainables, 9);
    for (const auto& [tensor, value] : PlainParameters(decoder, trainables)) {
      parameters[tensor] = value.detach();
    }
    plain.lora_scale = 2.0;  // alpha 6 by rank 3
  }

  DecoderConfig config;
  ModelWeights weights;
  Decoder decoder;
  std::unique_ptr<Tuner> tuner;
  Trainables trainables;
  Parameters parameters;
  PlainOptions plain;
};

// The stream that layer `layer` reads [rows, H].
inline at::Tensor NaiveStream(const ScoredModel& model, const MicroBatch& batch, int64_t layer) {
  DecoderConfig below = model.config;
  below.layers = layer;
  return PlainHidden(below, model.parameters, batch, model.plain);
}

// The stream that its MLP reads.
inline at::Tensor NaiveMlpStream(const ScoredModel& model, const MicroBatch& batch, int64_t layer) {
  DecoderConfig below = model.config;
  below.layers = layer + 1;
  PlainOptions options = model.plain;
  options.mlp_rows.assign(layer + 1, at::ones({batch.rows()}, at::kBool));
  options.mlp_rows.back() = at::zeros({batch.rows()}, at::kBool);
  options.attention_rows.assign(layer + 1, at::ones({batch.rows()}, at::kBool));
  return PlainHidden(below, model.parameters, batch, options);
}

// q [rows, A, D] or k [rows, G, D] of layer `layer` for the stream x; rotated where `batch` says at
// which positions.
inline at::Tensor NaiveHeads(const ScoredModel& model, int64_t layer, const std::string& which,
                             const at::Tensor& x, const MicroBatch* batch) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  const std::string name = prefix + "self_attn." + which + "_proj";
  const auto norm = [&](const at::Tensor& v, const std::string& weight) {
    return model.parameters.at(weight) *
           (v * at::rsqrt(v.pow(2).mean(-1, true) + model.config.rms_norm_eps));
  };
  const at::Tensor a = norm(x, prefix + "input_layernorm.weight");
  at::Tensor y = at::matmul(a, model.parameters.at(name + ".weight").t());
  if (model.parameters.contains(name + ".bias")) y = y + model.parameters.at(name + ".bias");
  const std::string key = "base_model.model." + name + ".lora_";
  y = y +
      model.plain.lora_scale * at::matmul(at::matmul(a, model.parameters.at(key + "A.weight").t()),
                                          model.parameters.at(key + "B.weight").t());
  y = y.view({x.size(0), -1, model.config.head_dim});
  if (model.config.qk_norm) y = norm(y, prefix + "self_attn." + which + "_norm.weight");
  if (batch == nullptr) return y;
  const int64_t half = model.config.head_dim / 2;
  at::Tensor cos = at::empty({x.size(0), half}, at::kDouble), sin = at::empty_like(cos);
  FillRopeTables(model.config.rope, model.config.head_dim, batch->positions, batch->document_starts,
                 cos.data_ptr<double>(), sin.data_ptr<double>());
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  const at::Tensor first = y.narrow(2, 0, half), second = y.narrow(2, half, half);
  return at::cat({first * c - second * s, second * c + first * s}, 2);
}

// I of every block by lemo-spec section 3. Rows i of the layout have document and block as it says.
inline at::Tensor NaiveInformativeness(const at::Tensor& q, const at::Tensor& k,
                                       const BlockLayout& blocks, const std::string& combine) {
  const int64_t heads = q.size(1), group = heads / k.size(1);
  at::Tensor result = at::zeros({blocks.blocks()}, at::kDouble);
  double* out = result.data_ptr<double>();
  for (size_t d = 0; d + 1 < blocks.documents.size(); ++d) {
    const int64_t first = blocks.documents[d], count = blocks.documents[d + 1] - first;
    std::vector<std::vector<double>> m_of(count, std::vector<double>(count, 0));
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t n = 0; n <= m; ++n) {
        for (int64_t i = blocks.starts[first + m]; i < blocks.starts[first + m + 1]; ++i) {
          for (int64_t j = blocks.starts[first + n]; j < blocks.starts[first + n + 1]; ++j) {
            if (j > i) continue;
            double r = 0;
            for (int64_t h = 0; h < heads; ++h) {
              const double score = q[i][h].dot(k[j][h / group]).item<double>() /
                                   std::sqrt(static_cast<double>(q.size(2)));
              r += std::max(0.0, score) / static_cast<double>(heads);
            }
            m_of[m][n] = std::max(m_of[m][n], r);
          }
        }
      }
    }
    for (int64_t n = 0; n < count; ++n) {
      double column = 0, row = 0;
      for (int64_t m = n; m < count; ++m) column += m_of[m][n];
      for (int64_t m = 0; m < n; ++m) row += m_of[n][m];
      out[first + n] = combine == "column"        ? column
                       : combine == "column_mean" ? column / static_cast<double>(count - n)
                                                  : (column + row) / static_cast<double>(count);
    }
  }
  return result;
}

}  // namespace lemo::train::testing
