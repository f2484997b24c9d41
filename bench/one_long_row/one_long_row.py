#!/usr/bin/env python3
"""One long row in a short data set, under a limit of memory: `./dev bench one_long_row`. See README.md."""

import argparse
import datetime
import json
import os
import random
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "engine"))
import memory  # noqa: E402
import run as engine  # noqa: E402
import workload  # noqa: E402

MIB = 1 << 20
PEERS = {"peft-ckpt": [], "peft-ckpt-fused": ["--fused-loss"]}


def write_data(path, args):
    """Short rows, and a long one behind two thirds of them."""
    lengths = [args.short] * args.rows
    lengths.insert(args.rows * 2 // 3, args.long)
    rng = random.Random(1)
    words = workload.SHAPES[args.shape]["vocab_size"]
    path.write_text("".join(
        json.dumps({"text": " ".join(f"w{rng.randrange(workload.FIRST_WORD, words)}"
                                     for _ in range(length - 1))}) + "\n" for length in lengths))


def start(args, command, limit):
    """With `limit`, memory that the process may write to (RLIMIT_DATA) ends there."""
    def confine():
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    return subprocess.Popen(command, env=engine.environment(args), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, preexec_fn=confine if limit else None)


def last_words(process):
    lines = [line for line in process.stderr.read().splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def run_peer(args, name, model, data, limit):
    process = start(args, [str(args.peer_python), str(HERE / "peer.py"), "--model", str(model), "--data",
                           str(data), "--dtype", args.dtype, "--threads", str(args.threads),
                           *PEERS[name]], limit)
    steps = [json.loads(line) for line in process.stdout]
    error = last_words(process)
    return {"code": process.wait(), "steps": steps, "error": error,
            "resident": max((s["resident"] for s in steps), default=0)}


def run_lemo(args, model, data, scratch, limit, budget):
    spec = {
        "model": {"path": str(model), "random_init": {"seed": 1}, "compute_type": args.dtype},
        "data": {"train": [{"path": str(data), "format": "text"}], "max_length": args.long,
                 "packing": False, "cache_dir": str(scratch / "cache")},
        "tuner": {"lora": {"rank": workload.LORA_RANK, "alpha": workload.LORA_ALPHA, "dropout": 0.0,
                           "targets": workload.LORA_TARGETS}},
        "train": {"epochs": 1, "batch_sequences": 1, "schedule": "constant",
                  "learning_rate": workload.LEARNING_RATE, "weight_decay": 0.0,
                  "max_grad_norm": workload.MAX_GRAD_NORM, "seed": 1},
        "memory": {"policy": "all", **({"budget_bytes": budget} if budget else {})},
        "output": {"dir": str(scratch / f"out-{budget}-{limit}")}, "device": "cpu",
    }
    run_json = scratch / "run.json"
    run_json.write_text(json.dumps(spec, indent=1))
    process = start(args, [str(args.lemo_train), str(run_json), "--events", "json"], limit)
    steps, amendments, result, error, resident = [], [], {}, "", 0
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "step":
            steps.append(event)
            resident = memory.peak_resident_bytes(process.pid)
        elif event["type"] == "amendment":
            amendments.append(event)
        elif event["type"] == "result":
            result = event
        elif event["type"] == "error":
            error = event["message"]
    error = error or last_words(process)
    return {"code": process.wait(), "steps": steps, "amendments": amendments, "error": error,
            "resident": resident, "peak": result.get("peak_bytes", {}).get("total", 0)}


def row(name, run, args):
    done = len(run["steps"])
    total = args.rows + 1
    ended = "all of it" if run["code"] == 0 else f"**died** behind {done} of {total} steps: {run['error']}"
    long = [s for s in run["steps"] if s["tokens"] == args.long]
    short = sorted(s["seconds"] for s in run["steps"] if s["tokens"] == args.short)
    return "| " + " | ".join([
        name, ended, f"{run['resident'] / MIB:.0f}" if run["resident"] else "",
        f"{run['peak'] / MIB:.0f}" if run.get("peak") else "",
        f"{short[len(short) // 2]:.2f}" if short else "", f"{long[0]['seconds']:.1f}" if long else ""]) + " |"


def largest_difference(a, b):
    return max(abs(x["loss"] - y["loss"]) / x["loss"] for x, y in zip(a["steps"], b["steps"], strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lemo-train", type=Path,
                        default=os.environ.get("LEMO_TRAIN", ROOT / "build/release/worker/train/lemo-train"))
    parser.add_argument("--peer-python", type=Path,
                        default=os.environ.get("LEMO_ORACLE_PYTHON", ROOT / ".venv-oracles/bin/python"))
    parser.add_argument("--shape", choices=list(workload.SHAPES), default="small")
    parser.add_argument("--rows", type=int, default=15, help="short ones")
    parser.add_argument("--short", type=int, default=512, help="tokens")
    parser.add_argument("--long", type=int, default=8192, help="tokens")
    parser.add_argument("--limit", type=int, default=2400, help="MiB that a process may have, all in all")
    parser.add_argument("--budget", type=int, default=1200, help="MiB of tensors that lemo-train is told")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", action="store_true", help="under bench/results")
    args = parser.parse_args()
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model, data = scratch / "model", scratch / "rows.jsonl"
        workload.write_model(model, args.shape, args.long, args.dtype)
        write_data(data, args)
        limit, budget = args.limit * MIB, args.budget * MIB
        for name, run in [
                *((f"{peer}, no limit", lambda peer=peer: run_peer(args, peer, model, data, 0)) for peer in PEERS),
                ("lemo-train, no limit", lambda: run_lemo(args, model, data, scratch, 0, 0)),
                *((peer, lambda peer=peer: run_peer(args, peer, model, data, limit)) for peer in PEERS),
                ("lemo-train without a budget", lambda: run_lemo(args, model, data, scratch, limit, 0)),
                ("lemo-train", lambda: run_lemo(args, model, data, scratch, limit, budget))]:
            runs[name] = run()
            print(row(name, runs[name], args), file=sys.stderr, flush=True)
    rows = "\n".join(row(name, run, args) for name, run in runs.items())
    kept = runs["lemo-train"]
    said = "\n".join(
        f"* from step {a['step']} on, {a['action']}: {a['from']} -> {a['to']} ({a['reason']}); forecast of that step "
        f"{int(a['predicted_bytes_before']) / MIB:.0f} -> {int(a['predicted_bytes_after']) / MIB:.0f} MiB, measured "
        f"{int(a['measured_peak_bytes']) / MIB:.0f}" for a in kept["amendments"])
    same = (f"Losses of the run under the limit are those of the free one within "
            f"{largest_difference(runs['lemo-train, no limit'], kept):.1e}, relative."
            if kept["code"] == 0 else "")
    text = f"""# One long row in a short data set, {datetime.date.today().isoformat()}

{engine.cpu_model()}, {args.threads} threads, {args.dtype}, shape `{args.shape}`, random weights; LoRA rank
{workload.LORA_RANK} on attention, a row a step: {args.rows} of {args.short} tokens and one of {args.long}.
The limit is {args.limit} MiB of writable memory a process (RLIMIT_DATA); `lemo-train` is told a budget of
{args.budget} MiB of tensors. Commit {engine.commit()}.

    {shlex.join(['./dev', 'bench', 'one_long_row', *sys.argv[1:]])}

| run | got through | resident, MiB | tensors, MiB | s a short step | s the long one |
| --- | --- | ---: | ---: | ---: | ---: |
{rows}

{same} What its governor did:

{said}

*Resident* is the most that the process had, *tensors* what the allocator of `lemo-train` counted. Each run was
made once: the question is who gets through.
"""
    print(text)
    if args.store:
        path = ROOT / "bench/results" / f"{datetime.date.today().isoformat()}-one-long-row-cpu.md"
        path.write_text(text)
        print(f"stored {path}")


if __name__ == "__main__":
    main()
