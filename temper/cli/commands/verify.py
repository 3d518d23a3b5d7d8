"""`temper verify`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from temper.cli.failures import EXIT_FAILED
from temper.serve.verify import VerifyError, verify_repository
from temper.terminal import echo


def verify_command(repository: Path, *, as_json: bool) -> None:
    """Prints one line per model, and exits 1 when one of them is not what was published.

    Raises:
        VerifyError: The repository cannot be read, or holds no model.
    """
    verdicts = verify_repository(repository)
    if not verdicts:
        raise VerifyError(f"{repository}: holds no model; publish one with `temper build`")
    if as_json:
        echo(json.dumps([dataclasses.asdict(one) for one in verdicts], indent=2, ensure_ascii=False))
    else:
        for one in verdicts:
            echo(f"{one.model}: " + (one.reason or f"version {one.version} ({one.backend}) is what was published"))
    if any(one.reason for one in verdicts):
        sys.exit(EXIT_FAILED)
