"""Images that a table lists: CSV, TSV or Parquet with a column of paths, one of labels, perhaps one of splits.

Paths are taken from the table's own folder. A folder may hold one table per split, `train.csv` beside `val.csv`.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.class_names import to_number
from temper.builder.data.encoded import Files, Found, arrange, state_of
from temper.builder.data.splits import Split, pick_split, role_of
from temper.builder.errors import DataError
from temper.imaging.errors import show
from temper.imaging.folder import NUM_NAMED, name_few

if TYPE_CHECKING:
    from temper.builder.data.config import DataConfig

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
# What columns are called as a rule, in lower case without signs and spaces.
IMAGE_NAMES = (
    *("image", "images", "img", "path", "paths", "filepath", "filename", "file", "imagepath", "imgpath"),
    *("imagefile", "imagefilename", "imagename", "imgname", "imageid", "filenames"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "classname", "classid", "classidx", "category", "categoryid", "target"),
    *("targets", "y", "labelname", "labelid", "species", "cls"),
)
SPLIT_NAMES = ("split", "subset", "partition", "set", "phase")
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: list[str]
    read: Callable[[Sequence[str]], list[list[Any]]]
    """Returns the values of some columns, one list each."""


def find_tables(folder: Path) -> list[Path]:
    """Returns the tables in a folder, sorted; none where it cannot be read."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError:
        return []
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def open_table(config: DataConfig) -> Found:
    """Reads a table of images, or a folder with a table per split.

    Raises:
        DataError: It cannot be read, its columns are not clear, or a row has no path or label.
    """
    path = Path(config.path or "")
    where = f"data {show(path)}"
    tables, split = _pick_tables(path, where)
    paths: list[Path] = []
    labels: list[Any] = []
    parts: list[str] = []
    told: list[str] | None = None
    for part, table_path in tables.items():
        table = _open(table_path)
        image = pick_column(where_of(table), table.columns, IMAGE_NAMES, config.image_column, "image")
        label = pick_column(where_of(table), table.columns, LABEL_NAMES, config.label_column, "label")
        wanted = [image, label]
        by = None if split is not None else _split_column(table, config, wanted)
        values = table.read([*wanted, *([by] if by else [])])
        paths += _paths(table, image, values[0])
        labels += _labels(table, label, values[1])
        parts += [part] * len(values[0])
        if by is not None:
            told = ["" if value is None else str(value).strip() for value in values[2]]
    if told is not None:
        parts, split = told, _split_by(where, told, config)
    numbers = [to_number(label) for label in labels]
    named = [str(label) for label in labels]
    known: Sequence[int | str] = [number for number in numbers if number is not None]
    items = Files(path if path.is_dir() else path.parent, paths)
    found = arrange(where, items, known if len(known) == len(named) else named, parts, split=split)
    _check_repeated(where, items, found)
    return found


def _check_repeated(where: str, items: Files, found: Found) -> None:
    """Refuses images of several rows that would train and test; those that only train may be repeated."""
    paths = [items.paths[int(item)] for item in found.order]
    if found.num_train is None:
        again = [path for path, num in Counter(paths).items() if num > 1]
        what = "several rows, and the split is drawn"
    else:
        again = sorted(set(paths[: found.num_train]) & set(paths[found.num_train :]))
        what = "a row that trains and one that tests"
    if again:
        names = name_few([items.name(items.paths.index(path)) for path in again[:NUM_NAMED]], len(again))
        raise DataError(f"{where}: {len(again):,} images have {what}: {names}; keep one row of each")


def fingerprint_table(config: DataConfig) -> str:
    """Returns a digest of the tables' content, and of size and time of change of every image they name.

    Raises:
        DataError: As `open_table`.
    """
    found = open_table(config)
    path = Path(config.path or "")
    digest = hashlib.sha256(repr([found.class_names, found.num_train, found.info["split"]]).encode())
    assert isinstance(found.items, Files), "a table's images are files"
    for item, label in zip(found.order, found.labels, strict=True):
        digest.update(f"{label}\0".encode() + state_of(found.items.paths[int(item)], path))
    return digest.hexdigest()


def where_of(table: _Table) -> str:
    """What messages about a table begin with."""
    return f"data {show(table.path)}"


def pick_column(where: str, columns: Sequence[str], usual: Sequence[str], given: str | None, what: str) -> str:
    """Returns the column that is given, or the only one with a usual name.

    Args:
        where: What messages begin with.
        columns: All there are.
        usual: How it may be called, in lower case and without signs.
        given: What the recipe calls it.
        what: `image`, `label` or `split`: the key is called so.

    Raises:
        DataError: There is none, or more than one.
    """
    there = f"the columns {name_few([show(name) for name in columns]) or 'none'}"
    if given is not None:
        if given in columns:
            return given
        raise DataError(f"{where}: {what}_column: got {show(given)!r}, expected one of {there}")
    found = [name for name in columns if _plain(name) in usual]
    if len(found) == 1:
        return found[0]
    if found:
        shown = name_few([show(name) for name in found])
        raise DataError(f"{where}: got several columns for the {what}, {shown}; set {what}_column to one of them")
    raise DataError(
        f"{where}: got {there}, expected one for the {what}, called {usual[0]!r} or so; set {what}_column"
    )


def import_extra(where: str, module: str, package: str) -> Any:
    """Imports a library of the extra `data`.

    Raises:
        DataError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f'{where}: needs the package {package}; run `pip install "temper[data]"`') from error


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def _pick_tables(path: Path, where: str) -> tuple[dict[str, Path], Split | None]:
    """Returns the tables by the name of their part, and which part tests; one table has no parts."""
    if not path.is_dir():
        return {".": path}, None
    tables = find_tables(path)
    by_name: dict[str, Path] = {}
    for table in tables:
        if table.stem in by_name:
            raise DataError(f"{where}: {table.name} and {by_name[table.stem].name} are the same split; keep one")
        by_name[table.stem] = table
    if not tables:
        raise DataError(f"{where}: holds no table, expected a file that ends in {', '.join(SUFFIXES)}")
    if len(tables) == 1:
        return {".": tables[0]}, None
    split = pick_split(where, by_name, _unlabelled(by_name))
    used = [name for name in (split.train, split.test) if name is not None]
    return {name: by_name[name] for name in used}, split


def _unlabelled(tables: dict[str, Path]) -> dict[str, str]:
    """The test tables without a column that could be the label, as of a competition."""
    found = {}
    for name, path in tables.items():
        if role_of(name) == "test" and not any(_plain(column) in LABEL_NAMES for column in _open(path).columns):
            found[name] = "has no labels"
    return found


def _split_column(table: _Table, config: DataConfig, taken: Sequence[str]) -> str | None:
    if config.split_column is not None:
        return pick_column(where_of(table), table.columns, (), config.split_column, "split")
    found = [name for name in table.columns if _plain(name) in SPLIT_NAMES and name not in taken]
    if len(found) > 1:
        return pick_column(where_of(table), found, SPLIT_NAMES, None, "split")
    return found[0] if found else None


def _split_by(where: str, told: Sequence[str], config: DataConfig) -> Split | None:
    """Which values of the split's column train and test; a column of other values that nobody named is none."""
    values = sorted(set(told))
    if config.split_column is None and not any(role_of(value) for value in values):
        return None
    return pick_split(where, values)


def _paths(table: _Table, column: str, values: Iterable[Any]) -> list[Path]:
    base = table.path.parent
    found: list[Path] = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, dict | bytes):
            raise DataError(
                f"{where_of(table)}: column {show(column)} holds the images themselves, expected paths; write the "
                'set with datasets.load_dataset("parquet", ...).save_to_disk(...) and take source = "huggingface"'
            )
        text = "" if value is None else str(value).strip()
        if not text or "\0" in text:
            raise DataError(
                f"{where_of(table)}: row {row} has no path in column {show(column)}; fill or remove it"
            )
        if "\\" in text and not (base / text).exists():  # written on Windows
            text = text.replace("\\", "/")
        found.append(base / text)
    return found


def _labels(table: _Table, column: str, values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for row, value in enumerate(values, start=1):
        label = value.strip() if isinstance(value, str) else value
        if label is None or label == "" or label != label:  # a NaN is no label
            raise DataError(
                f"{where_of(table)}: row {row} has no label in column {show(column)}; fill or remove it"
            )
        if not isinstance(label, str | int | float):
            raise DataError(
                f"{where_of(table)}: column {show(column)} holds {type(label).__name__} values, expected one "
                "class an image, as a name or a number"
            )
        found.append(label)
    return found


def _open(path: Path) -> _Table:
    if path.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    delimiter = max(_DELIMITERS, key=head.count)
    columns = [name.strip() for name in next(csv.reader([head], delimiter=delimiter), [])]
    twice = sorted({name for name in columns if columns.count(name) > 1 and name})
    if twice:
        raise DataError(f"data {show(path)}: got two columns called {show(twice[0])}, expected one; rename it")

    def read(wanted: Sequence[str]) -> list[list[Any]]:
        places = [columns.index(name) for name in wanted]
        values: list[list[Any]] = [[] for _ in wanted]
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, delimiter=delimiter)
                next(rows, None)
                for row in rows:
                    if not any(row):
                        continue
                    if len(row) != len(columns):
                        raise DataError(
                            f"data {show(path)}: line {rows.line_num} has {len(row)} fields, expected "
                            f"{len(columns)} as the first line has; put text with {delimiter!r} into quotes"
                        )
                    for column, place in zip(values, places, strict=True):
                        column.append(row[place])
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise _unreadable(path, error) from error
        return values

    return _Table(path, columns, read)


def _open_parquet(path: Path) -> _Table:
    parquet = import_extra(f"data {show(path)}", "pyarrow.parquet", "pyarrow")
    arrow = importlib.import_module("pyarrow")
    try:
        columns = list(parquet.read_schema(path).names)
    except (OSError, arrow.ArrowException) as error:
        raise _unreadable(path, error) from error

    def read(wanted: Sequence[str]) -> list[list[Any]]:
        try:
            table = parquet.read_table(path, columns=list(wanted))
            return [table.column(name).to_pylist() for name in wanted]
        except (OSError, arrow.ArrowException) as error:
            raise _unreadable(path, error) from error

    return _Table(path, columns, read)


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        why = "no such file"
    elif isinstance(error, UnicodeDecodeError):
        why = f"is not UTF-8 text (byte {error.start})"
    elif isinstance(error, OSError) and error.strerror:
        why = f"cannot be read: {error.strerror}"
    else:
        why = f"cannot be read: {show((str(error).splitlines() or [type(error).__name__])[0])}"
    return DataError(f"data {show(path)}: {why}; expected a CSV, TSV or Parquet table of paths and labels")
