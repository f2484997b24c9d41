"""Resident set size of a process, its peak, and the reset of the peak. Linux only."""

import re
from pathlib import Path


def resident_bytes(pid="self"):
    return _status(pid, "VmRSS")


def peak_resident_bytes(pid="self"):
    """Since the process began, or since reset_peak."""
    return _status(pid, "VmHWM")


def reset_peak(pid="self"):
    """From now on the peak counts from what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid, field):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M)[1]) * 1024
