#!/usr/bin/env python3
"""Steps that drop rows against dense steps of the same engine: `./dev bench sparsity`. See README.md beside
this file."""

import argparse
import dataclasses
import datetime
import json
import os
import shlex
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

LAYERS = 8
workload.SHAPES["sparsity"] = {
    "hidden_size": 512, "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2,
    "head_dim": 64, "intermediate_size": 1408, "vocab_size": 8192}
PEER = "peft-ckpt"


def choosing(policy, keep, **more):
    return {"policy": policy, "keep": [keep], **more}


# RunSpec.tokens of every arm.
ARMS = {
    "dense": None,
    "layer-50": choosing("random", 0.5, scope="layer", layers="all", mlp="shared"),
    "layer-50-norm": choosing("norm", 0.5, scope="layer", layers="all", mlp="shared"),
    # By networks that have learnt next to nothing, which takes as long as by others.
    "layer-50-predictor": choosing("predictor", 0.5, scope="layer", layers="all", mlp="shared", recall_every_steps=0),
    "stack-50-predictor": choosing("predictor", 0.5, scope="stack"),
    "layer-30": choosing("random", 0.3, scope="layer", layers="all", mlp="shared"),
    "stack-50": choosing("random", 0.5, scope="stack"),
    "stack-30": choosing("random", 0.3, scope="stack"),
    "nested-50": choosing("random", 0.5, scope="nested"),
    # The paper's form: later half, attention alone.
    "paper-40": choosing("random", 0.4, scope="layer", mlp="off"),
}
# What is to be reached, at most, of dense; `peer_memory` of the peer's, `peer_speed` at least, by length.
GOALS = {
    "layer-50": {"time": 0.60, "saved": 0.52, "peak": 0.62, "peer_memory": 0.35,
                 "peer_speed": {4096: 2.0, 8192: 2.2}},
    "layer-30": {"time": 0.42},
    "stack-50": {"time": 0.48, "saved": 0.51, "peak": 0.52},
    "layer-50-predictor": {"time": 0.60},
    "stack-50-predictor": {"time": 0.48},
}
SELECTION_GOAL = 0.02   # of a step of 8,192 rows
MODEL_GOAL = 0.10       # between measured and predicted ratio to dense
# Policy `input` is shown for what it saves; the arms that say so suffice.
INPUT_ARMS = ["dense", "layer-50", "layer-30", "stack-50"]


@dataclasses.dataclass
class Key:
    """What one group of runs has in common, with the dense run they are compared to."""
    length: int
    stored: str

    def name(self):
        return f"{self.length}/{self.stored}"


def model_bytes(dtype):
    """Of the frozen weights. lemo-train's peak of that category also has what drawing them took."""
    s = workload.SHAPES["sparsity"]
    hidden, inner = s["hidden_size"], s["intermediate_size"]
    heads = s["num_attention_heads"] * s["head_dim"]
    kv_heads = s["num_key_value_heads"] * s["head_dim"]
    layer = 2 * hidden * heads + 2 * hidden * kv_heads + 3 * hidden * inner + 2 * hidden
    elements = s["num_hidden_layers"] * layer + 2 * s["vocab_size"] * hidden + hidden
    return elements * element_bytes(dtype)


def element_bytes(dtype):
    return {"float32": 4, "bfloat16": 2}[dtype]


def rows_of(run, key):
    """Rows by layer that the median step computed; of the stream, which the head sees too."""
    sparsity = run.detail.get("sparsity")
    if not sparsity:
        return [key.length] * LAYERS, [key.length] * LAYERS
    return tuple([round(share * key.length) for share in sparsity[-1][part]]
                 for part in ("attention_kept", "mlp_kept"))


def figures(run, arm, key, dtype):
    """Of one run: seconds, bytes and rows."""
    attention, mlp = rows_of(run, key)
    through = ARMS[arm] is not None and ARMS[arm]["scope"] in ("stack", "nested")
    stream = attention[0] if arm.startswith("stack") else key.length
    peak = run.detail["peak_bytes"]
    selection = [s["selection_seconds"] for s in run.detail.get("sparsity", [])]
    return {
        "seconds": run.seconds,
        "cpu_seconds": statistics.median(run.detail["cpu_seconds"]),
        # What layers keep; the stream is there in any case and is shown with it as `saved_stream`.
        "saved": peak["saved_activations"] - stream * workload.SHAPES["sparsity"]["hidden_size"] *
        element_bytes(dtype),
        "saved_stream": peak["saved_activations"],
        "peak": peak["total"] - model_bytes(dtype),
        "resident": run.peak_bytes - run.loaded_bytes,
        "selection": statistics.median(selection) / run.seconds if selection else 0.0,
        "attention_rows": attention, "mlp_rows": mlp,
        "head_rows": attention[-1] if through else key.length,
    }


def tokens_of(args, arm, model, data, length, scratch):
    """RunSpec.tokens of the arm; a predictor that it needs is made first."""
    tokens = ARMS[arm]
    if tokens is None or tokens["policy"] != "predictor":
        return tokens
    out = scratch / f"trained-{length}"
    if not out.exists():
        spec = {"model": {"path": str(model), "random_init": {"seed": 1}, "compute_type": args.dtype},
                "data": {"train": [{"path": str(data), "format": "text"}], "max_length": length, "packing": False,
                         "cache_dir": str(scratch / "cache")},
                "predictor": {"mlp": False}, "train": {"steps": 1}, "output": {"dir": str(out)},
                "device": args.device}
        run_json = scratch / "predictor.json"
        run_json.write_text(json.dumps(spec))
        subprocess.run([str(args.lemo_train), str(run_json)], check=True, stdout=subprocess.DEVNULL)
    return {**tokens, "predictor": str(out / "predictor")}


def measure(args, scratch):
    """{key name: {arm: [Run of every round]}}, one process each; arms take turns within a round."""
    runs = {}
    for length in sorted({*args.lengths, *args.calibrate}):
        model, data = scratch / f"model-{length}", scratch / f"rows-{length}.jsonl"
        workload.write_model(model, "sparsity", length, args.dtype)
        workload.write_data(data, "sparsity", length)
        for stored in args.stored:
            key = Key(length, stored)
            arms = [a for a in args.arms if stored == "attn_out" or a in INPUT_ARMS]
            if length not in args.lengths:
                arms = ["dense"]
            elif args.peer and stored == args.stored[0]:
                arms = arms + [PEER]
            taken = runs[key.name()] = {arm: [] for arm in arms}
            for number in range(args.rounds):
                for arm in arms:
                    if arm == PEER:
                        run = engine.run_peer(args, PEER, model, data, args.steps)
                    else:
                        run = engine.run_lemo(args, f"lemo-{stored}", model, data, args.steps, length, scratch,
                                              tokens_of(args, arm, model, data, length, scratch))
                    if run.out_of_memory:
                        raise RuntimeError(f"{arm}: out of memory: {run.out_of_memory}")
                    engine.check_loss(run, arm, workload.SHAPES["sparsity"]["vocab_size"])
                    taken[arm].append(run)
                    print(f"{key.name():14s} round {number + 1} {arm:14s} {run.seconds:8.3f} s a step "
                          f"{run.above_bytes / 2**20:8.1f} MiB resident above the model",
                          file=sys.stderr, flush=True)
    return runs


def predict(args, of_run):
    """Adds `predicted`, the planner's ratio to dense, from rates that dense runs alone determine. In CPU time,
    which other load on the machine disturbs least."""
    for stored in args.stored:
        passes, places = [], []
        for name, arms in of_run.items():
            if not name.endswith("/" + stored):
                continue
            for arm, taken in arms.items():
                if arm == PEER:
                    continue
                f = taken[0]
                passes.append({
                    "stored": stored, "attention": f["attention_rows"], "mlp": f["mlp_rows"],
                    "separate": f["attention_rows"] != f["mlp_rows"], "head": f["head_rows"],
                    **({"seconds": statistics.median(t["cpu_seconds"] for t in taken)}
                       if arm == "dense" else {})})
                places.append((name, arm))
        asked = {"shape": workload.SHAPES["sparsity"], "adapter_rank": workload.LORA_RANK,
                 "passes": passes}
        answer = json.loads(subprocess.run([str(args.cost)], input=json.dumps(asked), text=True,
                                           check=True, capture_output=True).stdout)
        dense = {name: p["seconds"] for (name, arm), p in zip(places, answer["passes"]) if arm == "dense"}
        for (name, arm), said in zip(places, answer["passes"]):
            for f in of_run[name][arm]:
                f["predicted"] = said["seconds"] / dense[name]
                f["rates"] = answer["rates"]


def summarize(args, runs, dtype):
    of_run = {}
    for name, arms in runs.items():
        length, stored = name.split("/")
        key = Key(int(length), stored)
        of_run[name] = {arm: [figures(r, arm, key, dtype) for r in taken]
                        for arm, taken in arms.items() if arm != PEER}
    predict(args, of_run)
    rows = []
    for name, arms in of_run.items():
        key = Key(int(name.split("/")[0]), name.split("/")[1])
        peers = runs[name].get(PEER, [])
        for arm, taken in arms.items():
            row = {"length": key.length, "stored": key.stored, "arm": arm,
                   "seconds": engine.spread([f["seconds"] for f in taken]),
                   "peak_bytes": engine.spread([f["peak"] for f in taken]),
                   "selection": engine.spread([f["selection"] for f in taken]),
                   "predicted": taken[0]["predicted"], "rates": taken[0]["rates"]}
            for measured, into in (("seconds", "time"), ("cpu_seconds", "cpu_time"), ("saved", "saved"),
                                   ("saved_stream", "saved_stream"), ("peak", "peak"),
                                   ("resident", "resident")):
                row[into] = engine.spread([f[measured] / d[measured]
                                           for f, d in zip(taken, arms["dense"])])
            row["model_error"] = row["cpu_time"]["median"] / row["predicted"] - 1
            if peers:
                mine = runs[name][arm]
                row["peer_speed"] = engine.spread([p.seconds / r.seconds for p, r in zip(peers, mine)])
                row["peer_memory"] = engine.spread([r.above_bytes / p.above_bytes
                                                    for p, r in zip(peers, mine)])
            rows.append(row)
        if peers:
            rows.append({"length": key.length, "stored": "", "arm": PEER,
                         "seconds": engine.spread([p.seconds for p in peers]),
                         "peak_bytes": engine.spread([p.above_bytes for p in peers])})
    return rows


def goal_lines(rows):
    """Each goal with what was measured, worst length and policy first to be seen."""
    lines = ["| goal | at most | measured | |", "| --- | --- | --- | --- |"]

    def line(what, bound, value, reached):
        lines.append(f"| {what} | {bound} | {value} | {'reached' if reached else '**missed**'} |")

    names = {"time": "step time, of dense", "saved": "saved bytes, of dense",
             "peak": "peak above the model, of dense"}
    for row in rows:
        goals = GOALS.get(row["arm"], {})
        where = f"{row['arm']}, {row['length']} tokens, `{row['stored']}`"
        for goal, name in names.items():
            if goal in goals:
                value = row[goal]["median"]
                line(f"{name}: {where}", f"{goals[goal]:.2f}", f"{value:.3f}", value <= goals[goal])
        if "peer_speed" in goals and "peer_speed" in row:
            least = goals["peer_speed"].get(row["length"])
            if least:
                value = row["peer_speed"]["median"]
                line(f"times as fast as {PEER}: {where}", f"at least {least}", f"{value:.2f}",
                     value >= least)
            value = row["peer_memory"]["median"]
            line(f"peak above the model, of {PEER}'s: {where}", f"{goals['peer_memory']:.2f}",
                 f"{value:.3f}", value <= goals["peer_memory"])
        if row["arm"] in ARMS and ARMS[row["arm"]] and row["length"] >= 8192:
            value = row["selection"]["median"]
            line(f"choosing rows, of a step: {where}", f"{SELECTION_GOAL:.2f}", f"{value:.5f}",
                 value <= SELECTION_GOAL)
        if row["arm"] in ARMS and ARMS[row["arm"]]:
            line(f"CPU time against the cost model: {where}", f"±{MODEL_GOAL:.2f}",
                 f"{row['model_error']:+.3f}", abs(row["model_error"]) <= MODEL_GOAL)
    return "\n".join(lines)


def table(rows):
    def show(value, digits=2):
        if value["min"] == value["max"]:
            return f"{value['median']:.{digits}f}"
        return f"{value['median']:.{digits}f} ({value['min']:.{digits}f}-{value['max']:.{digits}f})"

    lines = ["| tokens | stored | arm | s a step | time | CPU time | predicted | saved | with stream | "
             f"peak | resident | choosing | times as fast as {PEER} | resident, of {PEER} |",
             "| ---: | --- | --- | " + " | ".join(["---:"] * 11) + " |"]
    for row in rows:
        cells = [str(row["length"]), row["stored"], row["arm"], show(row["seconds"])]
        if row["arm"] == PEER:
            cells += [""] * 10
        else:
            cells += [show(row["time"]), show(row["cpu_time"]), f"{row['predicted']:.2f}",
                      show(row["saved"], 3), show(row["saved_stream"], 3), show(row["peak"], 3),
                      show(row["resident"]), f"{100 * row['selection']['median']:.3f} %"]
            cells += [show(row["peer_speed"]), show(row["peer_memory"])] if "peer_speed" in row else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(about, rows):
    rates = {row["stored"]: row["rates"] for row in rows if "rates" in row}
    said = "; ".join(f"`{stored}`: {r['products'] / 1e9:.0f} and {r['attention'] / 1e9:.0f} GFLOP"
                     for stored, r in rates.items())
    return f"""# Token sparsity against dense, {about['date']}

{about['device']}, {about['threads']} threads, {about['dtype']}, hidden 512, 8 layers, 8 heads (2 for keys and
values), intermediate 1,408, 8,192 tokens; LoRA rank 8 on q, k, v, o. Commit {about['commit']}.
Versions: {', '.join(f'{k} {v}' for k, v in about['versions'].items()) or 'no peer'}.

    {about['command']}

Of dense, by the same engine, storage policy and length:

{table(rows)}

{goal_lines(rows)}

Each figure is the median (least-most) over {about['rounds']} rounds, in each of which every arm ran once, as
one process, in turn; a round's step time is the median of {about['steps']} steps after {about['warmup_steps']}
warm-up. *Predicted* is the planner's cost model; its two rates, of products and of attention, come from the
dense runs alone ({said}, a second of CPU time), and it is compared with the CPU time. *Saved* is what the
layers keep for backward, *peak* the allocator's count above the weights, *resident* the peak resident set
above the loaded model. The last two columns compare with PEFT and gradient checkpointing.

What this does not show: weights and text are random, so nothing about quality; one sequence a step; no
other shape or device. {about['note']}
"""


def describe(args, runs):
    about = engine.describe(args, runs)
    del about["baseline"]
    return {**about, "shape": {"sparsity": workload.SHAPES["sparsity"]}, "steps": args.steps,
            "command": shlex.join(["./dev", "bench", "sparsity", *sys.argv[1:]]), "note": args.note}


def store(directory, about, rows, runs, text):
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{about['date']}-sparsity-cpu"
    path, number = directory / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = directory / f"{stem}-{number}.json"
    path.write_text(json.dumps({
        **about, "summary": rows,
        "runs": {name: {arm: [dataclasses.asdict(run) for run in taken] for arm, taken in arms.items()}
                 for name, arms in runs.items()}}, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    print(f"stored {path} and {path.with_suffix('.md').name}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lemo-train", type=Path, help="default: $LEMO_TRAIN, or the release build's",
                        default=os.environ.get("LEMO_TRAIN",
                                               ROOT / "build/release/worker/train/lemo-train"))
    parser.add_argument("--cost", type=Path, help="default: the release build's lemo_sparsity_cost",
                        default=ROOT / "build/release/bench/sparsity/lemo_sparsity_cost")
    parser.add_argument("--peer-python", type=Path, help="default: $LEMO_ORACLE_PYTHON, or .venv-oracles",
                        default=os.environ.get("LEMO_ORACLE_PYTHON", ROOT / ".venv-oracles/bin/python"))
    parser.add_argument("--quick", action="store_true",
                        help="a short row and few steps: does it run at all? stores nothing")
    parser.add_argument("--tokens", default="4096,8192", help="tokens a step")
    parser.add_argument("--calibrate", default="1024,2048",
                        help="further lengths, dense alone, for the rates of the cost model")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"some of {','.join(ARMS)}")
    parser.add_argument("--stored", default="attn_out,input", help="storage policies")
    parser.add_argument("--peer", action="store_true", help="also PEFT with gradient checkpointing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--note", default="", help="a sentence for the report: what else ran meanwhile")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.calibrate, args.rounds, args.steps = "512", "256", 1, 2
    args.lengths = [int(n) for n in args.tokens.split(",")]
    args.calibrate = [int(n) for n in args.calibrate.split(",") if n]
    args.arms, args.stored = args.arms.split(","), args.stored.split(",")
    unknown = set(args.arms) - set(ARMS)
    if unknown:
        parser.error(f"--arms: {', '.join(sorted(unknown))}: not among {', '.join(ARMS)}")
    args.arms = ["dense"] + [a for a in args.arms if a != "dense"]
    if args.dtype == "auto":
        args.dtype = "bfloat16" if engine.cpu_has_fast_bfloat16() else "float32"
    args.device, args.baseline, args.shape = "cpu", "dense", "sparsity"
    for program in [args.lemo_train, args.cost] + ([args.peer_python] if args.peer else []):
        if not os.access(program, os.X_OK):
            parser.error(f"{program}: no such program")
    return args


def main():
    args = parse_arguments()
    # Threads that spin at the end of a parallel region would measure the machine's other load.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    with tempfile.TemporaryDirectory(prefix="lemo-bench-") as scratch:
        runs = measure(args, Path(scratch))
    rows = summarize(args, runs, args.dtype)
    about = describe(args, runs)
    text = report(about, rows)
    print(text)
    if not args.quick:
        store(args.results, about, rows, runs, text)


if __name__ == "__main__":
    main()
