"""Finding the answer that a text states, in a LaTeX box or at its end: readers need it for references."""

import re
from collections.abc import Iterator
from typing import Final

_BARE: Final = r"[-+]?[\d.][^\s{}$\\]*|[A-Za-z](?![A-Za-z0-9])"
_PIECES: Final = re.compile(
    rf"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(?P<open>\{{)|(?P<bare>{_BARE}))?|\\.|[{{}}]", re.DOTALL
)
_NOT_BLANK: Final = re.compile(r"\S")
_MARKED: Final = re.compile(r"(?:^|\n)[ \t]*####[# \t]*([^#\s][^\n]*)\s*\Z")
"""GSM8K writes a worked solution, and what is the answer after this sign on the last line."""
_COUNTED: Final = re.compile(r"([-+]?[$\u20ac\u00a3]?[ ]?\d[\d.,/ ]*?)[ ]+([A-Za-z][A-Za-z ]*[A-Za-z])")
_STATED: Final = re.compile(
    r"\bthe (?:final |correct |right )?answer is(:?)|(?:^|\n)[*#> \t]*(?:final )?answer(:)", re.IGNORECASE
)
"""MetaMath ends its solutions in "The answer is: X", others in "Answer: X"."""
_HOPE: Final = re.compile(r"\.?\s*I hope it is correct\.?\Z")
"""How the four examples of Minerva (arXiv 2206.14858) end, which base models are prompted with."""
_STATED_CHARS: Final = 400
"""Characters at the end of a text in which its answer is stated in words."""
_STATED_WORDS: Final = 6
"""Most words of an answer that no colon announces: "the answer is clear from what was said before" states none."""
_CALCULATED: Final = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")
_PROSE: Final = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_MAX_NESTED: Final = 8
_MAX_COUNTED_CHARS: Final = 80
_MIN_PROSE_WORDS: Final = 20
"""Words in several lines that are no answer to a mathematical problem. Source: ours; in MATH-OAI none has over 2."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced, non-empty ``\boxed{...}`` or ``\fbox{...}``, also of a bare ``\boxed 5``.

    Escaped braces do not nest, a box that is never closed does not count, and of nested boxes the outermost is meant.
    Takes time linear in the text, whatever it holds.

    Returns:
        The stripped content, or None when there is no such box.
    """
    last = None
    for start, end in _boxes(text):
        if _NOT_BLANK.search(text, start, end):
            last = start, end
    return None if last is None else text[slice(*last)].strip()


def final_answer(text: str) -> str | None:
    """The answer that a worked solution states: behind "####" on its last line, "the answer is: X" at its end, a box.

    What is found states nothing further: it is read again as itself. Takes time linear in the text.
    """
    marked = _MARKED.search(text)
    if marked:
        answer = _undressed(marked[1])
        return final_answer(answer) or _with_unit(answer)
    stated = _stated(text)
    return final_answer(stated) or stated if stated else _innermost(text)


def _innermost(text: str) -> str | None:
    """The last box; of nested ones what the inner one holds, and nothing of boxes that are nested without end."""
    boxed = last_boxed(text)
    for _ in range(_MAX_NESTED):
        inner = None if boxed is None else last_boxed(boxed)
        if inner is None:
            return boxed
        boxed = inner
    return None


def several_boxed(text: str) -> bool:
    """Whether a line holds several boxes, all of which may be its answer."""
    return "\n" not in text.strip() and sum(1 for piece in _PIECES.finditer(text) if piece[0][1:2] in ("b", "f")) > 1


def is_worked(text: str) -> bool:
    """Whether a text is a worked solution and no answer: with calculations as in GSM8K, or prose of several lines."""
    return _CALCULATED.search(text) is not None or (
        "\n" in text.strip() and sum(1 for _ in _PROSE.finditer(text)) >= _MIN_PROSE_WORDS
    )


def _stated(text: str) -> str | None:
    tail = text[-_STATED_CHARS:]
    stated = next((match for match in reversed(list(_STATED.finditer(tail)))), None)
    answer = _HOPE.sub("", tail[stated.end() :].strip()) if stated else ""
    if stated is None or not answer or "\n" in answer or answer.count("{") != answer.count("}"):
        return None
    announced = stated[1] or stated[2] or len(answer.split()) <= _STATED_WORDS
    return _undressed(answer) or None if announced else None


def _undressed(answer: str) -> str:
    """An answer without the full stop and the stars around it."""
    bare = answer.strip().strip("*").strip()
    return bare.removesuffix(".").strip().strip("*").strip() if len(bare) > 1 else bare


def _with_unit(answer: str) -> str:
    r"""A number with words behind it as ``18 \text{ eggs}``, which says what is number and what is not."""
    counted = _COUNTED.fullmatch(answer) if len(answer) <= _MAX_COUNTED_CHARS else None
    return rf"{counted[1]} \text{{ {counted[2]}}}" if counted else answer


def _boxes(text: str) -> Iterator[tuple[int, int]]:
    """Yields the extent of each box's content, in the order in which the boxes end."""
    open_braces: list[int | None] = []
    for piece in _PIECES.finditer(text):
        if piece["bare"]:
            yield piece.start("bare"), piece.start("bare") + len(piece["bare"].rstrip(".,;:"))
        elif piece["open"]:
            open_braces.append(piece.end())
        elif piece[0] == "{":
            open_braces.append(None)
        elif piece[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                yield start, piece.start()
