// The config of a Llama that is small enough for a test and has sizes that nothing mixes up.
#pragma once

#include "worker/train/model/family/family.h"

namespace lemo::train {

inline DecoderConfig SmallLlama() {
  return *ParseDecoderConfig({{"architectures", {"LlamaForCausalLM"}},
                              {"model_type", "llama"},
                              {"hidden_size", 256},
                              {"num_hidden_layers", 4},
                              {"num_attention_heads", 8},
                              {"num_key_value_heads", 2},
                              {"intermediate_size", 704},
                              {"max_position_embeddings", 4096},
                              {"vocab_size", 4096}});
}

}  // namespace lemo::train
