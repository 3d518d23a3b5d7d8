"""How a process ended that should not have."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def is_ending(pid: int) -> bool:
    """Whether a process has begun to end: the kernel marks it before it closes the process's connections."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & 0x4)  # PF_EXITING


def describe_death(report: Mapping[str, Any], log: Path) -> str:
    """One line from what the supervisor reported; it reports nothing when it was killed itself."""
    if not report:
        return f"tritonserver ended with its supervisor, which was killed; its log is in {log}"
    status = report["status"]
    how = f"by {_signal_name(-status)}" if status < 0 else f"with exit status {status}"
    if "instance" in report:
        how = f"was killed {how}" if status < 0 else f"ended {how}"
        what = f"the process of model instance {report['instance'] or '(unknown)'}"
        return f"tritonserver died with {what}, which {how}; its log is in {log}"
    if status < 0:
        return f"tritonserver died {how}; its backtrace is in {log}"
    return f"tritonserver ended {how}; its log is in {log}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
