"""Which code and which libraries made a stage's result: part of its key, so that an edit makes the result anew."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

# They say something, find something, or write what is no stage: they decide no result.
_SILENT = (
    "temper.builder.errors",
    "temper.builder.publish",
    "temper.builder.quiet",
    "temper.client.errors",
    "temper.imaging.errors",
    "temper.lazy",
    "temper.plugins",
)
_FOR_TYPES = re.compile(r"^if TYPE_CHECKING:\n(?:[ \t].*\n|\n)*", re.MULTILINE)
_FROM = re.compile(r"^[ \t]*from (\.*[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
_PLAIN = re.compile(r"^[ \t]*import ([\w., ]+)", re.MULTILINE)
_NAME = re.compile(r"(?<!as )\b(?!as\b)[A-Za-z_]\w*")


@functools.cache
def code_digest(*modules: str) -> str:
    """Returns a digest of what `find_sources` finds, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for module, source in sorted(find_sources(*modules).items()):
        digest.update(module.encode() + b"\0" + hashlib.sha256(source).digest())
    return digest.hexdigest()


def find_sources(*modules: str) -> dict[str, bytes]:
    """Returns the sources of modules, and of all that these import of their own package or ours, and so on.

    Imports for types alone do not count, nor do the modules that decide no result (`_SILENT`).

    Args:
        modules: Their full names, as `temper.builder.data.prepare`.
    """
    found: dict[str, bytes] = {}
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in found:
            found[module], imported = _read(module)
            todo += [other for other in imported if other not in found and not other.startswith(_SILENT)]
    return found


def tree_digest(folder: Path) -> str:
    """Returns a digest of the Python sources below a folder, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
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
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return content, tuple(dict.fromkeys(_imported(content.decode(), package, roots)))


def _imported(source: str, package: str, roots: Collection[str]) -> Iterator[str]:
    """Yields the modules of some packages that a source imports; by pattern, as parsing ours takes a second."""
    source = _FOR_TYPES.sub("", source)
    for written, names in _FROM.findall(source):
        module = importlib.util.resolve_name(written, package) if written.startswith(".") else written
        if module.partition(".")[0] in roots:
            for name in _NAME.findall(names):
                inner = f"{module}.{name}"
                yield inner if _source(inner) is not None else module
    for names in _PLAIN.findall(source):
        modules = [name.split()[0] for name in names.split(",") if name.strip()]
        yield from (module for module in modules if module.partition(".")[0] in roots)


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
