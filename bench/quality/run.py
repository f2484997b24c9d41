#!/usr/bin/env python3
"""What token sparsity costs in quality: `./dev bench quality`. See README.md beside this file."""

import argparse
import dataclasses
import datetime
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import arms
import table
import tasks
import trainer
from trainer import say

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# A dense run for its time alone after so many others: a shared machine is not equally fast all night.
TIMING_EVERY, TIMING_STEPS = 12, 3 + 4
BUCKETS = 4
PREDICTOR_STEPS, TAUGHT_STEPS, PREDICTOR_LENGTH = 300, 2400, 2048
# The base of task b: 2.5 million tokens of the novels that novelist-3m was trained on.
BASE_SPEC = {"steps": 600, "batch_sequences": 8, "micro_batch_tokens": 4096, "learning_rate": 4e-3,
             "warmup_steps": 30, "weight_decay": 0.1, "beta2": 0.95, "schedule": "cosine", "seed": 1,
             "min_learning_rate_ratio": 0.05}


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a task is trained and evaluated in a stage."""
    length: int
    steps: int
    batch: int            # sequences a step
    learning_rate: float
    eval_sequences: int   # 0: all
    probe: bool


SETTINGS = {
    ("screen", "a"): Setting(2048, 40, 1, 2e-3, 6, False),
    ("screen", "b"): Setting(2048, 40, 1, 2e-3, 6, False),
    ("screen", "c"): Setting(1024, 64, 2, 4e-3, 0, False),
    ("long", "a"): Setting(8192, 20, 1, 2e-3, 3, True),
    ("long", "b"): Setting(4096, 30, 1, 2e-3, 4, True),
    ("long", "c"): Setting(4096, 96, 1, 4e-3, 0, False),
}


class Task:
    """Models and files of one task at one setting and seed."""

    def __init__(self, name, setting, seed, material, program, scratch):
        self.name, self.setting, self.seed, self.material = name, setting, seed, material
        self.predictor = functools.partial(train_predictor, self, program, scratch)
        self.book = tasks.HELD_OUT[(seed - 1) % len(tasks.HELD_OUT)] if name != "c" else tasks.PAGES_TRAIN
        if name == "a":
            self.model = material.base
        elif name == "b":
            base = train_base(material, program, scratch)
            factor = setting.length / tasks.BASE_LENGTH
            self.model = material.model_with(
                f"base-{tasks.BASE_LENGTH}-times-{factor:g}", weights=base,
                changes={"rope_scaling": {"rope_type": "linear", "factor": factor}})
        else:
            self.model = material.plain_model(train_copier(material, program, scratch))

    def train_file(self, window_share):
        if self.name == "c":
            rows = self.setting.steps * self.setting.batch
            return self.material.questions("train", self.setting.length, rows, self.seed, window_share)
        return self.material.book(self.book, "train")

    def eval_file(self):
        if self.name == "c":
            return self.material.questions("eval", self.setting.length, 24, 0)
        return self.material.book(self.book, "eval")

    def spec(self, arm):
        """What training and evaluation share."""
        spec = {
            "model": {"path": str(self.model)},
            "data": {"max_length": self.setting.length, "packing": False,
                     "cache_dir": str(self.material.work / "cache")},
            "tuner": {"lora": {"rank": 8, "alpha": 16}},
            "train": {"seed": self.seed},
            "device": "cpu",
        }
        if arm.tokens:
            spec["tokens"] = dict(arm.tokens)
        if arm.tokens.get("policy") == "predictor":
            spec["tokens"]["predictor"] = str(self.predictor(arm.taught))
        return spec

    def training(self, arm, steps=None):
        spec = self.spec(arm)
        length = self.setting.length
        if arm.window_share < 1 and self.name != "c":
            length = int(length * arm.window_share)
        spec["data"] |= {"train": [{"path": str(self.train_file(arm.window_share))}], "max_length": length}
        if arm.skip_positions:
            spec["data"]["skip_positions"] = {"target": self.setting.length}
        spec["train"] |= {"steps": steps or max(1, round(self.setting.steps * arm.steps_share)),
                          "batch_sequences": self.setting.batch,
                          "micro_batch_tokens": self.setting.batch * length,
                          "learning_rate": self.setting.learning_rate, "warmup_steps": 4}
        for path, value in arm.spec.items():
            message, field = path.split(".")
            spec.setdefault(message, {})[field] = value
        return spec

    def evaluation(self, arm, adapter, path, sequences, sparse):
        spec = self.spec(arm if sparse else dataclasses.replace(arm, tokens={}))
        spec["data"]["eval"] = [{"path": str(path)}]
        spec["eval"] = {"max_sequences": sequences, "write_rows": True}
        if sparse:
            spec["eval"]["sparse"] = True
        if adapter is not None:
            spec["tuner"]["lora"]["init_from"] = str(adapter)
        if sparse and "online" in spec["tokens"]:
            del spec["tokens"]["online"]
            spec["tokens"]["predictor"] = str(adapter.parent / "predictor")
        return spec


def train_base(material, program, scratch):
    """The model directory of the base that has seen 512 positions."""
    path = material.work / f"base-{tasks.BASE_LENGTH}"
    if path.exists():
        return path
    shape = material.model_with("base-shape", changes={
        "max_position_embeddings": tasks.BASE_LENGTH, "rope_theta": 10000.0, "initializer_range": 0.05})
    say(f"training a base with windows of {tasks.BASE_LENGTH} tokens, once")
    spec = {
        "model": {"path": str(shape), "random_init": {"seed": 1}},
        "data": {"train": [{"path": str(book)} for book in material.training_books()],
                 "eval": [{"path": str(material.book(tasks.HELD_OUT[0], "eval"))}],
                 "max_length": tasks.BASE_LENGTH, "packing": False,
                 "cache_dir": str(material.work / "cache")},
        "tuner": {"full": {}}, "train": BASE_SPEC, "device": "cpu",
    }
    outcome = trainer.run(program, spec, scratch)
    say(f"base: loss {outcome.evals[-1]['loss']:.3f} on a held-out book")
    (scratch / "run" / "model").rename(path)
    return path


def train_copier(material, program, scratch):
    """The model directory of the base of task c: novelist-3m, taught to look up what was said before."""
    path = material.work / "copier"
    if path.exists():
        return path
    say("teaching a base to look up what it has read, once")
    batch, length = 8, 512
    model = material.plain_model(material.base)
    # Any words first, then those of the facts.
    for of_facts, train in [(False, {"steps": 600, "learning_rate": 2e-3}),
                            (True, {"steps": 300, "learning_rate": 3e-3, "min_learning_rate_ratio": 0.1})]:
        spec = {
            "model": {"path": str(model)},
            "data": {"train": [{"path": str(material.lookups(12_000, of_facts))}], "max_length": length,
                     "overlong": "drop", "cache_dir": str(material.work / "cache")},
            "tuner": {"full": {}}, "device": "cpu",
            "train": {"batch_sequences": batch, "micro_batch_tokens": batch * length, "warmup_steps": 20,
                      "beta2": 0.95, "seed": 1, **train},
        }
        outcome = trainer.run(program, spec, scratch)
        say(f"copier: loss {mean([step['loss'] for step in outcome.steps[-8:]]):.3f}")
        model = path.with_name(f"{path.name}-{of_facts}")
        shutil.rmtree(model, ignore_errors=True)
        (scratch / "run" / "model").rename(model)
    model.rename(path)
    return path


def train_predictor(task, program, scratch, taught):
    """The predictor of the task's base, trained on text that no arm is trained or evaluated on, at its length
    or PREDICTOR_LENGTH, with shares by layer for the paper's form (attention alone)."""
    steps = TAUGHT_STEPS if taught else PREDICTOR_STEPS
    books = task.material.other_books() + (task.material.training_books()[::6] if taught else [])
    length = task.setting.length if task.name == "c" else min(task.setting.length, PREDICTOR_LENGTH)
    path = task.material.work / f"predictor-{task.model.name}-{length}{'-taught' if taught else ''}"
    if path.exists():
        return path
    say(f"training a predictor for {task.model.name} at {length} tokens, once")
    spec = {
        "model": {"path": str(task.model)},
        "data": {"train": [{"path": str(book)} for book in books],
                 "eval": [{"path": str(task.eval_file())}], "max_length": length, "packing": False,
                 "cache_dir": str(task.material.work / "cache")},
        "predictor": {"allocate": 0.5, "allocate_mlp": "off"},
        "train": {"steps": steps, "seed": 1}, "eval": {"max_sequences": 6}, "device": "cpu",
    }
    outcome = trainer.run(program, spec, scratch)
    say(f"predictor: recall at 0.4 by layer {[rounded(recall, 2) for recall in outcome.evals[-1]['recall']]}")
    (scratch / "run" / "predictor").rename(path)
    return path


# --- What an evaluation says ---------------------------------------------------------------------

def mean(values):
    return sum(values) / len(values) if values else None


def rounded(value, digits=4):
    return None if value is None else round(value, digits)


def by_position(rows, length):
    """Mean loss of equal parts of the window."""
    parts = [[] for _ in range(BUCKETS)]
    for loss, position in zip(rows.loss, rows.position):
        parts[min(BUCKETS - 1, position * BUCKETS // length)].append(loss)
    return [rounded(mean(part)) for part in parts]


def answers(rows):
    """[(document, [loss], [hit])] of every run of labelled rows, in order."""
    found = []
    last = None
    for loss, hit, position, document in zip(rows.loss, rows.hit, rows.position, rows.document):
        if last != (document, position - 1):
            found.append((document, [], []))
        found[-1][1].append(loss)
        found[-1][2].append(hit)
        last = (document, position)
    return found


def read_answers(rows, path):
    """Task c: exact match, over all and by quarter of the distance to the fact."""
    distances = [json.loads(line)["distances"] for line in path.read_text().splitlines()]
    longest = max(max(of_row) for of_row in distances) + 1
    parts, at = [[] for _ in range(BUCKETS)], {}
    for document, _, hits in answers(rows):
        number = at[document] = at.get(document, -1) + 1
        if number == len(distances[document]):
            continue  # the end-of-text token that a row may end with
        parts[distances[document][number] * BUCKETS // longest].append(all(hits))
    return {"exact": rounded(mean([hit for part in parts for hit in part])),
            "exact_by_distance": [rounded(mean(part), 3) for part in parts],
            "distance_max": longest}


def read_probe(rows, path):
    """Loss on the second occurrence of a passage, by distance; 0: it has not occurred."""
    distances = [json.loads(line)["distance"] for line in path.read_text().splitlines()]
    parts = {}
    for document, losses, _ in answers(rows):
        # The first tokens show which passage it is, the last is the end of the text.
        parts.setdefault(distances[document], []).extend(losses[8:-1])
    return {str(distance): rounded(mean(losses), 3) for distance, losses in sorted(parts.items())}


# --- One arm -------------------------------------------------------------------------------------

def git_commit():
    def git(*arguments):
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""
    return (git("rev-parse", "--short=12", "HEAD") or "none") + ("+" if git("status", "--porcelain", "-uno") else "")


def shares(steps):
    """What the step events say of the rows that took part: means over the sparse steps."""
    sparse = [step["sparsity"] for step in steps if step.get("sparsity")]
    if not sparse:
        return {}
    seconds = sum(step["seconds"] for step in steps if step.get("sparsity"))
    recall = [value for each in sparse for value in each.get("recall", [])]
    found = {"attention_kept": mean([mean(each["attention_kept"]) for each in sparse]),
             "mlp_kept": mean([mean(each["mlp_kept"]) for each in sparse]),
             "loss_kept": mean([each.get("loss_kept", 1.0) for each in sparse]),
             "selection_share": sum(each.get("selection_seconds", 0.0) for each in sparse) / seconds}
    if recall:
        found["recall"] = mean(recall)
    return {name: rounded(value) for name, value in found.items()}


def measure(task, arm, args, scratch):
    """Trains and evaluates one arm; the fields of its record."""
    record, adapter = {}, None
    if arm.train:
        outcome = trainer.run(args.lemo_train, task.training(arm), scratch)
        adapter = scratch / "adapter"
        for made in ("adapter", "predictor") if "online" in arm.tokens else ("adapter",):
            subprocess.run(["rm", "-rf", str(scratch / made)], check=True)
            (scratch / "run" / made).rename(scratch / made)
        losses = [step["loss"] for step in outcome.steps]
        record |= {"train_loss": [rounded(losses[0]), rounded(mean(losses[-8:]))],
                   "step_s": rounded(trainer.median_step_seconds(outcome.steps)),
                   "cpu_s": rounded(outcome.cpu_s),
                   "peak": {name: value for name, value in outcome.result["peak_bytes"].items()},
                   **shares(outcome.steps)}
    setting = task.setting
    path = task.eval_file()
    outcome = trainer.run(args.lemo_train,
                          task.evaluation(arm, adapter, path, setting.eval_sequences, bool(arm.tokens)),
                          scratch, "--eval-only")
    event = outcome.evals[-1]
    record |= {"loss": rounded(event["loss"], 5), "accuracy": rounded(event["token_accuracy"])}
    if event.get("sparse_loss"):
        record["sparse_loss"] = rounded(event["sparse_loss"])
    if outcome.rows is not None:
        if task.name == "c":
            record |= read_answers(outcome.rows, path)
        else:
            record["by_position"] = by_position(outcome.rows, setting.length)
    if setting.probe:
        path = task.material.probe(setting.length)
        outcome = trainer.run(args.lemo_train, task.evaluation(arm, adapter, path, 0, False), scratch,
                              "--eval-only")
        if outcome.rows is not None:
            record["probe"] = read_probe(outcome.rows, path)
    return record


def timing(task, args, scratch):
    outcome = trainer.run(args.lemo_train, task.training(arms.DENSE, TIMING_STEPS), scratch)
    return {"step_s": rounded(trainer.median_step_seconds(outcome.steps)), "cpu_s": rounded(outcome.cpu_s)}


# --- The study -----------------------------------------------------------------------------------

def arms_of(stage, task, steps):
    return arms.screen(task, steps) if stage == "screen" else arms.LONG


def plan(args):
    """(stage, task name, seed, arm) in the order in which they run: of every task the next few arms in
    turn, so that a study that is cut off has seen all tasks."""
    order = []
    for stage in args.stage:
        lists = []
        for task in args.task:
            setting = SETTINGS[stage, task]
            chosen = [arm for arm in arms_of(stage, task, setting.steps)
                      if re.search(args.only, f"{arm.name} {arm.keep:g}")]
            lists.append([(stage, task, seed, arm) for arm in chosen for seed in args.seeds])
        chunk = args.chunk * len(args.seeds)
        for first in range(0, max(map(len, lists), default=0), chunk):
            for entries in lists:
                order += entries[first:first + chunk]
    return order


def base_of(task, args):
    """Whose base it is, where the task's is trained by the study itself; "" for the first."""
    return "" if task == "a" else args.base


def key_of(stage, task, seed, arm, args):
    setting = SETTINGS[stage, task]
    base = base_of(task, args)
    return (f"{task} {setting.length} {setting.steps}x{setting.batch} seed {seed}{base and f' base {base}'}: "
            f"{arm.name} {arm.keep:g}")


def study(args, store):
    done = {record["key"] for record in store.read()}
    todo = [entry for entry in plan(args) if key_of(*entry, args) not in done]
    if args.list:
        for entry in todo:
            print(key_of(*entry, args))
        return
    material = tasks.Material(args.work, ROOT, tasks.find_novels(args.novels, ROOT))
    scratch = args.work / f"scratch-{os.getpid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    started, since_timing, refused = time.monotonic(), {}, {}
    for number, (stage, name, seed, arm) in enumerate(todo):
        if args.minutes and time.monotonic() - started > args.minutes * 60:
            say(f"out of time; {len(todo) - number} runs are left for the next call")
            break
        key = key_of(stage, name, seed, arm, args)
        setting = SETTINGS[stage, name]
        about = {"stage": stage, "task": name, "seed": seed, "length": setting.length,
                 "steps": setting.steps, "batch": setting.batch, "lr": setting.learning_rate}
        if base_of(name, args):
            about["base"] = base_of(name, args)
        begun = time.monotonic()
        try:
            task = Task(name, setting, seed, material, args.lemo_train, scratch)
            about["book"] = task.book
            if since_timing.get((stage, name), TIMING_EVERY) >= TIMING_EVERY:
                store.append({"key": f"timing {time.time():.0f}", **about, "arm": "timing",
                              **timing(task, args, scratch), **stamp()})
                since_timing[stage, name] = 0
            record = measure(task, arm, args, scratch)
        except trainer.Failed as failure:
            say(f"{key}: {failure}")
            refused[key] = str(failure)
            continue
        since_timing[stage, name] += 1
        record = {"key": key, **about, "arm": arm.name, "keep": arm.keep, "tokens": arm.tokens, **record,
                  **stamp(), "run_s": round(time.monotonic() - begun, 1)}
        if arm.steps_share < 1:
            record["steps_share"] = arm.steps_share
        if arm.window_share < 1:
            record["window_share"] = arm.window_share
        if arm.skip_positions:
            record["skip_positions"] = True
        store.append(record)
        exact = f" exact {record['exact']:.3f}" if "exact" in record else ""
        say(f"{number + 1}/{len(todo)} {key}: loss {record['loss']:.4f}{exact} "
            f"cpu {record.get('cpu_s', 0):.3f} s a step, {record['run_s']} s")
    if refused:
        say(f"{len(refused)} runs were refused or failed; they are tried again by the next call")


def stamp():
    return {"when": round(time.time()), "commit": git_commit(), "command": COMMAND}


class Store:
    """One line a finished run, appended and flushed, so that a study can be cut off anywhere."""

    def __init__(self, path):
        self.path = path

    def read(self):
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines() if line]

    def append(self, record):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


COMMAND = shlex.join(["./dev", "bench", "quality", *sys.argv[1:]])


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", default="screen", help="some of screen,long; default screen")
    parser.add_argument("--task", default="a,b,c", help="some of a,b,c")
    parser.add_argument("--seeds", default="1", help="seed i also reads the i-th held-out book")
    parser.add_argument("--base", default="", help="a name for the bases of tasks b and c that are trained here, where "
                                                  "runs that are stored are of others: training is not the same on "
                                                  "every processor, and small differences grow")
    parser.add_argument("--minutes", type=float, default=0, help="start no run after that; 0: no limit")
    parser.add_argument("--only", default="", help="arms whose name and share match this expression")
    parser.add_argument("--chunk", type=int, default=6, help="arms of a task in turn")
    parser.add_argument("--list", action="store_true", help="what is left to run")
    parser.add_argument("--render", action="store_true", help="write the table from what is stored, and stop")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "quality.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "quality")
    parser.add_argument("--novels", default=os.environ.get("LEMO_NOVELS"),
                        help="folder of novels; default $LEMO_NOVELS, or ../shared/data/datasets/novels; "
                             "without one the example's book is read")
    parser.add_argument("--lemo-train", type=Path, help="default: $LEMO_TRAIN, or the release build's",
                        default=os.environ.get("LEMO_TRAIN", ROOT / "build/release/worker/train/lemo-train"))
    args = parser.parse_args()
    args.stage, args.task = args.stage.split(","), args.task.split(",")
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    for stage in args.stage:
        for task in args.task:
            if (stage, task) not in SETTINGS:
                parser.error(f"no stage {stage} of task {task}; there are "
                             + ", ".join(f"{s} {t}" for s, t in SETTINGS))
    return args


def main():
    args = parse_arguments()
    store = Store(args.results)
    if args.render:
        path = args.results.parent / f"{datetime.date.today().isoformat()}-quality.md"
        path.write_text(table.render(store.read()))
        print(f"wrote {path}")
        return
    study(args, store)


if __name__ == "__main__":
    main()
