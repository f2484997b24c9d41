// The planner's memory model for the benchmark: a JSON array of runs in, their forecasts out. See
// README.md beside this file.
//
// In:  [{"config": {config.json of llama, qwen3 or opt}, "compute_type": "float32", "full": false,
//        "dropout": false, "ranks": {"attention": 8, "mlp": 8},
//        "policies": ["attn_out+offload", one a layer], "documents": [rows of each in the
//        micro-batch], "scope": "dense" | "layer" | "group" | "nested" | "stack", "keep": 0.5,
//        "mlp": "shared" | "own" | "off", "kv_all": false, "chooser": {"by": tokens.policy,
//        "score": of a table, "first_width": 0, "held_bytes": 0 (of a predictor), "lessons":
//        {"heads": 1, "joint": 0, "layers": 1} (of one that begins anew)}, "block": 64,
//        "mlp_tile_rows": 0, "loss_segment_rows": 0, "evaluation_documents": [], "checkpoints":
//        false, "tensor_ranks": 1, "sequence": false, "data_ranks": 1, "shard": "none" | ...,
//        "threads": 1}]
// Out: [{"low": {"weights": bytes, ..., "total": bytes}, "expected": {}, "high": {},
//        "moments": [{"name": "forward", "transient": bytes, "loss": bytes}]}]
// Every row carries loss. Exit code 1, with the reason on stderr, when the input is not that.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "planner/memory/kept_rows.h"
#include "planner/memory/learning.h"
#include "planner/memory/memory.h"

namespace {

using lemo::planner::CategoryBytes;
using lemo::planner::KeptRows;
using lemo::planner::LayerMemory;
using lemo::planner::LearningOptions;
using lemo::planner::MemoryForecast;
using lemo::planner::MemoryOptions;
using lemo::planner::ModelShape;
using lemo::planner::RowChooser;
using lemo::planner::ScoredRows;
using lemo::planner::Sharding;
using lemo::planner::Stored;
using nlohmann::json;

ModelShape ShapeOf(const json& config) {
  const std::string family = config.at("model_type");
  ModelShape shape{.hidden = config.at("hidden_size"),
                   .heads = config.at("num_attention_heads"),
                   .vocabulary = config.at("vocab_size")};
  shape.layers = config.at("num_hidden_layers");
  shape.tied_embeddings = config.at("tie_word_embeddings");
  if (family == "opt") {
    shape.kv_heads = shape.heads;
    shape.head_dim = shape.hidden / shape.heads;
    shape.intermediate = config.at("ffn_dim");
    shape.gated_mlp = false;
    shape.layer_norm = shape.qkv_bias = shape.o_bias = shape.mlp_bias = true;
    shape.position_rows = config.at("max_position_embeddings").get<int64_t>() + 2;
    shape.embedding_width = config.at("word_embed_proj_dim");
    shape.post_norm = !config.at("do_layer_norm_before").get<bool>();
    shape.final_norm = !shape.post_norm;
    return shape;
  }
  if (family != "llama" && family != "qwen3") throw std::runtime_error("unknown family " + family);
  shape.kv_heads = config.at("num_key_value_heads");
  shape.head_dim = config.at("head_dim");
  shape.intermediate = config.at("intermediate_size");
  shape.qk_norm = family == "qwen3";
  return shape;
}

void SetChooser(const json& asked, bool stack, const KeptRows& all, MemoryOptions* options) {
  const std::string by = asked.at("by");
  RowChooser& chooser = options->chooser;
  if (by == "norm") chooser.by = RowChooser::By::kNorm;
  if (by == "predictor") chooser.by = RowChooser::By::kPredictor;
  if (by == "oracle") chooser.by = RowChooser::By::kScores;
  chooser.layers = asked.value("layers", 1);
  chooser.mlp = asked.value("mlp", false);
  chooser.own_stream = stack && chooser.by != RowChooser::By::kPlace;
  chooser.first_width = asked.value("first_width", 0);
  chooser.held_bytes = asked.value("held_bytes", 0);
  if (asked.contains("lessons")) {
    const json& learns = asked["lessons"];
    lemo::planner::Lessons& lessons = options->lessons;
    lessons.parameters =
        learns.at("heads").get<int64_t>() * lessons.heads.ParametersOfOne(options->shape);
    lessons.joint = learns.at("joint");
    lessons.layers = learns.at("layers");
    lessons.start_bytes = 4 * lessons.parameters;
  }
  if (by != "table") return;
  static const std::map<std::string, ScoredRows::By> kScores = {
      {"attention", ScoredRows::By::kAttention},
      {"loss", ScoredRows::By::kLoss},
      {"entropy", ScoredRows::By::kEntropy}};
  options->scored = {.by = kScores.at(asked.at("score")), .rows = all.rows, .longest = all.longest};
}

MemoryOptions OptionsOf(const json& asked) {
  static const std::map<std::string, Stored> kStored = {{"input", Stored::kInput},
                                                        {"attn_out", Stored::kAttentionOut},
                                                        {"mlp", Stored::kMlp},
                                                        {"all", Stored::kAll}};
  MemoryOptions options;
  options.shape = ShapeOf(asked.at("config"));
  options.element_bytes = asked.at("compute_type") == "float32" ? 4 : 2;
  options.tuning.full = asked.at("full");
  options.tuning.dropout = asked.at("dropout");
  const int64_t attention = asked.at("ranks").value("attention", 0);
  const int64_t mlp = asked.at("ranks").value("mlp", 0);
  options.tuning.adapters = {attention, attention, attention, attention, mlp, mlp, mlp};

  const std::vector<int64_t> documents = asked.at("documents");
  const std::string scope = asked.at("scope");
  const KeptRows all = lemo::planner::KeepRows(documents, {});
  const KeptRows kept =
      scope == "dense" ? all
                       : lemo::planner::KeepRows(
                             documents, {.keep = asked.at("keep"), .block = asked.at("block")});
  options.batch_rows = all.rows;
  options.longest = all.longest;
  options.stream_rows = scope == "stack" ? kept.rows : all.rows;
  options.documents = static_cast<int64_t>(documents.size());
  LayerMemory layer{.stream = scope == "stack" || scope == "nested" ? kept.rows : all.rows,
                    .attention = kept.rows,
                    .mlp = kept.rows,
                    .longest = kept.longest,
                    .reserved = scope == "stack" || scope == "dense" ? 0 : kept.reserved};
  if (asked.at("mlp") != "shared") {
    if (asked.at("mlp") == "off") layer.mlp = all.rows;
    layer.separate = true;
  }
  if (asked.at("kv_all")) {
    layer.seen = all.rows - kept.rows;
    layer.keys = all.longest;
  }
  SetChooser(asked.at("chooser"), scope == "stack", all, &options);
  // A document's last row has no next one to predict.
  options.labelled = layer.stream - options.documents;
  for (std::string policy : asked.at("policies").get<std::vector<std::string>>()) {
    const size_t plus = policy.find("+offload");
    layer.offload = plus != std::string::npos;
    layer.stored = kStored.at(policy.substr(0, plus));
    options.layers.push_back(layer);
  }
  options.mlp_tile_rows = asked.at("mlp_tile_rows");
  options.loss_segment_rows = asked.at("loss_segment_rows");
  const std::vector<int64_t> held_out = asked.at("evaluation_documents");
  for (const int64_t rows : held_out) {
    options.evaluation.rows += rows;
    options.evaluation.labelled += rows - 1;
    options.evaluation.longest = std::max(options.evaluation.longest, rows);
  }
  options.rows_max = std::max(options.batch_rows, options.evaluation.rows);
  options.checkpoints = asked.at("checkpoints");
  options.tensor_ranks = asked.at("tensor_ranks");
  options.sequence = asked.at("sequence");
  options.data_ranks = asked.at("data_ranks");
  static const std::map<std::string, Sharding> kShard = {{"none", Sharding::kNone},
                                                         {"optimizer", Sharding::kOptimizer},
                                                         {"gradients", Sharding::kGradients},
                                                         {"parameters", Sharding::kParameters}};
  options.sharding = kShard.at(asked.at("shard"));
  options.threads = asked.at("threads");
  options.publish_rows = 0;  // a run's result is told before it is published
  return options;
}

LearningOptions LearningOptionsOf(const json& asked) {
  const json& learns = asked.at("learns");
  LearningOptions options;
  options.shape = ShapeOf(asked.at("config"));
  options.element_bytes = asked.at("compute_type") == "float32" ? 4 : 2;
  options.heads.mlp = learns.value("mlp", true);
  options.heads.flat_slice = learns.value("kind", "token_pool") == "flat_slice";
  options.heads.rotated = learns.value("score_rope", false);
  if (learns.contains("nested_from")) options.heads.joint += std::ssize(learns["nested_from"]);
  options.allocates = learns.value("allocate", 0.0) > 0;
  options.rows = asked.at("rows");
  options.longest = asked.at("longest");
  options.documents = options.rows / options.longest;
  options.micro_batches = 2;
  const int64_t measured = asked.at("measured");
  options.measured = {.rows = measured, .longest = options.longest, .labelled = measured - 1};
  options.threads = asked.at("threads");
  return options;
}

json JsonOf(const CategoryBytes& bytes) {
  return {{"weights", bytes.weights},
          {"trainable", bytes.trainable},
          {"saved_activations", bytes.saved_activations},
          {"transient", bytes.transient},
          {"loss", bytes.loss},
          {"total", bytes.total}};
}

json Answer(const json& asked) {
  const MemoryForecast forecast = asked.contains("learns")
                                      ? lemo::planner::ForecastLearning(LearningOptionsOf(asked))
                                      : lemo::planner::ForecastMemory(OptionsOf(asked));
  json answer = {{"low", JsonOf(forecast.low)},
                 {"expected", JsonOf(forecast.expected)},
                 {"high", JsonOf(forecast.high)},
                 {"moments", json::array()}};
  for (const auto& moment : forecast.moments) {
    answer["moments"].push_back({{"name", std::string(moment.name)},
                                 {"transient", moment.transient},
                                 {"loss", moment.loss}});
  }
  return answer;
}

}  // namespace

int main() {
  try {
    json answers = json::array();
    for (const json& asked : json::parse(std::cin)) answers.push_back(Answer(asked));
    std::cout << answers.dump() << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "lemo_plan_memory: %s\n", error.what());
    return 1;
  }
}
