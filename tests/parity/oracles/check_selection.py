#!/usr/bin/env python3
"""Runs lemo-train with token sparsity and lets transformers and PEFT compute the same steps densely.

    check_selection.py --lemo-train PROGRAM [--only SCENARIO]

The blocks that every step kept are those that the run told in its `selection` events. The oracle is the
dense model with eliminated keys masked and the sub-block outputs of eliminated rows set to zero; loss and
gradient norm of each step are compared, and so is what the steps made of the adapter.
"""

import argparse
import base64
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import cases
import check_adapter
import reference

STEPS = 4
BLOCK = 3  # cases.DOCUMENT_LENGTHS has a document of 14 blocks, one kept whole, one of 5


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    case: str
    tokens: dict
    packing: bool = True
    policy: str = "attn_out"


SCENARIOS = [
    Scenario("stack", "llama_gqa", {"policy": "random", "scope": "stack"}),
    Scenario("stack-unpacked", "qwen3", {"policy": "norm", "scope": "stack"}, packing=False),
    Scenario("nested", "qwen2", {"policy": "random", "scope": "nested", "keep": [0.8, 0.4]}, policy="all"),
    Scenario("nested-all-loss", "llama_gqa",
             {"policy": "norm", "scope": "nested", "keep": [1, 0.4], "loss_rows": "all"}, policy="input"),
    Scenario("layer", "llama_tied_bias", {"policy": "random", "scope": "layer", "layers": "all"}),
    Scenario("layer-own", "qwen3",
             {"policy": "random", "scope": "layer", "layers": "all", "mlp": "own"}, policy="input"),
    Scenario("layer-own-through", "llama_gqa",
             {"policy": "random", "scope": "layer", "layers": "all", "mlp": "own", "keep": 0.7,
              "loss_rows": "through"}),
    Scenario("layer-dense-mlp", "llama_mha_head_dim",
             {"policy": "norm", "scope": "layer", "layers": "all", "mlp": "off"}, policy="mlp"),
    Scenario("group", "llama_yarn", {"policy": "random", "scope": "group", "layers": "all"}),
]


def rows_of(starts, mask):
    """bool [rows] from one byte a block."""
    return torch.tensor([bool(kept) for n, kept in enumerate(mask)
                         for _ in range(starts[n + 1] - starts[n])])


def selections(event):
    """What each document of the event keeps: {length: (attention, mlp)}, bool [layers, length].

    The documents of these scenarios differ in length, which tells which is which.
    """
    starts, documents = event["block_starts"], event["document_starts"]
    attention = [rows_of(starts, base64.b64decode(mask)) for mask in event["attention"]]
    mlp = [rows_of(starts, base64.b64decode(mask)) if mask else same
           for mask, same in zip(event["mlp"], attention)]
    attention, mlp = torch.stack(attention), torch.stack(mlp)
    return {end - first: (attention[:, first:end], mlp[:, first:end])
            for first, end in zip(documents, documents[1:])}


class Eliminating:
    """While entered, the model computes as if the given rows alone took part."""

    def __init__(self, model, attention, mlp, dtype):
        self.handles = []
        causal = torch.ones(attention.shape[1], attention.shape[1], dtype=torch.bool).tril()
        layers = [m for m in model.modules() if type(m).__name__.endswith("DecoderLayer")]
        assert len(layers) == len(attention)
        for layer, seen, computed in zip(layers, attention, mlp):
            # A row always sees itself, so that no softmax is empty; of an eliminated one nothing is used.
            visible = causal & (seen[None, :] | torch.eye(len(seen), dtype=torch.bool))
            mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, float("-inf"))[None, None]
            self.handles += [
                layer.self_attn.register_forward_pre_hook(
                    lambda module, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}),
                    with_kwargs=True),
                layer.self_attn.register_forward_hook(
                    lambda module, args, out, rows=seen: (out[0] * rows[None, :, None], *out[1:])),
                layer.mlp.register_forward_hook(
                    lambda module, args, out, rows=computed: out * rows[None, :, None])]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def sparse_loss(model, documents, kept, through):
    """Mean over the labelled rows that carry loss, of all documents."""
    total, labelled = 0.0, 0
    for document in documents:
        attention, mlp = kept[len(document["tokens"])]
        carries = (attention & mlp).all(0) if through else torch.ones(attention.shape[1], dtype=torch.bool)
        labels = [label if carry else cases.IGNORE for label, carry in zip(document["labels"], carries)]
        labelled += sum(label != cases.IGNORE for label in labels)
        if all(label == cases.IGNORE for label in labels):
            continue
        with Eliminating(model, attention, mlp, torch.float64):
            total += reference.loss_sum(model, {"tokens": document["tokens"], "labels": labels})[0]
    return total / labelled, labelled


def write_run(scenario, directory):
    run_json = check_adapter.write_run(
        check_adapter.Scenario(scenario.name, scenario.case, packing=scenario.packing,
                               policy=scenario.policy), directory)
    spec = json.loads(run_json.read_text())
    spec["train"]["steps"] = STEPS
    spec["output"]["merge"] = False
    spec["tokens"] = {"keep": 0.5, "block": BLOCK, **scenario.tokens}
    if not isinstance(spec["tokens"]["keep"], list):
        spec["tokens"]["keep"] = [spec["tokens"]["keep"]]
    run_json.write_text(json.dumps(spec, indent=1))
    return run_json


def check_scenario(check, program, scenario, directory):
    documents = check_adapter.train_documents(cases.case(scenario.case))
    events = check_adapter.run_lemo_train(program, write_run(scenario, directory))
    steps = [e for e in events if e["type"] == "step"]
    check.equal("number of steps", len(steps), STEPS)
    scope = scenario.tokens["scope"]
    through = scenario.tokens.get("loss_rows", "through" if scope in ("nested", "stack") else "all")

    start_dir = check_adapter.RECORDED / scenario.case / "adapter_init"
    model = reference.load_with_adapter(directory / "model", start_dir, torch.float64, trainable=True)
    parameters = list(reference.trainable(model).values())
    adamw = reference.ADAMW
    optimizer = torch.optim.AdamW(parameters, lr=adamw["learning_rate"],
                                  betas=(adamw["beta1"], adamw["beta2"]), eps=adamw["epsilon"],
                                  weight_decay=adamw["weight_decay"])
    for number, step in enumerate(steps, 1):
        kept = {}
        for event in events:
            if event["type"] == "selection" and event["step"] == number:
                kept.update(selections(event))
        check.equal(f"documents of step {number}", sorted(kept), sorted(cases.DOCUMENT_LENGTHS))
        rows = sum(a.shape[1] for a, _ in kept.values())
        for name, which in (("attention_kept", 0), ("mlp_kept", 1)):
            for layer, share in enumerate(step["sparsity"][name]):
                check.close(f"{name} of step {number}, layer {layer}", share,
                            sum(pair[which][layer].sum().item() for pair in kept.values()) / rows, 1e-12)
        # Against a run that left nothing out.
        check.at_most(f"kept rows of step {number}", min(step["sparsity"]["attention_kept"]), 0.8)
        loss, labelled = sparse_loss(model, documents, kept, through == "through")
        check.close(f"loss_kept of step {number}", step["sparsity"]["loss_kept"],
                    labelled / sum(reference.labelled(d) for d in documents), 1e-12)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in parameters]).norm().item()
        check.close(f"loss of step {number}", step["loss"], loss.item(), check_adapter.LOSS_TOLERANCE)
        check.close(f"grad_norm of step {number}", step["grad_norm"], norm, check_adapter.LOSS_TOLERANCE)
        optimizer.step()
    result = next(e for e in events if e["type"] == "result")
    trained = {n.replace(".default.", "."): p for n, p in reference.trainable(model).items()}
    check_adapter.check_update(check, load_file(Path(result["adapter_dir"]) / "adapter_model.safetensors"),
                               trained, load_file(start_dir / "adapter_model.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lemo-train", required=True, type=Path)
    parser.add_argument("--only", help="the scenarios whose name contains this")
    args = parser.parse_args()
    chosen = [s for s in SCENARIOS if not args.only or args.only in s.name]
    if not chosen:
        parser.error(f"no scenario matches {args.only}: {', '.join(s.name for s in SCENARIOS)}")
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for scenario in chosen:
            directory = Path(scratch) / scenario.name
            directory.mkdir()
            check = check_adapter.Checker()
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
    print(f"{len(chosen)} scenarios of token sparsity, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
