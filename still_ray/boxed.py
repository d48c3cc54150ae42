"""Finding the answer that a text states, in a LaTeX box or at its end: readers need it for references."""

import re
from collections.abc import Iterator
from typing import Final

_BARE: Final = r"[-+]?[\d.][^\s{}$\\]*|[A-Za-z](?![A-Za-z0-9])"
_PIECES: Final = re.compile(
    rf"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(?P<open>\{{)|(?P<bare>{_BARE}))?|\\.|[{{}}]", re.DOTALL
)
_NOT_BLANK: Final = re.compile(r"\S")
_MARK: Final = "####"
"""GSM8K writes a worked solution, and what is the answer after this sign on the last line."""
_COUNTED: Final = re.compile(r"([-+]?[$\u20ac\u00a3]?[ ]?\d[\d.,/ ]*?)[ ]+([A-Za-z][A-Za-z ]*[A-Za-z])")
_STATED: Final = re.compile(
    r"\bthe (?:final |correct |right )?answer is\**(:?)|(?:^|\n)[*#> \t]*(?:final )?answer[* \t]*(:|\n)", re.IGNORECASE
)
"""MetaMath ends its solutions in "The answer is: X", others in "Answer: X", or in a heading and X."""
_HOPE: Final = re.compile(r"\.?\s*I hope it is correct\.?\Z")
"""How the four examples of Minerva (arXiv 2206.14858) end, which base models are prompted with."""
_STATED_CHARS: Final = 400
"""Characters at the end of a text in which its answer is stated in words."""
_STATED_WORDS: Final = 6
"""Most words of an answer that no colon announces: "the answer is clear from what was said before" states none."""
_CALCULATED: Final = re.compile(r"<<[^<>\n=]*=[^<>\n]*>>")
_PROSE: Final = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_BOLD: Final = re.compile(r"(?<!\w)\*\*([^*\n]+)\*\*(?!\w)")
_DISPLAYED: Final = (("\\[", "\\]"), ("$$", "$$"))
_BEGINS: Final = re.compile(
    r"[-+\u2212\u00b1]? ?(?:[\d.$\u20ac\u00a3\\({\[|\u221a\u221e\u03c0]|(?:sin|cos|tan|log|ln|sqrt|pi)(?![A-Za-z])"
    r"|[A-Za-z](?! ?[A-Za-z])|[A-Za-z]{2,3} ?[-=+*/^<>(])"
)
"""How a number or a formula begins, and a sentence does not."""
_LATEX: Final = re.compile(
    r"\\(?:text\w*|mathrm|mbox|operatorname|begin|end) ?\{[^{}]*\}|\\[A-Za-z]+|\$(?! )[^$]*(?<! )\$(?!\d)"
)
_READ_WORDS: Final = r"(?:and|or|sin|cos|tan|log|ln|exp|sqrt|pi|mod|gcd|lcm|min|max)(?![A-Za-z])"
_WORD: Final = re.compile(rf"(?<![^\s(\[,;:\"'*])(?!{_READ_WORDS})[A-Za-z]{{2,}}(?![A-Za-z]| ?[=+*/^_<>]|[-(])")
"""A word that stands by itself; one beside an operator is a product of letters."""
_FURTHER: Final = re.compile(
    rf"[.!?]\s|[,;:\u2013\u2014-] +(?!{_READ_WORDS})[A-Za-z]{{2,}}"
    rf"| [(\[][^()\[\]]*{_WORD.pattern}|(?<![A-Za-z\\])[aI] +[A-Za-z]{{2}}"
    r"|(?<![A-Za-z\\])(?:is|are|was|were|not|because|since|if|when)(?![A-Za-z])"
)
"""Where a text goes on behind its formula: another sentence, a remark."""
_SEVERAL: Final = re.compile(r"\n|[\d)]\s+\d")
"""Several lines, numbers beside each other, or one behind its item's sign: no one formula."""
_UNIT: Final = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)?")
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

    What is found states nothing further: it is read again as itself. Where a text holds a box, only mathematics stated
    behind it takes its place: what follows is often a remark on the answer. Takes time linear in the text.
    """
    marked = _marked(text)
    stated = marked or _stated(text)
    if not stated:
        return _innermost(text)
    answer = final_answer(stated) or stated
    if not is_formula(answer) and last_boxed(text) is not None:
        return _innermost(text)
    return with_unit(answer) if marked else answer


def is_formula(text: str) -> bool:
    """Whether a text is a number or a formula, perhaps with a unit of one or two words, and says nothing further."""
    if len(text) > _STATED_CHARS or not _BEGINS.match(text):
        return False
    bare = _LATEX.sub("\\\\", text)
    word = _WORD.search(bare)
    return not _FURTHER.search(bare) and (word is None or _UNIT.fullmatch(bare, word.start()) is not None)


def is_bare_formula(text: str) -> bool:
    """Whether a text is one number or formula that holds a digit and no word: nothing has to announce it."""
    if not is_formula(text) or text.startswith("\\text") or _SEVERAL.search(text):
        return False
    return any(sign.isdigit() for sign in text) and not _WORD.search(_LATEX.sub("", text))


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
    opened = (piece for piece in _PIECES.finditer(text) if piece[0].startswith(("\\boxed", "\\fbox")))
    return "\n" not in text.strip() and sum(1 for _ in opened) > 1


def is_worked(text: str) -> bool:
    """Whether a text is a worked solution and no answer: with calculations as in GSM8K, or prose of several lines."""
    return _CALCULATED.search(text) is not None or (
        "\n" in text.strip() and sum(1 for _ in _PROSE.finditer(text)) >= _MIN_PROSE_WORDS
    )


def _marked(text: str) -> str | None:
    """What the last line says behind its sign."""
    line = text.rstrip().rpartition("\n")[2].lstrip()
    return _undressed(line.lstrip("# \t")) or None if line.startswith(_MARK) else None


def _stated(text: str) -> str | None:
    tail = text.rstrip()[-_STATED_CHARS:]
    stated = next((match for match in reversed(list(_STATED.finditer(tail)))), None)
    answer = _on_one_line(_HOPE.sub("", tail[stated.end() :].strip())) if stated else ""
    if stated is None or not answer or "\n" in answer or answer.count("{") != answer.count("}"):
        return None
    announced = stated[1] or stated[2] or len(answer.split()) <= _STATED_WORDS
    return _undressed(answer) or None if announced else None


def _on_one_line(answer: str) -> str:
    """An answer behind the stars that end its heading; one displayed formula without its line breaks."""
    bare = answer.lstrip("*").lstrip() if answer.count("**") % 2 else answer
    formula = bare.removesuffix(".").rstrip()
    displayed = any(
        formula.startswith(opening) and formula.endswith(closing) and formula.find(closing, 2) == len(formula) - 2
        for opening, closing in _DISPLAYED
    )
    return " ".join(formula.split()) if displayed else bare


def _undressed(answer: str) -> str:
    """An answer without the full stop and the stars around it, or around parts of it."""
    bare = _BOLD.sub(r"\1", answer).strip().strip("*").strip()
    return bare.removesuffix(".").strip().strip("*").strip() if len(bare) > 1 else bare


def with_unit(answer: str) -> str:
    r"""A number or formula with words behind it as ``18 \text{ eggs}``, which says what is a number and what is not."""
    if len(answer) > _MAX_COUNTED_CHARS or _FURTHER.search(answer):
        return answer
    counted = _COUNTED.fullmatch(answer)
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
