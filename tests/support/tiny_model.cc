#include "tests/support/tiny_model.h"

#include <limits>
#include <random>

#include "worker/train/data/positions.h"
#include "worker/train/data/random.h"
#include "worker/train/model/random_tensor.h"

namespace lemo::train::testing {

DecoderConfig TinyConfig(const std::string& name) {
  DecoderConfig config;
  config.family = "llama";
  config.architecture = "LlamaForCausalLM";
  config.hidden = 16;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 4;
  config.head_dim = 4;
  config.intermediate = 24;
  config.vocabulary = 29;
  config.max_positions = 256;
  config.rms_norm_eps = 1e-5;
  config.rope.original_max_positions = 256;
  config.initializer_range = 0.12;  // large enough that every part matters, small enough for fp32
  config.tied_embeddings = true;
  config.sliding_window.assign(config.layers, 0);
  if (name == "opt" || name == "opt_post_norm") {
    config.family = "opt";
    config.architecture = "OPTForCausalLM";
    config.norm = DecoderConfig::Norm::kLayer;
    config.mlp = DecoderConfig::Mlp::kRelu;
    config.positions = DecoderConfig::Positions::kTable;
    config.position_offset = 2;
    config.qkv_bias = config.o_bias = config.mlp_bias = true;
    if (name == "opt_post_norm") {
      config.post_norm = true;
      config.final_norm = false;
      config.embedding_width = 10;
    }
    return config;
  }
  if (name != "mha") config.kv_heads = 2;
  if (name == "qwen2") config.qkv_bias = true;
  if (name == "qwen3") {
    config.qk_norm = true;
    config.head_dim = 8;
    config.tied_embeddings = false;
  }
  return config;
}

MicroBatch RandomBatch(const DecoderConfig& config, const std::vector<int>& lengths,
                       uint64_t seed) {
  std::mt19937_64 random(seed);
  MicroBatch batch;
  batch.document_starts.push_back(0);
  for (const int length : lengths) {
    for (int i = 0; i < length; ++i) {
      batch.tokens.push_back(static_cast<int32_t>(random() % config.vocabulary));
      batch.positions.push_back(i);
    }
    const size_t first = batch.labels.size();
    for (int i = 0; i < length; ++i) {
      const bool ignored = i + 1 == length || random() % 10 == 0;
      batch.labels.push_back(ignored ? kIgnoreLabel : batch.tokens[first + i + 1]);
    }
    batch.document_starts.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

MicroBatch SkipPositions(MicroBatch batch, int64_t target, uint64_t seed) {
  batch.positions.clear();
  for (size_t d = 0; d + 1 < batch.document_starts.size(); ++d) {
    AppendPositions({.target = target, .chunks = 3}, MixBits(seed + d),
                    batch.document_starts[d + 1] - batch.document_starts[d], &batch.positions);
  }
  return batch;
}

MicroBatch Pack(const std::vector<MicroBatch>& parts) {
  MicroBatch packed;
  packed.document_starts.push_back(0);
  for (const MicroBatch& part : parts) {
    const int32_t offset = packed.document_starts.back();
    packed.tokens.insert(packed.tokens.end(), part.tokens.begin(), part.tokens.end());
    packed.labels.insert(packed.labels.end(), part.labels.begin(), part.labels.end());
    packed.positions.insert(packed.positions.end(), part.positions.begin(), part.positions.end());
    for (size_t i = 1; i < part.document_starts.size(); ++i) {
      packed.document_starts.push_back(offset + part.document_starts[i]);
    }
  }
  return packed;
}

Parameters PlainParameters(Decoder& decoder, const Trainables& trainables) {
  Parameters parameters;
  decoder.VisitParameters([&](const std::string& name, int64_t, Stage, at::Tensor& tensor) {
    parameters[name] = tensor.detach().clone();
  });
  for (const Trainable& trainable : trainables) {
    parameters[trainable.name] = trainable.value.detach().clone().requires_grad_(true);
  }
  return parameters;
}

double RelativeError(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor left = a.detach().to(at::kDouble), right = b.detach().to(at::kDouble);
  const double norm = right.norm().item<double>();
  const double error = (left - right).norm().item<double>();
  return norm == 0.0 ? error : error / norm;
}

lemo::v1::TunerSpec LoraSpec(int rank, double alpha) {
  lemo::v1::TunerSpec spec;
  spec.mutable_lora()->set_rank(rank);
  spec.mutable_lora()->set_alpha(alpha);
  spec.mutable_lora()->add_targets("all-linear");
  return spec;
}

lemo::v1::TunerSpec FullSpec() {
  lemo::v1::TunerSpec spec;
  spec.mutable_full();
  return spec;
}

void MoveOffZero(Trainables& trainables, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (Trainable& trainable : trainables) {
    trainable.master.add_(
        NormalTensor(WholeShape(trainable), 0.1, seed, trainable.name, trainable.shard));
  }
  RefreshValues(trainables);
}

}  // namespace lemo::train::testing
