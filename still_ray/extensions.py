"""Objects by name: a built-in one from a table, or a user's own by `package.module:object` or entry point.

Every kind of thing that a user may bring (training method, selection strategy, pair rule, verifier) has a table of
built-in names and a group of entry points. A table's values may be paths themselves, where naming a built-in object
shall load nothing until it is used.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
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
    points = () if ":" in path else metadata.entry_points(group=group, name=path)
    if points:
        return next(iter(points)).load()
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not name:
        raise LookupError(f"neither package.module:function nor an entry point of {group}")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def load_named(name: str, table: Mapping[str, Any], *, group: str) -> Any:
    """A built-in object by its name in a table, or a user's own by its path.

    A user's module may lie in the working directory, which is looked into after all else that Python looks into.

    Args:
        name: A name of the table, a path or an entry-point name.
        table: Built-in objects by name, or their paths.
        group: Of entry points.

    Raises:
        ValueError: There is no such name, or the user's module cannot be loaded; says why, and what would be right.
    """
    check_name(name, table, group=group)
    if name in table:
        return load_path(table[name], group=group) if isinstance(table[name], str) else table[name]
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return load_path(name, group=group)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ValueError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error


def check_name(name: str, table: Mapping[str, Any], *, group: str) -> None:
    """Sees that a name is of the table, an entry point or a path, without importing anything of the user's.

    Raises:
        ValueError: It is none of them; says what would be right.
    """
    if name in table or ":" in name or "." in name or metadata.entry_points(group=group, name=name):
        return
    raise ValueError(f"unknown name {name!r}{did_you_mean(name, table)}: {choices(table)}")


def choices(names: Iterable[str]) -> str:
    """What may be given, for an error's text."""
    return f"give one of {', '.join(names)}, or your own as package.module:object"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest, as "; did you mean X?"; "" if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
