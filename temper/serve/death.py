"""How a process ended that should not have."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temper.serve._stubs import read_stat


def is_ending(pid: int) -> bool:
    """Whether a process has begun to end: the kernel marks it before it closes the process's connections."""
    fields = read_stat(pid)
    return not fields or fields[0] in "ZX" or bool(int(fields[6]) & 0x4)  # PF_EXITING


def describe_death(report: Mapping[str, Any] | None, log: Path) -> str:
    """One line from what the supervisor reported: nothing when it was killed itself, None when it is stopped."""
    if report is None:
        return f"tritonserver or a model instance died, and its supervisor does not say how; its log is in {log}"
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
