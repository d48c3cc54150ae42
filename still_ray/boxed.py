"""Finding the answer that a text puts in a LaTeX box: readers need it for references, verifiers for answers."""

import re
from collections.abc import Iterator
from typing import Final

_BARE: Final = r"[-+]?[\d.][^\s{}$\\]*|[A-Za-z](?![A-Za-z0-9])"
_PIECES: Final = re.compile(
    rf"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(?P<open>\{{)|(?P<bare>{_BARE}))?|\\.|[{{}}]", re.DOTALL
)
_NOT_BLANK: Final = re.compile(r"\S")


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
