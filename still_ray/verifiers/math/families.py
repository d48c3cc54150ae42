"""Sets of numbers told in words: "all odd integers", "n is a multiple of 3", "primes p with p = 1 mod 4"."""

import math
import re
from collections.abc import Callable
from typing import Final

from still_ray.verifiers.math.number_sets import (
    Region,
    both,
    comparison,
    everything,
    finite,
    images,
    rationals,
    whole_numbers,
    without,
)
from still_ray.verifiers.math.terms import Node, number
from still_ray.verifiers.math.values import Undecided, rational
from still_ray.wordlists import listed

_NOISE: Final = re.compile(
    r"\b(?:all|any|every|each|the|set|sets|of|values?|can|be|must|are|is|an?|numbers? of the form|which|that|those|"
    r"possible|exactly|precisely|and only|only|there|exist|where|for|with|such|satisfying|some|given|"
    r"arbitrary|in|it|if)\b"
)
_NUMBERS: Final = {
    word: str(value) for value, word in enumerate(listed("zero one two three four five six seven eight nine ten"))
}
_ADJECTIVES: Final[dict[str, Callable[[], Region]]] = {
    "positive": lambda: comparison(">", number(0)),
    "negative": lambda: comparison("<", number(0)),
    "nonnegative": lambda: comparison(">=", number(0)),
    "nonzero": lambda: comparison("!=", number(0)),
    "nonpositive": lambda: comparison("<=", number(0)),
    "odd": lambda: whole_numbers(lambda value: value % 2 == 1),
    "even": lambda: whole_numbers(lambda value: value % 2 == 0),
    "prime": lambda: whole_numbers(_is_prime),
    "primes": lambda: whole_numbers(_is_prime),
    "composite": lambda: whole_numbers(lambda value: value > 3 and not _is_prime(value)),  # noqa: PLR2004
    "natural": lambda: whole_numbers(lambda value: value > 0),
    "naturals": lambda: whole_numbers(lambda value: value > 0),
    "integer": lambda: whole_numbers(lambda value: True),
    "integers": lambda: whole_numbers(lambda value: True),
    "rational": rationals,
    "rationals": rationals,
    "real": everything,
    "reals": everything,
    "number": everything,
    "numbers": everything,
    "constant": everything,
    "constants": everything,
}
_EMPTY: Final = frozenset(["and", "than", "number", "numbers", "constant", "constants", ","])
_SQUARES: Final = re.compile(r"\b(?:perfect squares?|squares?)\b")
_FORM: Final = re.compile(r"\bform @(\d+)")


def family(node: Node, region: Callable[[Node], Region | None]) -> Region | None:
    """The set that a phrase describes; None unless every word of it is understood.

    Args:
        node: The phrase.
        region: Reads the set that a part of it describes.

    Raises:
        Undecided: It has bounds that cannot be evaluated.
    """
    text = _numbered(node.value)
    parts: list[Region] = []
    form = _FORM.search(text)
    if form:
        text = text[: form.start()] + " " + text[form.end() :]
    text, shapes = _taken(" ".join(_NOISE.sub(" ", text).split()), node)
    if shapes is None:
        return None
    parts.extend(shapes)
    leftover = [word for word in text.split() if word not in ("and", "than", "integers", "numbers", ",")]
    known = [word for word in text.split() if word in ("integers", "numbers")]
    for word in (*leftover, *known):
        found = _word(word, node, region)
        if found is None:
            return None
        parts.append(found)
    if form:
        parts = [_of_the_form(node.args[int(form[1])], parts)]
    return both(parts) if form or set(text.split()) - _EMPTY or shapes else None


def _numbered(text: str) -> str:
    counter = iter(range(1_000))
    text = " ".join(
        _NUMBERS.get(word, word) if word in ("two", "three", "four", "five") else word for word in text.split()
    )
    return re.sub("@", lambda match: f"@{next(counter)}", text)


def _taken(text: str, node: Node) -> tuple[str, list[Region] | None]:
    """Takes "greater than 3" and the like out of a text."""
    parts: list[Region] = []
    for pattern, make in _AMOUNTS:
        while (match := re.search(rf"\b{pattern}\s*((?:@\d+|\d+)(?:(?: and| or)? (?:@\d+|\d+))*)", text)) is not None:
            for bound in re.findall(r"@\d+|\d+", match[1]):
                value = node.args[int(bound[1:])] if bound.startswith("@") else number(int(bound))
                if value.symbols:
                    return text, None
                parts.append(make(value))
            text = text[: match.start()] + " " + text[match.end() :]
    match = _SQUARES.search(text)
    if match is not None:
        parts.append(whole_numbers(lambda value: value >= 0 and math.isqrt(value) ** 2 == value))
        text = text[: match.start()] + " " + text[match.end() :]
    return text, parts


def _word(word: str, node: Node, region: Callable[[Node], Region | None]) -> Region | None:
    if word.startswith("@"):
        part = node.args[int(word[1:])]
        if part.head == "symbol":
            return Region(holds=lambda point: True, variable=part.value)
        return region(part)
    made = _ADJECTIVES.get(word)
    return made() if made is not None else None


def _of_the_form(expression: Node, parts: list[Region]) -> Region:
    names = expression.symbols
    name = next(iter(names), "")
    about = [part for part in parts if part.variable == name or not part.variable]
    return images(expression, name, both(about) if about else None)


def _is_prime(value: int) -> bool:
    return value > 1 and all(value % divisor for divisor in range(2, math.isqrt(value) + 1))


def _modulus(bound: Node) -> int:
    value = rational(bound)
    if value is None or value.denominator != 1 or not 0 < value < 10**6:
        raise Undecided("multiples of no small whole number")
    return int(value)


def _multiples(bound: Node) -> Region:
    period = _modulus(bound)
    return whole_numbers(lambda value: value % period == 0)


def _not_multiples(bound: Node) -> Region:
    period = _modulus(bound)
    return whole_numbers(lambda value: value % period != 0)


def _powers(bound: Node) -> Region:
    base = max(2, _modulus(bound))
    return whole_numbers({base**exponent for exponent in range(200)}.__contains__)


def _members(bound: Node) -> Region:
    return finite(bound.args if bound.head in ("set", "list") else [bound])


_AMOUNTS: Final[tuple[tuple[str, Callable[[Node], Region]], ...]] = (
    (r"(?:not greater than|not more than|at most|no more than)", lambda bound: comparison("<=", bound)),
    (r"(?:not less than|at least|no less than|not smaller than)", lambda bound: comparison(">=", bound)),
    (r"greater than or equal to", lambda bound: comparison(">=", bound)),
    (r"less than or equal to", lambda bound: comparison("<=", bound)),
    (r"(?:greater|larger|bigger|more) than", lambda bound: comparison(">", bound)),
    (r"(?:less|smaller|fewer) than", lambda bound: comparison("<", bound)),
    (r"(?:not divisible by|not (?:multiples?) )", _not_multiples),
    (r"(?:divisible by|multiples?)", _multiples),
    (r"powers?", _powers),
    (
        r"(?:except|other than|excluding|besides|but not|not equal to|different from)",
        lambda bound: without(everything(), _members(bound)),
    ),
)
