#!/usr/bin/env python3
"""Lets PEFT and transformers load what `write_samples MODEL OUT` wrote; any warning is a failure.

    check_peft.py MODEL OUT
"""

import json
import math
import re
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MESSAGES = [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon"}]


def by_pattern(patterns, module, otherwise):
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise


def check_text(directory, base_dir):
    ours, base = AutoTokenizer.from_pretrained(directory), AutoTokenizer.from_pretrained(base_dir)
    for text in ("Once upon a time", " there was  a é\n"):
        assert ours(text)["input_ids"] == base(text)["input_ids"], text
    jinja = (directory / "chat_template.jinja").read_text()
    assert json.loads((directory / "tokenizer_config.json").read_text())["chat_template"] == jinja
    assert ours.apply_chat_template(MESSAGES, tokenize=False) == "<user>Once</s><assistant>upon</s>"
    assert 2 in GenerationConfig.from_pretrained(directory).eos_token_id


def check_adapter(directory, base_dir):
    config = PeftConfig.from_pretrained(directory)
    assert config.inference_mode and config.task_type == "CAUSAL_LM", config
    path = directory / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}, file.metadata()
    tensors = load_file(path)
    modules = {KEY.fullmatch(key)[1] for key in tensors}
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = PeftModel.from_pretrained(base, directory)
    loaded = {n.replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    assert loaded.keys() == tensors.keys(), loaded.keys() ^ tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(loaded[key], tensor), key
    merged = dict(model.merge_and_unload().named_parameters())
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        expected = weight
        if module in modules:
            rank = by_pattern(config.rank_pattern, module, config.r)
            alpha = by_pattern(config.alpha_pattern, module, config.lora_alpha)
            scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
            a, b = (tensors[f"base_model.model.{module}.lora_{m}.weight"] for m in "AB")
            expected = weight + scale * (b @ a)
        assert torch.allclose(merged[name], expected, rtol=0, atol=1e-6), name
    check_text(directory, base_dir)
    return len(modules)


def check_full(directory, base_dir):
    ours, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    ours, base = ours.state_dict(), base.state_dict()
    assert ours.keys() == base.keys()
    assert all(torch.equal(ours[name], base[name]) for name in base)
    check_text(directory, base_dir)
    return len(list(directory.glob("model-*-of-*.safetensors")))


def main():
    base_dir, out = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("error")
    for name in ("plain", "rslora", "patterns"):
        modules = check_adapter(out / name, base_dir)
        print(f"{name}: {modules} modules, as PEFT loads and merges them")
    print(f"full: {check_full(out / 'full', base_dir)} shards, as transformers loads them")


if __name__ == "__main__":
    main()
