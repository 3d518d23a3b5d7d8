"""One place for each kind of thing: compression steps, attacks and engines, ours and those of other packages.

A registry knows ours by name and finds others by their entry points. Nothing is imported before it is wanted.
Builder and client stand on this file, so it needs the standard library only.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

Kind = TypeVar("Kind")


class PluginError(Exception):
    """A plugin cannot be used; the text names it and the package that brings it."""


class Registry(Generic[Kind]):
    """The things of one kind, by name: ours first, in the order given, then those of other packages.

    Args:
        group: The entry points' group, as `temper.steps`.
        base: What every one of them is an instance of, as "module:name".
        ours: Name to "module:name".
    """

    def __init__(self, group: str, base: str, ours: Mapping[str, str]) -> None:
        """Looks at nothing yet."""
        self.group = group
        self._base = base
        self._ours = ours

    def names(self) -> list[str]:
        """The names.

        Raises:
            PluginError: Two packages bring the same one, or another package brings one of ours.
        """
        return [*self._ours, *self._others]

    def get(self, name: str) -> Kind:
        """Loads one.

        Raises:
            PluginError: There is none of that name, it does not load, or it is something else.
        """
        if name in self._ours:
            ours: Kind = self._load(self._ours[name])
            return ours
        if name not in self._others:
            raise PluginError(f"{self.group}: got {name!r}, expected one of {', '.join(self.names())}")
        point = self._others[name]
        try:
            found: Kind = point.load()
        except Exception as error:  # whatever a module that is not ours throws
            reason = (str(error).splitlines() or [""])[0]
            raise PluginError(
                f"{self._origin(point)} does not load: {type(error).__name__}: {reason}; mend or uninstall it"
            ) from error
        base = self._load(self._base)
        if not isinstance(found, base):
            raise PluginError(
                f"{self._origin(point)} is {type(found).__name__}, expected {base.__name__}; see docs/extend.md"
            )
        if getattr(found, "name", name) != name:
            raise PluginError(f"{self._origin(point)} calls itself otherwise, expected one name for both")
        return found

    def all(self) -> dict[str, Kind]:
        """Loads every one, by name.

        Raises:
            PluginError: As `names` and `get`.
        """
        return {name: self.get(name) for name in self.names()}

    @functools.cached_property
    def _others(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points  # a quarter of what `temper --help` would take

        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._ours:
                raise PluginError(f"{self._origin(point)} has the name of one of Temper's own; rename it")
            if point.name in found and point != found[point.name]:
                other = self._origin(found[point.name])
                raise PluginError(f"{self._origin(point)} has the name of {other}; uninstall one of them")
            found[point.name] = point
        return found

    def _origin(self, point: EntryPoint) -> str:
        package = point.dist.name if point.dist is not None else "an unknown package"
        return f"{self.group} {point.name!r} of {package} ({point.value})"

    @staticmethod
    def _load(place: str) -> Any:
        module, _, name = place.partition(":")
        return getattr(importlib.import_module(module), name)


class Tagged:
    """The base of configs that one key tells apart, as an attack's `name`: each kind has its own further keys.

    A recipe's field of the base's type takes a table of any kind, and refuses keys that this kind has no use for.
    """

    tag_key: ClassVar[str]
    """The key, a field of every kind with its own name as the default."""
    default_tag: ClassVar[str]
    """The kind of a table without the key."""

    @classmethod
    def kinds(cls) -> dict[str, type[Tagged]]:
        """The configs of all kinds, by what the key says."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic's way to ask how a value of this type is read."""
        from pydantic_core import core_schema

        if "kinds" not in vars(cls):  # one kind
            return handler(source)

        def tag_of(value: Any) -> Any:
            if isinstance(value, Mapping):
                return value.get(cls.tag_key, cls.default_tag)
            return getattr(value, cls.tag_key, cls.default_tag)

        choices = {name: handler.generate_schema(kind) for name, kind in cls.kinds().items()}
        return core_schema.tagged_union_schema(choices, tag_of)
