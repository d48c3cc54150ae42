"""Sets of numbers as objects: which numbers they hold, and where that may change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key
from typing import Final

from still_ray.verifiers.math.terms import Node, number, substituted
from still_ray.verifiers.math.values import NotReal, Undecided, approximate, rational, same_value

_WINDOW: Final = 240
_MAX_BREAKS: Final = 60


@dataclass(frozen=True, kw_only=True)
class Region:
    """A set of numbers.

    Attributes:
        holds: Whether a number, given as a tree, belongs to it.
        breaks: The numbers at which that may change.
        whole: Whether only whole numbers are meant.
        variable: The symbol that stands for its numbers; "" if none.
    """

    holds: Callable[[Node], bool]
    breaks: tuple[Node, ...] = ()
    whole: bool = False
    variable: str = ""


def order(left: Node, right: Node) -> int:
    """-1, 0 or 1: which of two constants is larger.

    Raises:
        Undecided: They cannot be evaluated.
    """
    exact = rational(left), rational(right)
    if exact[0] is not None and exact[1] is not None:
        return (exact[0] > exact[1]) - (exact[0] < exact[1])
    if same_value(left, right):
        return 0
    try:
        return 1 if approximate(left) > approximate(right) else -1
    except (NotReal, TypeError) as error:
        raise Undecided(str(error)) from error


def same_region(left: Region, right: Region, *, domain_of_second: bool = False) -> bool:
    """Whether two sets have the same numbers.

    Args:
        left: A set.
        right: Another.
        domain_of_second: The first does not say what numbers it speaks of: positive ones, if the second does.

    Raises:
        Undecided: Their bounds cannot be compared.
    """
    if left.whole or right.whole:
        whole = whole_points((*left.breaks, *right.breaks))
        if domain_of_second and not any(right.holds(number(value)) for value in whole if value < 1):
            whole = [value for value in whole if value > 0]
        points: Iterable[Node] = map(number, whole)
    else:
        points = sample_points((*left.breaks, *right.breaks))
    return all(left.holds(point) == right.holds(point) for point in points)


def whole_points(breaks: Iterable[Node]) -> list[int]:
    """The whole numbers at which sets with these breaks are compared: near zero and near each break."""
    points = set(range(-_WINDOW, _WINDOW + 1))
    for node in breaks:
        middle = int(approximate(node))
        if abs(middle) < 10**12:
            points.update(range(middle - 30, middle + 31))
    return sorted(points)


def sample_points(breaks: Iterable[Node]) -> list[Node]:
    """The real numbers at which sets with these breaks are compared: each break, between them, and beyond.

    Raises:
        Undecided: There are too many.
    """
    distinct: list[Node] = []
    for node in sorted(breaks, key=cmp_to_key(order)):
        if not distinct or order(distinct[-1], node):
            distinct.append(node)
    if len(distinct) > _MAX_BREAKS:
        raise Undecided("too many bounds")
    if not distinct:
        return [number(0), number(Fraction(1, 3)), _IRRATIONAL]
    low, high = _near(distinct[0]) - 1, _near(distinct[-1]) + 1
    between = [_between(left, right) for left, right in itertools.pairwise(distinct)]
    far = [number(low - Fraction(1, 7)), number(high + Fraction(1, 7)), number(10**9), number(-(10**9))]
    odd = [Node("add", (point, _TINY)) for point in between] + [Node("add", (number(high), _IRRATIONAL))]
    return [*distinct, *between, *far, *odd]


_IRRATIONAL: Final = Node("call", (number(2), number(2)), "root")
_TINY: Final = Node("mul", (_IRRATIONAL, number(Fraction(1, 10**40))))


def _near(node: Node) -> Fraction:
    value = rational(node)
    if value is None:
        whole = approximate(node)
        value = Fraction(int(whole * 10**20), 10**20)
    return value


def _between(left: Node, right: Node) -> Node:
    return Node("mul", (Node("add", (left, right)), number(Fraction(1, 2))))


def constant_bound(node: Node) -> Node:
    """A bound that is a constant.

    Raises:
        Undecided: It is not.
    """
    if node.symbols or node.has("apply", "pm", "set", "group", "relation"):
        raise Undecided("a bound that is no constant")
    try:
        approximate(node)
    except NotReal as error:
        raise Undecided("a bound that is no real number") from error
    return node


def comparison(sign: str, bound: Node) -> Region:
    """The numbers less than, at least, ... a bound."""
    constant_bound(bound)
    test = SIGNS[sign]
    return Region(holds=lambda point: test(order(point, bound)), breaks=(bound,))


SIGNS: Final[dict[str, Callable[[int], bool]]] = {
    "<": lambda sign: sign < 0,
    "<=": lambda sign: sign <= 0,
    ">": lambda sign: sign > 0,
    ">=": lambda sign: sign >= 0,
    "=": lambda sign: sign == 0,
    "!=": lambda sign: sign != 0,
}
"""What each sign says of the order of two numbers (-1, 0 or 1)."""


def both(parts: list[Region]) -> Region:
    """What belongs to all of some sets."""
    return Region(
        holds=lambda point: all(part.holds(point) for part in parts),
        breaks=tuple(node for part in parts for node in part.breaks),
        whole=any(part.whole for part in parts),
        variable=next((part.variable for part in parts if part.variable), ""),
    )


def either(parts: list[Region]) -> Region:
    """What belongs to at least one of some sets."""
    return Region(
        holds=lambda point: any(part.holds(point) for part in parts),
        breaks=tuple(node for part in parts for node in part.breaks),
        whole=bool(parts) and all(part.whole for part in parts),
        variable=next((part.variable for part in parts if part.variable), ""),
    )


def without(left: Region, right: Region) -> Region:
    """What belongs to one set and not to another."""
    return Region(
        holds=lambda point: left.holds(point) and not right.holds(point),
        breaks=(*left.breaks, *right.breaks),
        whole=left.whole,
        variable=left.variable,
    )


def everything(*, variable: str = "") -> Region:
    """All real numbers."""
    return Region(holds=lambda point: True, variable=variable)


def whole_numbers(test: Callable[[int], bool], breaks: tuple[Node, ...] = ()) -> Region:
    """The whole numbers that pass a test."""

    def holds(point: Node) -> bool:
        value = rational(point)
        return value is not None and value.denominator == 1 and test(int(value))

    return Region(holds=holds, breaks=breaks, whole=True)


def finite(nodes: Iterable[Node]) -> Region:
    """Just these numbers."""
    kept = tuple(constant_bound(node) for node in nodes)
    return Region(holds=lambda point: any(order(point, node) == 0 for node in kept), breaks=kept)


def images(expression: Node, parameter: str, domain: Region | None, *, limit: int = 300) -> Region:
    """The whole numbers that an expression takes as its parameter runs through whole numbers.

    Raises:
        Undecided: It has other symbols, or values that are not whole.
    """
    if expression.symbols != {parameter}:
        raise Undecided("an expression in more than one parameter")
    found: set[int] = set()
    for value in range(-limit, limit + 1):
        if domain is not None and not domain.holds(number(value)):
            continue
        try:
            image = rational(substituted(expression, {parameter: number(value)}))
        except (Undecided, ZeroDivisionError):
            continue
        if image is None or image.denominator != 1:
            if domain is None:
                continue
            raise Undecided("values that are not whole")
        found.add(int(image))
    if not found:
        raise Undecided("no values")
    return whole_numbers(found.__contains__)


def rationals() -> Region:
    """All rational numbers."""
    return Region(holds=lambda point: rational(point) is not None)
