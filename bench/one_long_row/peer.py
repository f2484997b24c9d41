#!/usr/bin/env python3
"""The peer: PEFT with gradient checkpointing, one row a step, in the order of the file. A JSON line a step."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import memory  # noqa: E402
import peer as engine_peer  # noqa: E402
import workload  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--fused-loss", action="store_true")
    args = parser.parse_args()
    args.device, args.checkpointing = "cpu", True
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = engine_peer.build_model(args)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=workload.LEARNING_RATE, weight_decay=0.0)
    for number, row in enumerate(workload.read_data(args.data)):
        begin = time.monotonic()
        loss = engine_peer.loss_of(model, torch.tensor([row]), args.fused_loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, workload.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        print(json.dumps({"step": number + 1, "tokens": len(row), "loss": loss.item(),
                          "seconds": time.monotonic() - begin,
                          "resident": memory.peak_resident_bytes()}), flush=True)


if __name__ == "__main__":
    main()
