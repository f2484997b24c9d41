#!/usr/bin/env python3
"""Four jobs on one base, at a time against one after another: `./dev bench colocation`. See README.md beside this
file."""

import argparse
import datetime
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "engine"))
import run as engine  # noqa: E402

TOKENIZER = ROOT / "tests/fixtures/stories260k"
SHAPES = {
    "model": {"hidden_size": 1280, "num_hidden_layers": 12, "num_attention_heads": 20, "num_key_value_heads": 4,
              "head_dim": 64, "intermediate_size": 3456},
    "quick": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 64, "intermediate_size": 688},
}
SPEED_GOAL, BYTES_GOAL = 0.9, 0.4
# Rank, targets, and the rows that are kept.
TENANTS = [
    {"rank": 8, "targets": ["q_proj", "v_proj"]},
    {"rank": 4, "targets": ["all-linear"]},
    {"rank": 16, "targets": ["o_proj"], "tokens": {"policy": "random", "keep": [0.5], "block": 16}},
    {"rank": 2, "targets": ["gate_proj", "down_proj"], "tokens": {"policy": "recency", "keep": [0.75], "block": 16}},
]


def write_model(folder, shape):
    """A Llama model of that shape, its weights bfloat16 of 0.008 to 0.03."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    config = {**json.loads((TOKENIZER / "config.json").read_text()), **shape, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    h, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    wide = shape["num_attention_heads"] * shape["head_dim"]
    narrow = shape["num_key_value_heads"] * shape["head_dim"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], h], "model.norm.weight": [h]}
    for layer in range(layers):
        of = {"input_layernorm": [h], "post_attention_layernorm": [h], "self_attn.q_proj": [wide, h],
              "self_attn.k_proj": [narrow, h], "self_attn.v_proj": [narrow, h], "self_attn.o_proj": [h, wide],
              "mlp.gate_proj": [inner, h], "mlp.up_proj": [inner, h], "mlp.down_proj": [h, inner]}
        shapes.update({f"model.layers.{layer}.{name}.weight": size for name, size in of.items()})
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, size in shapes.items():
        count = size[0] * (size[1] if len(size) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(1)
    signs = bytes(0x3C if byte < 128 else 0xBC for byte in range(256))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size in shapes.items():
            count = size[0] * (size[1] if len(size) > 1 else 1)
            if len(size) == 1:
                file.write(b"\x80\x3f" * count)  # ones
                continue
            values = bytearray(2 * count)
            values[0::2] = rng.randbytes(count)
            values[1::2] = rng.randbytes(count).translate(signs)
            file.write(values)


def write_rows(path, rows):
    words = "the little bird saw a big red ball and it was happy to play in the garden all day".split()
    rng = random.Random(2)
    with path.open("w") as file:
        for _ in range(rows):
            file.write(json.dumps({"text": " ".join(rng.choice(words) for _ in range(400))}) + "\n")


def spec_of(args, tenant, model, rows, out, cache, bases):
    spec = {
        "model": {"path": str(model), "compute_type": "float32"},
        "data": {"train": [{"path": str(rows), "format": "text"}], "max_length": args.length, "overlong": "split",
                 "packing": True, "cache_dir": str(cache)},
        "tuner": {"lora": {"rank": tenant["rank"], "alpha": 2 * tenant["rank"], "targets": tenant["targets"]}},
        "train": {"steps": args.steps, "batch_sequences": 1, "schedule": "constant", "learning_rate": 1e-4,
                  "seed": 1},
        "memory": {"policy": "input"},
        "output": {"dir": str(out)}, "device": "cpu",
    }
    if bases:
        spec["model"]["bases_dir"] = str(bases)
    if "tokens" in tenant:
        spec["tokens"] = tenant["tokens"]
    return spec


class Job:
    """One lemo-train, from its start to its end."""

    def __init__(self, args, number, spec, scratch):
        path = scratch / f"run-{number}.json"
        path.write_text(json.dumps(spec, indent=1))
        command = [str(args.lemo_train), str(path), "--events", "json"]
        self.name, self.steps, self.result, self.stamps = shlex.join(command), [], None, []
        self.errors = (scratch / f"errors-{number}").open("w+")
        # As agents start ranks that share a CPU: who waits does not spin.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True,
                                        env={**os.environ, "OMP_WAIT_POLICY": "passive"})
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            event = json.loads(line)
            if event["type"] == "step":
                self.steps.append(event)
                self.stamps.append(time.monotonic())
            elif event["type"] == "result":
                self.result = event

    def finish(self):
        code = self.process.wait()
        self.reader.join()
        if code != 0 or self.result is None:
            self.errors.seek(0)
            raise RuntimeError(f"{self.name}: exit code {code}\n{self.errors.read()[-3000:]}")

    def pss(self):
        try:
            text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        except OSError:  # it is just ending
            return 0
        return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def run_jobs(jobs, everyone):
    """Waits for the jobs' ends. The largest sum of their Pss seen while all are in their steps."""
    most = 0
    while any(job.process.poll() is None for job in jobs):
        if all(job.steps and not job.result for job in jobs) or not everyone:
            most = max(most, sum(job.pss() for job in jobs if job.steps))
        time.sleep(0.1)
    for job in jobs:
        job.finish()
    return most


def arm(args, together, model, rows, scratch):
    shutil.rmtree(scratch / "out", ignore_errors=True)
    bases = scratch / "bases" if together else None
    shutil.rmtree(scratch / "bases", ignore_errors=True)
    specs = [spec_of(args, tenant, model, rows, scratch / "out" / str(n), scratch / "cache", bases)
             for n, tenant in enumerate(TENANTS)]
    start, pss, jobs = time.monotonic(), 0, []
    if together:
        jobs = [Job(args, n, spec, scratch) for n, spec in enumerate(specs)]
        pss = run_jobs(jobs, everyone=True)
    else:
        for n, spec in enumerate(specs):
            jobs.append(Job(args, n, spec, scratch))
            pss += run_jobs(jobs[-1:], everyone=False)
    seconds = time.monotonic() - start
    peaks = [job.result["peak_bytes"] for job in jobs]
    # What is the same in all of them counts once, where it is once.
    base = max(int(p.get("base", 0)) for p in peaks)
    tensors = sum(int(p["total"]) - int(p.get("base", 0)) for p in peaks)
    tensors += base if together else sum(int(p.get("base", 0)) for p in peaks)
    return {"seconds": seconds, "tokens": sum(int(job.result["tokens"]) for job in jobs), "pss": pss,
            "tensors": tensors, "base": base, "losses": [[s["loss"] for s in job.steps] for job in jobs]}


def show(values, digits=3):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def verdict(value, goal, at_least):
    return "reached" if (value >= goal if at_least else value <= goal) else "**missed**"


def report(together, apart):
    def ratio(key, turned=False):
        pairs = [(t[key], a[key]) for t, a in zip(together, apart)]
        return [a / t if turned else t / a for t, a in pairs]
    mib = 2 ** 20
    speed, tensors, pss = ratio("seconds", turned=True), ratio("tensors"), ratio("pss")
    lines = ["| | four at a time, one base | one after another | ratio | goal |", "| --- | ---: | ---: | ---: | --- |",
             "| tokens/s of all four | " + " | ".join([
                 show([t["tokens"] / t["seconds"] for t in together], 1),
                 show([a["tokens"] / a["seconds"] for a in apart], 1), show(speed),
                 f"{SPEED_GOAL} {verdict(statistics.median(speed), SPEED_GOAL, True)}"]) + " |",
             "| tensors, MiB | " + " | ".join([
                 show([t["tensors"] / mib for t in together], 1), show([a["tensors"] / mib for a in apart], 1),
                 show(tensors), f"{BYTES_GOAL} {verdict(statistics.median(tensors), BYTES_GOAL, False)}"]) + " |",
             "| Pss of the processes, MiB | " + " | ".join([
                 show([t["pss"] / mib for t in together], 1), show([a["pss"] / mib for a in apart], 1), show(pss),
                 ""]) + " |"]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lemo-train", type=Path,
                        default=os.environ.get("LEMO_TRAIN", ROOT / "build/release/worker/train/lemo-train"))
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="does it run? stores nothing")
    parser.add_argument("--note", default="", help="a sentence for the report")
    args = parser.parse_args()
    if args.quick:
        args.length, args.steps, args.rounds = 32, 8, 1
    shape = SHAPES["quick" if args.quick else "model"]
    together, apart = [], []
    with tempfile.TemporaryDirectory(prefix="lemo-bench-") as folder:
        scratch = Path(folder)
        model, rows = scratch / "model", scratch / "rows.jsonl"
        write_model(model, shape)
        write_rows(rows, 60)
        for number in range(args.rounds):
            for runs, is_together in ((together, True), (apart, False)):
                runs.append(arm(args, is_together, model, rows, scratch))
                print(f"round {number + 1} {'at a time' if is_together else 'one by one':12s} "
                      f"{runs[-1]['seconds']:8.1f} s", file=sys.stderr, flush=True)
    for one, other in zip(together, apart):
        if one["losses"] != other["losses"]:
            raise RuntimeError("a job on a shared base has other losses than alone")
    text = report(together, apart)
    print(text)
    if args.quick:
        return
    date = datetime.date.today().isoformat()
    path = ROOT / "bench/results" / f"{date}-colocation-cpu.md"
    number = 1
    while path.exists():
        number += 1
        path = ROOT / "bench/results" / f"{date}-colocation-cpu-{number}.md"
    path.write_text(f"""# Four jobs on one base, {date}

{engine.cpu_model()}, {os.cpu_count()} cores, float32; hidden {shape['hidden_size']}, {shape['num_hidden_layers']}
layers, intermediate {shape['intermediate_size']:,}; the base is {together[0]['base'] / 2**20:.0f} MiB, in the model's
file half of that (bfloat16). LoRA of rank 8 on q, v; 4 on all; 16 on o with half of the rows (random); 2 on gate and
down with three quarters (recency); {args.steps} steps of one sequence of {args.length} tokens each. Commit
{engine.commit()}.

    {shlex.join(['./dev', 'bench', 'colocation', *sys.argv[1:]])}

{text}

Each figure is the median (least-most) over {args.rounds} rounds, in each of which both arms ran once, in turn; ratios
are taken within the round. Throughput: the tokens of all four over the time from the first start to the last end.
Tensors: the sum of the runs' own peaks, the base once where it is once. Pss: the kernel's, programs and libraries
included, at its largest while all four are in their steps, and summed over the runs that were by themselves. The
losses of every job were those of its run alone, to the last bit. What this does not show: a GPU, a base in the type of
its file (which was mapped before too), jobs that need the whole machine's memory bandwidth. {args.note}
""")
    print(f"stored {path}")


if __name__ == "__main__":
    main()
