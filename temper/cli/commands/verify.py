"""`temper verify`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from temper.cli.failures import EXIT_FAILED
from temper.serve.judged import describe_verdicts, why_refused
from temper.serve.verify import VerifyError, verify_repository
from temper.terminal import echo


def verify_command(repository: Path, *, trusted_keys: Path | None, as_json: bool) -> None:
    """Prints one line per model and one per verdict, and exits 1 when a model would not be served.

    Raises:
        VerifyError: The repository cannot be read, or holds no model.
        GateError: `trusted_keys` holds no public key, or something else.
    """
    found = verify_repository(repository)
    if not found:
        raise VerifyError(f"{repository}: holds no model; publish one with `temper build`")
    if trusted_keys is not None:
        from temper.gate.keys import read_trusted

        trusted = read_trusted(trusted_keys)
        found = [dataclasses.replace(one, reason=why_refused(repository, one, trusted)) for one in found]
    verdicts = [describe_verdicts(repository / one.model) for one in found]
    if as_json:
        rows = [
            {**dataclasses.asdict(one), "verdicts": {str(key): line for key, line in lines.items()}}
            for one, lines in zip(found, verdicts, strict=True)
        ]
        echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for one, lines in zip(found, verdicts, strict=True):
            echo(f"{one.model}: " + (one.reason or f"version {one.version} ({one.backend}) is what was published"))
            for version, line in lines.items():
                echo(f"    verdict on version {version}: {line}")
    if any(one.reason for one in found):
        sys.exit(EXIT_FAILED)
