#!/usr/bin/env python3
"""Times of steps and evaluations that the planner predicts against those of runs: `./dev bench planner times`. See
README.md beside this file."""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
import grid  # noqa: E402

GOAL = 0.15  # |predicted / measured - 1|
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--np", "2", "--mca", "plm",
          "isolated", "--mca", "btl", "self,vader", "--mca", "btl_vader_single_copy_mechanism", "none"]


def cases():
    """Families, lengths, policies, kept rows, tuners, one and two ranks."""
    case = grid.case
    runs = [case("llama-gqa", length) for length in (512, 1024, 2048, 4096)]
    runs += [case("llama-gqa", 1024, policy) for policy in ("input", "mlp", "all")]
    runs += [case("llama-gqa", 2048, "attn_out", keep=0.5, scope=scope) for scope in ("layer", "stack")]
    runs += [case("llama-wide", 1024, "mlp", tuner="all-linear"), case("qwen3", 1024), case("qwen3", 4096, "input"),
             case("opt", 1024), case("opt", 2048, "input"), case("opt-post", 1024)]
    runs += [case("llama-gqa", 1024, tuner="full"), case("opt", 512, "all", tuner="full")]
    runs += [case("llama-gqa", 2048, documents=4)]
    learning = [("llama-gqa", "layer"), ("llama-gqa", "stack"), ("opt", "stack"), ("qwen3", "nested")]
    runs += [case(shape, 2048, keep=0.5, scope=scope, by="predictor", online=True) for shape, scope in learning]
    runs += [case("llama-gqa", 1024, ranks={"tensor": 2}), case("llama-gqa", 2048, "input", ranks={"tensor": 2}),
             case("llama-gqa", 1024, ranks={"data": 2}), case("opt", 1024, ranks={"data": 2}),
             case("llama-gqa", 512, tuner="full", ranks={"data": 2, "shard": "none"}),
             case("llama-gqa", 512, tuner="full", ranks={"data": 2, "shard": "parameters"})]
    return runs


def run(args, command, rates):
    # Threads that wait would spin against the other rank's.
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(args.threads), "LEMO_RATES": str(rates),
                                        "OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}"
                           f"{done.stderr[-2000:]}")
    return done.stdout


def calibrate(args, rates):
    command = [str(args.lemo_train), "calibrate", "--device", "cpu", "--compute-type", "float32", "--seconds",
               str(args.seconds)]
    print(run(args, command, rates), file=sys.stderr)
    print(run(args, [*MPIRUN, *command], rates).splitlines()[-2], file=sys.stderr)
    return json.loads(rates.read_text())["rates"][0]


def measure(args, one, scratch, rates):
    """What the run foretold of its steps and evaluations, and what they took but for the first."""
    shutil.rmtree(scratch / "out", ignore_errors=True)
    shutil.rmtree(scratch / "cache", ignore_errors=True)
    model = scratch / f"{one['shape']}-{one['length']}"
    if not model.exists():
        grid.write_model(model, one["shape"], one["length"])
    rows, held_out = scratch / "rows.jsonl", scratch / "held-out.jsonl"
    grid.write_rows(rows, one["shape"], one["length"] // one["documents"], 8 * one["documents"])
    spec = grid.run_spec(one, model, rows, held_out, scratch)
    spec["train"]["steps"] = args.steps
    # Twice as much text, before the first step and behind the last.
    grid.write_rows(held_out, one["shape"], one["length"] // one["documents"], 2 * one["documents"])
    spec["data"]["eval"] = [{"path": str(held_out), "format": "text"}]
    spec["eval"] = {"every_steps": 2}
    if one["online"]:
        spec["memory"]["budget_bytes"] = 1 << 34  # with one, recall is not measured
    run_json = scratch / "run.json"
    run_json.write_text(json.dumps(spec))
    gang = MPIRUN if one["ranks"] else []
    out = run(args, [*gang, str(args.lemo_train), str(run_json), "--events", "json"], rates)
    events = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    forecast = next(e for e in events if e["type"] == "result")["forecast"]
    seconds = sorted(e["seconds"] for e in events if e["type"] == "step" and e["step"] > 1)
    evaluations = [e["seconds"] for e in events if e["type"] == "eval" and e["step"] > 0]
    return {"name": one["name"], "predicted": forecast["predicted_step_seconds"],
            "measured": statistics.median(seconds), "fastest": seconds[0], "slowest": seconds[-1],
            "predicted_evaluation": forecast["predicted_evaluation_seconds"],
            "measured_evaluation": statistics.median(evaluations)}


def table(rows):
    lines = ["| run | step predicted | measured | off | fastest | slowest | evaluation predicted | measured | off |",
             "| --- |" + " ---: |" * 8]
    for row in rows:
        lines.append(f"| {row['name']} | {1e3 * row['predicted']:.1f} | {1e3 * row['measured']:.1f} | "
                     f"{100 * off(row, ''):+.1f} % | {1e3 * row['fastest']:.1f} | {1e3 * row['slowest']:.1f} | "
                     f"{1e3 * row['predicted_evaluation']:.1f} | {1e3 * row['measured_evaluation']:.1f} | "
                     f"{100 * off(row, '_evaluation'):+.1f} % |")
    return "\n".join(lines)


def off(row, what):
    return row["predicted" + what] / row["measured" + what] - 1


def summary(rows):
    def of(name, what):
        all_off = {row["name"]: off(row, what) for row in rows}
        missed = [run for run, o in all_off.items() if abs(o) > GOAL]
        low, high = min(all_off.values()), max(all_off.values())
        return (f"{name} are off by {100 * statistics.median(map(abs, all_off.values())):.1f} % in the median, from "
                f"{100 * low:+.1f} to {100 * high:+.1f} %; beyond {100 * GOAL:.0f} %: {', '.join(missed) or 'none'}.")
    return f"{len(rows)} runs. {of('Steps', '')} {of('Evaluations', '_evaluation')}"


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lemo-train", type=Path,
                        default=os.environ.get("LEMO_TRAIN", ROOT / "build/release/worker/train/lemo-train"))
    parser.add_argument("--seconds", type=float, default=30, help="of calibrating")
    parser.add_argument("--steps", type=int, default=8, help="of each run; the first is not counted")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--only", help="runs whose name holds this")
    parser.add_argument("--ranks", type=int, choices=[1, 2], help="runs of so many ranks alone")
    parser.add_argument("--results", type=Path, help="where the table goes; default: printed only")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="lemo-bench-") as scratch:
        rates = Path(scratch) / "rates.json"
        calibration = calibrate(args, rates)["calibration"]
        rows = []
        for one in cases():
            of_two = one["ranks"] is not None
            if (args.only and args.only not in one["name"]) or (args.ranks and of_two != (args.ranks == 2)):
                continue
            rows.append(measure(args, one, Path(scratch), rates))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    text = f"{table(rows)}\n\n{summary(rows)}\n"
    print(text)
    if args.results:
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True,
                                text=True).stdout.strip()
        args.results.write_text(
            f"# Predicted against measured times, {datetime.date.today()}\n\n"
            f"`./dev bench planner times` at commit {commit}; {cpu_name()}, {os.cpu_count()} cores, {args.threads} "
            f"thread a rank, float32; load {load:.1f} before it and {os.getloadavg()[0]:.1f} after. Calibrated for "
            f"{calibration['seconds']:.0f} s just before. Milliseconds of a step: predicted by the run itself before "
            f"it began, measured as the median of {args.steps - 1} steps after the first, with the fastest and the "
            "slowest of them; of an evaluation of twice a step's text: the median of those after the first step. No "
            "correction by earlier runs.\n\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
