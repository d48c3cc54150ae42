"""Comparing answers that are words: the same text, or the same number."""

import re
import unicodedata
from typing import Final

from still_ray.types import Judgement, Verdict
from still_ray.verifiers.plain import normalized, same_number

_TEXT: Final = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|textit|textrm|mbox|emph|underline)(?![A-Za-z])|\\(?=[%$#&_ ])"
)
_QUOTES: Final = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"}
)
_EDGES: Final = " \t.,;:!?\"'{}*_`$"


def judge_exact(answer: str, reference: str) -> Judgement:
    """Compares without regard to case, spacing, LaTeX text commands and surrounding punctuation."""
    ours, theirs = _key(answer), _key(reference)
    if ours == theirs:
        return Judgement(verdict=Verdict.CORRECT, extracted=answer, detail="the same text")
    if same_number(ours, theirs):
        return Judgement(verdict=Verdict.CORRECT, extracted=answer, detail="the same number")
    return Judgement(verdict=Verdict.INCORRECT, extracted=answer, detail="not the same text")


def same_text(left: str, right: str) -> bool:
    """Whether two texts are the same for `judge_exact`."""
    ours, theirs = _key(left), _key(right)
    return ours == theirs or bool(same_number(ours, theirs))


def _key(text: str) -> str:
    plain = _TEXT.sub("", normalized(unicodedata.normalize("NFKC", text).translate(_QUOTES)))
    return " ".join(plain.strip(_EDGES).replace("{", "").replace("}", "").split()).casefold()
