r"""Whether an answer says the same as its reference: names, order, brackets, units and conditions; leaves by value.

Every rule is one that a careful grader would apply. What both sides state has to agree; what only one states (a name,
a unit, "for all real c") is taken for granted by the question.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations, product
from typing import Final

from still_ray.verifiers.math.number_sets import Region, finite, same_region
from still_ray.verifiers.math.number_sets import both as regions_both
from still_ray.verifiers.math.phrases import different_names, same_phrase
from still_ray.verifiers.math.regions import implied, region
from still_ray.verifiers.math.terms import INFINITY, Node, neg, number, substituted, symbol
from still_ray.verifiers.math.units import conversion
from still_ray.verifiers.math.values import (
    WHOLE_SYMBOLS,
    NotReal,
    Reading,
    Undecided,
    approximate,
    proportional,
    rational,
    same_value,
)

_MOST_VARIANTS: Final = 16
_MOST_CONSTANTS: Final = 3
_LISTS: Final = ("list", "set")
_NUMBER_SETS: Final = ("union", "intersection", "difference", "domain", "builder", "congruence", "not", "phrase")
_TUPLES: Final = ("group", "matrix")


def same(gold: Node, ours: Node, reading: Reading) -> bool:
    """Whether two whole answers are the same.

    Raises:
        Undecided: They hold something that cannot be evaluated.
    """
    if gold == ours:
        return True
    return any(_same(left, right, reading) for left in _expanded(gold) for right in _expanded(ours))


def _expanded(node: Node) -> Iterator[Node]:
    r"""A tree with ``\pm`` as the list of what it stands for: signs chosen together, then one by one."""
    if not node.has("pm"):
        yield node
        return
    if node.head == "relation" and node.value == "=":
        for right in _expanded(node.args[-1]):
            yield Node("relation", (*node.args[:-1], right), "=")
        return
    if node.head == "congruence":
        yield Node("list", tuple(_signed(node, [sign] * _MOST_VARIANTS) for sign in (1, -1)), "or")
        return
    if node.head in _LISTS:
        for items in product(*(list(_expanded(arg)) for arg in node.args)):
            flat = [part for item in items for part in _parted(item)]
            yield Node(node.head, tuple(flat), node.value)
        return
    together = [_signed(node, [sign] * _MOST_VARIANTS) for sign in (1, -1)]
    yield Node("list", tuple(together))
    count = sum(part.head == "pm" for part in node.walk())
    if 1 < count <= 4:  # noqa: PLR2004 - 16 variants
        yield Node("list", tuple(_signed(node, list(signs)) for signs in product((1, -1), repeat=count)))


def _parted(node: Node) -> tuple[Node, ...]:
    """The members that one member of a list stands for: ``x = 1`` and ``x = -1`` for ``x`` equal to either."""
    if node.head == "list":
        return node.args
    if node.head == "relation" and node.args[-1].head == "list":
        return tuple(Node("relation", (*node.args[:-1], part), node.value) for part in node.args[-1].args)
    return (node,)


def _signed(node: Node, signs: list[int]) -> Node:
    if node.head == "pm":
        sign = signs.pop(0)
        inner = _signed(node.args[0], signs)
        return inner if sign > 0 else neg(inner)
    if not node.args:
        return node
    return Node(node.head, tuple(_signed(arg, signs) for arg in node.args), node.value, node.number)


def _same(gold: Node, ours: Node, reading: Reading) -> bool:
    if gold == ours:
        return True
    heads = {gold.head, ours.head}
    for head, compare in _BY_HEAD:
        if head in heads:
            return compare(gold, ours, reading)
    return _same_structure(gold, ours, reading)


def _same_row(gold: Node, ours: Node, reading: Reading) -> bool:
    return gold.head == ours.head and _in_order(gold.args, ours.args, reading)


def _same_structure(gold: Node, ours: Node, reading: Reading) -> bool:
    heads = {gold.head, ours.head}
    if heads & {*_LISTS} and "phrase" not in heads:
        found = _same_collection(gold, ours, reading)
        if found is not None:
            return found
    if heads & {*_TUPLES}:
        return _same_tuple(gold, ours, reading)
    if heads & {*_NUMBER_SETS, *_LISTS}:
        return _same_numbers(gold, ours, reading)
    return _same_scalar(gold, ours, reading)


# Single values


def _same_scalar(gold: Node, ours: Node, reading: Reading) -> bool:
    if INFINITY in (gold, ours) or neg(INFINITY) in (gold, ours):
        return False  # equal ones are equal trees
    if {gold.head, ours.head} & {"set", "list", "group", "matrix", "relation", "phrase", "otherwise", "dots"}:
        return False
    if "based" in (gold.head, ours.head):
        return _same_digits(gold, ours)
    for head in ("marked", "degree", "percent"):  # a sign that only one side writes goes without saying
        if (gold.head == head) != (ours.head == head) and not _is_conjugate(gold if gold.head == head else ours):
            left, right = (node.args[0] if node.head == head else node for node in (gold, ours))
            if same(left, right, reading):
                return True
    return same_value(gold, ours, reading)


def _is_conjugate(node: Node) -> bool:
    r"""``\overline{z}`` is another number than z, whereas ``\overline{AB}`` is AB."""
    return node.head == "marked" and any(name[0].islower() for name in node.symbols)


def _same_digits(gold: Node, ours: Node) -> bool:
    """``204_5`` is ``204`` where the base goes without saying; it is not 54."""
    if gold.head == ours.head:
        return gold.value == ours.value
    based, plain = (gold, ours) if gold.head == "based" else (ours, gold)
    value = rational(plain)
    return value is not None and value.denominator == 1 and based.value.split("_")[0] == str(value)


def _same_quantity(gold: Node, ours: Node, reading: Reading) -> bool:
    left, right = (node.value if node.head == "quantity" else "" for node in (gold, ours))
    inner = [node.args[0] if node.head == "quantity" else node for node in (gold, ours)]
    factor = conversion(left, right)
    if factor is None:
        return False
    if factor != 1:
        inner[0] = Node("mul", (inner[0], number(factor)))
    if "rad^1" in (left, right) and "degree" in (inner[0].head, inner[1].head):
        return same_value(inner[0], inner[1], reading)
    return any(_same(one, other, reading) for one in _expanded(inner[0]) for other in _expanded(inner[1]))


def _same_ratio(gold: Node, ours: Node, reading: Reading) -> bool:
    if gold.head == ours.head:
        if len(gold.args) != len(ours.args):
            return False
        if gold.value == ours.value == "clock":
            return _in_order(gold.args, ours.args, reading)
        first = gold.args[0], ours.args[0]
        return all(
            same_value(Node("mul", (one, first[1])), Node("mul", (other, first[0])), reading)
            for one, other in zip(gold.args, ours.args, strict=True)
        )
    ratio, other = (gold, ours) if gold.head == "ratio" else (ours, gold)
    if ratio.value == "clock" and rational(ratio.args[1]) == 0:  # nine o'clock
        return same_value(ratio.args[0], other, reading)
    if len(ratio.args) != 2 or other.head not in ("mul", "number", "add", "neg", "call", "power"):  # noqa: PLR2004
        return False
    return same_value(Node("mul", (ratio.args[0], Node("power", (ratio.args[1], number(-1))))), other, reading)


# Collections


def _same_collection(gold: Node, ours: Node, reading: Reading) -> bool | None:
    """Lists and sets, in any order; None where sets of numbers have to be compared as such."""
    if gold.head in _LISTS and ours.head in _LISTS:
        if _are_statements(gold) and _are_statements(ours):
            return None
        return _same_members(gold.args, ours.args, reading, once="set" in (gold.head, ours.head))
    collection, other = (gold, ours) if gold.head in _LISTS else (ours, gold)
    if _are_statements(collection) or other.head in ("union", "difference", "intersection", "builder"):
        return None
    if len(collection.args) == 1:
        return same(collection.args[0], other, reading)
    if collection.head == "list" and other.head in _TUPLES:
        return _list_as_tuple(collection, other, reading)
    return False if collection.args else None


def _are_statements(node: Node) -> bool:
    return bool(node.args) and all(
        arg.head in ("relation", "congruence", "given", "domain", "phrase") for arg in node.args
    )


def _list_as_tuple(items: Node, group: Node, reading: Reading) -> bool:
    """``1, 2, 3`` for ``(1, 2, 3)``: in that order; two rising numbers might be an interval's ends, so not those."""
    if items.value == "or" or (group.head == "group" and group.value != "()") or len(items.args) != len(group.args):
        return False
    if len(items.args) == 2 and group.head == "group" and _rising(*group.args):  # noqa: PLR2004
        return False
    return _in_order(items.args, group.args, reading)


def _rising(low: Node, high: Node) -> bool:
    try:
        return bool(approximate(low) < approximate(high))
    except (Undecided, NotReal, KeyError, TypeError):
        return False


def _in_order(left: Sequence[Node], right: Sequence[Node], reading: Reading) -> bool:
    return len(left) == len(right) and all(same(one, other, reading) for one, other in zip(left, right, strict=True))


def _same_members(gold: Sequence[Node], ours: Sequence[Node], reading: Reading, *, once: bool) -> bool:
    if any(node.head == "dots" for node in (*gold, *ours)):
        return _in_order(gold, ours, reading)
    if once:
        gold, ours = _distinct(gold, reading), _distinct(ours, reading)
    if len(gold) != len(ours):
        return False
    left = list(ours)
    nouns = _told_apart(gold) and _told_apart(ours)
    for node in gold:
        alike = (index for index, other in enumerate(left) if not nouns or node.value == other.value)
        match = next((index for index in alike if same(node, left[index], reading)), None)
        if match is None:
            return False
        del left[match]
    return True


def _told_apart(nodes: Sequence[Node]) -> bool:
    """Whether it is their nouns that tell numbers apart: ``3 red, 2 blue``."""
    return len({node.value for node in nodes if node.head == "quantity" and node.value.startswith("noun:")}) > 1


def _distinct(nodes: Sequence[Node], reading: Reading) -> list[Node]:
    kept: list[Node] = []
    for node in nodes:
        if not any(same(node, other, reading) for other in kept):
            kept.append(node)
    return kept


def _same_tuple(gold: Node, ours: Node, reading: Reading) -> bool:
    heads = gold.head, ours.head
    if heads == ("group", "group"):
        return gold.value == ours.value and _in_order(gold.args, _with_names_of(gold, ours).args, reading)
    if heads == ("matrix", "matrix"):
        return gold.value == ours.value and _in_order(gold.args, ours.args, reading)
    if set(heads) == {"group", "matrix"}:
        matrix, group = (gold, ours) if gold.head == "matrix" else (ours, gold)
        vector = "1" in matrix.value.split("x") and group.value == "()"
        return vector and _in_order(gold.args, ours.args, reading)
    return _same_numbers(gold, ours, reading)


def _with_names_of(gold: Node, ours: Node) -> Node:
    """The only symbol of a tuple, its parameter, called as in the reference."""
    names = gold.symbols, ours.symbols
    shared = sum(bool(arg.symbols) for arg in gold.args) > 1
    if shared and len(names[0]) == len(names[1]) == 1 and names[0] != names[1]:
        return substituted(ours, {next(iter(names[1])): symbol(next(iter(names[0])))})
    return ours


def _same_numbers(gold: Node, ours: Node, reading: Reading) -> bool:
    """Sets of numbers by their members, phrases by their words."""
    if gold.head == ours.head and gold.head in _COMBINED and (gold.symbols or ours.symbols):
        if gold.head == "difference":
            return _in_order(gold.args, ours.args, reading)
        return _same_members(_flat(gold), _flat(ours), reading, once=True)
    try:
        left, right = _numbers(gold), _numbers(ours)
    except Undecided:
        left = right = None
    if left is not None and right is not None:
        return _same_regions(left, right, gold, ours)
    return _same_wording(gold, ours, reading)


_COMBINED: Final = ("union", "intersection", "difference")


def _same_regions(left: Region, right: Region, gold: Node, ours: Node) -> bool:
    variables = {left.variable, right.variable} - {""}
    if left.whole != right.whole:
        silent, told = (left, right) if right.whole else (right, left)
        meant = _may_be_whole(left.variable or right.variable, gold, ours)
        return meant and same_region(silent, told, domain_of_second=True)
    if len(variables) > 1 and not left.whole:
        return False
    return same_region(left, right)


def _same_wording(gold: Node, ours: Node, reading: Reading) -> bool:
    if "phrase" in (gold.head, ours.head) or "given" in (gold.head, ours.head):
        return same_phrase(gold, ours, lambda one, other: same(one, other, reading))
    if gold.head in _LISTS and ours.head in _LISTS:
        return _same_members(gold.args, ours.args, reading, once=False)
    return gold.head == ours.head == "builder" and _in_order(gold.args, ours.args, reading)


def _flat(node: Node) -> list[Node]:
    return [part for arg in node.args for part in (_flat(arg) if arg.head == node.head else [arg])]


def _numbers(node: Node) -> Region | None:
    return finite(node.args) if node.head == "set" else region(node)


def _may_be_whole(variable: str, gold: Node, ours: Node) -> bool:
    """Whether a side that does not speak of whole numbers means them: by its symbol, as in ``n > 2``."""
    silent = [node for node in (gold, ours) if (found := _numbers(node)) is not None and not found.whole]
    return (
        bool(silent)
        and all(node.head in ("relation", "list", "phrase") for node in silent)
        and variable in WHOLE_SYMBOLS
    )


# Statements


def _same_relation(gold: Node, ours: Node, reading: Reading) -> bool:
    members = [node.args[0] for node in (gold, ours) if node.head == "relation" and node.value == "in"]
    if len(members) == 2 and members[0].head == members[1].head == "group" and _groups_differ(*members):  # noqa: PLR2004
        return False
    gold, ours = _membership(gold, ours), _membership(ours, gold)
    if "relation" not in (gold.head, ours.head):
        return same(gold, ours, reading)
    both = gold.head == ours.head == "relation"
    if both and gold.value == ours.value == "=" and _same_equation(gold, ours, reading):
        return True
    if any(node.head == "relation" and set(node.value.split()) <= {"="} for node in (gold, ours)):
        return _same_named(gold, ours, reading) or (not both and _same_whole_numbers(gold, ours))
    if _same_numbers(gold, ours, reading):
        return True
    return both and _same_statement(gold, ours, reading)


def _same_whole_numbers(gold: Node, ours: Node) -> bool:
    """``n = 4k + 1`` and a set told otherwise."""
    try:
        sets = [(_numbers(node), implied(node)) for node in (gold, ours)]
    except Undecided:
        return False
    for said, (_, left_open) in ((sets[0], sets[1]), (sets[1], sets[0])):
        if said[0] is not None and said[0].whole and left_open is not None and same_region(said[0], left_open):
            return True
    return False


def _membership(node: Node, other: Node) -> Node:
    r"""``x \in S``: S, unless the other side speaks of something else."""
    if node.head == "relation" and node.value == "in" and node.args[0].head in ("symbol", "group"):
        if other.head == "relation" and node.args[0].head == "symbol":
            named = other.args[0] if other.args[0].head == "symbol" else other.args[-1]
            if named.head == "symbol" and named != node.args[0]:
                return node
        return node.args[1]
    return node


def _same_statement(gold: Node, ours: Node, reading: Reading) -> bool:
    """Inequalities in more than one symbol: the same sides, or one turned around."""
    turned = Node("relation", ours.args[::-1], " ".join(_TURNED.get(sign, "") for sign in ours.value.split()[::-1]))
    return any(gold.value == other.value and _in_order(gold.args, other.args, reading) for other in (ours, turned))


_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!=", "~": "~"}


def _same_equation(gold: Node, ours: Node, reading: Reading) -> bool:
    """Equations of curves, up to a factor."""
    if len(gold.args) != 2 or len(ours.args) != 2:  # noqa: PLR2004
        return False
    if any(
        arg.has("group", "set", "list", "matrix", "phrase", "system", "infinity", "marked")
        for node in (gold, ours)
        for arg in node.args
    ):
        return False
    sides = [Node("add", (node.args[0], neg(node.args[1]))) for node in (gold, ours)]
    if any(len(side.symbols) < 2 and not side.has("apply") for side in sides):  # noqa: PLR2004
        return False
    try:
        return proportional(sides[0], sides[1], reading)
    except Undecided:
        return False


def _same_named(gold: Node, ours: Node, reading: Reading) -> bool:
    names = [_name(node) for node in (gold, ours)]
    if _names_differ(*names) or (ours.head != "relation" and not _assigns(gold)):
        return False
    if names[0] is not None and names[1] is not None and not all(name.head in _NAMES for name in names if name):
        return len(gold.args) == len(ours.args) and _in_order(gold.args, ours.args, reading)
    counted = {_index_of(name) for name in names if name is not None} - {""}
    reading = replace(reading, whole=reading.whole | counted)
    return any(same(left, right, reading) for left, right in _aligned(gold, ours) if (left, right) != (gold, ours))


def _assigns(node: Node) -> bool:
    """Whether an equation gives something its value: ``S = 5`` and ``f(x) = x^2`` do, ``x^2 + y^2 = 25`` does not."""
    name = _name(node)
    if name is None or not name.symbols:
        return name is None or name.value.startswith(_EVALUATED) or name.head != "unread"
    if name.head in (*_NAMES, "sum", "prod"):
        return not (name.head == node.args[0].head == node.args[-1].head == "symbol" or _is_recurrence(name, node))
    if name.head == "call":
        return name.value in _QUANTITIES and (all(map(_is_name, name.args)) or _of_angles(name))
    return name.head == "mul" and (_is_segment(name) or _is_ratio(name))


def _is_name(node: Node) -> bool:
    return node.head in ("symbol", "marked", "apply", "group", "constant", "degree") or (
        node.head == "mul" and _is_segment(node)
    )


def _of_angles(node: Node) -> bool:
    r"""``\\tan(\\alpha + \\beta)``, ``\\cos(A - B)``."""
    return node.value != "abs" and all(name[0].isupper() or name[1:].isalpha() for name in node.symbols)


def _is_recurrence(name: Node, equation: Node) -> bool:
    """``a_{n+1} = 2a_n``, ``f(x+1) = f(x) + 2``."""
    others = [part for arg in equation.args if arg is not name for part in arg.walk()]
    return name.head == "apply" and any(
        part.value == name.value or (name.value.endswith("_") and part.value.startswith(name.value)) for part in others
    )


def _is_segment(node: Node) -> bool:
    return all(arg.head == "symbol" and arg.value[0].isupper() for arg in node.args)


def _is_ratio(node: Node) -> bool:
    r"""``\\frac{m}{n}``."""
    top, bottom = node.args[0], node.args[-1]
    return len(node.args) == 2 and top.head == "symbol" and bottom.head == "power" and bottom.args[0].head == "symbol"  # noqa: PLR2004


_EVALUATED: Final = ("int", "lim", "sum", "prod", "iint")
_QUANTITIES: Final = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "abs", "det", "gcd", "lcm", "Re", "Im", "arg")
)


def _index_of(name: Node) -> str:
    """The n of ``a_n``; "" of any other name."""
    index = name.value.partition("_")[2] if name.head == "symbol" else ""
    return index if index.isalpha() and len(index) == 1 else ""


def _name(node: Node) -> Node | None:
    if node.head == "relation" and set(node.value.split()) <= {"="}:
        left, right = node.args[0], node.args[-1]
        if left.head not in _NAMES and right.head == "symbol" and not left.symbols:
            return right
        return left
    return None


_NAMES: Final = ("symbol", "apply", "marked", "group", "phrase", "unread")


def _names_differ(gold: Node | None, ours: Node | None) -> bool:
    """Whether two names are of different things: ``y_2`` and ``y_3``, ``f(2)`` and ``f(3)``, maximum and minimum.

    Names of different kinds (``S`` and "the area") are ways to say what the question asks.
    """
    if gold is None or ours is None or gold == ours:
        return False
    if gold.head != ours.head:
        terms = {node.value.partition("_")[0] for node in (gold, ours)} if {gold.head, ours.head} == _TERMS else set()
        return len(terms) == 1 and all("_" in node.value for node in (gold, ours))  # a_n and a_{n+1}
    rule = _DIFFERENT.get(gold.head)
    return rule is not None and rule(gold, ours)


_TERMS: Final = {"symbol", "apply"}


def _symbols_differ(gold: Node, ours: Node) -> bool:
    (left, _, one), (right, _, other) = gold.value.partition("_"), ours.value.partition("_")
    if left.casefold() != right.casefold():
        return True
    return one != other and bool(one) and bool(other) and not {one, other} <= WHOLE_SYMBOLS | _COUNTING


def _groups_differ(gold: Node, ours: Node) -> bool:
    if sorted(map(repr, gold.args)) == sorted(map(repr, ours.args)):
        return False
    return len(gold.args) != len(ours.args) or any(arg.head != "symbol" for arg in (*gold.args, *ours.args))


def _applications_differ(gold: Node, ours: Node) -> bool:
    if gold.value.casefold() != ours.value.casefold() or len(gold.args) != len(ours.args):
        return True
    return any(
        one != other and (one.head != "symbol" or other.head != "symbol" or _are_events(one, other))
        for one, other in zip(gold.args, ours.args, strict=True)
    )


def _are_events(one: Node, other: Node) -> bool:
    """The A and B of ``P(A)`` and ``P(B)``, which are no variables."""
    return one.value.casefold() != other.value.casefold() and (one.value + other.value)[0].isupper()


def _marks_differ(gold: Node, ours: Node) -> bool:
    return not (gold.symbols <= ours.symbols or ours.symbols <= gold.symbols)


_DIFFERENT: Final[dict[str, Callable[[Node, Node], bool]]] = {
    "symbol": _symbols_differ,
    "group": _groups_differ,
    "apply": _applications_differ,
    "marked": _marks_differ,
    "phrase": different_names,
    "unread": lambda gold, ours: True,
}


def _aligned(gold: Node, ours: Node) -> Iterator[tuple[Node, Node]]:
    """The values of two named things, their parameters under one name."""
    left, right = _value(gold), _value(ours)
    if left is None or right is None:
        return
    left_names, right_names = _parameters(gold), _parameters(ours)
    if left_names and right_names and len(left_names) == len(right_names) and left_names != right_names:
        right = substituted(right, {name: symbol(other) for name, other in zip(right_names, left_names, strict=True)})
    elif bool(left_names) != bool(right_names):
        left, right = _one_renamed(left, right, left_names or right_names, ours_named=bool(right_names))
    if _swapped(gold, ours):
        right = _reordered(right, gold, ours)
    yield left, right
    if _is_general(gold) or _is_general(ours):
        own = None if _has_parameters(gold) or _has_parameters(ours) else _COUNTING
        yield from ((left, renamed) for renamed in _renamings(left, right, set(left_names), own))


def _value(node: Node) -> Node | None:
    """What stands behind the last equals sign; None if what stands between says something else."""
    if node.head != "relation":
        return node
    if not set(node.value.split()) <= {"="}:
        return None
    name = _name(node)
    if name is node.args[-1] and name is not node.args[0]:
        return node.args[0]
    *before, last = node.args
    if name is not None and name.head in _NAMES and last.head != "relation":
        middle = before[1:]
    elif not before[0].symbols:
        middle = before
    elif not last.symbols:
        middle = before[1:]
    else:
        return None
    return last if all(_agrees(part, last) for part in middle) else None


def _agrees(part: Node, last: Node) -> bool:
    try:
        return same_value(part, last)
    except Undecided:
        return False


def _parameters(node: Node) -> tuple[str, ...]:
    """The symbols that a name says are free: x of ``f(x)``, n of ``a_n``."""
    name = _name(node)
    if name is None:
        return ()
    if name.head == "apply" and all(arg.head == "symbol" for arg in name.args):
        return tuple(arg.value for arg in name.args)
    index = _index_of(name)
    return (index,) if index else ()


def _one_renamed(left: Node, right: Node, names: tuple[str, ...], *, ours_named: bool) -> tuple[Node, Node]:
    """Gives the parameter of a named side the only symbol of the other."""
    named, bare = (right, left) if ours_named else (left, right)
    symbols = sorted(bare.symbols)
    if len(names) == 1 and len(symbols) == 1 and names[0] not in symbols and named.symbols == {names[0]}:
        named = substituted(named, {names[0]: symbol(symbols[0])})
    return (left, named) if ours_named else (named, right)


def _swapped(gold: Node, ours: Node) -> bool:
    names = _name(gold), _name(ours)
    if names[0] is None or names[1] is None or names[0].head != "group" or names[1].head != "group":
        return False
    return names[0] != names[1] and sorted(map(repr, names[0].args)) == sorted(map(repr, names[1].args))


def _reordered(value: Node, gold: Node, ours: Node) -> Node:
    """A tuple, or a list of tuples, in the order of the reference's names."""
    wanted, given = _name(gold), _name(ours)
    assert wanted is not None
    assert given is not None
    if value.head == "list":
        return Node("list", tuple(_reordered(arg, gold, ours) for arg in value.args), value.value)
    if value.head != "group" or len(value.args) != len(wanted.args):
        return value
    return Node("group", tuple(value.args[given.args.index(name)] for name in wanted.args), value.value)


def _is_general(node: Node) -> bool:
    """Whether it is a formula for something named, whose other symbols are constants of the answer's own choosing."""
    name = _name(node)
    return name is not None and name.head in ("symbol", "apply", "group")


def _has_parameters(node: Node) -> bool:
    name = _name(node)
    return name is not None and name.head == "apply"


_COUNTING: Final = frozenset("kmnljst")
"""Symbols that a formula for a number may choose by itself: others are given by the question."""


def _renamings(gold: Node, ours: Node, fixed: set[str], allowed: frozenset[str] | None) -> Iterator[Node]:
    """The answer with its own constants called as in the reference, where they have no name in common."""
    theirs, own = sorted(gold.symbols - ours.symbols - fixed), sorted(ours.symbols - gold.symbols - fixed)
    shared = (gold.symbols & ours.symbols) - fixed
    if not own or len(own) != len(theirs) or len(own) > _MOST_CONSTANTS or (shared and len(own) > 1):
        return
    if allowed is not None and not {*own, *theirs} <= allowed:
        return
    for order in permutations(theirs):
        yield substituted(ours, {name: symbol(other) for name, other in zip(own, order, strict=True)})


def _same_assignment(gold: Node, ours: Node, reading: Reading) -> bool:
    """``x = 1, y = 2``, also for ``(x, y) = (1, 2)``, ``(1, 2)`` and ``1, 2``."""
    if gold.head == ours.head:
        return _same_assigned(gold, ours, reading)
    assigned, other = (gold, ours) if gold.head == "assign" else (ours, gold)
    if other.head == "relation":
        return _assigned_to_tuple(assigned, other, reading)
    if other.head in _TUPLES:
        return (other.head == "matrix" or other.value == "()") and _positions(assigned, other, reading)
    if other.head in _LISTS:
        return _assigned_as_list(assigned, other, reading)
    alike = len(set(map(repr, assigned.args))) == 1  # all equal to the one value asked for
    return alike and same(assigned.args[0], other, reading)


def _assigned_to_tuple(assigned: Node, other: Node, reading: Reading) -> bool:
    name, group, names = _name(other), other.args[-1], assigned.value.split()
    if name is None or name.head != "group" or group.head != "group" or len(group.args) != len(name.args):
        return False
    wanted = [arg.value for arg in name.args]
    values = dict(zip(names, assigned.args, strict=True))
    return sorted(wanted) == sorted(names) and all(
        same(part, values[key], reading) for part, key in zip(group.args, wanted, strict=True)
    )


def _assigned_as_list(assigned: Node, other: Node, reading: Reading) -> bool:
    names = [_name(arg) for arg in other.args]
    if other.head == "list" and other.value != "or" and not any(names) and _positions(assigned, other, reading):
        return True
    keys = assigned.value.split()
    roots = {key.partition("_")[0] for key in keys}
    if len(roots) > 1 or not all("_" in key for key in keys) or any(name and name.value not in roots for name in names):
        return False
    return _same_members(assigned.args, other.args, reading, once=False)


def _positions(assigned: Node, other: Node, reading: Reading) -> bool:
    """In the order given, or in the order of the alphabet."""
    ordered = [
        value for _, value in sorted(zip(assigned.value.split(), assigned.args, strict=True), key=lambda pair: pair[0])
    ]
    return _in_order(ordered, other.args, reading) or (
        ordered != list(assigned.args) and _in_order(assigned.args, other.args, reading)
    )


def _same_assigned(gold: Node, ours: Node, reading: Reading) -> bool:
    left = dict(zip(gold.value.split(), gold.args, strict=True))
    right = dict(zip(ours.value.split(), ours.args, strict=True))
    return left.keys() == right.keys() and all(same(left[key], right[key], reading) for key in left)


def _same_given(gold: Node, ours: Node, reading: Reading) -> bool:
    """Statements with conditions on their symbols."""
    main = [node.args[0] if node.head == "given" else node for node in (gold, ours)]
    conditions = [node.args[1:] if node.head == "given" else () for node in (gold, ours)]
    if main[0] == main[1]:
        return _conditions_agree(conditions[0], conditions[1], {}, reading)
    try:
        left, right = region(gold), region(ours)
        if left is not None and right is not None and (left.whole or right.whole) and same_region(left, right):
            return left.whole == right.whole or _may_be_whole(left.variable or right.variable, gold, ours)
    except Undecided:
        pass
    counted = {found.variable for side in conditions for node in side for found in _understood(node) if found.whole}
    reading = replace(reading, whole=reading.whole | counted)
    for candidate, renaming in _same_mains(main[0], main[1], conditions):
        if same(main[0], candidate, reading) and _conditions_agree(conditions[0], conditions[1], renaming, reading):
            return True
    return False


def _same_mains(gold: Node, ours: Node, conditions: Sequence[Sequence[Node]]) -> Iterator[tuple[Node, dict[str, Node]]]:
    """The answer as it is, and with the symbols that its conditions speak of called as in the reference."""
    yield ours, {}
    spoken = [{name for condition in side for name in condition.symbols} for side in conditions]
    theirs = sorted((spoken[0] or gold.symbols) & gold.symbols - ours.symbols)
    own = sorted((spoken[1] or ours.symbols) & ours.symbols - gold.symbols)
    if own and len(own) == len(theirs) <= _MOST_CONSTANTS:
        for order in permutations(theirs):
            renaming = {name: symbol(other) for name, other in zip(own, order, strict=True)}
            yield substituted(ours, renaming), renaming


def _conditions_agree(gold: Sequence[Node], ours: Sequence[Node], renaming: dict[str, Node], reading: Reading) -> bool:
    """Conditions that both sides state must be the same: as sets of numbers where they are, else as statements."""
    left, right = _conditions(gold), _conditions([substituted(node, renaming) for node in ours])
    if not left or not right:
        return True
    sets = [[found for node in side for found in _understood(node)] for side in (left, right)]
    names = [{found.variable for found in side} for side in sets]
    for name in names[0] & names[1]:
        gold_here, ours_here = (regions_both([found for found in side if found.variable == name]) for side in sets)
        if gold_here.whole == ours_here.whole and not same_region(gold_here, ours_here):
            return False
    others = [[node for node in side if _is_statement(node)] for side in (left, right)]
    return not others[0] or not others[1] or _same_members(others[0], others[1], reading, once=True)


def _conditions(nodes: Sequence[Node]) -> list[Node]:
    """Conditions one by one."""
    return [part for node in nodes for part in _one_by_one(node)]


def _one_by_one(node: Node) -> Sequence[Node]:
    if node.head == "assign":
        names = map(symbol, node.value.split())
        return [Node("relation", pair, "=") for pair in zip(names, node.args, strict=True)]
    return node.args if node.head == "list" and node.value != "or" else (node,)


def _is_statement(node: Node) -> bool:
    """Whether a condition says where something holds, not what kind of number a symbol is."""
    if node.head == "quantity":
        return _is_statement(node.args[0])
    if node.head == "phrase":
        return any(not arg.symbols for arg in node.args) and not _understood(node)
    equation = node.head == "relation" and "=" in node.value.split()
    return node.head in ("relation", "group", "system") and (equation or not _understood(node))


def _understood(node: Node) -> list[Region]:
    try:
        parts = [region(arg) for arg in node.args] if node.head == "list" else [region(node)]
    except Undecided:
        return []
    return [part for part in parts if part is not None]


def _same_system(gold: Node, ours: Node, reading: Reading) -> bool:
    """Case distinctions: the same cases in any order; systems of equations: the same values."""
    if gold.head == "relation":
        return _same_named(gold, ours, reading)
    if ours.head == "relation":
        return _same_named(gold, ours, reading)
    left, right = _rows(gold), _rows(ours)
    if _same_members(left, right, reading, once=False):
        return True
    told = [_with_all_told(rows) for rows in (left, right)]
    return told != [left, right] and _same_members(told[0], told[1], reading, once=False)


def _with_all_told(rows: list[Node]) -> list[Node]:
    """The cases with "otherwise" as what the other cases leave."""
    conditions = tuple(row.args[-1] for row in rows if len(row.args) > 1 and row.args[-1].head != "otherwise")
    if not conditions or len(conditions) != len(rows) - 1:
        return rows
    rest = Node("not", conditions if len(conditions) == 1 else (Node("list", conditions, "or"),))
    return [row if row.args[-1].head != "otherwise" else Node("row", (row.args[0], rest)) for row in rows]


def _rows(node: Node) -> list[Node]:
    if node.head != "system":
        return [Node("row", (part,)) for part in (node.args if node.head in ("list", "assign") else (node,))]
    return list(node.args)


_BY_HEAD: Final[tuple[tuple[str, Callable[[Node, Node, Reading], bool]], ...]] = (
    ("quantity", _same_quantity),
    ("given", _same_given),
    ("row", _same_row),
    ("otherwise", lambda gold, ours, reading: False),
    ("system", _same_system),
    ("assign", _same_assignment),
    ("relation", _same_relation),
    ("ratio", _same_ratio),
)
