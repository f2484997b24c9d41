"""The oracle cases: one tiny random model each, its documents, and its LoRA start.

Weights depend only on the tensor's name, its shape and the group's seed, so cases that differ in
config.json alone hold equal files (which record.py then stores once).
"""

import dataclasses
import json
import os
import random
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()

VOCABULARY = 97
BOS, EOS, FIRST_WORD = 1, 2, 3
IGNORE = -100
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_RANK, LORA_ALPHA = 4, 8
# The first is longer than ORIGINAL_POSITIONS, so that scaled positions matter.
DOCUMENT_LENGTHS = (41, 7, 14)
ORIGINAL_POSITIONS = 32


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    model_type: str
    config: dict
    # config.json with `rope_theta`, `rope_scaling` and `torch_dtype`, as transformers 4 wrote it and
    # as most published models still have it.
    old_config: bool = False


def _rope(rope_type, **parameters):
    # A base of 100 spreads the four frequencies of head_dim 8 over all regimes of llama3 and yarn.
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 100.0, **parameters}}


CASES = [
    Case("llama_gqa", "llama", {}),
    Case("llama_mha_head_dim", "llama",
         {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12}),
    Case("llama_tied_bias", "llama",
         {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    Case("llama_linear", "llama", _rope("linear", factor=2.0), old_config=True),
    # transformers takes max_position_embeddings as the length where dynamic scaling sets in.
    Case("llama_dynamic", "llama",
         {"max_position_embeddings": ORIGINAL_POSITIONS, **_rope("dynamic", factor=2.0)}),
    Case("llama_llama3", "llama",
         _rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=ORIGINAL_POSITIONS), old_config=True),
    Case("llama_yarn", "llama",
         _rope("yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5,
               original_max_position_embeddings=ORIGINAL_POSITIONS)),
    Case("mistral", "mistral", {"sliding_window": None}),
    Case("mistral_window", "mistral", {"sliding_window": 4096}),
    Case("qwen2", "qwen2", {"tie_word_embeddings": True}),
    Case("qwen3", "qwen3", {"tie_word_embeddings": True, "head_dim": 12}),
]


def case(name):
    return next(c for c in CASES if c.name == name)


def _random(kind, name, shape):
    """Reproducible noise: the same on every machine, for the same name and shape."""
    seed = zlib.crc32(f"{kind}/{name}/{list(shape)}".encode())
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def _init_model(model):
    """Weights far from the identity: a wrong norm, bias or scale must show in the logits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = _random("model", name, parameter.shape)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith(".bias"):
                parameter.copy_(0.2 * noise)
            elif "embed" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)


def _to_old_config(path):
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_model(case, directory):
    config = AutoConfig.for_model(case.model_type, **{
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None, "dtype": "float32",
        **case.config})
    model = AutoModelForCausalLM.from_config(config)
    _init_model(model)
    model.save_pretrained(directory)
    if case.old_config:
        _to_old_config(Path(directory) / "config.json")


def load_model(directory, dtype):
    """The model as a user loads it, computing in `dtype` throughout."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32,
                                                 attn_implementation="sdpa")
    compute_in(model, dtype)
    model.config.use_cache = False
    return model.eval()


def compute_in(model, dtype):
    """transformers' RMSNorm rounds to float32 inside; for a float64 oracle it must not."""
    model.to(dtype)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: m.weight * (
                x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon))


def save_adapter(case, model_dir, directory):
    """A PEFT adapter to start from. B is not zero: otherwise A has no gradient in the first step."""
    model = get_peft_model(load_model(model_dir, torch.float32), LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=TARGETS,
        task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                scale = 0.05 if "lora_B" in name else parameter.shape[1] ** -0.5
                parameter.copy_(scale * _random("adapter", name, parameter.shape))
    model.peft_config["default"].base_model_name_or_path = case.name
    model.save_pretrained(directory, save_embedding_layers=False)
    (Path(directory) / "README.md").unlink()
    # PEFT writes the targets in the order of a set.
    path = Path(directory) / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def documents(case):
    """Tokens and labels; labels[i] is what row i must predict, IGNORE where it carries no loss."""
    rng = random.Random(zlib.crc32(case.name.encode()))
    result = []
    for index, length in enumerate(DOCUMENT_LENGTHS):
        tokens = [rng.randrange(FIRST_WORD, VOCABULARY) for _ in range(length - 1)] + [EOS]
        labels = tokens[1:] + [IGNORE]
        if index == 1:  # a prompt
            labels[:2] = [IGNORE] * 2
        if index == 2:  # a turn of the user in the middle
            labels[4:9] = [IGNORE] * 5
        result.append({"tokens": tokens, "labels": labels})
    return result
