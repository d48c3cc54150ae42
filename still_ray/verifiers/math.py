r"""Comparing mathematical answers with math-verify: may hang or exhaust the memory, so run it in a process to kill."""

import logging
import re
from functools import cache
from typing import Any, Final

from still_ray.types import Judgement, Verdict

_DOLLAR: Final = re.compile(r"(?<!\\)\$")
_DIGITS: Final = 30
_MOST_RELATIVE_DIFFERENCE: Final = 1e-4
_NOT_UNDERSTOOD: Final = "not understood as mathematics"


def judge_math(answer: str, reference: str) -> Judgement:
    """Compares an answer with its reference, both LaTeX without delimiters.

    Raises:
        Exception: Whatever math-verify or sympy raises; nothing limits time or memory here.
    """
    gold, ours = _parsed(reference), _parsed(answer)
    if gold is None:
        return Judgement(verdict=Verdict.ERROR, extracted=answer, detail=f"the reference is {_NOT_UNDERSTOOD}")
    if ours is None:
        return Judgement(verdict=Verdict.UNPARSABLE, extracted=answer, detail=f"the answer is {_NOT_UNDERSTOOD}")
    equal = _equal(gold, ours)
    verdict = Verdict.CORRECT if equal else Verdict.INCORRECT
    return Judgement(verdict=verdict, extracted=answer, detail="math-verify: " + ("equal" if equal else "not equal"))


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
