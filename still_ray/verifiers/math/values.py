r"""Values of trees: exact where all is rational, else to as many digits as a comparison needs; never a fixed tolerance.

Two constants are the same if they are the same rational, or agree to 35 digits beyond whatever cancels. Two expressions
with symbols are the same if they are so at seeded random points, several of each kind: a difference of two expressions
of an answer's size that vanishes at random points vanishes everywhere (Schwartz 1980, for polynomials).
"""

import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from typing import Any, Final

import mpmath
from mpmath import mp

from still_ray.verifiers.math.terms import Node

MAX_BITS: Final = 100_000
"""No exact number grows beyond this many bits."""

_DIGITS: Final = 60
_AGREEING: Final = 35
_MAX_DIGITS: Final = 3_000
_MAX_TERMS: Final = 2_000
_MAX_EXPONENT_BITS: Final = 24
_MIN_POINTS: Final = 3
_NOISE_BITS: Final = 16
_FINE: Final = 64


class Undecided(ValueError):  # noqa: N818 - it is a finding, not a failure
    """The trees cannot be evaluated: something else has to compare them."""


class NotReal(ValueError):  # noqa: N818 - it is a finding, not a failure
    """There is no real, finite value at this point."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    r"""How to take what mathematicians write in two ways.

    Attributes:
        log_base: What a bare ``\\log`` means: "e" or "10".
        floor_brackets: Whether ``[x]`` is the floor of x.
        whole: Symbols that the text says are whole numbers.
    """

    log_base: str = "e"
    floor_brackets: bool = False
    whole: frozenset[str] = frozenset()


def rational(node: Node) -> Fraction | None:
    """The exact value of a tree of rational operations, None for any other.

    Raises:
        Undecided: It is too large a number.
    """
    if node.head in ("number", "based"):
        return node.number
    rule = _EXACT.get(node.head)
    if rule is None and node.head == "call":
        rule = _EXACT_CALLS.get(node.value)
    if rule is None:
        return None
    args = []
    for arg in node.args:
        value = rational(arg)
        if value is None:
            return None
        args.append(value)
    try:
        return _checked(rule(*args))
    except TypeError as error:
        raise Undecided("a function of too many or too few numbers") from error


def _checked(value: Fraction | None) -> Fraction | None:
    if value is not None and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Undecided("too large a number")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent <= 0):
        return None
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) == 1 or size == 0:
        return Fraction(1 if base in {0, 1} or exponent % 2 == 0 else -1) if base else Fraction(0)
    if size * abs(exponent) > MAX_BITS:
        raise Undecided("too large a power")
    return base ** int(exponent)


def _whole(value: Fraction, most: int) -> int:
    if value.denominator != 1 or not 0 <= value <= most:
        raise Undecided("not a small whole number")
    return int(value)


def _factorial(value: Fraction) -> Fraction:
    return Fraction(math.factorial(_whole(value, 5_000)))


def _double_factorial(value: Fraction) -> Fraction:
    return Fraction(math.prod(range(_whole(value, 5_000), 0, -2)))


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n:
        return None
    return Fraction(math.comb(_whole(n, 20_000), int(k)))


def _exact_root(value: Fraction, index: Fraction) -> Fraction | None:
    if index.denominator != 1 or not 2 <= index <= 64 or (value < 0 and index % 2 == 0):  # noqa: PLR2004
        return None
    top, bottom = _whole_root(abs(value.numerator), int(index)), _whole_root(value.denominator, int(index))
    if top is None or bottom is None:
        return None
    return Fraction(-top if value < 0 else top, bottom)


def _whole_root(value: int, index: int) -> int | None:
    if index == 2:  # noqa: PLR2004 - square roots
        root = math.isqrt(value)
    elif value.bit_length() > 1_000:  # noqa: PLR2004 - far beyond what an answer holds
        return None
    else:
        root = round(value ** (1 / index)) if value.bit_length() < 50 else int(mpmath.nint(mpmath.root(value, index)))  # noqa: PLR2004
    return root if root**index == value else None


def _integers(function: Callable[..., int]) -> Callable[..., Fraction | None]:
    def applied(*values: Fraction) -> Fraction | None:
        if any(value.denominator != 1 for value in values):
            return None
        return Fraction(function(*(int(value) for value in values)))

    return applied


_EXACT: Final[dict[str, Callable[..., Fraction | None]]] = {
    "add": lambda *args: sum(args, Fraction(0)),
    "mul": lambda *args: _checked(math.prod(args, start=Fraction(1))),
    "neg": lambda value: -value,
    "power": _power,
    "percent": lambda value: value / 100,
}
_EXACT_CALLS: Final[dict[str, Callable[..., Fraction | None]]] = {
    "factorial": _factorial,
    "factorial2": _double_factorial,
    "binom": _binomial,
    "root": _exact_root,
    "abs": abs,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "mod": lambda left, right: left % right if right else None,
    "gcd": _integers(math.gcd),
    "lcm": _integers(math.lcm),
    "max": lambda *values: max(values) if len(values) > 1 else None,
    "min": lambda *values: min(values) if len(values) > 1 else None,
}


@dataclass
class _Evaluation:
    """One evaluation at one point; remembers the largest number on the way, for the digits that cancel.

    Attributes:
        real: Whether a value that is not real is refused.
        top: Binary magnitude of the largest number met.
        bottom: Binary magnitude of the smallest one, and of the last place of the finest fraction.
    """

    point: Mapping[str, Any]
    reading: Reading
    real: bool = True
    top: int = 0
    bottom: int = 0
    bound: dict[str, Any] = field(default_factory=dict)

    def value(self, node: Node) -> Any:
        """The value of a tree.

        Raises:
            NotReal: It has none here.
            Undecided: It has none at all that can be computed.
        """
        found = self._raw(node)
        if not mp.isfinite(found):
            raise NotReal("not finite")
        if isinstance(found, mpmath.mpc):
            if found.imag == 0:
                found = found.real
            elif self.real:
                raise NotReal("not real")
        if found != 0:
            size = int(mp.mag(found))
            self.top = max(self.top, size)
            if node.head != "add" or size > self.top - mp.prec + _NOISE_BITS:  # else what is left where all cancels
                self.bottom = min(self.bottom, size)
        return found

    def _raw(self, node: Node) -> Any:
        leaf = _LEAVES.get(node.head)
        if leaf is not None:
            return leaf(self, node)
        args = [self.value(arg) for arg in node.args]
        rule = _NUMERIC.get(node.head)
        return rule(*args) if rule is not None else self._operation(node, args)

    def _operation(self, node: Node, args: list[Any]) -> Any:
        if node.head == "call":
            return self._called(node.value, args)
        if node.head == "apply":
            return self._opaque(node.value, args)
        if node.head == "bracket":
            return mp.floor(args[0]) if self.reading.floor_brackets else args[0]
        if node.head == "power":
            return self._powered(*args)
        raise Undecided(f"no value of {node.head}")

    def number(self, node: Node) -> Any:
        """A rational number."""
        self.bottom = min(self.bottom, -node.number.denominator.bit_length())
        return mp.mpf(node.number.numerator) / node.number.denominator

    def constant(self, node: Node) -> Any:
        """One of pi, e and i."""
        return {"pi": mp.pi, "e": mp.e, "i": mp.j}[node.value] + 0

    def marked(self, node: Node) -> Any:
        """The length or the angle that a name with a mark stands for."""
        letters = all(part.head in ("marked", "mul", "symbol") for part in node.walk())
        return self._opaque("".join(part.value for part in node.walk()) if letters else repr(node), ())

    def symbol(self, node: Node) -> Any:
        """What a symbol stands for here."""
        name = node.value
        if name in self.bound:
            return self.bound[name]
        stem, _, index = name.partition("_")
        if index in self.bound:
            return self._opaque(stem + "_", (self.bound[index],))
        if name not in self.point:
            raise Undecided(f"no value of {name}")
        return self.point[name]

    def _powered(self, base: Any, exponent: Any) -> Any:
        if base == 0 and mp.re(exponent) <= 0:
            raise NotReal("zero to a power")
        if exponent != 0 and mp.mag(exponent) > _MAX_EXPONENT_BITS:
            raise Undecided("too large an exponent")
        if base != 0 and mp.mag(exponent or 1) + math.log2(abs(int(mp.mag(base))) + 2) > _MAX_EXPONENT_BITS:
            raise Undecided("too large a power")
        if self.real and not isinstance(base, mpmath.mpc) and base < 0 and not mp.isint(exponent):
            return self._odd_root(base, exponent)
        return mp.power(base, exponent)

    def _odd_root(self, base: Any, exponent: Any) -> Any:
        index = 1 / exponent
        nearest = mp.nint(index)
        if abs(index - nearest) < mp.mpf(10) ** -30 and int(nearest) % 2:
            return -mp.power(-base, exponent)
        raise NotReal("a power of a negative number")

    def _called(self, name: str, args: list[Any]) -> Any:
        if name in ("log", "ln", "lg"):
            return self._logarithm(name, args)
        if name == "root":
            return self._root(*args)
        if name in ("max", "min") and len(args) == 1:  # of a function: no number
            return self._opaque(name, args)
        rule = _CALLS.get(name)
        if rule is None:
            raise Undecided(f"no value of {name}")
        if name == "exp" and args[0] != 0 and mp.mag(args[0]) > _MAX_EXPONENT_BITS:
            raise Undecided("too large an exponent")
        if name.startswith("factorial") and isinstance(args[0], mpmath.mpc):
            raise Undecided("a factorial of a complex number")
        if name.startswith("factorial") and (args[0] < 0 or args[0] > 20_000):  # noqa: PLR2004
            raise NotReal("no factorial")
        try:
            return rule(*args)
        except (ValueError, ZeroDivisionError, TypeError) as error:
            raise NotReal(str(error)) from error

    def _root(self, inside: Any, index: Any) -> Any:
        if index == 0:
            raise NotReal("a root without index")
        if self.real and not isinstance(inside, mpmath.mpc) and inside < 0:
            return self._odd_root(inside, 1 / index)
        small = mp.isint(index) and 0 < index < 50  # noqa: PLR2004 - beyond, roots are taken as powers
        return mp.root(inside, int(index)) if small else inside ** (1 / index)

    def _logarithm(self, name: str, args: list[Any]) -> Any:
        if args[0] == 0 or (self.real and mp.re(args[0]) < 0):
            raise NotReal("a logarithm of no positive number")
        if len(args) > 1:
            if args[1] in (0, 1):
                raise NotReal("a logarithm to no base")
            return mp.log(args[0]) / mp.log(args[1])
        ten = name == "lg" or (name == "log" and self.reading.log_base == "10")
        return mp.log(args[0]) / mp.log(10) if ten else mp.log(args[0])

    def series(self, node: Node) -> Any:
        """A finite sum or product."""
        index, lower, upper, body = node.args
        first, last = self.value(lower), self.value(upper)
        if not (mp.isint(first) and mp.isint(last)):
            raise NotReal("a series between no whole numbers")
        if last - first > _MAX_TERMS:
            raise Undecided("too long a series")
        total = mp.mpf(0 if node.head == "sum" else 1)
        for at in range(int(first), int(last) + 1):
            self.bound[index.value] = mp.mpf(at)
            term = self.value(body)
            total = total + term if node.head == "sum" else total * term
        self.bound.pop(index.value, None)
        return total

    def _opaque(self, name: str, args: tuple[Any, ...] | list[Any]) -> Any:
        """Some number that depends on a name and on arguments: an unknown function's value."""
        key = name + "".join("," + mp.nstr(arg, 25) for arg in args)
        return mp.mpf(zlib.crc32(key.encode()) + 7) / 2**31


_LEAVES: Final[dict[str, Callable[[_Evaluation, Node], Any]]] = {
    "number": _Evaluation.number,
    "based": _Evaluation.number,
    "symbol": _Evaluation.symbol,
    "constant": _Evaluation.constant,
    "sum": _Evaluation.series,
    "prod": _Evaluation.series,
    "marked": _Evaluation.marked,
}
_NUMERIC: Final[dict[str, Callable[..., Any]]] = {
    "add": lambda *args: reduce(lambda left, right: left + right, args),
    "mul": lambda *args: reduce(lambda left, right: left * right, args),
    "neg": lambda value: -value,
    "percent": lambda value: value / 100,
    "degree": lambda value: value * mp.pi / 180,
}


def _inverse_of(name: str) -> Callable[[Any], Any]:
    return lambda value: 1 / getattr(mp, name)(value)


def _arc_of_inverse(name: str) -> Callable[[Any], Any]:
    return lambda value: getattr(mp, name)(1 / value)


_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": _inverse_of("tan"),
    "sec": _inverse_of("cos"), "csc": _inverse_of("sin"), "arcsin": mp.asin, "arccos": mp.acos,
    "arctan": mp.atan, "arccot": lambda x: mp.pi / 2 - mp.atan(x), "arcsec": _arc_of_inverse("acos"),
    "arccsc": _arc_of_inverse("asin"), "sinh": mp.sinh, "cosh": mp.cosh,
    "tanh": mp.tanh, "coth": _inverse_of("tanh"), "arsinh": mp.asinh,
    "arcosh": mp.acosh, "artanh": mp.atanh, "exp": mp.exp, "abs": abs,
    "floor": mp.floor, "ceil": mp.ceil, "factorial": mp.factorial,
    "factorial2": mp.fac2, "binom": mp.binomial, "max": lambda *xs: max(xs),
    "min": lambda *xs: min(xs), "mod": lambda x, y: x - y * mp.floor(x / y), "sgn": mp.sign,
    "gcd": lambda *xs: mp.mpf(math.gcd(*map(_as_int, xs))), "lcm": lambda *xs: mp.mpf(math.lcm(*map(_as_int, xs))),
    "Re": mp.re, "Im": mp.im, "arg": mp.arg,
}  # fmt: skip


def _as_int(value: Any) -> int:
    if not mp.isint(value):
        raise ValueError("not a whole number")
    return int(value)


def approximate(node: Node, reading: Reading | None = None) -> Any:
    """The value of a constant to 60 digits.

    Raises:
        NotReal: It is not real.
        Undecided: It cannot be evaluated.
    """
    with mp.workdps(_DIGITS):
        return _Evaluation({}, reading or Reading()).value(node)


def same_value(left: Node, right: Node, reading: Reading | None = None) -> bool:
    """Whether two expressions are equal: exactly, or at many points.

    Raises:
        Undecided: One cannot be evaluated.
    """
    if left == right:
        return True
    exact = rational(left), rational(right)
    if None not in exact:
        return exact[0] == exact[1]
    reading = reading or Reading()
    names = sorted((left.symbols | right.symbols) - _bound(left) - _bound(right))
    return _same_constant(left, right, reading) if not names else _same_function(left, right, names, reading)


def _same_constant(left: Node, right: Node, reading: Reading) -> bool:
    try:
        try:
            return _same_at(left, right, {}, reading, real=True)
        except NotReal:
            return _same_at(left, right, {}, reading, real=False)
    except NotReal as error:
        raise Undecided(str(error)) from error


def _bound(node: Node) -> frozenset[str]:
    return frozenset(part.args[0].value for part in node.walk() if part.head in ("sum", "prod"))


def _same_at(left: Node, right: Node, point: Mapping[str, Fraction], reading: Reading, *, real: bool) -> bool:
    """Whether two trees agree at a point, to 35 digits beyond what sums in them can cancel."""
    cancels = left.has("add", "sum") or right.has("add", "sum")
    digits = _DIGITS
    while digits <= _MAX_DIGITS:
        with mp.workdps(digits):
            values = {name: mp.mpf(value.numerator) / value.denominator for name, value in point.items()}
            evaluation = _Evaluation(values, reading, real)
            one, other = evaluation.value(left), evaluation.value(right)
            top = evaluation.top if cancels else max((int(mp.mag(value)) for value in (one, other) if value), default=0)
            if abs(one - other) > mp.mpf(2) ** top * mp.mpf(10) ** (_DIGITS - _AGREEING - digits):
                return False
            fine = cancels or evaluation.bottom < -_FINE
            spread = int((max(top, 0) - evaluation.bottom) * 0.30103) + 1 if fine else 0
            if _DIGITS + spread <= digits + 10:
                return True
            digits = _DIGITS + spread
    raise Undecided("too many digits cancel")


def _same_function(left: Node, right: Node, names: list[str], reading: Reading) -> bool:
    whole = (_whole_symbols(left) | _whole_symbols(right) | reading.whole) & frozenset(names)
    points = _points(names, whole)
    agreeing, differing = _agreements(left, right, points["positive"], reading)
    if differing:
        return False
    if agreeing >= _MIN_POINTS:
        signed = set(names) & _SIGNED or "abs" in _calls(left, right)
        return not signed or _agreements(left, right, points["negative"], reading)[1] == 0
    agreeing, differing = _agreements(left, right, _points(names, whole)["positive"], reading, real=False)
    return differing == 0 and agreeing >= _MIN_POINTS


def _whole_symbols(node: Node) -> frozenset[str]:
    """Symbols in places that only whole numbers have: a series' end, ``n!``, ``(-1)^n``, the floor of ``n/2``."""
    found: set[str] = set()
    for part in node.walk():
        if part.head in ("sum", "prod"):
            found |= part.args[1].symbols | part.args[2].symbols
        elif part.head == "call" and part.value in _OF_WHOLE:
            found |= part.symbols
        elif part.head == "bracket" or (part.head == "call" and part.value in ("floor", "ceil")):
            found |= part.symbols & WHOLE_SYMBOLS
        elif part.head == "power" and part.args[1].symbols and _turns(part.args[0]):
            found |= part.args[1].symbols
    return frozenset(found)


def _turns(base: Node) -> bool:
    """Whether a base is a constant whose powers between whole ones have no real value."""
    if base.symbols:
        return False
    try:
        return bool(approximate(base) < 0)
    except NotReal:
        return True


WHOLE_SYMBOLS: Final = frozenset("nmklNpqjr")
"""Symbols that nearly always stand for whole numbers."""

_OF_WHOLE: Final = frozenset(("factorial", "factorial2", "binom", "mod", "gcd", "lcm"))
_SIGNED: Final = frozenset("xyzuvw")
"""Symbols that usually may be negative: the rest are lengths, counts and coefficients where signs go without saying."""


def _calls(*nodes: Node) -> set[str]:
    return {part.value for node in nodes for part in node.walk() if part.head == "call"}


def _agreements(
    left: Node, right: Node, points: Iterator[dict[str, Fraction]], reading: Reading, *, real: bool = True
) -> tuple[int, int]:
    """How many points agree and differ; those where a side has no real value do not count."""
    agreeing = 0
    for point in points:
        try:
            if not _same_at(left, right, point, reading, real=real):
                return agreeing, 1
            agreeing += 1
        except NotReal:
            continue
    return agreeing, 0


def _points(names: list[str], whole: frozenset[str] = frozenset()) -> dict[str, Iterator[dict[str, Fraction]]]:
    """Seeded random values of symbols: positive ones, and negative ones; small whole numbers for some symbols."""
    draw = random.Random(" ".join(names))

    def between(low: float, high: float) -> Fraction:
        return Fraction(draw.randint(int(low * 10**9), int(high * 10**9)), 10**9)

    def point(low: float, high: float) -> dict[str, Fraction]:
        return {name: Fraction(draw.randint(1, 12)) if name in whole else between(low, high) for name in names}

    def ordered(chosen: list[str]) -> Iterator[dict[str, Fraction]]:
        """Some symbols falling and rising in order of their names."""
        drawn = point(0.1, 9)
        values = sorted((drawn[name] for name in chosen), reverse=True)
        yield drawn | dict(zip(chosen, values, strict=True))
        yield drawn | dict(zip(chosen, reversed(values), strict=True))

    def positive() -> Iterator[dict[str, Fraction]]:
        for low, high in ((0.05, 0.95), (1.1, 3.9), (0.05, 0.95), (2.1, 9.9), (0.1, 3.1)):
            yield point(low, high)
        if not whole:
            yield from ordered(names)
            return
        for value in _WHOLE_VALUES:
            yield point(0.1, 9) | dict.fromkeys(whole, Fraction(value))
            yield from ordered(sorted(whole)) if len(whole) > 1 else ()

    def negative() -> Iterator[dict[str, Fraction]]:
        for low, high in ((-0.95, -0.05), (-3.9, -1.1), (-5, 5), (-5, 5)):
            yield point(low, high)

    return {"positive": positive(), "negative": negative()}


_WHOLE_VALUES: Final = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 19, 30)


def proportional(left: Node, right: Node, reading: Reading | None = None) -> bool:
    """Whether one expression is a constant other than zero times the other: equations that say the same.

    Raises:
        Undecided: One cannot be evaluated.
    """
    reading = reading or Reading()
    names = sorted(left.symbols | right.symbols)
    if not names or left.symbols != right.symbols:
        return False
    ratios = []
    with mp.workdps(_DIGITS):
        for point in [*_points(names)["positive"], *_points(names)["negative"]]:
            values = {name: mp.mpf(value.numerator) / value.denominator for name, value in point.items()}
            try:
                evaluation = _Evaluation(values, reading)
                one, other = evaluation.value(left), evaluation.value(right)
            except NotReal:
                continue
            if one == 0 or other == 0:
                return False
            ratios.append(one / other)
        return len(ratios) > _MIN_POINTS and all(
            abs(ratio - ratios[0]) <= abs(ratios[0]) * mp.mpf(10) ** -_AGREEING for ratio in ratios
        )
