"""Which code and which libraries made a stage's result: part of its key, so that an edit makes the result anew."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# They say something or find something, and decide no result.
_SILENT = ("temper.builder.errors", "temper.builder.quiet", "temper.plugins", "temper.imaging.errors")
_FOR_TYPES = re.compile(r"^if TYPE_CHECKING:\n(?:[ \t].*\n|\n)*", re.MULTILINE)
_FROM = re.compile(r"^[ \t]*from ([\w.]+) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
_PLAIN = re.compile(r"^[ \t]*import ([\w.]+)", re.MULTILINE)
_NAME = re.compile(r"(?<!as )\b(?!as\b)[A-Za-z_]\w*")


@functools.cache
def code_digest(*modules: str) -> str:
    """Returns a digest of modules' sources, and of all that these import of their own package or ours, and so on.

    Imports for types alone do not count, nor do modules that only hold errors.

    Args:
        modules: Their full names, as `temper.builder.data.prepare`.

    Returns:
        64 hexadecimal digits.
    """
    found: dict[str, bytes] = {}
    todo = [module for module in modules if module not in _SILENT]
    while todo:
        module = todo.pop()
        if module not in found:
            found[module], imported = _read(module)
            todo += [other for other in imported if other not in found and other not in _SILENT]
    digest = hashlib.sha256()
    for module in sorted(found):
        digest.update(module.encode() + b"\0" + hashlib.sha256(found[module]).digest())
    return digest.hexdigest()


def library_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Returns the versions of packages, as pip names them; None for one that is not installed."""
    return {package: package_version(package) for package in sorted(set(packages))}


def package_version(name: str) -> str | None:
    """Returns the version of an installed package, as pip names it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _read(module: str) -> tuple[bytes, tuple[str, ...]]:
    path = _source(module)
    assert path is not None, f"{module} has no source"
    content = path.read_bytes()
    roots = {module.partition(".")[0], "temper"}
    return content, tuple(dict.fromkeys(_imported(content.decode(), roots)))


def _imported(source: str, roots: Collection[str]) -> Iterator[str]:
    """Yields the modules of some packages that a source imports; by pattern, as parsing ours takes a second."""
    source = _FOR_TYPES.sub("", source)
    for module, names in _FROM.findall(source):
        if module.partition(".")[0] in roots:
            for name in _NAME.findall(names):
                inner = f"{module}.{name}"
                yield inner if _source(inner) is not None else module
    yield from (module for module in _PLAIN.findall(source) if module.partition(".")[0] in roots)


@functools.cache
def _source(module: str) -> Path | None:
    """Finds a module's file without importing anything but its topmost package."""
    root, *rest = module.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and not rest else None
    for folder in spec.submodule_search_locations:
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None
