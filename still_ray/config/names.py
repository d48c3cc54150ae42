"""Values of a recipe that name an object: a built-in one by its name in a table, or a user's own by its path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from still_ray.extensions import check_name, load_named


@dataclass(frozen=True, kw_only=True)
class TableOf:
    """The table that a value names an object of; it lies above this layer and is loaded with the first value.

    Attributes:
        module: Has the table, and the constant GROUP: the group of entry points.
        table: Name of the table in it.
        words: Values that name no object.
    """

    module: str
    table: str
    words: tuple[str, ...] = ()

    def __call__(self, name: str) -> str:
        """Validates a value, without importing anything of the user's.

        Raises:
            ValueError: See `still_ray.extensions.check_name`.
        """
        if name not in self.words:
            check_name(name, self._objects, group=self.group)
        return name

    def load(self, name: str) -> Any:
        """The object; see `still_ray.extensions.load_named`."""
        return load_named(name, self._objects, group=self.group)

    def has(self, name: str) -> bool:
        """Whether a name is a built-in one."""
        return name in self.words or name in self._objects

    @property
    def kind(self) -> type | None:
        """What its objects are instances of; None: they are functions."""
        found: type | None = getattr(import_module(self.module), "KIND", None)
        return found

    @property
    def group(self) -> str:
        """The group of entry points."""
        return str(import_module(self.module).GROUP)

    @property
    def _objects(self) -> Mapping[str, Any]:
        objects: Mapping[str, Any] = getattr(import_module(self.module), self.table)
        return objects


DomainName = Annotated[str, Field(pattern=r"^[^\s.=]+$")]
"""A domain as rows name it: without space, dot and equals sign, which the command line needs."""
OwnVerifiers = dict[DomainName, str]
"""Paths of the user's own verifiers, or names of their entry points, by domain."""
StrategyName = Annotated[str, AfterValidator(TableOf(module="still_ray.algo.selection.strategies", table="STRATEGIES"))]
FormatName = Annotated[
    str, AfterValidator(TableOf(module="still_ray.formats.responses.table", table="FORMATS", words=("auto",)))
]
PairRuleName = Annotated[str, AfterValidator(TableOf(module="still_ray.algo.selection.pairing", table="RULES"))]


@dataclass(frozen=True, kw_only=True)
class NamedObject:
    """An object that a recipe names.

    Attributes:
        key: Dotted key that names it.
        name: Its name or path.
        table: Where it is looked up.
    """

    key: str
    name: str
    table: TableOf


def named_objects(section: Any, key: str = "") -> Iterator[NamedObject]:
    """Every object that a section, or one inside it, names."""
    if isinstance(section, tuple):
        for index, entry in enumerate(section):
            yield from named_objects(entry, f"{key}{index}.")
    if not isinstance(section, BaseModel):
        return
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        yield from named_objects(value, f"{key}{name}.")
        for mark in field.metadata:
            if isinstance(mark, AfterValidator) and isinstance(mark.func, TableOf):
                yield NamedObject(key=f"{key}{name}", name=value, table=mark.func)
