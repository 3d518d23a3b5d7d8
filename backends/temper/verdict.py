"""Whether a version may be served: its verdict.json, which engine that is of, and who signed it.

The file is not named in SHA256SUMS, since a verdict is given after the publication; it names the digests of what
it is of instead. Unsigned, it guards against a mistake and against nobody: who may write the repository can write
a SHIP as well. Only the signature of a key that lies outside the repository says who gave it.

Standard library, but for `cryptography`, which is imported to check a signature.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or not __package__:  # inside Triton
    from artifact import CARD, CONFIG, SUMS, VERDICT, ArtifactError, served_version, verify_sums
else:
    from temper.backends.temper.artifact import (
        CARD,
        CONFIG,
        SUMS,
        VERDICT,
        ArtifactError,
        served_version,
        verify_sums,
    )

FILE = VERDICT
"""Beside SHA256SUMS, which does not name it."""
REQUIRE, TRUSTED, STAGING = "TEMPER_REQUIRE_VERDICT", "TEMPER_TRUSTED_KEYS", "TEMPER_STAGING"
"""Environment variables: `1` asks it of every model; whose signature counts; `1` asks it of none."""
SHIP, UNDECIDED = "SHIP", "NOT ENOUGH DATA"
SUFFIX = ".pub"
"""Ends the name of a public key's file."""
_FORMAT = 1
# A class is a finding of half a kilobyte, and there may be thousands of them.
_MAX_BYTES, _MAX_KEY_BYTES = 8 << 20, 1 << 20
_PUBLIC, _VALUE = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{128}")
_KEY_LINE = re.compile(r"ed25519 ([0-9a-f]{64})( .*)?")
# What says in a config.pbtxt whose code runs a model: one such word, in a line as the publisher writes it. An
# agent is a library that Triton loads before all else, from wherever its name leads.
_CODE = re.compile(
    rb"\b(?:backend|platform|runtime|default_model_filename|cc_model_filenames|op_library_filename"
    rb"|model_repository_agents)\b"
)
_OURS = re.compile(rb'^(?:backend: "temper(_mean|_defence|_decode)?"|platform: "(ensemble)")$', re.MULTILINE)
# The version that Triton loads, as the publisher writes it: a comment or a string may say another, `all` says
# every one, and 010 is 8.
_LOADED = re.compile(rb"^version_policy \{\n  specific \{\n    versions: ([1-9]\d{0,17})\n  \}\n\}$", re.MULTILINE)
# The text form joins strings that follow one another, so that such a line goes on with the one before it.
_GOES_ON = re.compile(rb"^[ \t\r\f\v]*[\"']", re.MULTILINE)
# Triton's own parameters are in capitals; some name a library or a Python that is to be loaded.
_KEY, _OUR_KEY = (
    re.compile(rb"\bkey\b"),
    re.compile(rb'^ *key: "(?:\w*[a-z]\w*|FORCE_CPU_ONLY_INPUT_TENSORS)"$', re.M),
)
_TEXTS = frozenset({CARD, CONFIG, "labels.txt"})
# Python takes modules from the version's folder, too, as source or compiled.
_LIBRARIES = re.compile(r".*\.(?:so|pyc?)")
_AGAIN = "judge this version again with `temper gate`"


def canonical(verdict: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a verdict that are signed: its JSON without the signature, in one spelling.

    Raises:
        ValueError: It holds what JSON has no word for: an infinity, or no number.
    """
    content = {key: value for key, value in verdict.items() if key != "signature"}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def read_verdict(folder: Path) -> dict[str, Any] | None:
    """Reads a version's verdict as it stands there; None where there is none.

    Args:
        folder: `<repository>/<model>/<version>`.

    Raises:
        ArtifactError: The file cannot be read, or is no verdict of this format.
    """
    path = folder / FILE
    content = _read(path, _MAX_BYTES)
    if content is None:
        return None
    try:
        verdict = json.loads(content)
        canonical(verdict if isinstance(verdict, dict) else {})
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ArtifactError(f"{path}: is no JSON that a verdict can be ({reason[:80]}); {_AGAIN}") from None
    if not isinstance(verdict, dict) or not isinstance(verdict.get("candidate"), dict):
        raise ArtifactError(f"{path}: is no verdict; {_AGAIN}")
    if type(verdict.get("format")) is not int or verdict["format"] != _FORMAT:
        raise ArtifactError(
            f"{path}: got format {_show(verdict.get('format'))}, expected {_FORMAT}; {_AGAIN}, or take the Temper "
            "that wrote it"
        )
    return verdict


def check_verdict(
    folder: Path, *, model: str, digests: Mapping[str, str], trusted: Sequence[str] | None = None
) -> dict[str, Any]:
    """Reads a version's verdict and refuses it unless it says that this very version may be shipped.

    Args:
        folder: `<repository>/<model>/<version>`.
        model: The model's name; a server may keep its folder under another.
        digests: SHA-256 of every published file in SHA256SUMS's order, each found to be right, as
            `artifact.verify_sums` returns them.
        trusted: The public keys of which one must have signed it; None when nobody needs to have. A signature that
            is there must be right in any case.

    Returns:
        The verdict.

    Raises:
        ArtifactError: It is missing, of another version or engine, not SHIP, not signed, signed by a key that is
            not trusted, or was changed after it was signed.
    """
    verdict = read_verdict(folder)
    path = folder / FILE
    if verdict is None:
        raise ArtifactError(
            f"{path}: no such file, expected a verdict that says {SHIP}; judge it with `temper gate`"
        )
    _check_candidate(path, verdict["candidate"], model, digests)
    if verdict.get("answer") != SHIP:
        answer = verdict.get("answer")
        then = "build a version that keeps the gate's limits"
        if answer == UNDECIDED:
            then = "judge it again on as many images as it asks for"
        raise ArtifactError(f"{path}: says {_show(answer)}, expected {SHIP}; {then}")
    key = check_signature(path, verdict)
    if key is None and trusted is not None:
        raise ArtifactError(
            f"{path}: is not signed, expected the signature of a trusted key; judge it with --sign"
        )
    if key is not None and trusted is not None and key not in trusted:
        raise ArtifactError(
            f"{path}: is signed by the key {key[:16]}..., which is none of the {len(trusted)} trusted ones; "
            "add its public key to those, or sign with one of them"
        )
    return verdict


def check_required(
    folder: Path, *, model: str, parameters: Mapping[str, str], digests: Mapping[str, str]
) -> str | None:
    """Checks a version's verdict where the environment or its config.pbtxt asks for one.

    Args:
        folder: `<repository>/<model>/<version>`.
        model: The model's name.
        parameters: Of config.pbtxt.
        digests: As `check_verdict` takes them.

    Returns:
        SHA-256 of the only engine that the verdict is of; None where no verdict is wanted, or it names none.

    Raises:
        ArtifactError: As from `check_verdict` and `read_keys`; or no key is trusted.
    """
    if not is_required(parameters):
        return None
    keys = os.environ.get(TRUSTED)
    if not keys:
        raise ArtifactError(
            f"{model}: a signed verdict is asked for, and no key is trusted; set {TRUSTED} to a file or folder of "
            "public keys in the server's environment"
        )
    verdict = check_verdict(folder, model=model, digests=digests, trusted=read_keys(Path(keys)))
    engine: str | None = verdict["candidate"].get("engine_sha256")
    return engine


def check_before(model: Path) -> None:
    """Checks the verdict on a model's served version before a server reads it, where the environment asks for one.

    The plugin asks when it loads; what runs other code than ours would not be asked.

    Args:
        model: `<repository>/<model>`.

    Raises:
        ArtifactError: As from `check_required` and `artifact.verify_sums`.
    """
    if not is_required({}):
        return
    config = (model / CONFIG).read_bytes()
    folder = model / str(served_version(config))
    digests = verify_sums(folder)
    if not needs_none(config, digests):
        check_required(folder, model=model.name, parameters={}, digests=digests)


def is_required(parameters: Mapping[str, str]) -> bool:
    """Whether a model is only loaded with a verdict. What is neither yes nor no is refused, not taken for a no.

    Raises:
        ArtifactError: The parameter or the variable has another value.
    """
    asked = parameters.get("require_verdict", "false")
    if asked not in ("true", "false"):
        raise ArtifactError(f"require_verdict: got {_show(asked)} in config.pbtxt, expected 'true' or 'false'")
    everywhere = os.environ.get(REQUIRE, "") or "0"
    if everywhere not in ("0", "1"):
        raise ArtifactError(f"{REQUIRE}: got {_show(everywhere)}, expected 0 or 1")
    return (asked == "true" or everywhere == "1") and os.environ.get(STAGING) != "1"


def needs_none(config: bytes, files: Collection[str]) -> bool:
    """Whether a server may read an entry without the question for its verdict.

    Our own code alone reads it then: the plugin, which asks for the verdict itself, or an ensemble or the ends of
    one, which have no engine. Anything else Triton would run before anybody asks.

    Args:
        config: config.pbtxt.
        files: The names of the version's files.
    """
    # Else other files than these may be what Triton loads.
    if _GOES_ON.search(config) or [int(each) for each in _LOADED.findall(config)] != [served_version(config)]:
        return False
    kinds, words = _OURS.findall(config), _CODE.findall(config)
    if len(kinds) != 1 or len(words) != 1 or len(_KEY.findall(config)) != len(_OUR_KEY.findall(config)):
        return False
    is_plugin = not any(kinds[0])
    return not any(map(_LIBRARIES.fullmatch, files)) if is_plugin else _TEXTS.issuperset(files)


def read_keys(path: Path) -> tuple[str, ...]:
    """Reads the public keys of a file, or of every `*.pub` in a folder.

    A line is `ed25519 <64 hexadecimal digits>`, with any words behind it; empty ones and those after a # are left
    out.

    Raises:
        ArtifactError: There is none, or something else.
    """
    try:
        files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    keys = tuple(dict.fromkeys(key for file in files for key in _read_key_file(file)))
    if not keys:
        wanted = f"files *{SUFFIX}" if path.is_dir() else "`ed25519 <64 hexadecimal digits>`"
        raise ArtifactError(f"{path}: holds no public key, expected {wanted} as `temper keys create` writes them")
    return keys


def _read_key_file(path: Path) -> list[str]:
    content = _read(path, _MAX_KEY_BYTES)
    if content is None:
        raise ArtifactError(f"{path}: no such file, expected a public key or a folder of them")
    keys = []
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), 1):
        match = _KEY_LINE.fullmatch(line.strip())
        if match is not None:
            keys.append(match[1])
        elif line.strip() and not line.strip().startswith("#"):
            # Not the line itself: it may be a private key's.
            raise ArtifactError(
                f"{path}: line {number} is no public key, expected `ed25519 <64 hexadecimal digits>` as "
                "`temper keys create` writes it"
            )
    return keys


def _check_candidate(path: Path, candidate: Mapping[str, Any], model: str, digests: Mapping[str, str]) -> None:
    """Refuses the verdict on anything else."""
    judged = candidate.get("model"), candidate.get("version")
    expected = model, int(path.parent.name)
    if judged != expected:
        raise ArtifactError(
            f"{path}: is the verdict on {_show(judged[0])} version {_show(judged[1])}, expected {model!r} version "
            f"{expected[1]}; {_AGAIN}"
        )
    # Not the file again: these are the digests that were found to be right.
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    for file, given, right in (
        (SUMS, candidate.get("sums_sha256"), (hashlib.sha256(lines.encode()).hexdigest(),)),
        ("the engine", candidate.get("engine_sha256"), (None, *digests.values())),
    ):
        if given not in right:
            raise ArtifactError(
                f"{path}: is of other files: it names {_show(str(given)[:12])} as SHA-256 of {file}, which is "
                f"another one here; {_AGAIN}"
            )


def check_signature(path: Path, verdict: Mapping[str, Any]) -> str | None:
    """Returns the key that signed a verdict, whose signature is found to be right; None when it is not signed.

    Raises:
        ArtifactError: It was changed after it was signed, or that cannot be found out.
    """
    if (signature := verdict.get("signature")) is None:
        return None
    given = signature if isinstance(signature, dict) else {}
    key, value = str(given.get("key")), str(given.get("value"))
    if not _PUBLIC.fullmatch(key) or not _VALUE.fullmatch(value):
        raise ArtifactError(
            f"{path}: its signature is none, expected a key of 64 digits and a value of 128; {_AGAIN}"
        )
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise ArtifactError(
            f"{path}: its signature cannot be checked, as this Python lacks the package cryptography ({error}); "
            "install it beside the server"
        ) from None
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(value), canonical(verdict))
    except (InvalidSignature, ValueError):
        raise ArtifactError(
            f"{path}: was changed after the key {key[:16]}... signed it, so nothing in it counts; {_AGAIN}"
        ) from None
    return key


def _read(path: Path, limit: int) -> bytes | None:
    """A file's content, at most so many bytes; None without one. Whoever put a pipe there is not waited for.

    Raises:
        ArtifactError: It cannot be read, or is too long.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ArtifactError(f"{path}: is no file; remove it")
            content = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > limit:
        raise ArtifactError(f"{path}: has more than {limit >> 20} MiB, which none has; remove it")
    return content


def _show(value: object) -> str:
    """What a file says, as a short word in a message."""
    return ascii(value)[:48]
