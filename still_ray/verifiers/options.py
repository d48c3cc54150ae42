"""The options of a multiple-choice question, as questions list them."""

import re
from typing import Final

MAX_QUESTION_CHARS: Final = 20_000
"""No options are looked for in a longer question."""

_DRESS: Final = r"[*_$]*(?:\\(?:text|textbf|mathrm|mathbf|textrm|bf)\s*\{\s*)?"
_MARKS: Final = re.compile(
    rf"(?:(?<=\s)|^|(?<=[}}$.,;:?])|(?<=quad)){_DRESS}\(\s*(?P<round>[A-Z])\s*\)\}}?[*_$]*[.:]?"
    rf"|(?:(?<=\s)|^|(?<=quad)){_DRESS}(?P<half>[A-Z])\s*\)\}}?[*_$]*"
    rf"|(?:^[ \t]*|(?<=[ \t][ \t])|(?<=;\s)|(?<=quad)){_DRESS}(?P<bare>[A-Z])[*_$]*[.:](?=[\s}}*]|\\)\}}?[*_$]*",
    re.MULTILINE,
)
_TRAILING: Final = re.compile(r"(?:\\q?quad|\\hspace\{[^{}]*\}|\\\\|\\ |[\s~${*,;])+$")
_FEWEST: Final = 2


def options_of(question: str) -> dict[str, str]:
    r"""The text of each option by its letter: from ``(A) 12 (B) 15``, ``A. red`` on lines, ``\textbf{(A)}\ 3 \qquad``.

    Options are taken only where their letters run A, B, C, ... ; a question without them gives none. Of several such
    runs the last counts.
    """
    if len(question) > MAX_QUESTION_CHARS:
        return {}
    for group in ("round", "half", "bare"):
        marks = [match for match in _MARKS.finditer(question) if match[group]]
        found = _last_run(marks, group)
        if len(found) >= _FEWEST:
            ends = [match.start() for match in found[1:]] + [len(question)]
            texts = [question[match.end() : end].strip() for match, end in zip(found, ends, strict=True)]
            texts[-1] = texts[-1].split("\n", 1)[0]
            return {match[group]: _TRAILING.sub("", text) for match, text in zip(found, texts, strict=True)}
    return {}


def _last_run(marks: list[re.Match[str]], group: str) -> list[re.Match[str]]:
    """The last marks that read A, B, C, ..."""
    run: list[re.Match[str]] = []
    best: list[re.Match[str]] = []
    for mark in marks:
        if mark[group] == "A":
            run = [mark]
        elif run and ord(mark[group]) == ord(run[-1][group]) + 1:
            run.append(mark)
        if len(run) >= _FEWEST:
            best = run
    return best
