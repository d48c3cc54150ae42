"""Comparing answers that are words: the same text, or the same number."""

import re
from typing import Final

from still_ray.types import Judgement, Verdict
from still_ray.verifiers.plain import normalized, same_number

_TEXT: Final = re.compile(r"\\(?:text|mathrm|mathbf|textbf)(?![A-Za-z])")


def judge_exact(answer: str, reference: str) -> Judgement:
    """Compares without regard to case, spacing, LaTeX text commands and surrounding punctuation."""
    ours, theirs = _key(answer), _key(reference)
    if ours == theirs:
        return Judgement(verdict=Verdict.CORRECT, extracted=answer, detail="the same text")
    if same_number(ours, theirs):
        return Judgement(verdict=Verdict.CORRECT, extracted=answer, detail="the same number")
    return Judgement(verdict=Verdict.INCORRECT, extracted=answer, detail="not the same text")


def _key(text: str) -> str:
    return _TEXT.sub("", normalized(text)).strip(" \t.,;:!?\"'{}*").casefold()
