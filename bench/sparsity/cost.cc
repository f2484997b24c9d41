// The planner's cost model for the benchmark: a JSON object in, one out. See README.md beside this
// file.
//
// In:  {"shape": {"hidden_size": ..., as in config.json}, "adapter_rank": 8,
//       "passes": [{"stored": "attn_out", "attention": [rows by layer], "mlp": [rows by layer],
//                   "separate": false, "head": rows, "seconds": measured, where it calibrates}]}
// Out: {"rates": {"products": FLOP/s, "attention": FLOP/s},
//       "passes": [{"products": FLOP, "attention": FLOP, "seconds": predicted}]}
// Rows are of one document. Exit code 1, with the reason on stderr, when the input is not that.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "planner/cost_model.h"

namespace {

using lemo::planner::Stored;
using lemo::planner::Work;
using nlohmann::json;

lemo::planner::ModelShape ShapeOf(const json& config) {
  return {.hidden = config.at("hidden_size"),
          .heads = config.at("num_attention_heads"),
          .kv_heads = config.at("num_key_value_heads"),
          .head_dim = config.at("head_dim"),
          .intermediate = config.at("intermediate_size"),
          .vocabulary = config.at("vocab_size")};
}

Work WorkOf(const lemo::planner::ModelShape& shape, const lemo::planner::Tuning& tuning,
            const json& pass) {
  static const std::map<std::string, Stored> kStored = {{"input", Stored::kInput},
                                                        {"attn_out", Stored::kAttentionOut},
                                                        {"mlp", Stored::kMlp},
                                                        {"all", Stored::kAll}};
  const Stored stored = kStored.at(pass.at("stored"));
  const std::vector<int64_t> attention = pass.at("attention"), mlp = pass.at("mlp");
  if (attention.size() != mlp.size()) throw std::runtime_error("attention and mlp differ in size");
  Work work = lemo::planner::HeadWork(shape, tuning, pass.at("head")).Total();
  for (size_t i = 0; i < attention.size(); ++i) {
    work += lemo::planner::LayerWork(shape, tuning, stored,
                                     {.attention = attention[i],
                                      .mlp = mlp[i],
                                      .pairs = lemo::planner::CausalPairs(attention[i]),
                                      .separate = pass.at("separate")})
                .Total();
  }
  return work;
}

json Answer(const json& asked) {
  const lemo::planner::ModelShape shape = ShapeOf(asked.at("shape"));
  const lemo::planner::Tuning tuning{.attention_rank = asked.at("adapter_rank")};
  std::vector<Work> works;
  std::vector<lemo::planner::MeasuredStep> measured;
  for (const json& pass : asked.at("passes")) {
    works.push_back(WorkOf(shape, tuning, pass));
    if (pass.contains("seconds")) measured.push_back({works.back(), pass.at("seconds")});
  }
  const auto rates = lemo::planner::CalibrateRates(measured);
  if (!rates) throw std::runtime_error("no measured pass to calibrate with");
  json answer = {{"rates", {{"products", rates->products}, {"attention", rates->attention}}},
                 {"passes", json::array()}};
  for (const Work& work : works) {
    answer["passes"].push_back({{"products", work.products},
                                {"attention", work.attention},
                                {"seconds", lemo::planner::Seconds(work, *rates)}});
  }
  return answer;
}

}  // namespace

int main() {
  try {
    std::cout << Answer(json::parse(std::cin)).dump() << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "lemo_sparsity_cost: %s\n", error.what());
    return 1;
  }
}
