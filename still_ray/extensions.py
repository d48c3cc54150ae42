"""Objects by name: a built-in one from a table, or a user's own by `package.module:object` or entry point.

Every kind of thing that a user may bring (training method, selection strategy, pair rule, verifier) has a table of
built-in names and a group of entry points. A table's values are themselves paths, so that naming a built-in object
loads nothing until it is used.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any


def load_path(path: str, *, group: str) -> Any:
    """The object with a dotted path or an entry-point name; imports its module.

    Args:
        path: `package.module:object`, `package.module.object`, or the name of an entry point of the group.
        group: Of entry points, e.g. "still_ray.verifiers".

    Raises:
        LookupError: The path has no module.
        AttributeError: The module has no such object.
        Exception: Whatever the module raises while it is imported.
    """
    points = metadata.entry_points(group=group, name=path)
    if points:
        return next(iter(points)).load()
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not name:
        raise LookupError(f"neither package.module:function nor an entry point of {group}")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def load_named(name: str, table: Mapping[str, str], *, group: str) -> Any:
    """A built-in object by its name in a table of paths, or a user's own by its path.

    Raises:
        ValueError: There is no such name, or the user's module cannot be loaded; says why, and what would be right.
    """
    if name in table:
        return load_path(table[name], group=group)
    if ":" not in name and "." not in name and not metadata.entry_points(group=group, name=name):
        raise ValueError(f"unknown name {name!r}{did_you_mean(name, table)}: {choices(table)}")
    try:
        return load_path(name, group=group)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ValueError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error


def choices(names: Iterable[str]) -> str:
    """What may be given, for an error's text."""
    return f"give one of {', '.join(names)}, or your own as package.module:object"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest, as "; did you mean X?"; "" if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
