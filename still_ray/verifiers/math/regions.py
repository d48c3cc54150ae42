r"""Sets of numbers, told by what belongs to them: intervals, inequalities, congruences, "all odd integers".

Two sets are compared by membership: at every number at which one of them changes, between these, and beyond them; where
only whole numbers count, at all of them near zero and near those numbers. So ``x < 1 \text{ or } x \ge 2`` is
``(-\infty,1) \cup [2,\infty)``, and ``n \equiv 1 \pmod 2`` is "n is odd".
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Final

from still_ray.verifiers.math.families import family
from still_ray.verifiers.math.number_sets import (
    SIGNS,
    Region,
    both,
    comparison,
    either,
    everything,
    finite,
    images,
    rationals,
    sample_points,
    whole_numbers,
    whole_points,
    without,
)
from still_ray.verifiers.math.terms import INFINITY, Node, neg, number, substituted, symbol
from still_ray.verifiers.math.values import WHOLE_SYMBOLS, Undecided, rational

_MIRRORED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


def region(node: Node) -> Region | None:
    """The set that a tree describes, None if it describes none.

    Raises:
        Undecided: It is one, with bounds that are no constants.
    """
    rule = _RULES.get(node.head)
    return rule(node) if rule is not None else None


def _is_infinite(node: Node) -> int:
    if node == INFINITY:
        return 1
    return -1 if node == neg(INFINITY) else 0


def from_interval(node: Node) -> Region | None:
    """The region of ``[a, b)``; None for brackets that hold no interval."""
    if len(node.args) != 2 or len(node.value) != 2:  # noqa: PLR2004 - two ends
        return None
    low, high = node.args
    checks: list[Region] = []
    if _is_infinite(low) == 0:
        checks.append(comparison(">=" if node.value[0] == "[" else ">", low))
    elif _is_infinite(low) > 0:
        return None
    if _is_infinite(high) == 0:
        checks.append(comparison("<=" if node.value[1] == "]" else "<", high))
    elif _is_infinite(high) < 0:
        return None
    return both(checks)


def _from_relation(node: Node) -> Region | None:
    r"""The region of ``1 < x \\le 3``, ``x \\in S``, ``x \\ne 0``."""
    signs = node.value.split()
    parts: list[Region] = []
    variables: set[str] = set()
    for left, sign, right in zip(node.args[:-1], signs, node.args[1:], strict=True):
        found = _single(left, sign, right)
        if found is None:
            return None
        parts.append(found)
        variables.add(found.variable)
    if len(variables - {""}) > 1:
        return None
    return both(parts)


def _single(left: Node, sign: str, right: Node) -> Region | None:
    if sign in ("in", "notin"):
        return _membership(left, sign, right)
    if sign in ("|", "!|"):
        return _divisible(left, sign, right)
    if sign not in SIGNS:
        return None
    if left.head != "symbol" and right.head == "symbol":
        left, right, sign = right, left, _MIRRORED[sign]
    if left.head == "call" and left.value == "abs":
        return _absolute(left.args[0], sign, right)
    return _bounded(left, sign, right)


def _membership(left: Node, sign: str, right: Node) -> Region | None:
    if left.head != "symbol":
        return None
    inside = (
        finite(right.args) if right.head == "set" and not right.symbols and not right.has("dots") else region(right)
    )
    if inside is None:
        return None
    found = inside if sign == "in" else without(everything(), inside)
    return Region(holds=found.holds, breaks=found.breaks, whole=found.whole, variable=left.value)


def _bounded(left: Node, sign: str, right: Node) -> Region | None:
    """``2x + 1 < 5``."""
    linear = _linear(left)
    if linear is None or right.symbols or right.has("apply", "infinity"):
        return _endless(left, sign, right)
    name, factor, shift = linear
    plain = factor == 1 and shift == 0
    if right.head in ("set", "group", "union", "domain", "list") or (sign == "=" and not plain):
        return None
    bound = right if plain else Node("mul", (Node("add", (right, number(-shift))), number(1 / factor)))
    found = comparison(sign if factor > 0 else _MIRRORED[sign], bound)
    return Region(holds=found.holds, breaks=found.breaks, variable=name)


def implied(node: Node) -> Region | None:
    """``n = 4k + 1`` for all whole k, though nothing says so; only to be held against a set of whole numbers."""
    if node.head == "list" and node.args:
        parts = [implied(arg) for arg in node.args]
        return None if None in parts else either([part for part in parts if part is not None])
    if node.head != "relation" or node.value != "=" or node.args[0].head != "symbol":
        return None
    left, right = node.args
    if right.head == "symbol" or len(right.symbols) != 1 or not right.symbols <= WHOLE_SYMBOLS - left.symbols:
        return None
    found = images(right, next(iter(right.symbols)), None)
    return Region(holds=found.holds, whole=True, variable=left.value)


def _divisible(left: Node, sign: str, right: Node) -> Region | None:
    """``3 | n``."""
    divisor = None if left.symbols or right.head != "symbol" else rational(left)
    if divisor is None or divisor.denominator != 1 or divisor <= 0:
        return None
    period, wanted = int(divisor), sign == "|"
    found = whole_numbers(lambda value: (value % period == 0) == wanted)
    return Region(holds=found.holds, whole=True, variable=right.value)


def _absolute(inside: Node, sign: str, bound: Node) -> Region | None:
    """``|x - 1| < 3``."""
    if bound.symbols:
        return None
    below, above = _single(inside, sign, bound), _single(inside, _MIRRORED[sign], neg(bound))
    if below is None or above is None:
        return None
    return both([below, above]) if sign in ("<", "<=", "!=") else either([below, above])


def _endless(left: Node, sign: str, right: Node) -> Region | None:
    r"""``x < \\infty`` says nothing."""
    if left.head == "symbol" and (
        (right == INFINITY and sign in ("<", "<=")) or (right == neg(INFINITY) and sign in (">", ">="))
    ):
        return everything(variable=left.value)
    return None


def _linear(node: Node) -> tuple[str, Fraction, Fraction] | None:
    """Symbol, factor and shift of a linear expression in one symbol, or of its absolute value's inside: None."""
    names = node.symbols
    if len(names) != 1 or not node.has("symbol"):
        return None
    if node.head == "symbol":
        return node.value, Fraction(1), Fraction(0)
    (name,) = names
    try:
        values = [rational(substituted(node, {name: number(at)})) for at in (0, 1, 2, 7)]
    except (Undecided, ZeroDivisionError):
        return None
    if any(value is None for value in values):
        return None
    zero, one, two, seven = (value for value in values if value is not None)
    factor = one - zero
    if factor == 0 or two - zero != 2 * factor or seven - zero != 7 * factor or node.has("call"):
        return None
    return name, factor, zero


def _from_domain(node: Node) -> Region | None:
    zero = number(0)
    simple: dict[str, Callable[[], Region]] = {
        "R": everything,
        "R>0": lambda: comparison(">", zero),
        "R>=0": lambda: comparison(">=", zero),
        "R<0": lambda: comparison("<", zero),
        "R!=0": lambda: comparison("!=", zero),
        "Q": rationals,
        "Q>0": lambda: Region(holds=lambda point: (rational(point) or 0) > 0, breaks=(zero,)),
        "Z": lambda: whole_numbers(lambda value: True),
        "Z*": lambda: whole_numbers(lambda value: value != 0),
        "Z<0": lambda: whole_numbers(lambda value: value < 0),
        "N": lambda: whole_numbers(lambda value: value > 0),
        "N0": lambda: whole_numbers(lambda value: value >= 0),
    }
    made = simple.get(node.value)
    return made() if made is not None else None


def _combined(join: Callable[[list[Region]], Region]) -> Callable[[Node], Region | None]:
    def rule(node: Node) -> Region | None:
        parts = [_member(arg) for arg in node.args]
        return None if any(part is None for part in parts) else join([part for part in parts if part is not None])

    return rule


def _member(node: Node) -> Region | None:
    if node.head == "set":
        return finite(node.args)
    return region(node)


def _difference(node: Node) -> Region | None:
    left, right = _member(node.args[0]), _member(node.args[1])
    return None if left is None or right is None else without(left, right)


def _minus(node: Node) -> Region | None:
    r"""``\mathbb{R} - \{0\}``."""
    if node.args[0].head not in ("domain", "group", "union") or any(part.head != "neg" for part in node.args[1:]):
        return None
    left = _member(node.args[0])
    for part in node.args[1:]:
        right = _member(part.args[0])
        if left is None or right is None:
            return None
        left = without(left, right)
    return left


def _from_builder(node: Node) -> Region | None:
    element, *conditions = node.args
    parts = [region(condition) for condition in conditions]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    if element.head == "symbol":
        return both(known)
    if element.head == "relation" and element.args[0].head == "symbol":
        first = region(element)
        return None if first is None else both([first, *known])
    names = element.symbols
    if len(names) != 1 or not all(part.variable in names for part in known) or not both(known).whole:
        return None
    return images(element, next(iter(names)), both(known))


def _from_congruence(node: Node) -> Region | None:
    *sides, modulus = node.args
    period = rational(modulus)
    if period is None or period.denominator != 1 or not 0 < period <= 1_000 or len(sides) != 2:  # noqa: PLR2004
        return None
    names = node.symbols
    if len(names) != 1:
        return None
    (name,) = names
    residues: set[int] = set()
    for residue in range(int(period)):
        at = {name: number(residue)}
        values = []
        for side in sides:
            for variant in _variants(side):
                value = rational(substituted(variant, at))
                if value is None:
                    return None
                values.append(value)
        if any((value - values[0]) % period == 0 for value in values[1:]):
            residues.add(residue)
    found = whole_numbers(lambda value: value % int(period) in residues)
    return Region(holds=found.holds, whole=True, variable=name)


def _variants(node: Node) -> list[Node]:
    if node.head == "pm":
        return [node.args[0], neg(node.args[0])]
    return list(node.args) if node.head in ("list", "set") else [node]


def _from_not(node: Node) -> Region | None:
    inner = region(node.args[0])
    if inner is None:
        return None
    return Region(
        holds=lambda point: not inner.holds(point), breaks=inner.breaks, whole=inner.whole, variable=inner.variable
    )


def _from_given(node: Node) -> Region | None:
    r"""``n = 2k+1`` with ``k \\in \\mathbb{Z}``; an inequality with a condition on the same symbol."""
    main, *conditions = node.args
    parts = [region(condition) for condition in conditions]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    name = symbol("")
    expression = main
    if main.head == "relation" and main.value == "=" and main.args[0].head == "symbol":
        name, expression = main.args
    names = expression.symbols
    first = None if main.head == "relation" and main.value == "=" else region(main)
    if first is not None:
        return both([first, *known]) if {part.variable for part in known} <= {first.variable, ""} else None
    if len(names) != 1 or not known or any(part.variable not in names for part in known):
        return None
    if not both(known).whole:
        if not names <= WHOLE_SYMBOLS:
            return None
        known.append(whole_numbers(lambda value: True))
    found = images(expression, next(iter(names)), both(known))
    return Region(holds=found.holds, whole=True, variable=name.value)


def _from_phrase(node: Node) -> Region | None:
    return family(node, region)


def _all_of(node: Node) -> Region | None:
    r"""``x > 1, x \\ne 2``: all of it, or any where all together is nothing."""
    parts = [region(arg) for arg in node.args]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    if len({part.variable for part in known if part.variable}) > 1:
        return None
    if node.value == "or" or not all(part.variable for part in known):
        return either(known)
    together = both(known)
    points: Iterable[Any] = (
        map(number, whole_points(together.breaks)) if together.whole else sample_points(together.breaks)
    )
    return together if any(together.holds(point) for point in points) else either(known)


_RULES: Final[dict[str, Callable[[Node], Region | None]]] = {
    "group": from_interval,
    "union": _combined(either),
    "intersection": _combined(both),
    "difference": _difference,
    "add": _minus,
    "domain": _from_domain,
    "relation": _from_relation,
    "builder": _from_builder,
    "congruence": _from_congruence,
    "not": _from_not,
    "given": _from_given,
    "list": _all_of,
    "phrase": _from_phrase,
}
