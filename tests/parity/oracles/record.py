#!/usr/bin/env python3
"""Records what transformers and PEFT compute for the oracle cases. See README.md for the files.

    record.py OUTPUT_DIR
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

import cases
import reference

HERE = Path(__file__).resolve().parent
# What the recorded numbers depend on, besides the packages.
SCRIPTS = ["cases.py", "record.py", "reference.py"]
PACKAGES = ["torch", "transformers", "peft", "numpy", "safetensors"]
SAMPLES = 16


def scripts_hash():
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SCRIPTS)).hexdigest()


def summary(tensor):
    """Two numbers that see every element; the second also sees their order."""
    flat = tensor.detach().double().flatten()
    wave = torch.cos(torch.arange(flat.numel(), dtype=torch.float64))
    return {"norm": flat.norm().item(), "probe": flat.dot(wave).item()}


def sample(tensor):
    """Every k-th element in row-major order, k the least that leaves at most SAMPLES."""
    flat = tensor.detach().float().flatten()
    return flat[::-(-flat.numel() // SAMPLES)].clone()


def logit_rows(length):
    return sorted({*range(0, length, 5), length - 1})


def saved_name(name):
    """PEFT's name of a parameter in a saved adapter."""
    return name.replace(".default.", ".")


def record_case(case, directory):
    model_dir, adapter_dir = directory / "model", directory / "adapter_init"
    cases.save_model(case, model_dir)
    cases.save_adapter(case, model_dir, adapter_dir)
    documents = cases.documents(case)
    expected = {"case": case.name, "model_type": case.model_type, "documents": documents}
    tensors = {}

    model = cases.load_model(model_dir, torch.float64)
    sums = []
    with torch.no_grad():
        for index, document in enumerate(documents):
            loss, logits = reference.loss_sum(model, document)
            sums.append(loss.item())
            tensors[f"logits.{index}"] = logits[logit_rows(len(document["tokens"]))].float()
        in_float32 = reference.mean_loss(cases.load_model(model_dir, torch.float32), documents)
    counts = [reference.labelled(d) for d in documents]
    expected["forward"] = {
        "loss": sum(sums) / sum(counts), "loss_in_float32": in_float32.item(),
        "loss_sums": sums, "labelled_tokens": counts,
        "logit_rows": [logit_rows(len(d["tokens"])) for d in documents]}
    # Attention must not cross documents, so packing them changes nothing.
    expected["packed"] = {
        "document_starts": [sum(len(d["tokens"]) for d in documents[:i])
                            for i in range(len(documents) + 1)],
        "loss_sum": sum(sums), "labelled_tokens": sum(counts)}

    reference.mean_loss(model, documents).backward()
    expected["gradients"] = {}
    for name, parameter in model.named_parameters():
        expected["gradients"][name] = summary(parameter.grad)
        tensors[f"gradient.{name}"] = sample(parameter.grad)

    settings = {"steps": reference.STEPS, **reference.ADAMW}
    losses, norms = reference.train(model, documents)
    expected["full"] = {**settings, "losses": losses, "grad_norms": norms,
                        "final": {n: summary(p) for n, p in model.named_parameters()}}

    model = reference.load_with_adapter(model_dir, adapter_dir, torch.float64, trainable=True)
    losses, norms = reference.train(model, documents)
    final = {saved_name(n): p for n, p in reference.trainable(model).items()}
    expected["lora"] = {**settings, "rank": cases.LORA_RANK, "alpha": cases.LORA_ALPHA,
                        "targets": cases.TARGETS, "losses": losses, "grad_norms": norms,
                        "final": {n: summary(p) for n, p in final.items()}}
    tensors.update({f"lora.{n}": sample(p) for n, p in final.items()})

    save_file(tensors, directory / "expected.safetensors")
    write_json(directory / "expected.json", expected)


def write_json(path, value):
    text = json.dumps(value, indent=1)
    # Lists and small objects of numbers on one line.
    text = re.sub(r"([\[{])\s*([^\[\]{}]*?)\s*([\]}])",
                  lambda m: m[1] + re.sub(r"\s*\n\s*", " ", m[2]) + m[3], text)
    path.write_text(text + "\n")


def link_equal_files(root):
    """Weights that several cases share are stored once."""
    first = {}
    paths = [p for case in cases.CASES for p in sorted((root / case.name).rglob("*.safetensors"))]
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in first:
            first[digest] = path
            continue
        path.unlink()
        path.symlink_to(os.path.relpath(first[digest], path.parent))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    if args.output.exists() and any(args.output.iterdir()):
        parser.error(f"{args.output} is not empty")
    torch.set_num_threads(1)
    for case in cases.CASES:
        directory = args.output / case.name
        directory.mkdir(parents=True)
        record_case(case, directory)
        print(f"recorded {case.name}", flush=True)
    link_equal_files(args.output)
    write_json(args.output / "versions.json", {
        "python": platform.python_version(), "scripts": SCRIPTS, "scripts_sha256": scripts_hash(),
        **{name: importlib.metadata.version(name) for name in PACKAGES}})


if __name__ == "__main__":
    main()
