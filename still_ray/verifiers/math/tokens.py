r"""Cutting a cleaned mathematical text into tokens: numbers, symbols, commands, words and signs. Linear time.

A run of letters is a function (``sin``), a word (``east``, ``solutions``) or a product of symbols (``xy``): no rule
can always tell, so the choice is by list and by length, and is the same for an answer and its reference.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from still_ray.latex import FONT_COMMANDS, KEPT_FONTS, TEXT_COMMANDS
from still_ray.wordlists import words

MAX_TOKENS: Final = 2_000
"""A longer text is not read as an answer."""


class NotUnderstood(ValueError):  # noqa: N818 - it is a finding, not a failure
    """The text is no mathematics that the reader knows."""


class Token(NamedTuple):
    """One piece of a text.

    Attributes:
        kind: "number", "name" (a symbol), "word" (lower case), "command" (a function or LaTeX command), "sign",
            "begin" or "end" (of an environment).
        text: What it says, a command without its backslash.
        loose: Whether white space stands before it.
    """

    kind: str
    text: str
    loose: bool = False


FUNCTIONS: Final = words(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth arsinh arcosh artanh "
    "asin acos atan ln log lg exp gcd lcm max min det sgn floor ceil sqrt binom deg Re Im arg"
)
"""Names of functions with or without a backslash."""

_ALIASES: Final = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "infinity": "infty",
    "inf": "infty",
    "oo": "infty",
}
_GREEK: Final = words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi "
    "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell"
)
_SHORT_WORDS: Final = words(
    "all and any are but each even every few for from has lie lies its let mod nor non not odd one only per set "
    "such than that the then two when with yes cat dog red blue tan six ten off win hrs min sec mph or no if is "
    "cm mm km kg ft hr mi lb oz"
)
"""Runs of two or three letters that are words wherever they stand; a longer run is one by its length."""

_PROSE_WORDS: Final = words("an as at be by do does has in it iff of on so to up we am pm a dm in ad bc")
"""Short words that are symbols, too: words only among other words."""

_PROSE: Final = re.compile(
    r"(?<![\\A-Za-z])(?:[A-Za-z][a-z]{2,}\s+[a-z]{2,}|[a-z]{2,}\s+[a-z]{3,}|\d [ap]m)(?![A-Za-z])"
)
_TRANSPARENT: Final = words("boxed fbox underline displaylines underbrace overbrace mathop mathord smash")
_UNIT_LETTERS: Final = frozenset("mgsLlhNJWVKAFtC")
_MATH_PIECE: Final = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<recurring>(?:\d+)?\.\d*\\overline\s*\{\d+\}|(?:\d+)?\.\d*\\dot\s*\{\d\})"
    r"|(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"|\\(?P<edge>begin|end)\s*\{(?P<name>[A-Za-z]+\*?)\}(?:\s*\{[clr|. ]*\})?"
    r"|\\(?P<command>[A-Za-z]+)\*?|(?P<break>\\\\)|\\(?P<escaped>.)|(?P<letters>[A-Za-z]+)|(?P<sign>.)",
    re.DOTALL,
)
_DOMAIN: Final = re.compile(r"\s*\{?\s*([A-Z])\s*\}?")
_COLOURED: Final = re.compile(r"\\(?:color|textcolor)\s*\{[^{}]*\}")


def tokens_of(text: str, *, grouping: bool = True) -> list[Token]:
    """The tokens of a cleaned text.

    Args:
        text: What `canonical` returns.
        grouping: Whether ``1,234`` is one number.

    Raises:
        NotUnderstood: There are too many, or a sign that no mathematics has.
    """
    found: list[Token] = []
    for token in _Reader(_COLOURED.sub("", text), grouping).tokens():
        found.append(token)
        if len(found) > MAX_TOKENS:
            raise NotUnderstood("too long")
    return found


class _Reader:
    """Walks through a text once; braces remember whether they are text, a font's, or plain."""

    def __init__(self, text: str, grouping: bool) -> None:
        self._text = text
        self._prose = _PROSE.search(text) is not None
        self._grouping = grouping
        self._at = 0
        self._braces: list[str] = []
        self._last = ""
        self._loose = False

    def tokens(self) -> Iterator[Token]:
        """Yields every token."""
        while self._at < len(self._text):
            match = _MATH_PIECE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if match["space"]:
                self._loose = True
                continue
            yield from self._pieces(match)

    def _pieces(self, match: re.Match[str]) -> Iterator[Token]:
        if match["recurring"]:
            yield self._token("recurring", match[0])
        elif match["number"]:
            yield from self._number(match["number"])
        elif match["edge"]:
            yield self._token(match["edge"], match["name"].rstrip("*"))
        elif match["command"]:
            yield from self._command(match["command"])
        elif match["break"]:
            yield self._token("sign", "\\\\")
        elif match["escaped"]:
            yield from self._escaped(match["escaped"])
        elif match["letters"]:
            yield from self._letters(match["letters"])
        else:
            yield from self._sign(match["sign"])

    def _token(self, kind: str, text: str) -> Token:
        loose, self._loose = self._loose, False
        if kind != "sign" or text not in ("{text", "}text"):
            self._last = text if kind == "sign" else kind
        return Token(kind, text, loose)

    def _number(self, text: str) -> Iterator[Token]:
        if "," in text and not self._grouping:
            for index, part in enumerate(text.split(",")):
                if index:
                    yield self._token("sign", ",")
                yield self._token("number", part)
        else:
            yield self._token("number", text.replace(",", ""))

    def _command(self, name: str) -> Iterator[Token]:
        if name in TEXT_COMMANDS or name in FONT_COMMANDS or name in _TRANSPARENT:
            yield from self._styled(name)
        elif name in ("mathbb", "Bbb", "mathds"):
            yield self._token("domain", self._domain())
        elif name in _GREEK:
            yield self._token("name", name)
        elif name == "dollar":
            yield self._token("word", "dollar")
        else:
            yield self._token("command", _ALIASES.get(name, name))

    def _domain(self) -> str:
        match = _DOMAIN.match(self._text, self._at)
        if match is None:
            raise NotUnderstood("a blackboard letter is missing")
        self._at = match.end()
        return match[1]

    def _styled(self, name: str) -> Iterator[Token]:
        if name in KEPT_FONTS:
            yield self._token("command", name)
            return
        rest = self._text[self._at : self._at + 40].lstrip()
        if rest.startswith("{"):
            self._at = self._text.index("{", self._at) + 1
            kind = "text" if name in TEXT_COMMANDS else "font" if name in FONT_COMMANDS else "plain"
            after_amount = kind != "plain" and self._last in ("number", "name", "}", ")")
            self._braces.append("unit" if after_amount else kind)
            yield self._token("sign", "{" if kind == "plain" else "{text")

    def _escaped(self, sign: str) -> Iterator[Token]:
        if sign in "{}":
            yield self._token("sign", "\\" + sign)
        elif sign in "%":
            yield self._token("sign", "%")
        elif sign in "#&_":
            self._loose = True
        elif not sign.isspace():
            raise NotUnderstood(f"unknown command \\{sign}")

    def _sign(self, sign: str) -> Iterator[Token]:
        if sign == "{":
            self._braces.append(self._braces[-1] if self._in_text() else "plain")
            yield self._token("sign", "{text" if self._in_text() else "{")
        elif sign == "}":
            kind = self._braces.pop() if self._braces else "plain"
            yield self._token("sign", "}" if kind == "plain" else "}text")
            self._loose = self._loose or kind == "text"
        elif sign == "~" or sign in '"`':
            self._loose = True
        elif sign == "@" or (not sign.isascii() and not sign.isalpha()):
            raise NotUnderstood(f"unknown sign {sign!r}")
        elif not sign.isascii():
            yield self._token("word", sign.casefold())
        else:
            yield self._token("sign", sign)

    def _in_text(self) -> bool:
        return bool(self._braces) and self._braces[-1] in ("text", "unit")

    def _letters(self, run: str) -> Iterator[Token]:
        if run in FUNCTIONS:
            yield self._token("command", _ALIASES.get(run, run))
        elif run in _ALIASES or run.lower() in ("infinity", "infty"):
            yield self._token("command", "infty")
        elif run in _GREEK and len(run) > 1:
            yield self._token("name", run)
        elif len(run) == 1:
            unit = bool(self._braces) and self._braces[-1] == "unit" and run in _UNIT_LETTERS
            yield self._token("word" if unit or (run == "a" and self._is_article()) else "name", run)
        elif self._is_word(run):
            yield self._token("word", run.casefold())
        else:
            for letter in run:
                yield self._token("name", letter)

    def _is_article(self) -> bool:
        rest = self._text[self._at : self._at + 4]
        return rest[:1].isspace() and rest[1:].isalpha() and (self._prose or self._in_text())

    def _is_word(self, run: str) -> bool:
        if self._braces and self._braces[-1] in ("text", "font", "unit"):
            return True
        lower = run.casefold()
        if (lower in _SHORT_WORDS and not run.isupper()) or (self._prose and lower in _PROSE_WORDS):
            return True
        return len(run) > 3 and list(run) != sorted(run)  # noqa: PLR2004
