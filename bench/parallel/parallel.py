#!/usr/bin/env python3
"""Gangs of two ranks against one, one thread a rank: `./dev bench parallel`. See README.md beside this file."""

import argparse
import dataclasses
import datetime
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "engine"))
import run as engine  # noqa: E402
import workload  # noqa: E402

SHAPE = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
         "head_dim": 64, "intermediate_size": 1408, "vocab_size": 8192}
workload.SHAPES["parallel"] = SHAPE
PEER = "torch-ddp-peft-ckpt"


@dataclasses.dataclass(frozen=True)
class Arm:
    ranks: int
    parallel: dict
    full: bool = False
    tokens: dict | None = None
    saves: bool = False  # a checkpoint every second step


ARMS = {
    "one": Arm(1, {}),
    "data-2": Arm(2, {"data": 2}),
    "tensor-2": Arm(2, {"tensor": 2}),
    "sequence-2": Arm(2, {"tensor": 2, "sequence": True}),
    "one-sparse": Arm(1, {}, tokens={"policy": "random", "keep": [0.5], "scope": "stack"}),
    "data-2-sparse": Arm(2, {"data": 2}, tokens={"policy": "random", "keep": [0.5], "scope": "stack"}),
    "tensor-2-sparse": Arm(2, {"tensor": 2}, tokens={"policy": "random", "keep": [0.5], "scope": "stack"}),
    "sequence-2-sparse": Arm(2, {"tensor": 2, "sequence": True},
                             tokens={"policy": "random", "keep": [0.5], "scope": "stack"}),
    "full-one": Arm(1, {}, full=True),
    "full-zero1": Arm(2, {"data": 2, "shard": "optimizer"}, full=True),
    "full-zero1-saving": Arm(2, {"data": 2, "shard": "optimizer"}, full=True, saves=True),
    # Buckets that are small beside this model, as they are beside one that needs this.
    "full-zero2": Arm(2, {"data": 2, "shard": "gradients", "bucket_bytes": 4 << 20}, full=True),
    "full-zero3": Arm(2, {"data": 2, "shard": "parameters", "bucket_bytes": 4 << 20}, full=True),
    "full-tensor-2": Arm(2, {"tensor": 2}, full=True),
    "full-sequence-2": Arm(2, {"tensor": 2, "sequence": True}, full=True),
}
SAVING, SAVING_BASE = "full-zero1-saving", "full-zero1"
# What each is compared with, and the most of its step time that is the goal.
BASE = {"data-2": "one", "tensor-2": "one", "sequence-2": "one", "data-2-sparse": "one-sparse",
        "tensor-2-sparse": "one-sparse", "sequence-2-sparse": "one-sparse",
        "full-zero1": "full-one", SAVING: "full-one", "full-zero2": "full-one", "full-zero3": "full-one",
        "full-tensor-2": "full-one", "full-sequence-2": "full-one"}
TIME_GOAL = {"data-2": 0.62, "tensor-2": 0.62}
PEER_GOAL = 1.3


def environment(args):
    return {**engine.environment(args), "OMP_NUM_THREADS": "1"}


def run_arm(args, name, model, data, scratch):
    """One process, or one mpirun: seconds a step, bytes sent a step, peak bytes of rank 0."""
    arm = ARMS[name]
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    tuner = {"full": {}} if arm.full else {"lora": {
        "rank": workload.LORA_RANK, "alpha": workload.LORA_ALPHA, "dropout": 0.0,
        "targets": workload.LORA_TARGETS}}
    spec = {
        "model": {"path": str(model), "random_init": {"seed": 1}, "compute_type": args.dtype},
        "data": {"train": [{"path": str(data), "format": "text"}], "max_length": args.length,
                 "packing": False, "cache_dir": str(scratch / "cache")},
        "tuner": tuner,
        # Two sequences a step: a micro-batch each for one rank, one each for two.
        "train": {"steps": args.warmup + args.steps, "batch_sequences": 2, "schedule": "constant",
                  "learning_rate": workload.LEARNING_RATE, "weight_decay": 0.0,
                  "max_grad_norm": workload.MAX_GRAD_NORM, "seed": 1},
        "output": {"dir": str(out)}, "device": "cpu", "parallel": arm.parallel,
        **({"tokens": arm.tokens} if arm.tokens else {}),
        **({"checkpoint": {"every_steps": 2, "keep_last": 1}} if arm.saves else {}),
    }
    run_json = scratch / "run.json"
    run_json.write_text(json.dumps(spec, indent=1))
    command = [str(args.lemo_train), str(run_json), "--events", "json"]
    if arm.ranks > 1:
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--np",
                   str(arm.ranks), "--mca", "plm", "isolated", "--mca", "btl", "self,vader", *command]
    done = subprocess.run(command, env=environment(args), capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    steps = [e for e in events if e["type"] == "step"]
    # Between two steps, beside the later one itself: what a save holds training up.
    held = max((b["unix_seconds"] - a["unix_seconds"] - b["seconds"] for a, b in zip(steps, steps[1:])), default=0)
    steps = steps[args.warmup:]
    results = [e for e in events if e["type"] == "result"]
    if done.returncode != 0 or not results:
        raise RuntimeError(f"{shlex.join(command)}: exit code {done.returncode}\n"
                           f"{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if not abs(steps[0]["loss"] - math.log(SHAPE["vocab_size"])) < 1.0:
        raise RuntimeError(f"{name}: loss {steps[0]['loss']} of a model that guesses at random")
    peak = results[0]["peak_bytes"]
    return {"seconds": statistics.median(s["seconds"] for s in steps),
            "sent": statistics.median(s.get("gang", {}).get("sent_bytes", 0) for s in steps),
            "waited": statistics.median(s.get("gang", {}).get("waited_seconds", 0) for s in steps),
            "weights": peak["weights"], "trainable": peak["trainable"], "peak": peak["total"],
            "loss": steps[-1]["loss"], "held": max(held, 0),
            "saved": [{"bytes": int(e["bytes"]), "seconds": e["seconds"]} for e in events if e["type"] == "checkpoint"]}


def run_peer(args, model, data):
    command = [str(args.peer_python), str(HERE / "ddp_peer.py"), "--model", str(model), "--data", str(data),
               "--warmup", str(args.warmup), "--steps", str(args.steps), "--dtype", args.dtype]
    done = subprocess.run(command, env=environment(args), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr[-3000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": statistics.median(answer["step_seconds"]), "versions": answer["versions"]}


def expected_bytes(args, name):
    """What a rank gives to its operations in a step, by the design (docs/design/0005-parallel.md)."""
    arm = ARMS[name]
    s, width = SHAPE, {"float32": 4, "bfloat16": 2}[args.dtype]
    hidden, layers = s["hidden_size"], s["num_hidden_layers"]
    wide, narrow = s["num_attention_heads"] * s["head_dim"], s["num_key_value_heads"] * s["head_dim"]
    rank = workload.LORA_RANK
    sums = 3 * 8 + (8 * (2 * layers + 3) if arm.tokens else 0)  # of losses and counts
    if arm.parallel.get("data", 1) > 1:
        if arm.full:
            layer = 2 * hidden * wide + 2 * hidden * narrow + 3 * hidden * s["intermediate_size"] + 2 * hidden
            ends = 2 * s["vocab_size"] * hidden + hidden
            elements = layers * layer + ends
            gradients = 4 * elements
            values = {"optimizer": elements, "gradients": elements,
                      # What the topmost layer computed with on the way up is there on the way down.
                      "parameters": ends + (2 * layers - 1) * layer}[arm.parallel["shard"]] * width
            return gradients + values + sums + 16  # the sums of squares of the shards
        elements = layers * rank * (2 * (hidden + wide) + 2 * (hidden + narrow))
        return 4 * elements + sums
    # Of each sequence: rows that a layer computes, rows with a loss, blocks that are chosen from.
    rows = args.length if not arm.tokens else args.length // 2
    labelled = rows - 1  # the last row has none, and is always kept
    blocks = args.length // 64 if arm.tokens else 0
    # Embedded rows; forward and backward of attention and MLP, attention's once more for `attn_out`; nothing
    # trains below the first layer of LoRA. Then the loss: rows and four numbers of each from each rank.
    sums = rows * hidden * (1 + 5 * layers - (0 if arm.full else 1)) + labelled * hidden
    sequence = sums * width + labelled * arm.ranks * 4 * 8 + blocks
    if arm.parallel.get("sequence"):
        # Sums are scattered; before each normed rows are gathered, on the way down with those of the gradient.
        # Full: the gradients of the embedded rows. Labels, and how many each rank has.
        gathered = rows * hidden * (6 * layers + (1 if arm.full else 0)) + labelled * hidden
        sequence += gathered * width + 8 * labelled + 8 * arm.ranks
    whole = hidden * (2 * layers + 1 if arm.full else layers * rank * len(workload.LORA_TARGETS))
    return 2 * sequence + 4 * whole + 8  # gradients that are not cut; the norm of those that are


def show(values):
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def report(args, runs):
    lines = ["| arm | s a step | of one rank's | goal | waited | sent a step, bytes | by the formula | "
             "weights, of one rank's | trainable state, of one rank's |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, taken in runs.items():
        if name == PEER:
            continue
        base = runs.get(BASE.get(name, ""), [])
        ratio = [t["seconds"] / b["seconds"] for t, b in zip(taken, base)]
        goal = TIME_GOAL.get(name)
        expected = expected_bytes(args, name) if ARMS[name].ranks > 1 else 0
        lines.append("| " + " | ".join([
            name, show([t["seconds"] for t in taken]), show(ratio) if ratio else "",
            "" if goal is None or not ratio else
            f"{goal} {'reached' if statistics.median(ratio) <= goal else '**missed**'}",
            f"{taken[0]['waited']:.3f} s", f"{taken[0]['sent']:.0f}",
            "" if expected is None else f"{expected:.0f}",
            f"{taken[0]['weights'] / base[0]['weights']:.3f}" if base else "",
            f"{taken[0]['trainable'] / base[0]['trainable']:.3f}" if base else ""]) + " |")
    text = "\n".join(lines)
    if runs.get(SAVING) and runs.get(SAVING_BASE):
        taken, base = runs[SAVING], runs[SAVING_BASE]
        held = [t["held"] / b["seconds"] for t, b in zip(taken, base)]
        saved = taken[0]["saved"][0]
        text += (f"\n\nA checkpoint of {saved['bytes'] / 2**20:.0f} MiB, {saved['seconds']:.2f} s in the writing, "
                 f"holds training for {show([t['held'] for t in taken])} s, {show(held)} of a step; goal: at most 1.")
    if PEER in runs:
        peers = runs[PEER]
        speed = [p["seconds"] / t["seconds"] for p, t in zip(peers, runs["data-2"])]
        reached = "reached" if statistics.median(speed) >= PEER_GOAL else "**missed**"
        text += (f"\n\ndata-2 is {show(speed)} times as fast as {PEER} (torch DDP over gloo, PEFT, gradient "
                 f"checkpointing, two processes of one thread; {show([p['seconds'] for p in peers])} s a "
                 f"step); goal {PEER_GOAL}: {reached}. Versions: {peers[0]['versions']}")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lemo-train", type=Path,
                        default=os.environ.get("LEMO_TRAIN", ROOT / "build/release/worker/train/lemo-train"))
    parser.add_argument("--peer-python", type=Path,
                        default=os.environ.get("LEMO_ORACLE_PYTHON", ROOT / ".venv-oracles/bin/python"))
    parser.add_argument("--peer", action="store_true", help="measure torch DDP with PEFT too")
    parser.add_argument("--arms", default=",".join(ARMS), help="default: all")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quick", action="store_true", help="does it run? stores nothing")
    parser.add_argument("--note", default="", help="a sentence for the report")
    args = parser.parse_args()
    args.device, args.threads = "cpu", 1
    if args.quick:
        args.length, args.steps, args.rounds = 512, 1, 1
    names = args.arms.split(",")
    unknown = set(names) - set(ARMS)
    if unknown:
        parser.error(f"--arms: {', '.join(sorted(unknown))} is none of {', '.join(ARMS)}")
    runs = {name: [] for name in names + ([PEER] if args.peer else [])}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model, data = scratch / "model", scratch / "rows.jsonl"
        workload.write_model(model, "parallel", args.length, args.dtype)
        workload.write_data(data, "parallel", args.length)
        for number in range(args.rounds):
            for name in runs:
                run = (run_peer(args, model, data) if name == PEER
                       else run_arm(args, name, model, data, scratch))
                runs[name].append(run)
                print(f"round {number + 1} {name:20s} {run['seconds']:8.3f} s a step", file=sys.stderr,
                      flush=True)
    text = report(args, runs)
    print(text)
    if args.quick:
        return
    date = datetime.date.today().isoformat()
    path = ROOT / "bench/results" / f"{date}-parallel-cpu.md"
    number = 1
    while path.exists():
        number += 1
        path = ROOT / "bench/results" / f"{date}-parallel-cpu-{number}.md"
    path.write_text(f"""# Two ranks against one, {date}

{engine.cpu_model()}, one thread a rank, {args.dtype}; hidden 512, 8 layers, 8 heads (2 for keys and values),
intermediate 1,408, 8,192 tokens, random weights; two sequences of {args.length} tokens a step. Commit
{engine.commit()}.

    {shlex.join(['./dev', 'bench', 'parallel', *sys.argv[1:]])}

{text}

Each figure is the median (least-most) over {args.rounds} rounds, in each of which every arm ran once, in turn; a
round's step time is the median of {args.steps} steps after {args.warmup} of warm-up. Ratios are taken within the
round. *Waited*: what rank 0 waited for the others in a step. *Sent*: what rank 0 gave to its operations in a
step, and what the design says. What this does not show: more ranks than two, more machines than one, a GPU.
{args.note}
""")
    print(f"stored {path}")


if __name__ == "__main__":
    main()
