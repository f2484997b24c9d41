// The models that the tests of tensor parallelism share between ranks.
#pragma once

#include <string>
#include <vector>

#include "tests/support/tiny_model.h"

namespace lemo::train::testing {

// Four query heads each, so that 2 and 4 ranks can share them; 29 words, which neither divides.
//   mha, gqa (two key heads: four ranks have each twice), qwen2, qwen3 (untied), opt
//   one_key    one key head for all ranks
//   untied     with an MLP of width 20, whose parts for four ranks begin at odd columns
//   few_words  three words: of four ranks one has none
inline DecoderConfig SharedConfig(const std::string& name) {
  const bool own = name == "one_key" || name == "untied" || name == "few_words";
  DecoderConfig config = TinyConfig(own ? "mha" : name);
  if (name == "one_key") config.kv_heads = 1;
  if (name == "few_words") config.vocabulary = 3;
  if (name == "untied") {
    config.tied_embeddings = false;
    config.intermediate = 20;
  }
  return config;
}

inline const std::vector<std::string> kSharedShapes = {"mha", "gqa",     "qwen2",  "qwen3",
                                                       "opt", "one_key", "untied", "few_words"};

}  // namespace lemo::train::testing
