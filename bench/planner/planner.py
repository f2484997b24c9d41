#!/usr/bin/env python3
"""Peak bytes that the planner predicts against those of runs: `./dev bench planner`. See README.md beside this
file."""

import argparse
import datetime
import json
import os
import random
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

CATEGORIES = ["weights", "trainable", "saved_activations", "transient", "loss", "total"]
GOAL = 0.03  # |expected / measured - 1| of the total


def measure(args, one, scratch):
    """The peaks that the run's result names."""
    shutil.rmtree(scratch / "out", ignore_errors=True)
    shutil.rmtree(scratch / "cache", ignore_errors=True)
    model, row = scratch / f"{one['shape']}-{one['length']}", one["length"] // one["documents"]
    if not model.exists():
        grid.write_model(model, one["shape"], one["length"])
    rows, held_out = scratch / "rows.jsonl", scratch / "held-out.jsonl"
    grid.write_rows(rows, one["shape"], row, 2 * one["documents"])
    grid.write_rows(held_out, one["shape"], row, 2)
    run_json = scratch / "run.json"
    spec = grid.run_spec(one, model, rows, held_out, scratch)
    if one["by"] == "predictor" and not one["online"]:
        shutil.rmtree(scratch / "trained", ignore_errors=True)
        run_json.write_text(json.dumps(grid.predictor_spec(spec, scratch)))
        subprocess.run([str(args.lemo_train), str(run_json)], check=True, stdout=subprocess.DEVNULL)
    run_json.write_text(json.dumps(spec))
    gang = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--np", "2", "--mca", "plm",
            "isolated", "--mca", "btl", "self,vader", "--mca", "btl_vader_single_copy_mechanism", "none"]
    done = subprocess.run(["nice", "-n", "5", *(gang if one["ranks"] else []), str(args.lemo_train), str(run_json),
                           "--events", "json"],
                          env={**os.environ, "OMP_NUM_THREADS": str(one["threads"])}, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    result = next((e for e in events if e["type"] == "result"), None)
    if done.returncode != 0 or result is None:
        raise RuntimeError(f"{one['name']}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {c: int(result["peak_bytes"].get(c, 0)) for c in CATEGORIES}


def write_measured(path, known):
    lines = (f" {json.dumps(name)}: {json.dumps(peaks)}" for name, peaks in known.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def predict(args, cases):
    done = subprocess.run([str(args.plan_memory)], input=json.dumps([grid.question(c) for c in cases]),
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def table(rows):
    mib = 2 ** 20
    lines = ["| run | measured | expected | off | low | high | " + " | ".join(CATEGORIES[:-1]) + " |",
             "| --- |" + " ---: |" * (5 + len(CATEGORIES) - 1)]
    for row in rows:
        m, e = row["measured"], row["predicted"]["expected"]
        cells = [f"{100 * (e[c] / m[c] - 1):+.2f} %" if m[c] else ("0" if not e[c] else "!") for c in CATEGORIES]
        lines.append(f"| {row['name']} | {m['total'] / mib:.2f} | {e['total'] / mib:.2f} | {cells[-1]} | "
                     f"{row['predicted']['low']['total'] / mib:.2f} | "
                     f"{row['predicted']['high']['total'] / mib:.2f} | " + " | ".join(cells[:-1]) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lemo-train", type=Path,
                        default=os.environ.get("LEMO_TRAIN", ROOT / "build/release/worker/train/lemo-train"))
    parser.add_argument("--plan-memory", type=Path, help="the program lemo_plan_memory",
                        default=os.environ.get("LEMO_PLAN_MEMORY",
                                               ROOT / "build/release/bench/planner/lemo_plan_memory"))
    parser.add_argument("--quick", action="store_true", help="every sixth run of the grid, of one rank each")
    parser.add_argument("--random", type=int, metavar="N", help="N random runs in place of the grid")
    parser.add_argument("--seed", type=int, default=1, help="of --random")
    parser.add_argument("--only", help="runs whose name holds this")
    parser.add_argument("--measured", type=Path, help="peaks of earlier runs: read, and added to")
    parser.add_argument("--run-nothing", action="store_true",
                        help="compare with the peaks in --measured, which must have every run of the grid")
    parser.add_argument("--results", type=Path, help="where the table goes; default: printed only")
    args = parser.parse_args()
    cases = [c for c in grid.grid()[::6 if args.quick else 1]
             if (not args.only or args.only in c["name"]) and not (args.quick and c["ranks"])]
    if args.random:
        if args.measured or args.results:
            parser.error("--random: shapes are made up each time; nothing is kept")
        rng = random.Random(args.seed)
        cases = [grid.random_case(rng, number) for number in range(args.random)]
    if len({c["name"] for c in cases}) != len(cases):
        parser.error("two runs of the grid have one name")
    known = json.loads(args.measured.read_text()) if args.measured and args.measured.exists() else {}
    with tempfile.TemporaryDirectory(prefix="lemo-bench-") as scratch:
        for one in cases:
            if one["name"] in known:
                continue
            if args.run_nothing:
                parser.error(f"{args.measured} does not have {one['name']}")
            known[one["name"]] = measure(args, one, Path(scratch))
            print(f"{one['name']:60s} {known[one['name']]['total'] / 2**20:9.2f} MiB", file=sys.stderr, flush=True)
            if args.measured:
                write_measured(args.measured, known)
    rows = [{"name": c["name"], "measured": known[c["name"]], "predicted": p}
            for c, p in zip(cases, predict(args, cases))]
    off = [row["predicted"]["expected"]["total"] / row["measured"]["total"] - 1 for row in rows]
    above = [row["name"] for row in rows if row["measured"]["total"] > row["predicted"]["high"]["total"]]
    below = [row["name"] for row in rows if row["measured"]["total"] < row["predicted"]["low"]["total"]]
    missed = [row["name"] for row, o in zip(rows, off) if abs(o) > GOAL]
    summary = (f"{len(rows)} runs. Off by {100 * statistics.median(map(abs, off)):.2f} % in the median, from "
               f"{100 * min(off):+.2f} to {100 * max(off):+.2f} %. Beyond {100 * GOAL:.0f} %: "
               f"{', '.join(missed) or 'none'}. Measured above `high`: {', '.join(above) or 'none'}; below "
               f"`low`: {', '.join(below) or 'none'}.")
    text = f"{table(rows)}\n\n{summary}\n"
    print(text)
    if args.results:
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True,
                                text=True).stdout.strip()
        args.results.write_text(
            f"# Predicted against measured peak bytes, {datetime.date.today()}\n\n"
            f"`./dev bench planner` at commit {commit}, CPU, one thread but where the name says otherwise, two "
            "steps a run. MiB of live tensors as the counting allocator tells them in the result event (publishing "
            "comes after it); the columns behind `high` are how far the expected bytes of each category are from "
            "the measured ones.\n\n" + text)
    return 1 if missed or above else 0


if __name__ == "__main__":
    sys.exit(main())
