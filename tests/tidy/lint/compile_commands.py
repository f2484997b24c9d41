#!/usr/bin/env python3
"""Compile commands that clang-tidy can use.

compile_commands.py IN.json OUT_DIR < FILES

Writes OUT_DIR/compile_commands.json: IN.json without gcc's precompiled headers, which clang cannot read,
without flags that only gcc knows, and without OpenMP, whose header is gcc's. Prints those of FILES (paths
from the current directory) that are compiled at all.
"""

import json
import os
import re
import sys

# What takes an argument comes with it. The source of a precompiled header is compiled with the target's
# own flags, so dropping `-include` leaves a complete command: sources include what they use.
_DROPPED = re.compile(r"\s(?:-include \S+cmake_pch\.hxx|-Winvalid-pch|-fpch-\S+|-fuse-ld=\S+|-fopenmp)(?=\s)")


def without_precompiled_headers(command):
    return _DROPPED.sub("", command)


def main():
    source, out_dir = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        entries = json.load(file)
    for entry in entries:
        entry["command"] = without_precompiled_headers(entry["command"])
    os.makedirs(out_dir, exist_ok=True)
    with open(os.path.join(out_dir, "compile_commands.json"), "w", encoding="utf-8") as file:
        json.dump(entries, file, indent=1)

    compiled = {os.path.join(entry["directory"], entry["file"]) for entry in entries}
    for line in sys.stdin:
        if os.path.abspath(line.strip()) in compiled:
            print(line.strip())


if __name__ == "__main__":
    main()
