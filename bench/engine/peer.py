#!/usr/bin/env python3
"""The peer: LoRA by PEFT on transformers, with or without gradient checkpointing. One JSON object out.

Prints {"step_seconds": [...], "losses": [...], "tokens": n, "loaded_bytes": n, "peak_bytes": n}, warm-up
steps left out of the times; or {"out_of_memory": reason}. On a CPU the bytes are resident set size, on a
GPU what torch's allocator gave out; `loaded_bytes` is with the model and the adapter loaded.
"""

import argparse
import ctypes
import gc
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

import memory
import workload

FUSED_LOSS_ROWS = 1024


def build_model(args):
    config = AutoConfig.from_pretrained(args.model)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype),
                                                 attn_implementation="sdpa")
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(
        r=workload.LORA_RANK, lora_alpha=workload.LORA_ALPHA, lora_dropout=0.0,
        target_modules=workload.LORA_TARGETS, task_type="CAUSAL_LM"))
    if args.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def loss_of(model, ids, fused):
    if not fused:
        return model(input_ids=ids, labels=ids).loss
    # The logits of a few rows at a time, made again in backward: what fused losses save, in plain torch.
    base = model.get_base_model()
    hidden = base.model(input_ids=ids).last_hidden_state[0, :-1]
    labels = ids[0, 1:]

    def segment(rows, wanted):
        return cross_entropy(base.lm_head(rows).float(), wanted, reduction="sum")

    total = sum(checkpoint(segment, rows, wanted, use_reentrant=False) for rows, wanted in
                zip(hidden.split(FUSED_LOSS_ROWS), labels.split(FUSED_LOSS_ROWS)))
    return total / labels.numel()


class MemoryMeter:
    def __init__(self, device):
        self.cuda = torch.device(device).type == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.loaded = torch.cuda.memory_allocated()
        else:
            # Freed but still resident pages would hide part of what training takes.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            memory.reset_peak()
            self.loaded = memory.resident_bytes()

    def peak(self):
        return torch.cuda.max_memory_allocated() if self.cuda else memory.peak_resident_bytes()


def measure(args):
    model = build_model(args)
    rows = [torch.tensor([row], device=args.device) for row in workload.read_data(args.data)]
    trainable = [p for p in model.parameters() if p.requires_grad]
    meter = MemoryMeter(args.device)
    optimizer = torch.optim.AdamW(trainable, lr=workload.LEARNING_RATE, weight_decay=0.0)
    seconds, losses = [], []
    for step in range(args.warmup + args.steps):
        begin = time.monotonic()
        loss = loss_of(model, rows[step % len(rows)], args.fused_loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, workload.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for a GPU too
        if step >= args.warmup:
            seconds.append(time.monotonic() - begin)
    return {"step_seconds": seconds, "losses": losses, "tokens": rows[0].numel(),
            "loaded_bytes": meter.loaded, "peak_bytes": meter.peak(),
            "versions": {"torch": torch.__version__, **package_versions()}}


def package_versions():
    import peft
    import transformers
    return {"transformers": transformers.__version__, "peft": peft.__version__}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with config.json")
    parser.add_argument("--data", required=True, help="rows of equal length, as workload.py writes")
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--fused-loss", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    try:
        answer = measure(args)
    except torch.OutOfMemoryError as error:
        answer = {"out_of_memory": str(error).splitlines()[0]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
