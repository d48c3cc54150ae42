"""Whether what a program printed is what it should have printed."""

import math
import re
from typing import Final

TOLERANCE: Final = 1e-6
"""Absolute or relative difference of decimals that are taken for the same. Source: ours, the usual one of contests."""

_NUMBER: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_SHOWN: Final = 60
_MAX_TOKEN: Final = 400


def difference(printed: bytes, expected: str) -> str | None:
    """The first difference in a few words; None where there is none that counts.

    Lines are compared one by one. Whitespace at their ends and blank lines at the end do not count. A line that is
    not the same text may still have the same words, if those that differ are numbers within `TOLERANCE` and the
    expected one is written with a decimal point or an exponent: integers are exact.
    """
    ours, theirs = _lines(printed.decode("utf-8", errors="replace")), _lines(expected)
    for number, (our, their) in enumerate(zip(ours, theirs, strict=False), start=1):
        if our != their and not _close(our.split(), their.split()):
            return f"line {number} is {_shown(our)}, expected {_shown(their)}"
    if len(ours) != len(theirs):
        return f"{len(ours)} lines, expected {len(theirs)}"
    return None


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _close(ours: list[str], theirs: list[str]) -> bool:
    """Whether the words are the same but for decimals that are nearly so; at least one is."""
    if len(ours) != len(theirs):
        return False
    different = [(our, their) for our, their in zip(ours, theirs, strict=True) if our != their]
    return bool(different) and all(_same_decimal(our, their) for our, their in different)


def _same_decimal(our: str, their: str) -> bool:
    if max(len(our), len(their)) > _MAX_TOKEN or not (_NUMBER.fullmatch(our) and _NUMBER.fullmatch(their)):
        return False
    if their.lstrip("+-").isdigit():
        return False
    return math.isclose(float(our), float(their), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _shown(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else line[:_SHOWN] + "…")
