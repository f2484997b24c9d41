#!/usr/bin/env python3
"""Step time and memory of lemo-train against PEFT: `./dev bench engine`. See README.md beside this file."""

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import memory
import workload

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
POLICIES = ["all", "mlp", "attn_out", "input"]
PEERS = {"peft": [], "peft-ckpt": ["--checkpointing"],
         "peft-ckpt-fused": ["--checkpointing", "--fused-loss"]}
VARIANTS = list(PEERS) + [f"lemo-{policy}" for policy in POLICIES]
# What the engine is to reach on a CPU, against peft-ckpt.
TARGET_VARIANT, TARGET_SPEED, TARGET_MEMORY = "lemo-attn_out", 1.2, 0.5


@dataclasses.dataclass
class Run:
    """One process."""
    step_seconds: list
    loaded_bytes: int = 0
    peak_bytes: int = 0       # resident on a CPU, allocated on a GPU
    counted_bytes: int = 0    # what lemo-train's allocator counted above the weights
    out_of_memory: str = ""
    detail: dict = dataclasses.field(default_factory=dict)

    @property
    def seconds(self):
        return statistics.median(self.step_seconds)

    @property
    def above_bytes(self):
        """Peak above the loaded model. The larger of two figures: if lemo-train had touched its buffers
        before its first step, its resident set would not show them, but its counter would."""
        return max(self.peak_bytes - self.loaded_bytes, self.counted_bytes)


def cpu_has_fast_bfloat16():
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def environment(args):
    threads = str(args.threads)
    return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run_peer(args, variant, model, data, steps):
    command = [str(args.peer_python), str(HERE / "peer.py"), "--model", str(model), "--data", str(data),
               "--warmup", str(args.warmup), "--steps", str(steps), "--dtype", args.dtype,
               "--device", args.device, "--threads", str(args.threads), *PEERS[variant]]
    done = subprocess.run(command, env=environment(args), capture_output=True, text=True)
    if done.returncode == -9:
        return Run([], out_of_memory="killed by the kernel")
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr[-3000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "out_of_memory" in answer:
        return Run([], out_of_memory=answer["out_of_memory"])
    return Run(answer["step_seconds"], answer["loaded_bytes"], answer["peak_bytes"],
               detail={k: answer[k] for k in ("losses", "tokens", "versions")})


def run_lemo(args, variant, model, data, steps, length, scratch, tokens=None):
    """`tokens`: the run specification's message, for a run that drops rows."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    spec = {
        "model": {"path": str(model), "random_init": {"seed": 1}, "compute_type": args.dtype},
        "data": {"train": [{"path": str(data), "format": "text"}], "max_length": length,
                 "packing": False, "cache_dir": str(scratch / "cache")},
        "tuner": {"lora": {"rank": workload.LORA_RANK, "alpha": workload.LORA_ALPHA, "dropout": 0.0,
                           "targets": workload.LORA_TARGETS}},
        "train": {"steps": args.warmup + steps, "batch_sequences": 1, "schedule": "constant",
                  "learning_rate": workload.LEARNING_RATE, "weight_decay": 0.0,
                  "max_grad_norm": workload.MAX_GRAD_NORM, "seed": 1},
        "memory": {"policy": variant.removeprefix("lemo-")},
        "output": {"dir": str(out)},
        "device": args.device,
        **({"tokens": tokens} if tokens else {}),
    }
    run_json = scratch / "run.json"
    run_json.write_text(json.dumps(spec, indent=1))
    command = [str(args.lemo_train), str(run_json), "--events", "json"]
    loaded = peak = 0
    stamps, cpu, losses, lengths, sparsity, result, error = [], [], [], set(), [], None, ""
    with (scratch / "stderr").open("w+") as stderr, \
            subprocess.Popen(command, env=environment(args), stdout=subprocess.PIPE, stderr=stderr,
                             text=True) as process:
        for line in process.stdout:
            event = json.loads(line)
            if event["type"] == "phase" and event["name"] == "train":
                memory.reset_peak(process.pid)
                loaded = memory.resident_bytes(process.pid)
            elif event["type"] == "step":
                # What publishing takes afterwards is not training's.
                peak = memory.peak_resident_bytes(process.pid)
                stamps.append(event["unix_seconds"])
                cpu.append(memory.cpu_seconds(process.pid))
                losses.append(event["loss"])
                lengths.add(event["tokens"])
                sparsity.append(event.get("sparsity"))
            elif event["type"] == "result":
                result = event
            elif event["type"] == "error":
                error = event["message"]
        code = process.wait()
        stderr.seek(0)
        complaint = error or stderr.read()[-3000:].strip()
    if code == 3 or code == -9:
        return Run([], out_of_memory=complaint or "killed by the kernel")
    if code != 0 or result is None or not loaded:
        raise RuntimeError(f"{shlex.join(command)}: exit code {code}\n{complaint}")
    if lengths != {length}:
        raise RuntimeError(f"lemo-train's steps have {lengths} tokens, the peer's {length}")
    def between(times):
        return [b - a for a, b in zip(times, times[1:])][args.warmup - 1:]

    counted = result["peak_bytes"]["total"] - result["peak_bytes"]["weights"]
    if args.device != "cpu":
        loaded = peak = 0
    return Run(between(stamps), loaded, peak, counted,
               detail={"losses": losses, "tokens": length, "peak_bytes": result["peak_bytes"],
                       "cpu_seconds": between(cpu),
                       **({"sparsity": sparsity[args.warmup:]} if tokens else {})})


def check_loss(run, variant, vocabulary):
    """Random weights guess at random; another loss means that another thing was computed."""
    if run.step_seconds and not abs(run.detail["losses"][0] - math.log(vocabulary)) < 1.0:
        raise RuntimeError(f"{variant}: first loss {run.detail['losses'][0]}, "
                           f"expected about {math.log(vocabulary):.2f}")


def measure(args, scratch):
    """{length: {variant: [Run of every round]}}, one process each, in turn."""
    runs = {}
    for length in args.lengths:
        model, data = scratch / f"model-{length}", scratch / f"rows-{length}.jsonl"
        workload.write_model(model, args.shape, length, args.dtype)
        workload.write_data(data, args.shape, length)
        steps = args.steps or (3 if length >= 8192 else 5)
        of_length = runs[length] = {variant: [] for variant in args.variants}
        for round_number in range(args.rounds):
            for variant in args.variants:
                if variant in PEERS:
                    run = run_peer(args, variant, model, data, steps)
                else:
                    run = run_lemo(args, variant, model, data, steps, length, scratch)
                check_loss(run, variant, workload.SHAPES[args.shape]["vocab_size"])
                of_length[variant].append(run)
                said = (f"out of memory: {run.out_of_memory}" if run.out_of_memory else
                        f"{run.seconds:8.3f} s a step {run.above_bytes / 2**20:9.1f} MiB above the model")
                print(f"{length:6d} tokens, round {round_number + 1}, {variant:16s} {said}",
                      file=sys.stderr, flush=True)
    return runs


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summarize(runs, baseline):
    """Rows of the table. Ratios are taken within a round, where the machine was most alike."""
    rows = []
    for length, of_length in runs.items():
        for variant, taken in of_length.items():
            row = {"length": length, "variant": variant}
            rows.append(row)
            if any(run.out_of_memory for run in taken):
                row["out_of_memory"] = next(r.out_of_memory for r in taken if r.out_of_memory)
                continue
            row["seconds"] = spread([run.seconds for run in taken])
            row["above_bytes"] = spread([run.above_bytes for run in taken])
            row["counted_bytes"] = spread([run.counted_bytes for run in taken])
            base = of_length[baseline]
            if all(not run.out_of_memory for run in base):
                row["speed"] = spread([b.seconds / r.seconds for b, r in zip(base, taken)])
                row["memory"] = spread([r.above_bytes / b.above_bytes for b, r in zip(base, taken)])
    return rows


def table(rows, baseline):
    def show(value, scale=1.0, digits=2):
        return (f"{value['median'] / scale:.{digits}f} "
                f"({value['min'] / scale:.{digits}f}-{value['max'] / scale:.{digits}f})")

    lines = [f"| tokens | variant | s a step | MiB above the model | counted MiB | times as fast as {baseline} | "
             f"memory of {baseline} |",
             "| ---: | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [str(row["length"]), row["variant"]]
        if "out_of_memory" in row:
            cells += ["out of memory", "", "", "", ""]
        else:
            cells += [show(row["seconds"], digits=3), show(row["above_bytes"], 2**20, 0),
                      show(row["counted_bytes"], 2**20, 0) if row["counted_bytes"]["max"] else "",
                      show(row["speed"]) if "speed" in row else "",
                      show(row["memory"]) if "memory" in row else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def target_line(rows):
    """How the CPU's target stands, by the median of the worst length."""
    found = [r for r in rows if r["variant"] == TARGET_VARIANT and "speed" in r]
    if not found:
        return ""
    speed = min(r["speed"]["median"] for r in found)
    share = max(r["memory"]["median"] for r in found)
    verdict = "reached" if speed >= TARGET_SPEED and share <= TARGET_MEMORY else "not reached"
    return (f"Target for {TARGET_VARIANT}, at every length: at least {TARGET_SPEED} times as fast, at most "
            f"{TARGET_MEMORY} of the memory. Worst lengths: {speed:.2f} and {share:.2f}: {verdict}.")


def commit():
    def git(*arguments):
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD") or "none"
    return head + (" with changes" if git("status", "--porcelain") else "")


def describe(args, runs):
    versions = {}
    for of_length in runs.values():
        for taken in of_length.values():
            for run in taken:
                versions.update(run.detail.get("versions", {}))
    device = cpu_model()
    if args.device != "cpu":
        device = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                                capture_output=True, text=True, check=True).stdout.strip()
    return {"date": datetime.date.today().isoformat(), "commit": commit(), "device": device,
            "kind": args.device.split(":")[0], "dtype": args.dtype, "threads": args.threads,
            "shape": {args.shape: workload.SHAPES[args.shape]},
            "rounds": args.rounds, "warmup_steps": args.warmup, "baseline": args.baseline,
            "command": shlex.join(["./dev", "bench", "engine", *sys.argv[1:]]), "versions": versions}


def store(directory, about, rows, runs, text):
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{about['date']}-engine-{about['kind']}"
    path, number = directory / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = directory / f"{stem}-{number}.json"
    path.write_text(json.dumps({
        **about, "summary": rows,
        "runs": {str(length): {variant: [dataclasses.asdict(run) for run in taken]
                               for variant, taken in of_length.items()}
                 for length, of_length in runs.items()}}, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    print(f"stored {path} and {path.with_suffix('.md').name}")


def report(about, rows, baseline, on_cpu):
    memory_means = ("peak resident set above the one with model and adapter loaded" if on_cpu else
                    "peak allocated above what model and adapter take")
    shape = next(iter(about["shape"]))
    return f"""# Engine against PEFT, {about['date']}

{about['device']}, {about['threads']} threads, {about['dtype']}, shape `{shape}`, commit {about['commit']}.
Versions: {', '.join(f'{k} {v}' for k, v in about['versions'].items())}.

    {about['command']}

{table(rows, baseline)}

{target_line(rows) if on_cpu and shape == 'small' else ''}

Each figure is the median (least-most) over {about['rounds']} rounds, in each of which every variant ran
once, as one process, in turn; a round's step time is the median of its steps after {about['warmup_steps']}
warm-up steps. Memory is the {memory_means}. Ratios are taken within a round.

What this does not show: weights and text are random, so nothing about quality; one sequence a step; no
other shape or device.
"""


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lemo-train", type=Path, help="default: $LEMO_TRAIN, or the release build's",
                        default=os.environ.get("LEMO_TRAIN",
                                               ROOT / "build/release/worker/train/lemo-train"))
    parser.add_argument("--peer-python", type=Path, help="default: $LEMO_ORACLE_PYTHON, or .venv-oracles",
                        default=os.environ.get("LEMO_ORACLE_PYTHON", ROOT / ".venv-oracles/bin/python"))
    parser.add_argument("--quick", action="store_true",
                        help="a tiny shape and few steps: does it run at all? stores nothing")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--shape", choices=list(workload.SHAPES), default="small")
    parser.add_argument("--lengths", help="tokens a step; default 1024,2048,4096,8192")
    parser.add_argument("--variants", help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
                        help="auto: bfloat16 on a GPU and on a CPU that has it in hardware")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, help="measured; default 5, from 8192 tokens on 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    if args.quick:
        args.shape, args.rounds, args.warmup, args.steps = "tiny", 1, 1, 2
        args.lengths = args.lengths or "256"
    args.lengths = [int(n) for n in (args.lengths or "1024,2048,4096,8192").split(",")]
    # On a GPU the peer is given what its users have there: a fused loss.
    args.baseline = "peft-ckpt" if on_cpu else "peft-ckpt-fused"
    args.variants = (args.variants.split(",") if args.variants else
                     [v for v in VARIANTS if v != ("peft-ckpt-fused" if on_cpu else "peft")])
    unknown = set(args.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"--variants: {', '.join(sorted(unknown))}: not among {', '.join(VARIANTS)}")
    if args.baseline not in args.variants:
        args.variants.insert(0, args.baseline)
    if args.dtype == "auto":
        args.dtype = "bfloat16" if not on_cpu or cpu_has_fast_bfloat16() else "float32"
    if args.warmup < 1:
        parser.error("--warmup: at least 1")
    for program in (args.lemo_train, args.peer_python):
        if not os.access(program, os.X_OK):
            parser.error(f"{program}: no such program")
    return args


def main():
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="lemo-bench-") as scratch:
        runs = measure(args, Path(scratch))
    rows = summarize(runs, args.baseline)
    about = describe(args, runs)
    text = report(about, rows, args.baseline, args.device == "cpu")
    print(text)
    if not args.quick:
        store(args.results, about, rows, runs, text)


if __name__ == "__main__":
    main()
