#!/usr/bin/env python3
"""Runs lemo-train on the recorded models and lets transformers and PEFT judge what it says and writes.

    check_adapter.py --lemo-train PROGRAM [--only SCENARIO] [--keep DIR]

For every scenario: step losses and the final adapter against PEFT trained live on the same rows from the
same start; the evaluation losses against the base and against the published adapter as PEFT loads it; the
merged model against base + adapter.
"""

import argparse
import dataclasses
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

import cases
import reference

RECORDED = Path(__file__).resolve().parent / "recorded"
# Both relative, for float32 against float64.
LOSS_TOLERANCE = 1e-5
LOGIT_TOLERANCE = 1e-5
# Adam divides by the root of the second moment, so rounding in a small gradient is not small in the
# update: the whole update is compared, not its elements.
UPDATE_TOLERANCE = 1e-3
EVAL_LENGTHS = (9, 30, 41, 5)
MAX_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    case: str
    # `start`: lora from the recorded adapter, steps compared. `fresh`: lora with the engine's own start,
    # `lora` set on top. `full`: full fine-tuning, steps compared.
    tuner: str = "start"
    policy: str = "attn_out"
    packing: bool = False
    lora: dict = dataclasses.field(default_factory=dict)


SCENARIOS = [
    Scenario("llama", "llama_gqa"),
    Scenario("llama-packed", "llama_gqa", packing=True, policy="mlp"),
    Scenario("llama-full", "llama_gqa", tuner="full", packing=True),
    Scenario("llama-head-dim", "llama_mha_head_dim", policy="input"),
    Scenario("llama-tied-bias", "llama_tied_bias", policy="all"),
    Scenario("llama-tied-bias-full", "llama_tied_bias", tuner="full", policy="input"),
    Scenario("llama-linear", "llama_linear"),
    Scenario("llama-llama3", "llama_llama3", packing=True),
    Scenario("llama-dynamic", "llama_dynamic", packing=True),
    Scenario("llama-yarn", "llama_yarn"),
    Scenario("llama-rslora", "llama_gqa", tuner="fresh",
             lora={"rank": 4, "alpha": 8, "rslora": True, "targets": ["q_proj", "v_proj"]}),
    Scenario("llama-patterns", "llama_gqa", tuner="fresh",
             lora={"rank": 4, "alpha": 8, "targets": ["all-linear"],
                   "rank_pattern": {"layers.0.self_attn.q_proj": 6},
                   "alpha_pattern": {"layers.1.mlp.down_proj": 3}}),
    Scenario("llama-dropout", "llama_gqa", tuner="fresh",
             lora={"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "down_proj"]}),
    Scenario("mistral", "mistral", packing=True, policy="attn_out+offload"),
    Scenario("mistral-window", "mistral_window"),
    Scenario("qwen2", "qwen2", packing=True),
    Scenario("qwen2-full", "qwen2", tuner="full"),
    Scenario("qwen3", "qwen3", packing=True),
    Scenario("qwen3-full", "qwen3", tuner="full", policy="mlp"),
]


def all_labelled(tokens):
    return {"tokens": tokens, "labels": tokens[1:] + [cases.IGNORE]}


def train_documents(case):
    return [all_labelled(d["tokens"]) for d in cases.documents(case)]


def eval_documents():
    rng = random.Random(11)
    return [all_labelled([rng.randrange(cases.FIRST_WORD, cases.VOCABULARY) for _ in range(n - 1)] +
                         [cases.EOS]) for n in EVAL_LENGTHS]


def write_tokenizer(directory):
    """One word a token: `w3` is token 3. The engine appends the EOS to a row of text itself."""
    vocabulary = {"<unk>": 0, "<s>": cases.BOS, "</s>": cases.EOS}
    vocabulary.update({f"w{i}": i for i in range(cases.FIRST_WORD, cases.VOCABULARY)})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>"}))


def write_rows(path, documents):
    with path.open("w") as file:
        for document in documents:
            words = [f"w{token}" for token in document["tokens"][:-1]]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


def write_run(scenario, directory):
    """Model, data and run.json in `directory`; returns the path of run.json."""
    recorded = RECORDED / scenario.case
    model = directory / "model"
    shutil.copytree(recorded / "model", model)
    write_tokenizer(model)
    documents = train_documents(cases.case(scenario.case))
    write_rows(directory / "train.jsonl", documents)
    write_rows(directory / "eval.jsonl", eval_documents())
    tuner = {
        "full": {"full": {}},
        "fresh": {"lora": scenario.lora},
        "start": {"lora": {"rank": cases.LORA_RANK, "alpha": cases.LORA_ALPHA, "dropout": 0.0,
                           "targets": cases.TARGETS, "init_from": str(recorded / "adapter_init")}},
    }[scenario.tuner]
    spec = {
        "model": {"path": str(model), "compute_type": "float32"},
        "data": {"train": [{"path": str(directory / "train.jsonl"), "format": "text"}],
                 "eval": [{"path": str(directory / "eval.jsonl"), "format": "text"}],
                 "max_length": MAX_LENGTH, "packing": scenario.packing},
        "tuner": tuner,
        # Either way every step sees all rows: as one packed sequence, or as so many sequences.
        "train": {"steps": reference.STEPS,
                  "batch_sequences": 1 if scenario.packing else len(documents),
                  "schedule": "constant", "warmup_steps": 0, "max_grad_norm": 0, "seed": 3,
                  **reference.ADAMW},
        "memory": {"policy": scenario.policy},
        "output": {"dir": str(directory / "out"), "merge": scenario.tuner != "full"},
        "device": "cpu",
    }
    path = directory / "run.json"
    path.write_text(json.dumps(spec, indent=1))
    return path


def run_lemo_train(program, run_json):
    """The events of the run. RuntimeError when it fails."""
    done = subprocess.run([program, str(run_json), "--events", "json"], capture_output=True, text=True,
                          timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@torch.no_grad()
def eval_logits(model, documents):
    return torch.cat([reference.loss_sum(model, d)[1].double() for d in documents])


@torch.no_grad()
def eval_loss(model, documents):
    return reference.mean_loss(model, documents).item()


class Checker:
    """Collects what does not hold, so that one run shows everything."""

    def __init__(self):
        self.faults = []
        self.checks = 0

    def equal(self, what, got, wanted):
        self.checks += 1
        if got != wanted:
            self.faults.append(f"{what}: {got}, expected {wanted}")

    def close(self, what, got, wanted, tolerance):
        self.checks += 1
        if not abs(got - wanted) <= tolerance * abs(wanted):
            self.faults.append(f"{what}: {got}, expected {wanted} (relative {tolerance})")

    def at_most(self, what, got, limit):
        self.checks += 1
        if not got <= limit:
            self.faults.append(f"{what}: {got}, allowed {limit}")


def check_steps(check, model, documents, steps):
    """Trains `model` in place, as the engine did, and compares each step."""
    check.equal("number of steps", len(steps), reference.STEPS)
    losses, norms = reference.train(model, documents)
    for index, (step, loss, norm) in enumerate(zip(steps, losses, norms)):
        check.close(f"loss of step {index + 1}", step["loss"], loss, LOSS_TOLERANCE)
        check.close(f"grad_norm of step {index + 1}", step["grad_norm"], norm, 10 * LOSS_TOLERANCE)


def check_update(check, got, trained, start):
    """All weights after training, by name: the engine's, the reference's, and before training."""
    check.equal("names of the published tensors", sorted(got), sorted(trained))
    if sorted(got) != sorted(trained):
        return
    distance = math.sqrt(sum((got[n].double() - trained[n]).square().sum().item() for n in trained))
    length = math.sqrt(sum((trained[n] - start[n].double()).square().sum().item() for n in trained))
    check.at_most("distance of the published weights from the reference's", distance,
                  UPDATE_TOLERANCE * length)


def check_scenario(check, program, scenario, directory):
    recorded = RECORDED / scenario.case
    training, held_out = train_documents(cases.case(scenario.case)), eval_documents()
    events = run_lemo_train(program, write_run(scenario, directory))
    base_dir = directory / "model"
    steps = [e for e in events if e["type"] == "step"]
    result = next(e for e in events if e["type"] == "result")
    for event in events:
        if event["type"] == "eval":
            check.equal("labelled tokens of the evaluation", event["labelled_tokens"],
                        sum(reference.labelled(d) for d in held_out))
    check.equal("labelled tokens of a step", steps[0]["labelled_tokens"],
                sum(reference.labelled(d) for d in training))
    check.equal("steps of the result", result["steps"], reference.STEPS)
    check.at_most("publish_max_logit_difference", result["publish_max_logit_difference"], 1e-5)

    if scenario.tuner == "full":
        model = cases.load_model(base_dir, torch.float64)
        check.close("eval_loss_before", result["eval_loss_before"], eval_loss(model, held_out),
                    LOSS_TOLERANCE)
        check_steps(check, model, training, steps)
        published = cases.load_model(result["model_dir"], torch.float64)
        check_update(check, load_file(Path(result["model_dir"]) / "model.safetensors"),
                     dict(model.named_parameters()), load_file(base_dir / "model.safetensors"))
    else:
        if scenario.tuner == "start":
            start_dir = recorded / "adapter_init"
            model = reference.load_with_adapter(base_dir, start_dir, torch.float64, trainable=True)
            check.close("eval_loss_before", result["eval_loss_before"], eval_loss(model, held_out),
                        LOSS_TOLERANCE)
            check_steps(check, model, training, steps)
            trained = {n.replace(".default.", "."): p for n, p in reference.trainable(model).items()}
            check_update(check, load_file(Path(result["adapter_dir"]) / "adapter_model.safetensors"),
                         trained, load_file(start_dir / "adapter_model.safetensors"))
        else:
            # B starts at zero, so the start is the base.
            model = cases.load_model(base_dir, torch.float64)
            check.close("eval_loss_before", result["eval_loss_before"], eval_loss(model, held_out),
                        LOSS_TOLERANCE)
            check.close("loss of step 1", steps[0]["loss"], eval_loss(model, training), LOSS_TOLERANCE)
        published = reference.load_with_adapter(base_dir, result["adapter_dir"], torch.float64)
        merged = cases.load_model(result["model_dir"], torch.float64)
        wanted = eval_logits(published, held_out)
        difference = (eval_logits(merged, held_out) - wanted).abs().max().item()
        check.at_most("logits of the merged model from those of base + adapter", difference,
                      LOGIT_TOLERANCE * wanted.abs().max().item())
        # Against a checker that would pass anything: the adapter must do something.
        moved = (eval_logits(cases.load_model(base_dir, torch.float64), held_out) - wanted).abs().max()
        check.at_most("LOGIT_TOLERANCE x 100 against what the adapter changes", 100 * LOGIT_TOLERANCE,
                      moved.item())
    check.close("eval_loss against the published weights", result["eval_loss"],
                eval_loss(published, held_out), LOSS_TOLERANCE)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lemo-train", required=True, type=Path)
    parser.add_argument("--only", help="the scenarios whose name contains this")
    parser.add_argument("--keep", type=Path, help="run there and leave everything for inspection")
    args = parser.parse_args()
    chosen = [s for s in SCENARIOS if not args.only or args.only in s.name]
    if not chosen:
        parser.error(f"no scenario matches {args.only}: {', '.join(s.name for s in SCENARIOS)}")
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for scenario in chosen:
            directory = (args.keep or Path(scratch)) / scenario.name
            directory.mkdir(parents=True)
            check = Checker()
            try:
                check_scenario(check, args.lemo_train.resolve(), scenario, directory)
            # Whatever goes wrong in one scenario, the others are still worth knowing.
            except Exception as error:  # pylint: disable=broad-except
                check.faults.append(f"{type(error).__name__}: {error}")
            print(f"{'FAILED' if check.faults else 'ok    '} {scenario.name} ({check.checks} checks)",
                  flush=True)
            for fault in check.faults:
                print(f"    {fault}")
            failed += bool(check.faults)
    print(f"{len(chosen)} scenarios, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
