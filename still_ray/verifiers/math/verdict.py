r"""The verdict on a mathematical answer: our own reading first, math-verify where that does not reach.

    text --canonical, tokens_of--> tokens --read_answer--> tree --same--> verdict
                                                             |
                                             not understood, or undecided: math-verify

May hang or exhaust the memory, so run it in a process to kill.
"""

import logging
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, Final

from still_ray.latex import canonical
from still_ray.types import Judgement, Verdict
from still_ray.verifiers.math.answers import read_canonical
from still_ray.verifiers.math.reader import RELATIONS
from still_ray.verifiers.math.same import same
from still_ray.verifiers.math.terms import Node
from still_ray.verifiers.math.tokens import NotUnderstood, Spelling, spellings_of, tokens_of
from still_ray.verifiers.math.values import NotReal, Reading, Undecided
from still_ray.wordlists import words

_DOLLAR: Final = re.compile(r"(?<!\\)\$")
_DIGITS: Final = 30
_MOST_RELATIVE_DIFFERENCE: Final = 1e-20
_NOT_UNDERSTOOD: Final = "not understood as mathematics"
_PRIME: Final = re.compile(r"['\u2032]|\\prime(?![A-Za-z])")


def judge_math(answer: str, reference: str) -> Judgement:
    """Compares an answer with its reference, both LaTeX or plain text.

    Raises:
        Exception: Whatever math-verify or sympy raises; nothing limits time or memory here.
    """
    found = _by_reading(answer, reference)
    if found is None:
        return _by_math_verify(answer, reference)
    unread = "" if found else _foreign_words(answer, reference)
    if unread:
        return Judgement(verdict=Verdict.UNPARSABLE, extracted=answer, detail=f"not read: {unread}")
    verdict = Verdict.CORRECT if found else Verdict.INCORRECT
    return Judgement(verdict=verdict, extracted=answer, detail="the same" if found else "not the same")


def _by_reading(answer: str, reference: str) -> bool | None:
    """Our own comparison; None if a side is not understood, or cannot be evaluated."""
    undecided = False
    if _same_letters(answer, reference) or _same_date(answer, reference):
        return True
    for gold, ours in _readings(answer, reference):
        if gold is None or ours is None:
            undecided = True
            continue
        for reading in _conventions(gold, ours):
            try:
                if same(gold, ours, reading):
                    return True
            except (Undecided, NotReal, RecursionError):
                undecided = True
    return None if undecided else False


def _foreign_words(answer: str, reference: str) -> str:
    """Words of one side, not of the other, that are not read; "" if there are none."""
    told = [_told(tree) if (tree := _trees(text)[0]) is not None else [] for text in (answer, reference)]
    return next((text for one, other in (told, told[::-1]) for text in one if text not in other), "")


def _told(node: Node) -> list[str]:
    return [part.value for part in node.walk() if part.head in ("phrase", "quantity") and not part.value.isascii()]


def _same_letters(answer: str, reference: str) -> bool:
    r"""Whether both are the same letters where one says that they are words: ``ABC`` and ``\text{ABC}``."""
    sides = _signs(answer), _signs(reference)
    if not all(kind in ("word", "name") for side in sides for kind, _ in side):
        return False
    worded = any(side and all(kind == "word" for kind, _ in side) for side in sides)
    texts = ["".join(text for _, text in side).casefold() for side in sides]
    return worded and texts[0] == texts[1]


_MONTHS: Final = words("january february march april may june july august september october november december")
_IDLE: Final = words(", of the st nd rd th on")


def _same_date(answer: str, reference: str) -> bool:
    """``June 20`` and ``20 June``."""
    sides = [sorted(text for _, text in _signs(side) if text not in _IDLE) for side in (answer, reference)]
    return bool(_MONTHS & set(sides[0])) and sides[0] == sides[1]


def _readings(answer: str, reference: str) -> Iterator[tuple[Node | None, Node | None]]:
    r"""Pairs of trees to compare: the reference as its own form says, the answer in every way that it can be read.

    The reference is read in another way only where an answer that can be read in one way alone shows which is meant:
    ``1,234`` is a list beside ``\{1, 234\}``, ``2e-7`` has Euler's number in it beside ``2e - 7``.
    """
    (meant, *others), ways = _trees(reference), _trees(answer)
    yield from ((meant, ours) for ours in ways)
    if others and len(ways) == 1 and ways[0] is not None and (ways[0].head in ("list", "set") or _euler(ways[0])):
        yield from ((gold, ways[0]) for gold in others)


def _euler(node: Node) -> bool:
    return any(part.head == "constant" and part.value == "e" for part in node.walk())


@lru_cache(maxsize=512)
def _trees(text: str) -> tuple[Node | None, ...]:
    """What a text can mean, the likely meaning first; None for a way in which it cannot be read."""
    plain = canonical(text)
    return tuple(dict.fromkeys(_tree(plain, spelling) for spelling in spellings_of(plain)))


def _tree(plain: str, spelling: Spelling) -> Node | None:
    try:
        return read_canonical(plain, spelling)
    except (NotUnderstood, RecursionError):
        return None


def _conventions(gold: Node, ours: Node) -> Iterator[Reading]:
    yield Reading()
    for node in (gold, ours):
        if any(part.head == "call" and part.value == "log" and len(part.args) == 1 for part in node.walk()):
            yield Reading(log_base="10")
            break
    if gold.has("bracket") != ours.has("bracket"):
        yield Reading(floor_brackets=True)


def _by_math_verify(answer: str, reference: str) -> Judgement:
    """What our own reading does not reach: integrals, limits, and what is no mathematics at all."""
    if _signs(answer) == _signs(reference) != ():
        return Judgement(verdict=Verdict.CORRECT, extracted=answer, detail="the same signs")
    if bool(_PRIME.search(answer)) != bool(_PRIME.search(reference)):  # which math-verify does not see
        return Judgement(verdict=Verdict.INCORRECT, extracted=answer, detail="not the same signs")
    gold, ours = _parsed(reference), _parsed(answer)
    if gold is None and not _in_words(reference):
        return Judgement(verdict=Verdict.ERROR, extracted=answer, detail=f"the reference is {_NOT_UNDERSTOOD}")
    if (ours is None and not _in_words(answer)) or not canonical(answer).isascii():
        return Judgement(verdict=Verdict.UNPARSABLE, extracted=answer, detail=f"the answer is {_NOT_UNDERSTOOD}")
    kind = _difference(gold, ours, answer, reference)
    verdict = Verdict.INCORRECT if kind else Verdict.CORRECT
    return Judgement(verdict=verdict, extracted=answer, detail=kind or "math-verify: equal")


def _difference(gold: Any, ours: Any, answer: str, reference: str) -> str:
    """Why two texts that we cannot compare are not the same; "" if math-verify finds them equal, and may."""
    if gold is None or ours is None or _in_words(reference) or _in_words(answer):
        return "not the same words"
    if _beyond_math_verify(answer) or _beyond_math_verify(reference):
        return "not the same signs"
    return "" if _equal(gold, ours) else "math-verify: not equal"


def _signs(text: str) -> tuple[tuple[str, str], ...]:
    """All of a text's tokens but braces and punctuation at its end; () if it has too many, or none."""
    kept = [sign for sign in _all_signs(text) if sign[1] not in ("{", "}", "{text", "}text")]
    while kept and kept[-1] == ("sign", "."):
        kept.pop()
    return tuple(kept)


@lru_cache(maxsize=512)
def _all_signs(text: str) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((token.kind, token.text) for token in tokens_of(canonical(text)))
    except NotUnderstood:
        return ()


def _in_words(text: str) -> bool:
    return any(kind == "word" for kind, _ in _signs(text))


def _beyond_math_verify(text: str) -> bool:
    """Whether a text has a relation outside of brackets, a matrix, an index or E notation: these it half overlooks."""
    depth = 0
    before = ""
    for kind, sign in _all_signs(text):
        index = sign == "_" and before not in _WITH_LIMITS
        relation = depth == 0 and sign in _RELATION_SIGNS and kind in ("sign", "command")
        if kind == "begin" or index or relation or (kind == "number" and "e" in sign.lower()):
            return True
        depth += (sign in _OPENING) - (sign in _CLOSING)
        before = sign
    return False


_RELATION_SIGNS: Final = frozenset(RELATIONS) | words(
    "perp parallel Rightarrow Leftrightarrow leftarrow not ll gg supset"
)
_WITH_LIMITS: Final = words("int iint oint sum prod lim log max min sup inf limsup liminf")
_OPENING: Final = words(r"( [ { {text \{")
_CLOSING: Final = words(r") ] } }text \}")


def _parsed(text: str) -> Any:
    """A sympy object, or None.

    math-verify looks for mathematics in a text. One pair of delimiters, with none inside, makes it take the whole.
    """
    from math_verify import parse

    whole = " ".join(_DOLLAR.sub("", text).split())
    found = parse(f"${whole}$", extraction_config=_extraction(), parsing_timeout=None, raise_on_error=True)
    return next((value for value in found if not isinstance(value, str)), None)


@cache
def _extraction() -> list[Any]:
    from math_verify import LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # or it warns that the time limit is left to us
    return [LatexExtractionConfig()]


def _equal(gold: Any, ours: Any) -> bool:
    from math_verify import verify

    numbers = _is_plain_number(gold) and _is_plain_number(ours)
    if numbers:
        gold, ours = gold.doit(), ours.doit()
        if gold.is_Rational and ours.is_Rational:
            return bool(gold == ours)
    if not verify(gold, ours, timeout_seconds=None, raise_on_error=True):
        return False
    return not (numbers and _far_apart(gold, ours))


def _is_plain_number(value: Any) -> bool:
    """Whether it is a number without a percent sign, which math-verify lets stand for nothing (9% for 9)."""
    from sympy import Expr, UnevaluatedExpr

    return isinstance(value, Expr) and not value.free_symbols and not value.has(UnevaluatedExpr)


def _far_apart(gold: Any, ours: Any) -> bool:
    """Whether two numbers differ by too much for their size: math-verify's tolerance is absolute, so 1e-9 is 1e-8."""
    ours, gold = ours.evalf(_DIGITS), gold.evalf(_DIGITS)
    if not (gold.is_Number and ours.is_Number and gold.is_finite and ours.is_finite):
        return False
    return bool(abs(gold - ours) > _MOST_RELATIVE_DIFFERENCE * max(abs(gold), abs(ours)))
