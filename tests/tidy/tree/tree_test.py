#!/usr/bin/env python3
"""What holds for every file of the repository: who may include whom, and habits that a test can keep.

The rules are functions from (path, text) to a list of faults, so that each is shown to fail on a made-up file
before it is asked about the real ones.
"""

import os
import re
import unittest

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))

# Never ours, or made by a build.
_SKIPPED_FOLDERS = {".git", ".cache", ".tools", "build", "out", "target", "shared", "__pycache__"}

# Which folders of ours a folder may include. A folder may always include itself; one that is not named here
# (tests, bench) may include everything.
_MAY_INCLUDE = {
    "common": set(),
    "planner": {"common"},
    "scheduler": {"common"},
    "text": {"common"},
    "kernels": set(),
    "worker/agent": {"proto", "common"},
    "worker/train": {"kernels", "planner", "text", "common", "proto"},
    "coordinator": {"proto", "common", "planner", "scheduler", "text"},
    "cli": {"proto", "common"},
}
_FOLDERS = sorted({*_MAY_INCLUDE, "proto", "tests", "bench"}, key=len, reverse=True)

# Libraries by the start of their includes, and the only folders that may use them.
_LIBRARY_USERS = {
    ("torch/", "ATen/", "c10/", "caffe2/"): {"kernels", "worker/train", "tests", "bench"},
    ("mpi.h", "nccl.h"): {"worker/train", "tests", "bench"},
    ("grpcpp/", "grpc/"): {"worker/agent", "coordinator", "cli", "tests", "bench"},
}

_FIXTURE_BYTES_MAX = 4 << 20
# Of other languages than C++, which clang-format holds to 100. Lines of templates cannot be broken.
_COLUMNS_MAX = 120
_CODE = (".h", ".cc", ".cu", ".cuh", ".py", ".rs", ".proto", ".cmake", "CMakeLists.txt", ".sh")
_CPP = (".h", ".cc", ".cu", ".cuh")
_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
# Spelt so that this file does not break its own rule.
_UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")
_ASSERTION = re.compile(r"\b(?:EXPECT|ASSERT)_\w+\(|\bFAIL\(|\bADD_FAILURE\(|\bRC_ASSERT\(")
_LEMO_TEST = re.compile(r"\blemo_test\(\s*([^)]*)\)")


def folder_of(path):
    """The longest folder of the dependency rules that holds `path`, or ""."""
    for folder in _FOLDERS:
        if path.startswith(folder + "/"):
            return folder
    return ""


def include_faults(path, text, exists):
    """Includes that point the wrong way. `exists(path)` says whether the repository has that file."""
    folder = folder_of(path)
    faults = []
    for match in _INCLUDE.finditer(text):
        quote, name = match.groups()
        beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
        if name.startswith("lemo/v1/"):
            target = "proto"
        elif quote == '"' and exists(beside):
            target = folder_of(beside)
        else:
            target = folder_of(name)
        allowed = _MAY_INCLUDE.get(folder)
        if target and target != folder and allowed is not None and target not in allowed:
            faults.append(
                f"{path} includes {name}: {folder} may include only "
                f"{', '.join(sorted(allowed)) or 'itself'}"
            )
        for starts, users in _LIBRARY_USERS.items():
            if name.startswith(starts) and folder and folder not in users:
                faults.append(f"{path} includes {name}: only {', '.join(sorted(users))} may")
    return faults


def text_faults(path, text):
    """Marks of unfinished work, tabs, long lines, stray white space."""
    faults = []
    if "\r" in text:
        faults.append(f"{path}: carriage returns")
    if text and not text.endswith("\n"):
        faults.append(f"{path}: no newline at the end")
    for number, line in enumerate(text.split("\n"), 1):
        if _UNFINISHED.search(line):
            faults.append(f"{path}:{number}: unfinished work: {line.strip()}")
        if path.endswith(_CODE):
            if "\t" in line:
                faults.append(f"{path}:{number}: a tab")
            if line != line.rstrip():
                faults.append(f"{path}:{number}: white space at the end of the line")
            if len(line) > _COLUMNS_MAX and "{{" not in line and not path.endswith(_CPP):
                faults.append(f"{path}:{number}: {len(line)} columns, {_COLUMNS_MAX} are allowed")
    return faults


def header_faults(path, text):
    if path.endswith((".h", ".cuh")) and not re.search(r"^#pragma once$", text, re.MULTILINE):
        return [f"{path}: no #pragma once"]
    return []


def test_program_faults(cmake_path, cmake_text, sources):
    """Of one tests/*/*/CMakeLists.txt; `sources` maps the .cc files of its folder to their texts."""
    faults, named = [], set()
    for match in _LEMO_TEST.finditer(cmake_text):
        words = match.group(1).split()
        files = [word for word in words if word.endswith(".cc")]
        named.update(files)
        if not any(_ASSERTION.search(sources.get(file, "")) for file in files):
            faults.append(f"{cmake_path}: {words[0]} asserts nothing")
    for file in sorted(sources):
        if file.endswith("_test.cc") and file not in named and file not in cmake_text:
            faults.append(f"{cmake_path}: {file} is in the folder and in no program")
    return faults


def link_faults(path, text, exists):
    """Relative links of a Markdown page that lead nowhere."""
    faults = []
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        if not exists(os.path.normpath(os.path.join(os.path.dirname(path), target))):
            faults.append(f"{path}: the link to {target} leads nowhere")
    return faults


def files():
    """Paths of the repository's files from its root."""
    for directory, folders, names in os.walk(ROOT):
        relative = os.path.relpath(directory, ROOT)
        folders[:] = sorted(
            f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith(".venv")
        )
        for name in sorted(names):
            yield os.path.normpath(os.path.join(relative, name))


def read(path):
    """The text of a file; None when it is not text."""
    with open(os.path.join(ROOT, path), "rb") as file:
        data = file.read()
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def is_data(path):
    """Files whose bytes are not ours to shape."""
    return (
        path.startswith(("examples/data/", "examples/models/", "tests/fixtures/"))
        and not path.endswith((".md", ".cc", ".h", ".py"))
    ) or path.endswith((".lock", ".txt.golden"))


class Rules(unittest.TestCase):
    """Each rule is able to fail."""

    def includes(self, path, line, existing=()):
        return include_faults(path, line + "\n", lambda p: p in existing)

    def test_direction(self):
        for path, line in [
            ("common/a.h", '#include "text/tokenizer.h"'),
            ("common/a.h", '#include "lemo/v1/run_spec.pb.h"'),
            ("common/a.h", "#include <text/tokenizer.h>"),
            ("text/a.cc", '#include "worker/train/data/batch.h"'),
            ("kernels/rope/rope.cc", '#include "common/files.h"'),
            ("worker/agent/a.cc", '#include "worker/train/tape/tape.h"'),
            ("worker/train/a.cc", '#include "coordinator/core/job.h"'),
            ("worker/train/a.cc", "#include <grpcpp/grpcpp.h>"),
            ("text/a.cc", "  #  include <torch/torch.h>"),
            ("cli/a.cc", "#include <ATen/ATen.h>"),
        ]:
            self.assertEqual(len(self.includes(path, line)), 1, (path, line))
        self.assertEqual(len(self.includes("text/a.cc", '#include "../cli/b.h"', {"cli/b.h"})), 1)
        for path, line in [
            ("text/a.cc", '#include "common/files.h"'),
            ("text/a.cc", '#include "text/tokenizer.h"'),
            ("worker/train/data/a.cc", '#include "worker/train/state/checkpoint.h"'),
            ("worker/train/a.cc", '#include "lemo/v1/run_spec.pb.h"'),
            ("worker/train/a.cc", "#include <ATen/ATen.h>"),
            ("kernels/rope/rope.cc", "#include <ATen/ATen.h>"),
            ("tests/unit/text/a_test.cc", '#include "worker/train/data/batch.h"'),
            ("common/a.cc", '#include "absl/status/status.h"'),
        ]:
            self.assertEqual(self.includes(path, line), [], (path, line))

    def test_text(self):
        wide = "x" * 121 + "\n"
        for text in ["# TO" "DO: x\n", "\ta = 1\n", "a = 1 \n", wide, "a = 1", "a\r\n"]:
            self.assertNotEqual(text_faults("docs/a.py", text), [], repr(text))
        self.assertEqual(text_faults("docs/a.py", "é" * 120 + "\n"), [])
        self.assertEqual(text_faults("README.md", wide), [])

    def test_header(self):
        self.assertNotEqual(header_faults("common/a.h", "int a;\n"), [])
        self.assertEqual(header_faults("common/a.h", "#pragma once\nint a;\n"), [])

    def test_test_programs(self):
        cmake = "lemo_test(a_test a_test.cc\n  LIBS lemo_a LABELS fast)\n"
        empty, good = "TEST(A, B) { Run(); }", "TEST(A, B) { EXPECT_TRUE(Run()); }"
        self.assertEqual(test_program_faults("c", cmake, {"a_test.cc": good}), [])
        self.assertEqual(len(test_program_faults("c", cmake, {"a_test.cc": empty})), 1)
        self.assertEqual(len(test_program_faults("c", cmake, {"a_test.cc": good, "b_test.cc": good})), 1)

    def test_links(self):
        def exists(path):
            return path == "docs/train.md"

        self.assertEqual(link_faults("README.md", "[x](docs/train.md#memory)", exists), [])
        self.assertEqual(link_faults("docs/a.md", "[x](train.md) [y](https://a.b/c)", exists), [])
        self.assertEqual(len(link_faults("README.md", "[x](docs/gone.md)", exists)), 1)


class Tree(unittest.TestCase):
    """The repository keeps the rules."""

    @classmethod
    def setUpClass(cls):
        cls.paths = [path for path in files() if not os.path.islink(os.path.join(ROOT, path))]
        cls.texts = {path: read(path) for path in cls.paths if not is_data(path)}

    def exists(self, path):
        return os.path.exists(os.path.join(ROOT, path))

    def none(self, faults):
        faults = list(faults)
        self.assertFalse(faults, "\n" + "\n".join(faults))

    def our_texts(self, *ends):
        return [(p, t) for p, t in self.texts.items() if t is not None and p.endswith(ends or "")]

    def test_finds_the_sources(self):
        self.assertIn("common/files.h", self.texts)
        self.assertIn("proto/lemo/v1/run_spec.proto", self.texts)

    def test_includes_point_down(self):
        self.none(f for p, t in self.our_texts(*_CPP) for f in include_faults(p, t, self.exists))

    def test_text(self):
        # Fuzzing corpora hold what is wrong on purpose.
        self.none(f for p, t in self.our_texts() if "/corpus/" not in p for f in text_faults(p, t))

    def test_headers(self):
        self.none(f for p, t in self.our_texts() for f in header_faults(p, t))

    def test_test_programs(self):
        faults = []
        for path, text in self.our_texts("CMakeLists.txt"):
            folder = os.path.dirname(path)
            if path.startswith("tests/") and path.count("/") == 3:
                sources = {
                    os.path.relpath(p, folder): t
                    for p, t in self.our_texts(".cc")
                    if p.startswith(folder + "/")
                }
                faults += test_program_faults(path, text, sources)
        self.none(faults)

    def test_links(self):
        self.none(f for p, t in self.our_texts(".md") for f in link_faults(p, t, self.exists))

    def test_fixtures_are_small(self):
        fixtures = [p for p in self.paths if p.startswith("tests/") and not p.endswith(_CODE)]
        sizes = {p: os.path.getsize(os.path.join(ROOT, p)) for p in fixtures}
        largest = sorted(sizes, key=sizes.get, reverse=True)[:5]
        self.assertLess(
            sum(sizes.values()), _FIXTURE_BYTES_MAX, {path: sizes[path] for path in largest}
        )


if __name__ == "__main__":
    unittest.main()
