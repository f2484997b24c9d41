#!/usr/bin/env python3
"""Runs lemo-train on tiny OPT models of both forms and lets transformers and PEFT judge it.

    check_opt.py --lemo-train PROGRAM

The models are made here: the pre-norm form of all sizes but one, and the form of the 350M model (post-norm,
an embedding narrower than the stream). Compared as in check_adapter.py. The bias of OPT's keys has no
gradient, since it moves all scores of a query alike: Adam makes full steps of its rounding, and it is left
out of the comparison of weights.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

import cases
import check_adapter
import reference

FORMS = {"pre-norm": {}, "post-norm": {"do_layer_norm_before": False, "word_embed_proj_dim": 20}}
ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
# Tuner's targets (None: full), storage policy, packing. With fc2 frozen `all` keeps signs alone.
RUNS = [(ATTENTION, "all", True), (ATTENTION, "attn_out", False),
        (ATTENTION + ["fc1", "fc2"], "all+offload", True), (None, "attn_out", True),
        (None, "all", False)]


def save_model(form, directory):
    model = OPTForCausalLM(OPTConfig(
        vocab_size=cases.VOCABULARY, hidden_size=32, ffn_dim=44, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=check_adapter.MAX_LENGTH,
        bos_token_id=cases.BOS, eos_token_id=cases.EOS, pad_token_id=None, **form))
    cases._init_model(model)
    model.save_pretrained(directory)


def save_adapter(model_dir, directory, targets):
    model = get_peft_model(cases.load_model(model_dir, torch.float32), LoraConfig(
        r=cases.LORA_RANK, lora_alpha=cases.LORA_ALPHA, lora_dropout=0.0, target_modules=targets,
        task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                scale = 0.05 if "lora_B" in name else parameter.shape[1] ** -0.5
                parameter.copy_(scale * cases._random("adapter", name, parameter.shape))
    model.save_pretrained(directory, save_embedding_layers=False)


def write_run(directory, training, held_out, targets, policy, packing):
    model = directory / "model"
    check_adapter.write_tokenizer(model)
    check_adapter.write_rows(directory / "train.jsonl", training)
    check_adapter.write_rows(directory / "eval.jsonl", held_out)
    tuner = {"full": {}}
    if targets:
        save_adapter(model, directory / "start", targets)
        # Every linear module of a layer is what all-linear means here.
        named = ["all-linear"] if "fc2" in targets else targets
        tuner = {"lora": {"rank": cases.LORA_RANK, "alpha": cases.LORA_ALPHA, "dropout": 0.0,
                          "targets": named, "init_from": str(directory / "start")}}
    spec = {
        "model": {"path": str(model), "compute_type": "float32"},
        "data": {"train": [{"path": str(directory / "train.jsonl"), "format": "text"}],
                 "eval": [{"path": str(directory / "eval.jsonl"), "format": "text"}],
                 "max_length": check_adapter.MAX_LENGTH, "packing": packing},
        "tuner": tuner,
        "train": {"steps": reference.STEPS, "batch_sequences": 1 if packing else len(training),
                  "schedule": "constant", "warmup_steps": 0, "max_grad_norm": 0, "seed": 3,
                  **reference.ADAMW},
        "memory": {"policy": policy},
        "output": {"dir": str(directory / "out"), "merge": targets is not None},
        "device": "cpu",
    }
    (directory / "run.json").write_text(json.dumps(spec, indent=1))
    return directory / "run.json"


def without_key_biases(tensors):
    return {name: t for name, t in tensors.items() if not name.endswith("k_proj.bias")}


def check_run(check, program, form, directory, targets, policy, packing):
    training = check_adapter.train_documents(cases.CASES[0])
    held_out = check_adapter.eval_documents()
    base_dir = directory / "model"
    save_model(form, base_dir)
    events = check_adapter.run_lemo_train(
        program, write_run(directory, training, held_out, targets, policy, packing))
    steps = [e for e in events if e["type"] == "step"]
    result = next(e for e in events if e["type"] == "result")
    check.at_most("publish_max_logit_difference", result["publish_max_logit_difference"], 1e-5)
    if targets is None:
        model = cases.load_model(base_dir, torch.float64)
        start = load_file(base_dir / "model.safetensors")
        published = cases.load_model(result["model_dir"], torch.float64)
        got = load_file(Path(result["model_dir"]) / "model.safetensors")
    else:
        model = reference.load_with_adapter(base_dir, directory / "start", torch.float64,
                                            trainable=True)
        start = load_file(directory / "start" / "adapter_model.safetensors")
        published = reference.load_with_adapter(base_dir, result["adapter_dir"], torch.float64)
        got = load_file(Path(result["adapter_dir"]) / "adapter_model.safetensors")
        wanted = check_adapter.eval_logits(published, held_out)
        merged = check_adapter.eval_logits(cases.load_model(result["model_dir"], torch.float64),
                                           held_out)
        check.at_most("logits of the merged model from those of base + adapter",
                      (merged - wanted).abs().max().item(),
                      check_adapter.LOGIT_TOLERANCE * wanted.abs().max().item())
    check.close("eval_loss_before", result["eval_loss_before"],
                check_adapter.eval_loss(model, held_out), check_adapter.LOSS_TOLERANCE)
    check_adapter.check_steps(check, model, training, steps)
    trained = {n.replace(".default.", "."): p for n, p in reference.trainable(model).items()}
    check_adapter.check_update(check, without_key_biases(got), without_key_biases(trained), start)
    check.close("eval_loss against the published weights", result["eval_loss"],
                check_adapter.eval_loss(published, held_out), check_adapter.LOSS_TOLERANCE)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lemo-train", required=True, type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for form, changes in FORMS.items():
            for index, (targets, policy, packing) in enumerate(RUNS):
                directory = Path(scratch) / f"{form}-{index}"
                directory.mkdir()
                check = check_adapter.Checker()
                try:
                    check_run(check, args.lemo_train.resolve(), changes, directory, targets, policy,
                              packing)
                # Whatever goes wrong in one run, the others are still worth knowing.
                except Exception as error:  # pylint: disable=broad-except
                    check.faults.append(f"{type(error).__name__}: {error}")
                name = f"opt {form} {'full' if targets is None else 'lora ' + targets[-1]} {policy}"
                print(f"{'FAILED' if check.faults else 'ok    '} {name} ({check.checks} checks)",
                      flush=True)
                for fault in check.faults:
                    print(f"    {fault}")
                failed += bool(check.faults)
    print(f"{len(FORMS) * len(RUNS)} runs, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
