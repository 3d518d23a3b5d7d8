"""verdict.json in a version's folder: what a verdict is bound to, and how it is written and read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.backends.temper import artifact
from temper.backends.temper.artifact import VERDICT as FILE, ArtifactError
from temper.backends.temper.verdict import canonical, read_verdict as read_content
from temper.builder.publish.versions import work_folder
from temper.builder.store.files import describe_os_error, replace_file
from temper.errors import GateError
from temper.gate.keys import public_key
from temper.imaging.errors import show
from temper.report.verdict import Side, Signature, Verdict

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_TEXTS = (artifact.CARD, artifact.CONFIG, "labels.txt")


def side_of(folder: Path, *, engine: str | None = None) -> Side:
    """Says which version lies in a folder, by its digests, each of which is checked.

    Args:
        folder: `<repository>/<model>/<version>`.
        engine: The engine's file that is measured; None for the only one, or where there is none.

    Raises:
        GateError: A file is not what was published, or there are several engines and none is named.
    """
    try:
        digests = artifact.verify_sums(folder)
        content = (folder / artifact.SUMS).read_bytes()
    except ArtifactError as error:
        raise GateError(str(error)) from error
    except OSError as error:
        raise GateError(f"{show(folder)}: cannot be read: {error.strerror}") from error
    engines = [name for name in digests if name not in _TEXTS]
    if engine is None and len(engines) > 1:
        raise GateError(f"{show(folder)}: holds {len(engines)} engines, expected to be told which one is judged")
    name = engine or next(iter(engines), None)
    if name is not None and name not in engines:
        raise GateError(f"{show(folder)}: holds no engine {name!r}, expected one of {', '.join(engines)}")
    return Side(
        model=folder.parent.name,
        version=int(folder.name),
        sums_sha256=hashlib.sha256(content).hexdigest(),
        engine_sha256=digests[name] if name is not None else None,
    )


def write_verdict(folder: Path, verdict: Verdict, key: Ed25519PrivateKey | None = None) -> Verdict:
    """Writes a verdict into its version's folder in one step, in place of the one before.

    Args:
        folder: `<repository>/<model>/<version>`.
        verdict: The verdict, on what lies there.
        key: The private key that it is signed with; None to leave it as it is.

    Returns:
        The verdict as it was written.

    Raises:
        GateError: It is the verdict on something else, is signed already, or the folder cannot be written.
    """
    try:
        sums = hashlib.sha256((folder / artifact.SUMS).read_bytes()).hexdigest()
    except OSError as error:
        raise GateError(f"{show(folder / artifact.SUMS)}: cannot be read: {error.strerror}") from error
    here = folder.parent.name, folder.name, sums
    judged = verdict.candidate
    if (judged.model, str(judged.version), judged.sums_sha256) != here:
        raise GateError(
            f"{show(folder)}: is not what was judged, {judged.model} version {judged.version}, or was published "
            "anew since; judge it again"
        )
    verdict = _count_looks(folder, verdict)
    sealed = verdict if key is None else sign(verdict, key)
    content = json.dumps(in_json(sealed), indent=1, ensure_ascii=False).encode() + b"\n"
    repository = folder.resolve().parent.parent  # by whatever link it was reached: one lock
    try:
        # Not in the folder: a server that loads it meanwhile would find a file of nobody's.
        with work_folder(repository) as work:
            replace_file(folder / FILE, content, work=work)
    except OSError as error:
        raise GateError(f"{show(folder / FILE)}: cannot be written: {describe_os_error(error)}") from error
    return sealed


def _count_looks(folder: Path, verdict: Verdict) -> Verdict:
    """Counts the verdicts on the same files that this one takes the place of, of those on other images."""
    try:
        before = read_verdict(folder)
    except GateError:
        before = None
    if before is None or verdict.signature is not None:
        return verdict
    if before.candidate.sums_sha256 != verdict.candidate.sums_sha256:
        return verdict
    return dataclasses.replace(verdict, looks=before.looks + (before.data_sha256 != verdict.data_sha256))


def sign(verdict: Verdict, key: Ed25519PrivateKey) -> Verdict:
    """Returns the verdict with a signature.

    Raises:
        GateError: It has one, which another would replace.
    """
    if verdict.signature is not None:
        raise GateError(
            f"the verdict on {verdict.candidate.model} version {verdict.candidate.version} is signed already, by "
            f"the key {verdict.signature.key[:16]}...; judge the version again to sign it with another"
        )
    value = key.sign(canonical(in_json(verdict))).hex()
    return dataclasses.replace(verdict, signature=Signature(key=public_key(key), value=value))


def read_verdict(folder: Path) -> Verdict | None:
    """Reads a version's verdict, whatever it says and whoever signed it; None where there is none.

    Raises:
        GateError: The file cannot be read, or is no verdict.
    """
    from pydantic import ValidationError

    try:
        content = read_content(folder)
        return None if content is None else _adapter().validate_json(json.dumps(content), strict=True)
    except ArtifactError as error:
        raise GateError(str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise GateError(
            f"{show(folder / FILE)}: is no verdict: {show(place)}: {first['msg']}; judge this version again"
        ) from None


def in_json(verdict: Verdict) -> dict[str, Any]:
    """Returns a verdict as its file says it, so that what is signed stays the same when it is read and written.

    Raises:
        GateError: A field has a value that it cannot have, such as an infinity.
    """
    from pydantic import ValidationError

    try:
        content = json.dumps(verdict.to_json(), allow_nan=False)
        # A whole number in the place of another is read as 3.0.
        read: dict[str, Any] = json.loads(json.dumps(_adapter().validate_json(content).to_json()))
    except (ValueError, TypeError, ValidationError) as error:
        raise GateError(f"the verdict cannot be written: {str(error).splitlines()[0]}") from error
    return read


def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Verdict)
