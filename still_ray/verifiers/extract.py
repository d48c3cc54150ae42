r"""Finding the answer in a solution: its last box, or what the domain accepts in its place. All in linear time."""

import re
from typing import Final

from still_ray.boxed import last_boxed
from still_ray.types import Domain

_LINE_TAIL: Final = 300
_MARKUP: Final = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textit|boldsymbol|bf|rm)(?![A-Za-z])|[\s{}$*_]")
_LETTER: Final = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:,].*)?", re.DOTALL)
_SAID: Final = re.compile(r"(?:answer|option|choice)(?: is)?:? ?[$*_(\[]*([A-Z])[)\]*_$]*\.?", re.IGNORECASE)


def extract_answer(solution: str, domain: Domain) -> str | None:
    """The answer of a solution, stripped; None when it gives none.

    Math wants a box. `choice` also takes a last line like "The answer is (C).", and `exact` any last line.
    """
    boxed = last_boxed(solution)
    if boxed is not None or domain in (Domain.MATH, Domain.CODE):
        return boxed
    lines = solution.strip().rsplit("\n", 1)
    last_line = lines[-1].strip()
    return (last_line or None) if domain is Domain.EXACT else _letter_said(last_line)


def _letter_said(line: str) -> str | None:
    """The letter with which a line ends, or of which it consists."""
    said = [match for match in _SAID.finditer(line[-_LINE_TAIL:]) if match.end() == len(line[-_LINE_TAIL:])]
    return said[-1][1] if said else letter_of(line)


def letter_of(text: str) -> str | None:
    r"""The upper-case letter of a choice such as ``C``, ``(c)``, ``\text{C}`` or ``\textbf{(C) }12``."""
    if len(text) > _LINE_TAIL:
        return None
    match = _LETTER.fullmatch(_MARKUP.sub("", text))
    return match[1].upper() if match else None
