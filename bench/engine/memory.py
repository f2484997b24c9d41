"""Resident set size of a process, its peak, the reset of the peak; its CPU time. Linux only."""

import os
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


def cpu_seconds(pid="self"):
    """Of all its threads, in user and kernel mode."""
    # Behind the program's name, which is in parentheses and may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid, field):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M)[1]) * 1024
