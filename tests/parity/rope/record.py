"""Records rope frequencies and angles of transformers as rope.json, the oracle of rope_parity_test.

    python tests/parity/rope/record.py > tests/parity/rope/rope.json
"""

import json
import sys

import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

# (name, head_dim, max_position_embeddings, rope_theta, the rest of rope_parameters)
CASES = [
    ("plain", 64, 2048, 10000.0, {}),
    ("plain_wide", 128, 131072, 1e6, {}),
    ("plain_narrow", 8, 512, 100000.0, {}),
    ("linear", 64, 4096, 10000.0, {"rope_type": "linear", "factor": 4.0}),
    ("linear_odd", 96, 4096, 10000.0, {"rope_type": "linear", "factor": 2.7}),
    ("dynamic", 64, 2048, 10000.0, {"rope_type": "dynamic", "factor": 2.0}),
    ("dynamic_odd", 80, 1500, 10000.0, {"rope_type": "dynamic", "factor": 3.3}),
    ("llama3", 128, 131072, 500000.0,
     {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}),
    ("llama32", 64, 131072, 500000.0,
     {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}),
    ("yarn", 128, 131072, 1e6,
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    ("yarn_bounds", 64, 16384, 10000.0,
     {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048,
      "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False}),
    ("yarn_mscale", 64, 163840, 10000.0,
     {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
      "mscale": 1.0, "mscale_all_dim": 0.707}),
    ("yarn_factor", 64, 16384, 150000.0,
     {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 512,
      "attention_factor": 1.25}),
]


def record(name, head_dim, max_positions, theta, scaling):
    config = LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", **scaling, "rope_theta": theta})
    runs = []
    for length in (5, max_positions, 3 * max_positions + 17):
        rotary = LlamaRotaryEmbedding(config)
        positions = sorted({0, 1, 2, length // 3, length // 2, length - 1})
        # The longest position decides the length that dynamic scaling sees.
        cos, sin = rotary(torch.zeros(1), torch.tensor([positions]))
        half = head_dim // 2
        columns = sorted({0, 1, half // 3, half // 2, half - 1})
        runs.append({
            "length": length,
            "inv_freq": rotary.inv_freq.double().tolist(),
            "scale": float(rotary.attention_scaling),
            "positions": positions,
            "columns": columns,
            "cos": cos[0][:, columns].double().tolist(),
            "sin": sin[0][:, columns].double().tolist(),
        })
        if scaling.get("rope_type") != "dynamic":
            if runs[0]["inv_freq"] != runs[-1]["inv_freq"]:
                sys.exit(f"{name}: frequencies depend on the length")
            if len(runs) > 1:
                del runs[-1]["inv_freq"]
    return {"name": name, "head_dim": head_dim,
            "config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                       "hidden_size": head_dim, "num_attention_heads": 1, "head_dim": head_dim,
                       "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 8,
                       "max_position_embeddings": max_positions, "rope_theta": theta,
                       "rope_scaling": scaling or None},
            "runs": runs}


def main():
    print(json.dumps({"versions": {"transformers": transformers.__version__,
                                   "torch": torch.__version__},
                      "cases": [record(*case) for case in CASES]}, indent=None,
                     separators=(",", ":")).replace('{"name"', '\n{"name"'))


if __name__ == "__main__":
    main()
