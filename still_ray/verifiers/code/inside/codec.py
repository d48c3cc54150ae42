"""Values as JSON between the program and the checker, which do not trust each other: plain data, numbers for the rest.

`None`, `bool`, `str`, `float`, small `int` and `list` are themselves; all else is `{"t": tag, "v": value}`. Decoding
makes exact built-in types only, never an object with behaviour of its own: what a program sends compares as Python's
own data compare, whatever the program did to its side.
"""

import builtins
import importlib
import json
from collections.abc import Callable
from typing import Any, Final

Unknown = Callable[[Any], dict[str, Any]]
Known = Callable[[str, Any], Any]

_SMALL: Final = 1 << 53
_LIBRARY: Final = frozenset(
    {"bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools"}
    | {"json", "math", "numbers", "operator", "random", "re", "statistics", "string", "time", "typing"}
)
_TYPES: Final = (
    "bool",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "object",
    "set",
    "str",
    "tuple",
)
PLAIN: Final = (str, bytes, int, float, complex, tuple, list, dict, set, frozenset)
MUTABLE: Final = frozenset({list, dict, set, bytearray})


class BadMessage(Exception):  # noqa: N818 - it is about the message
    """What came is nothing that the other side's code sends."""


def dumped(value: Any) -> bytes:
    """One message: a line."""
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def loaded(line: bytes) -> Any:
    """The message in a line.

    Raises:
        BadMessage: It is none.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"no message: {line[:40]!r}") from error


def encode(value: Any, unknown: Unknown) -> Any:
    """A value for a message.

    Args:
        value: Anything.
        unknown: Called for what is no plain data; returns `{"t": ..., "v": ...}`.
    """
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else {"t": "int", "v": hex(value)}
    if kind is list:
        return [encode(item, unknown) for item in value]
    if kind in (tuple, set, frozenset) or (kind.__module__, kind.__name__) == ("collections", "deque"):
        return {"t": kind.__name__, "v": [encode(item, unknown) for item in value]}
    if kind is dict or (kind.__module__, kind.__name__) in _LIKE_DICT:
        return {"t": "dict", "v": [[encode(key, unknown), encode(item, unknown)] for key, item in value.items()]}
    return _encoded_rare(value, kind) or unknown(value)


_LIKE_DICT: Final = frozenset(
    {("collections", "Counter"), ("collections", "OrderedDict"), ("collections", "defaultdict")}
)


def _encoded_rare(value: Any, kind: type) -> dict[str, Any] | None:
    if value is Ellipsis or value is NotImplemented:
        return {"t": "constant", "v": repr(value)}
    write = _WRITE_RARE.get((kind.__module__, kind.__name__))
    if write is None or getattr(value, "tzinfo", None) is not None:
        return None
    return {"t": kind.__name__.lower(), "v": write(value)}


_WRITE_RARE: Final[dict[tuple[str, str], Callable[[Any], Any]]] = {
    ("builtins", "bytes"): lambda value: value.hex(),
    ("builtins", "bytearray"): lambda value: value.hex(),
    ("builtins", "complex"): lambda value: [value.real, value.imag],
    ("builtins", "range"): lambda value: [hex(value.start), hex(value.stop), hex(value.step)],
    ("fractions", "Fraction"): lambda value: [hex(value.numerator), hex(value.denominator)],
    ("decimal", "Decimal"): str,
    ("datetime", "date"): lambda value: value.isoformat(),
    ("datetime", "datetime"): lambda value: value.isoformat(),
    ("datetime", "time"): lambda value: value.isoformat(),
    ("datetime", "timedelta"): lambda value: [value.days, value.seconds, value.microseconds],
}


def decode(message: Any, known: Known) -> Any:
    """The value in a message.

    Args:
        message: What `encode` made, or what somebody else made.
        known: Called with the tag and value of what is no plain data.

    Raises:
        BadMessage: It is no value.
    """
    try:
        return _decoded(message, known)
    except Exception as error:  # named policy: whatever fails, the sender is to blame
        raise BadMessage(f"no value: {type(error).__name__}") from error


def _decoded(message: Any, known: Known) -> Any:
    if message is None or isinstance(message, bool | str | float | int):
        return message
    if isinstance(message, list):
        return [_decoded(item, known) for item in message]
    tag, value = message["t"], message["v"]
    if tag in ("tuple", "set", "frozenset"):
        return getattr(builtins, tag)([_decoded(item, known) for item in value])
    if tag == "deque":
        return _made("collections", "deque", [_decoded(item, known) for item in value])
    if tag == "dict":
        return {_decoded(key, known): _decoded(item, known) for key, item in value}
    make = _RARE.get(tag)
    return make(value) if make is not None else known(tag, value)


def _made(module: str, name: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*arguments)


def _iso(name: str) -> Callable[[str], Any]:
    return lambda value: getattr(importlib.import_module("datetime"), name).fromisoformat(value)


_RARE: Final[dict[str, Callable[[Any], Any]]] = {
    "int": lambda value: int(value, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda value: complex(float(value[0]), float(value[1])),
    "range": lambda value: range(*(int(end, 16) for end in value)),
    "constant": lambda value: {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[value],
    "fraction": lambda value: _made("fractions", "Fraction", int(value[0], 16), int(value[1], 16)),
    "decimal": lambda value: _made("decimal", "Decimal", str(value)),
    "date": _iso("date"),
    "datetime": _iso("datetime"),
    "time": _iso("time"),
    "timedelta": lambda value: _made("datetime", "timedelta", *value),
}


def library_name(value: Any) -> tuple[str, str] | None:
    """Module and name of a function or class of the standard library or a built-in one; None for anything else."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(name, str) or not (isinstance(value, type) or callable(value)):
        return None
    for home in ("builtins", *([module.removeprefix("_")] if isinstance(module, str) else [])):
        if (home == "builtins" or home in _LIBRARY) and _named(home, name) is value:
            return home, name
    return None


def _named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name, None)


def from_library(module: str, name: str) -> Any:
    """What `library_name` named, if it is of one of the modules that hold plain functions on data.

    Raises:
        BadMessage: It is not.
    """
    if module not in _LIBRARY or name.startswith("_"):
        raise BadMessage(f"{module}.{name} may not be named")
    found = _named(module, name)
    if found is None:
        raise BadMessage(f"{module} has no {name}")
    return found


def is_library(module: str) -> bool:
    """Whether a module of the standard library holds plain functions on data, the same for everybody."""
    return module in _LIBRARY


def harmless_type(name: str) -> type:
    """A built-in type or exception class by name.

    Raises:
        BadMessage: It is none.
    """
    found = getattr(builtins, name, None)
    if isinstance(found, type) and (name in _TYPES or issubclass(found, BaseException)):
        return found
    raise BadMessage(f"{name} is no plain type")
