"""Comparing phrases: the same words but for articles and number, and the same mathematics between them."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from still_ray.verifiers.math.terms import Node
from still_ray.wordlists import words

_IDLE: Final = words(
    "the a an is are of all any every each that which it be can must such so for to in on with where have has there "
    "possible exactly only answer value values option statement this these those we get choice at by and win wins "
    "winning strategy player triangle direction"
)
_SYNONYMS: Final = {
    "does not exist": "none", "do not exist": "none", "doesn't exist": "none", "dne": "none", "no solutions": "none",
    "no solution": "none", "no real solutions": "none", "no such": "none", "none": "none", "impossible": "none",
    "no integer solutions": "none", "not possible": "none", "no real solution": "none", "undefined": "undefined",
    "true": "yes", "false": "no", "empty set": "none", "infinitely many": "infinite", "infinite number": "infinite",
}  # fmt: skip
_ENDING: Final = re.compile(r"(?<=[a-z]{3})(?:es|s)\b")


def same_phrase(gold: Node, ours: Node, same_part: Callable[[Node, Node], bool]) -> bool:
    """Whether two phrases say the same in nearly the same words."""
    if gold.head != ours.head:
        return _is_nothing(gold) and _is_nothing(ours)
    left, right = _plain(gold), _plain(ours)
    if left == right and bool(left):
        return len(gold.args) == len(ours.args) and all(map(same_part, gold.args, ours.args))
    if gold.args or ours.args:
        return False
    return _meaning(gold) == _meaning(ours) != "" or _joined(gold) == _joined(ours) != []


_ALIKE: Final = {
    word: alike for alike, listed in (
        ("maximum", "max maximal largest greatest biggest highest most"),
        ("minimum", "min minimal smallest least lowest fewest"),
    ) for word in listed.split()
}  # fmt: skip


_COUNTS: Final = words("number total count ways arrangements possibilities result")


def different_names(gold: Node, ours: Node) -> bool:
    """Whether names such as "maximum area" are of different things: neither has all words of the other."""
    left, right = (
        {_ALIKE.get(word, _ENDING.sub("", word)) for word in node.value.split() if word not in _IDLE | _COUNTS}
        for node in (gold, ours)
    )
    return not (left <= right or right <= left)


def _joined(node: Node) -> list[str]:
    """The parts of ``Alice and Bob``, in any order; [] of a phrase without "and"."""
    parts = node.value.split(" and ")
    return sorted(parts) if len(parts) > 1 else []


def _plain(node: Node) -> list[str]:
    return [_ENDING.sub("", word) for word in node.value.split() if word not in _IDLE]


def _is_nothing(node: Node) -> bool:
    return (node.head == "set" and not node.args) or (node.head == "phrase" and _meaning(node) == "none")


_REASONS: Final = words("because since as it they there he she this that these such we you indeed every example")
_HEDGES: Final = words("or but maybe perhaps unless except sometimes if when")


def explains(said: Sequence[str]) -> bool:
    """Whether what follows a yes or a no is its reason: "Yes, it is possible", not "Yes or no" or "Yes, if n > 2"."""
    following = said[1:] if said[:2] == ["for", "example"] else said
    return bool(following) and following[0] in _REASONS and _HEDGES.isdisjoint(following)


_NO_SUCH: Final = re.compile(r"no (?:such )?(?:\w+ )?\w+ ?(?:exists?|solutions?)?")


def _meaning(node: Node) -> str:
    """What a phrase says in one word: none, yes, no, infinite; "" if it says more."""
    idle = ("the", "there", "are", "is", "answer")
    text = " ".join(word for word in node.value.replace("@", "").split() if word not in idle)
    if _NO_SUCH.fullmatch(text):
        return "none"
    return "yes" if text.startswith("yes ") and explains(text.split()[1:]) else _SYNONYMS.get(text, text)
