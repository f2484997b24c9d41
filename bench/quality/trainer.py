"""lemo-train as the study drives it: a spec in, what its events say out."""

import array
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys

TICKS = os.sysconf("SC_CLK_TCK")
# Steps whose time does not count.
WARMUP = 3


class Failed(Exception):
    """lemo-train refused or died; the text says why."""


@dataclasses.dataclass
class Rows:
    """Loss and hit of every labelled row of an evaluation."""
    loss: list
    hit: list
    position: list
    document: list


@dataclasses.dataclass
class Outcome:
    """What one process said."""
    evals: list
    steps: list
    result: dict
    cpu_s: float   # processor seconds a step: the neighbours on a shared machine hardly count in it
    rows: Rows | None


def cpu_seconds(pid):
    """Of all threads, user and system."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def read_safetensors(path):
    """{name: list} of the tensors of a file."""
    codes = {"F32": "f", "U8": "B", "I32": "i", "I64": "q", "BOOL": "B"}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        body = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        tensors[name] = array.array(codes[entry["dtype"]], body[first:last]).tolist()
    return tensors


def run(program, spec, scratch, *arguments, threads=1):
    """Runs `spec`, whose output.dir is made anew under `scratch`."""
    out = scratch / "run"
    shutil.rmtree(out, ignore_errors=True)
    spec = {**spec, "output": {"dir": str(out)}}
    path = scratch / "run.json"
    path.write_text(json.dumps(spec, indent=1))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    evals, steps, cpu, result, error = [], [], [], {}, ""
    with (scratch / "stderr").open("w+") as stderr, \
            subprocess.Popen([str(program), str(path), "--events", "json", *arguments],
                             env=environment, stdout=subprocess.PIPE, stderr=stderr,
                             text=True) as process:
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["type"] == "step":
                    cpu.append(cpu_seconds(process.pid))
                    steps.append(event)
                elif event["type"] == "eval":
                    evals.append(event)
                elif event["type"] == "result":
                    result = event
                elif event["type"] == "error":
                    error = event["message"]
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        stderr.seek(0)
        complaint = (error or stderr.read().strip())[:500]
    if code != 0:
        raise Failed(f"exit code {code}: {complaint}")
    rows = None
    if (out / "eval-rows.safetensors").exists():
        rows = Rows(**{name: values for name, values in
                       read_safetensors(out / "eval-rows.safetensors").items()
                       if name in ("loss", "hit", "position", "document")})
    a_step = (cpu[-1] - cpu[WARMUP - 1]) / (len(cpu) - WARMUP) if len(cpu) > WARMUP else 0.0
    return Outcome(evals, steps, result, a_step, rows)


def median_step_seconds(steps):
    seconds = [step["seconds"] for step in steps[WARMUP:]]
    return statistics.median(seconds) if seconds else 0.0


def say(text):
    print(text, file=sys.stderr, flush=True)
