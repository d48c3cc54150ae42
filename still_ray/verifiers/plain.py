"""Comparing answers as texts and as plain numbers: sound, exact, and in linear time, so no process need be killed."""

import re
from fractions import Fraction
from typing import Final

MAX_NUMBER_CHARS: Final = 1000

_LATEX: Final = re.compile(r"(\\\\)|\\!|\\[,;: ]|\\(?:left|right)(?![A-Za-z])|(?<=\\)[dt](?=frac(?![A-Za-z]))")
_LOOSE_SPACE: Final = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")
_DECIDING: Final = re.compile(r"(?<=\d), (?=\d{3}(?!\d))|(?<=\d)(?: e ?[+-] ?|e [+-] ?|e[+-] )(?=\d)")
_DELIMITERS: Final = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))

_DIGITS: Final = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL: Final = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.\d+)?|\.\d+)")
_FRACTION: Final = re.compile(
    r"(?P<sign>[+-]?)(?:\\frac\{(?P<a>[+-]?\d+)\}\{(?P<b>[+-]?\d+)\}|\\frac(?P<c>\d)(?P<d>\d)|(?P<e>\d+)/(?P<f>\d+))"
)


def normalized(text: str) -> str:
    r"""A mathematical text without delimiters, spacing commands, ``\left`` and ``\right``, and a final full stop."""
    spaced = " ".join(text.replace("\u2212", "-").replace("{,}", ",").split())
    plain = _LOOSE_SPACE.sub("", _LATEX.sub(lambda match: match[1] or "", spaced)).removesuffix(".")
    for opening, closing in _DELIMITERS:
        if len(plain) > len(opening + closing) and plain.startswith(opening) and plain.endswith(closing):
            return plain[len(opening) : -len(closing)].strip().removesuffix(".")
    return plain


def spacing_decides(text: str) -> bool:
    """Whether a space that `normalized` drops tells a list from a number (``3, 100``), or a sum from E notation."""
    return bool(_DECIDING.search(" ".join(text.split())))


def plain_number(text: str) -> Fraction | None:
    r"""The exact value of a normalized integer, decimal or fraction literal, None for anything else.

    Commas group thousands: ``1,234`` is a number, ``1,2`` is not.
    """
    if len(text) > MAX_NUMBER_CHARS or not text.isascii():
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", ""))
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    numerator, denominator = (int(part) for part in match.groups()[1:] if part is not None)
    value = Fraction(numerator, denominator) if denominator else None
    return -value if value is not None and match["sign"] == "-" else value


def same_number(answer: str, reference: str) -> bool | None:
    """Whether two normalized literals are the same number; None unless both are literals."""
    values = plain_number(answer), plain_number(reference)
    return None if None in values else values[0] == values[1]
