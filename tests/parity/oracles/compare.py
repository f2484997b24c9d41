#!/usr/bin/env python3
"""Compares two trees that record.py made; says every difference and exits 1 when there is one.

    compare.py RECORDED FRESH

The numbers were computed in float64, save the rotary angles, which transformers makes in float32 with
the C library's sine. So other machines agree to about 1e-7; TOLERANCE leaves a margin of ten.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from record import scripts_hash

TOLERANCE = 1e-6
# For the one number that is computed in float32: 24 bits and a sum over some hundred terms.
FLOAT32_TOLERANCE = 1e-5


def close(a, b, tolerance, scale=None):
    """False for NaN, whichever side it is on."""
    return abs(a - b) <= tolerance * (max(abs(a), abs(b)) if scale is None else scale)


def compare_json(path, a, b, differences):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b:
                differences.append(f"{path}.{key}: only in {'fresh' if key not in a else 'recorded'}")
            elif key == "probe":
                # A sum with cancellation: its error goes with the norm and the length, not with itself.
                # 100 is sqrt(n/2) rounded up for the largest tensor, 97 x 32.
                if not close(a[key], b[key], TOLERANCE, scale=100 * a["norm"]):
                    differences.append(f"{path}.{key}: {a[key]} and {b[key]}")
            else:
                compare_json(f"{path}.{key}", a[key], b[key], differences)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b)):
            compare_json(f"{path}[{index}]", x, y, differences)
    elif type(a) is float and type(b) is float:
        tolerance = FLOAT32_TOLERANCE if path.endswith("_in_float32") else TOLERANCE
        if not close(a, b, tolerance):
            differences.append(f"{path}: {a} and {b}")
    elif a != b:
        differences.append(f"{path}: {a} and {b}")


def compare_tensors(path, a, b, differences):
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            differences.append(f"{path}: {name} only in {'fresh' if name not in a else 'recorded'}")
        elif a[name].shape != b[name].shape:
            differences.append(f"{path}: {name} {list(a[name].shape)} and {list(b[name].shape)}")
        else:
            error = (a[name].double() - b[name].double()).abs().max().item()
            limit = TOLERANCE * a[name].double().abs().max().item()
            if not error <= limit or math.isnan(limit):
                differences.append(f"{path}: {name} differs by {error}, allowed {limit}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recorded", type=Path)
    parser.add_argument("fresh", type=Path)
    args = parser.parse_args()
    differences = []
    files = {root: {p.relative_to(root) for p in root.rglob("*") if not p.is_dir()}
             for root in (args.recorded, args.fresh)}
    for path in sorted(files[args.recorded] ^ files[args.fresh]):
        differences.append(f"{path}: only in {'recorded' if path in files[args.recorded] else 'fresh'}")
    compared = 0
    for path in sorted(files[args.recorded] & files[args.fresh]):
        recorded, fresh = args.recorded / path, args.fresh / path
        if path.name == "versions.json":
            versions = [json.loads(p.read_text()) for p in (recorded, fresh)]
            if versions[0]["scripts_sha256"] != scripts_hash():
                differences.append("versions.json: the scripts were changed after recording; record again")
            for key in versions[0]:
                if versions[0][key] != versions[1].get(key):
                    print(f"note: recorded with {key} {versions[0][key]}, here {versions[1].get(key)}")
        elif path.suffix == ".json":
            compare_json(str(path), json.loads(recorded.read_text()), json.loads(fresh.read_text()),
                         differences)
        elif path.suffix == ".safetensors":
            compare_tensors(path, load_file(recorded), load_file(fresh), differences)
        compared += 1
    for difference in differences:
        print(difference)
    if compared == 0:
        differences.append("nothing to compare")
        print(differences[-1])
    print(f"compared {compared} files: {len(differences)} differences")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
