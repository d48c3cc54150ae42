"""What a plan says: findings, each naming the key to change, and the parts that a memory is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Severity = Literal["error", "warning"]

GIB: Final = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a person should know or change.

    Attributes:
        severity: "error": the run cannot work as planned; "warning": it can, at a cost that the text names.
        key: Dotted key of the recipe, or the option of the command, whose change would help most.
        text: What is wrong, with the numbers, and what would be right.
    """

    severity: Severity
    key: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """One share of a memory or a disk.

    Attributes:
        name: What it holds.
        num_bytes: Its size.
        source: The formula, and where it comes from.
    """

    name: str
    num_bytes: int
    source: str


def total_bytes(parts: Iterable[Part]) -> int:
    """Sum of the sizes."""
    return sum(part.num_bytes for part in parts)


def largest(parts: Iterable[Part]) -> Part:
    """The part that is worth making smaller first."""
    return max(parts, key=lambda part: part.num_bytes)


def sizes_text(values: Mapping[str, Any]) -> str:
    """Values by key for people, e.g. "model.max_length 30,000, sampler.dtype bfloat16"."""
    return ", ".join(f"{key} {value:,}" if type(value) is int else f"{key} {value}" for key, value in values.items())


def size_text(num_bytes: float) -> str:
    """A size for people, e.g. "61.0 GiB" or "1.2 MiB"."""
    unit, name = (GIB, "GiB") if num_bytes >= GIB / 10 else (2**20, "MiB")
    return f"{num_bytes / unit:,.1f} {name}"
