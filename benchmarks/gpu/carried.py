"""What travels to a machine without network: files cut into pieces, the pieces dealt out to parts.

A part is a folder small enough for one transfer. Every part holds the manifest, so they may come in any order and
one by one: `collect` keeps what came until all of it is there. Only the standard library is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SITE_ARCHIVE = "site.tar.xz"
"""The packages of the other parts, always carried."""
PYTHON_ARCHIVE = "python.tar.xz"
"""An interpreter with libpython, if the machine that packed had one."""
PIECE_BYTES = 15 << 20
PART_BYTES = 58 << 20
# Raised whenever an older pack would not do for `install`.
_FORMAT = 2
_CHUNK = 1 << 20


class CarriedError(Exception):
    """What was carried is incomplete or damaged; the message says what to do."""


def deal_out(
    files: Sequence[Path], folder: Path, *, part_bytes: int = PART_BYTES, piece_bytes: int = PIECE_BYTES
) -> Any:
    """Cuts files into pieces and writes them into parts `1`, `2`, ... of a folder.

    Args:
        files: With distinct names.
        folder: Receives the parts; older ones there are removed.
        part_bytes: The most that a part holds, its manifest aside.
        piece_bytes: The most that a piece holds.

    Returns:
        The manifest: files (name, size_bytes, sha256, pieces) and pieces (name, size_bytes, sha256, part).
    """
    for old in folder.glob("[0-9]*/"):
        shutil.rmtree(old)
    entries: list[dict[str, Any]] = []
    pieces: list[dict[str, Any]] = []
    part, used = 1, 0
    for file in files:
        names: list[str] = []
        with file.open("rb") as source:
            while content := source.read(min(piece_bytes, part_bytes)):
                if used + len(content) > part_bytes:
                    part, used = part + 1, 0
                used += len(content)
                name = f"{file.name}.{len(names):02}"
                target = folder / str(part) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                pieces.append(_describe(target) | {"part": part})
                names.append(name)
        entries.append(_describe(file) | {"pieces": names})
    manifest = {"format": _FORMAT, "num_parts": part, "files": entries, "pieces": pieces}
    for number in range(1, part + 1):
        (folder / str(number) / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def collect(carried: Path, store: Path) -> dict[str, Any] | None:
    """Keeps the pieces that are here, checked, and says what is missing.

    Args:
        carried: The folder that came with this transfer; its parts may be missing.
        store: Where pieces are kept between transfers.

    Returns:
        The manifest with `missing`, the numbers of the parts that are yet to come; None when nothing was carried,
        now or before.

    Raises:
        CarriedError: A piece is damaged, or all of it was packed by an older gpu-pack.
    """
    found = sorted(carried.rglob(MANIFEST)) or sorted(store.glob(MANIFEST))
    if not found:
        return None
    manifest: dict[str, Any] = json.loads(found[0].read_text())
    if manifest.get("format") != _FORMAT:
        raise CarriedError(f"{found[0]}: made by an older gpu-pack: pack again")
    store.mkdir(parents=True, exist_ok=True)
    kept = store / MANIFEST
    if kept.exists() and json.loads(kept.read_text()) != manifest:
        shutil.rmtree(store)  # of an earlier packing
        store.mkdir()
    kept.write_text(json.dumps(manifest))
    missing = set()
    for piece in manifest["pieces"]:
        if not _take(piece, carried, store):
            missing.add(piece["part"])
    return manifest | {"missing": sorted(missing)}


def join(manifest: dict[str, Any], store: Path, folder: Path) -> list[Path]:
    """Puts the files together, once all pieces are in the store.

    Raises:
        CarriedError: A file's digest is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file in manifest["files"]:
        target = folder / file["name"]
        if not target.exists() or _sha256(target) != file["sha256"]:
            with target.open("wb") as joined:
                for name in file["pieces"]:
                    joined.write((store / name).read_bytes())
            if _sha256(target) != file["sha256"]:
                raise CarriedError(f"{target.name}: its pieces do not make what was packed; pack again")
        paths.append(target)
    return paths


def _take(piece: dict[str, Any], carried: Path, store: Path) -> bool:
    kept = store / piece["name"]
    if kept.exists() and _sha256(kept) == piece["sha256"]:
        return True
    came = carried / str(piece["part"]) / piece["name"]
    if not came.exists():
        return False
    if _sha256(came) != piece["sha256"]:
        raise CarriedError(
            f"{came}: not the piece that was packed (SHA-256 differs); carry part {piece['part']} again"
        )
    shutil.copyfile(came, kept)
    return True


def _describe(path: Path) -> dict[str, Any]:
    return {"name": path.name, "size_bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
