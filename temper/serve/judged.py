"""What the versions of a repository have for verdicts, found out without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from temper.backends.temper import artifact
from temper.backends.temper.verdict import SHIP, check_verdict, needs_none, read_verdict
from temper.serve.verify import Verdict as Found


def describe_verdicts(model: Path) -> dict[int, str]:
    """Says of each version with a verdict what it is worth: SHIP and whose key signed it, or why it does not hold.

    Args:
        model: `<repository>/<model>`.
    """
    names = [path.name for path in model.iterdir() if path.name.isdecimal()] if model.is_dir() else []
    lines = {version: _describe(model / str(version)) for version in sorted(map(int, names))}
    return {version: line for version, line in lines.items() if line is not None}


def why_refused(repository: Path, found: Found, trusted: Sequence[str]) -> str | None:
    """Says why a server that trusts these keys, and asks for verdicts, does not load a model; None when it does.

    Args:
        repository: The model repository.
        found: What `verify_repository` found of the model.
        trusted: The public keys.
    """
    if found.reason is not None:
        return found.reason
    folder = repository / found.model / str(found.version)
    try:
        digests = artifact.verify_sums(folder)
        config = (folder.parent / artifact.CONFIG).read_bytes()
        if found.backend == "temper" or not needs_none(config, digests):
            check_verdict(folder, model=found.model, digests=digests, trusted=trusted)
    except (artifact.ArtifactError, OSError) as error:
        return str(error)
    return None


def _describe(folder: Path) -> str | None:
    try:
        if read_verdict(folder) is None:
            return None
        verdict = check_verdict(folder, model=folder.parent.name, digests=artifact.verify_sums(folder))
    except (artifact.ArtifactError, OSError) as error:
        return str(error)
    signature = verdict.get("signature")
    return f"{SHIP}, " + (f"signed by the key {signature['key'][:16]}..." if signature else "not signed")
