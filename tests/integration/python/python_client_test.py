#!/usr/bin/env python3
"""examples/python/submit.py, which has nothing of ours but the proto files, against a real coordinator and worker."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "examples" / "python" / "submit.py"
MODEL = ROOT / "tests" / "fixtures" / "stories260k"
PYTHON = Path(os.environ.get("LEMO_CLIENT_PYTHON", ROOT / ".venv-client/bin/python"))
PATIENCE_SECONDS = 120


def rows(seed, count):
    draw = random.Random(seed)
    words = "the little girl had a big red ball and she play with it in park one day her mom said go home now".split()
    return "".join(json.dumps({"text": " ".join(draw.choices(words, k=draw.randint(8, 20)))}) + "\n"
                   for _ in range(count))


class PythonClient(unittest.TestCase):

    def setUp(self):
        self.assertTrue(os.access(PYTHON, os.X_OK),
                        f"{PYTHON} is missing; `./dev setup` installs it (cmake/requirements/client.txt)")
        folder = tempfile.TemporaryDirectory(prefix="lemo-python-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "train.jsonl").write_text(rows(1, 40))
        (self.folder / "eval.jsonl").write_text(rows(2, 4))
        self.address = "127.0.0.1:0"
        self.coordinator = self.start_coordinator()
        self.start("LEMO_WORKER_BINARY", "--coordinator", self.address, "--dir", str(self.folder / "worker"),
                   "--train", os.environ["LEMO_TRAIN_BINARY"], "--cuda", "none", "--model-root", str(MODEL.parent))

    def start(self, program, *args):
        errors = open(self.folder / f"{program}.log", "a", encoding="utf-8")
        self.addCleanup(errors.close)
        process = subprocess.Popen([os.environ[program], *args], stdout=subprocess.PIPE, stderr=errors, text=True)
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        process.kill()
        process.wait()
        process.stdout.close()

    def start_coordinator(self):
        """On the port of the former one; answers when it listens."""
        process = self.start("LEMO_COORDINATOR_BINARY", "--dir", str(self.folder / "coordinator"), "--listen",
                             self.address, "--train", os.environ["LEMO_TRAIN_BINARY"])
        said = process.stdout.readline()
        self.assertRegex(said, "^listening on ", (self.folder / "LEMO_COORDINATOR_BINARY.log").read_text())
        self.address = said.split()[-1]
        return process

    def spec(self, **train):
        return {"run": {
            "model": {"path": str(MODEL), "compute_type": "float32"},
            "data": {"train": [{"path": str(self.folder / "train.jsonl")}],
                     "eval": [{"path": str(self.folder / "eval.jsonl")}], "max_length": 64},
            "tuner": {"lora": {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}},
            "train": {"steps": 4, "batch_sequences": 2, "learning_rate": 0.003, "seed": 7, **train}}}

    def submit(self, spec):
        """The running script, as a person starts it."""
        job = self.folder / "job.json"
        job.write_text(spec if isinstance(spec, str) else json.dumps(spec))
        process = subprocess.Popen(
            [PYTHON, SCRIPT, job, "--out", self.folder / "result", "--coordinator", self.address],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (process.kill(), process.communicate()) if process.poll() is None else None)
        return process

    def check_result(self, out):
        fetched = dict(re.findall(r"^.*/result/(\S+)  (\d+) bytes$", out, re.MULTILINE))
        self.assertLessEqual({"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "report.html"},
                             set(fetched), out)
        for path, size in fetched.items():
            self.assertEqual((self.folder / "result" / path).stat().st_size, int(size), path)
        self.assertFalse(list((self.folder / "result").rglob("*.part")))

    def test_submits_watches_and_fetches(self):
        process = self.submit(self.spec())
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        self.assertEqual(process.returncode, 0, out + err)
        self.assertRegex(out, r"^jobs/\w+\n")
        self.assertEqual(re.findall(r"^([A-Z]+):", out, re.MULTILINE),
                         ["VALIDATING", "QUEUED", "STARTING", "RUNNING", "SUCCEEDED"], out)
        self.assertEqual(re.findall(r"^step (\d)/4  loss \d", out, re.MULTILINE), list("1234"), out)
        self.check_result(out)
        adapter = self.folder / "result/adapter/adapter_model.safetensors"
        first = hashlib.sha256(adapter.read_bytes()).hexdigest()
        # Once more: the same content needs no upload, the same spec makes the same adapter.
        process = self.submit(self.spec())
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        self.assertEqual(process.returncode, 0, out + err)
        self.assertEqual(hashlib.sha256(adapter.read_bytes()).hexdigest(), first)

    def test_goes_on_when_the_coordinator_was_killed(self):
        process = self.submit(self.spec(steps=60))
        watchdog = threading.Timer(PATIENCE_SECONDS, process.kill)
        watchdog.start()
        self.addCleanup(watchdog.cancel)
        # All by one reader: communicate() does not see the lines that an iteration before it has read ahead.
        out = ""
        for line in process.stdout:
            out += line
            if line.startswith("step 3/"):
                self.coordinator.send_signal(signal.SIGKILL)
                self.coordinator.wait()
                self.coordinator = self.start_coordinator()
        err = process.stderr.read()
        process.wait()
        self.assertEqual(process.returncode, 0, out + err)
        self.assertIn("connection lost", err)
        # Each step once and in order.
        self.assertEqual([int(n) for n in re.findall(r"^step (\d+)/60", out, re.MULTILINE)], list(range(1, 61)))
        self.check_result(out)

    def test_a_bad_job_is_refused_with_every_field(self):
        spec = self.spec(learning_rate=-1)
        spec["resources"] = {"device": "abacus"}
        spec["run"]["output"] = {"dir": "/etc"}
        spec["run"]["data"]["eval"][0]["path"] = "no/such/file.jsonl"
        process = self.submit(spec)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        self.assertEqual((process.returncode, out), (2, ""), err)
        self.assertIn("INVALID_ARGUMENT", err)
        for field in ["resources.device", "run.output.dir", "run.data.eval[0].path"]:
            self.assertIn(f"\n  {field}: ", err)

    def test_bad_data_is_refused_with_its_line(self):
        (self.folder / "train.jsonl").write_text(rows(1, 2) + '{"text": 7}\n')
        process = self.submit(self.spec())
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        self.assertEqual((process.returncode, out), (2, ""), err)
        self.assertRegex(err, r"\n  run\.data\.train\[0\].*:3")

    def test_text_that_is_no_job_is_refused(self):
        process = self.submit('{"run": {"trian": {}}}')
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        self.assertEqual((process.returncode, out), (2, ""), err)
        self.assertIn("trian", err)


if __name__ == "__main__":
    unittest.main()
