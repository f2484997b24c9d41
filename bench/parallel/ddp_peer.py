#!/usr/bin/env python3
"""The peer: LoRA by PEFT with gradient checkpointing, data parallel by torch DDP over gloo, one process a rank.

Rank 0 prints {"step_seconds": [...], "losses": [...], "versions": {...}}, warm-up steps left out of the times.
Every rank trains on its own row of each batch.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
import peer  # noqa: E402
import workload  # noqa: E402


def train(rank, args, meeting):
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.ranks)
    model = DistributedDataParallel(peer.build_model(args), static_graph=True)
    rows = [torch.tensor([row]) for row in workload.read_data(args.data)]
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=workload.LEARNING_RATE, weight_decay=0.0)
    seconds, losses = [], []
    for step in range(args.warmup + args.steps):
        begin = time.monotonic()
        ids = rows[(step * args.ranks + rank) % len(rows)]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, workload.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        dist.barrier()
        if step >= args.warmup:
            seconds.append(time.monotonic() - begin)
    if rank == 0:
        print(json.dumps({"step_seconds": seconds, "losses": losses,
                          "versions": {"torch": torch.__version__, **peer.package_versions()}}))
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.device, args.checkpointing = "cpu", True
    with tempfile.TemporaryDirectory() as scratch:
        processes.spawn(train, (args, str(Path(scratch) / "meeting")), nprocs=args.ranks)


if __name__ == "__main__":
    main()
