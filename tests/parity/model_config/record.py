"""Records how transformers reads config.json files as configs.json, the oracle of model_config_parity_test.

    python tests/parity/model_config/record.py > tests/parity/model_config/configs.json
"""

import json

import torch
import transformers
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8,
         "intermediate_size": 48, "vocab_size": 40}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
                 "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# What stands in the file beside the sizes. Written for every family, then some for one.
EVERY = [
    {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    {"num_key_value_heads": 4, "rope_theta": 5e5, "max_position_embeddings": 96,
     "rms_norm_eps": 1e-5, "initializer_range": 0.05, "torch_dtype": "bfloat16"},
    {"num_key_value_heads": 4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"num_key_value_heads": 4, "dtype": "float16", "max_position_embeddings": 256,
     "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 3e4}},
    {"num_key_value_heads": 8, "rope_theta": 1e4,
     "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    {"num_key_value_heads": 8, "rope_theta": 1e4, "max_position_embeddings": 4096,
     "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                      "high_freq_factor": 4.0, "original_max_position_embeddings": 512}},
    {"num_key_value_heads": 8, "max_position_embeddings": 4096,
     "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e6,
                         "original_max_position_embeddings": 512, "beta_fast": None}},
]
SOME = {
    "llama": [{}, {"num_key_value_heads": None}, {"attention_bias": True}, {"mlp_bias": True, "head_dim": None}],
    "mistral": [{}, {"sliding_window": None}, {"sliding_window": 17, "head_dim": None}],
    "qwen2": [{"num_key_value_heads": None},
              {"num_attention_heads": 32, "hidden_size": 128},
              {"num_key_value_heads": 8, "use_sliding_window": True, "max_window_layers": 1},
              {"num_key_value_heads": 8, "use_sliding_window": True, "num_hidden_layers": 30},
              {"num_key_value_heads": 8, "use_sliding_window": False, "sliding_window": 9},
              {"num_key_value_heads": 8, "use_sliding_window": True, "sliding_window": None,
               "max_window_layers": 0},
              {"num_key_value_heads": 8, "use_sliding_window": True, "sliding_window": 9,
               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}],
    "qwen3": [{"num_key_value_heads": None},
              {"num_attention_heads": 32},
              {"num_key_value_heads": 8, "attention_bias": True},
              {"num_key_value_heads": 8, "use_sliding_window": True, "sliding_window": 9,
               "max_window_layers": 2}],
}


def windows(model):
    """What each layer's attention was built with."""
    out = []
    for layer in model.model.layers:
        window = getattr(layer.self_attn, "sliding_window", None)
        if model.config.model_type == "mistral":  # kept in the config alone
            window = model.config.sliding_window
        out.append(window or 0)
    return out


def read(family, extra):
    written = {"architectures": [ARCHITECTURES[family]], "model_type": family, **SIZES, **extra}
    # A copy: transformers changes what it is given.
    config = CONFIG_MAPPING[family].from_dict(json.loads(json.dumps(written)))
    dtype = str(config.dtype).removeprefix("torch.")  # from_config writes its own
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # On a real device, since the frequencies are values.
    rotary = type(model.model.rotary_emb)(config)
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    return {"config": written, "read": {
        "max_positions": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": config.initializer_range,
        "tied_embeddings": config.tie_word_embeddings,
        "dtype": dtype,
        "sliding_window": windows(model),
        "inv_freq": rotary.inv_freq.double().tolist(),
        "scale": float(rotary.attention_scaling),
        "tensors": {name: shape for name, shape in shapes.items()
                    if "layers." not in name or "layers.0." in name},
        "tensor_count": len(shapes),
    }}


def main():
    cases = [read(family, extra) for family in ARCHITECTURES for extra in EVERY + SOME[family]]
    print(json.dumps({"versions": {"transformers": transformers.__version__},
                      "cases": cases}, separators=(",", ":")).replace('{"config"', '\n{"config"'))


if __name__ == "__main__":
    main()
