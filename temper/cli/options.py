"""The options that several commands share, and the types of their values."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from temper.plugins import Registry

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _PathType(click.Path):
    """A path that a file could have; whether there is one, its reader says."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        try:
            os.stat(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail(f"{str(path)[:60]}...: no file has a name of that length", param, ctx)
        return path


class RegistryChoice(click.ParamType[str]):
    """One of a registry's names. The registry is imported when they are wanted, not for the list of commands."""

    name = "choice"

    def __init__(self, registry: str) -> None:
        """Takes the registry's place, "module:name"."""
        self._place = registry

    def _choice(self) -> click.Choice[str]:
        module, _, name = self._place.partition(":")
        registry: Registry[Any] = getattr(import_module(module), name)
        return click.Choice(registry.names())

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The names, as the help shows them."""
        return self._choice().get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuses what is no name."""
        return self._choice().convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that begin so."""
        return self._choice().shell_complete(ctx, param, incomplete)


path_type = _PathType(path_type=Path)


def check_labels(images: Path, labels: Path | None, images_name: str, labels_name: str) -> None:
    """Refuses a .npy file of images without one of labels, and labels beside a folder.

    Args:
        images: The images.
        labels: The labels, if given.
        images_name: What the command calls the images.
        labels_name: And the labels.

    Raises:
        click.UsageError: They do not belong together.
    """
    if (images.suffix == ".npy") != (labels is not None):
        alone = f"{labels_name} with the .npy of classes"
        wanted = alone if labels is None else f"no {labels_name} beside a folder of images"
        raise click.UsageError(f"{images_name} {images}: expected {wanted}")


def parse_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """`fog,snow` to ("fog", "snow")."""
    return None if value is None else tuple(value.split(","))


def parse_integers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`1,16` to (1, 16)."""
    if value is None:
        return None
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"got {value!r}, expected integers of at least 1 such as 1,4,16")
    return numbers


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """`50,99.5` to (50.0, 99.5)."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise click.BadParameter(f"got {value!r}, expected numbers above 0 such as 50,100")
    return numbers


def parse_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """`60s` or `5m` to seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})([sm])", value)
    seconds = float(match[1]) * (60 if match[2] == "m" else 1) if match else 0.0
    if not 5 <= seconds <= 3600:
        raise click.BadParameter(f"got {value!r}, expected seconds or minutes such as 60s or 5m, from 5s to 60m")
    return seconds


def url_option(help_text: str = "A running server's gRPC endpoint; without it one is started here.") -> Decorator:
    """`--url`, with the command's own words."""
    return click.option("--url", metavar="HOST:PORT", help=help_text)


model_option: Decorator = click.option("--model", required=True, metavar="NAME", help="The served model.")
repository_option: Decorator = click.option(
    "--repository",
    type=path_type,
    default=Path("model_repository"),
    show_default=True,
    help="Model repository of the embedded server.",
)
runs_option: Decorator = click.option(
    "--runs", type=path_type, default=Path("runs"), show_default=True, help="Where runs are kept."
)
json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
debug_option: Decorator = click.option("--debug", is_flag=True, help="Show the traceback of an error as well.")
