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
        written: A word with its capital letters, which tell units apart.
    """

    kind: str
    text: str
    loose: bool = False
    written: str = ""


class Spelling(NamedTuple):
    """How to take what can be read in two ways.

    Attributes:
        grouped: ``1,234`` outside of brackets is one number, not two.
        scientific: ``2e-7`` is two ten-millionths, not seven less than twice Euler's number.
    """

    grouped: bool = True
    scientific: bool = True


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
_UNIT_LETTERS: Final = frozenset("mgsLlhNJWVKAFtCTH")
_BARE_UNITS: Final = words("Hz kHz MHz GHz eV keV MeV GeV kPa MPa kJ kW kWh kV mL")
"""Units that no product of symbols looks like: words right after a number."""

_MATH_PIECE: Final = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<recurring>(?:\d+)?\.\d*\\overline\s*\{\d+\}|(?:\d+)?\.\d*\\dot\s*\{\d\})"
    r"|(?P<scientific>(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+(?![\w.^]))"
    r"|(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"|\\(?P<edge>begin|end)\s*\{(?P<name>[A-Za-z]+\*?)\}(?:\s*\{[clr|. ]*\})?"
    r"|\\(?P<command>[A-Za-z]+)\*?|(?P<break>\\\\)|\\(?P<escaped>.)|(?P<foreign>[A-Za-z]*[\u00c0-\u024f][A-Za-z\u00c0-\u024f]*|[^\W\d_A-Za-z]+)"
    r"|(?P<letters>[A-Za-z]+)|(?P<sign>.)",
    re.DOTALL,
)
_DOMAIN: Final = re.compile(r"\s*\{?\s*([A-Z])\s*\}?")
_TWO_WAYS: Final = re.compile(r"(?:[2-9]|\d{2,})e[-+]\d")
"""What may be E notation, or a multiple of Euler's number and something added: with other digits it is the former."""

_LARGEST_EXPONENT: Final = 9_999
_GROUPED: Final = re.compile(r"\d,\d{3}(?!\d)")
_BRACKETS: Final = re.compile(r"\\[{}]|\\[lr]angle(?![A-Za-z])|[()\[\],]")
_COLOURED: Final = re.compile(r"\\(?:color|textcolor)\s*\{[^{}]*\}")


def spellings_of(text: str) -> list[Spelling]:
    r"""The ways in which a cleaned text can be read, the likely one first.

    Among signs that only LaTeX has, as in ``\frac{2e-1}{3}``, e is Euler's number.
    """
    plain = "^" not in text and "\\" not in text
    found = [Spelling(scientific=plain or _TWO_WAYS.search(text) is None)]
    if _TWO_WAYS.search(text):
        found.append(Spelling(scientific=not plain))
    if _GROUPED.search(text):
        found += [Spelling(grouped=False, scientific=way.scientific) for way in found]
    return found


def _separators(text: str) -> frozenset[int]:
    """Places of commas that part things for certain: in brackets, where no comma has space behind it."""
    if not _GROUPED.search(text):
        return frozenset()
    found: set[int] = set()
    levels: list[list[int]] = [[]]
    for match in _BRACKETS.finditer(text):
        if match[0] == ",":
            levels[-1].append(match.start())
        elif match[0] in _OPENING or (match[0] == "]" and len(levels) == 1):
            levels.append([])
        elif len(levels) > 1:
            found.update(_unspaced(text, levels.pop()))
    for level in levels[1:]:
        found.update(_unspaced(text, level))
    return frozenset(found)


_OPENING: Final = ("(", "[", "\\{", "\\langle")


def _unspaced(text: str, commas: list[int]) -> list[int]:
    return [] if any(text[at + 1 : at + 2].isspace() for at in commas) else commas


def tokens_of(text: str, spelling: Spelling | None = None) -> list[Token]:
    """The tokens of a cleaned text.

    Args:
        text: What `canonical` returns.
        spelling: How to take what can be read in two ways; the likely way if not given.

    Raises:
        NotUnderstood: There are too many, or a sign that no mathematics has.
    """
    found: list[Token] = []
    for token in _TokenReader(_COLOURED.sub("", text), spelling or spellings_of(text)[0]).tokens():
        found.append(token)
        if len(found) > MAX_TOKENS:
            raise NotUnderstood("too long")
    return found


class _TokenReader:
    """Walks through a text once; braces remember whether they are text, a font's, or plain."""

    def __init__(self, text: str, spelling: Spelling) -> None:
        self._text = text
        self._prose = _PROSE.search(text) is not None
        self._spelling = spelling
        self._separators = _separators(text)
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
        elif match["scientific"]:
            yield from self._scientific(match)
        elif match["number"]:
            yield from self._number(match["number"], match.start())
        elif match["edge"]:
            yield self._token(match["edge"], match["name"].rstrip("*"))
        elif match["command"]:
            yield from self._command(match["command"])
        elif match["break"]:
            yield self._token("sign", "\\\\")
        elif match["escaped"]:
            yield from self._escaped(match["escaped"])
        elif match["foreign"]:
            yield self._token("word", match["foreign"].casefold())
        elif match["letters"]:
            yield from self._letters(match["letters"])
        else:
            yield from self._sign(match["sign"])

    def _token(self, kind: str, text: str, written: str = "") -> Token:
        loose, self._loose = self._loose, False
        if kind != "sign" or text not in ("{text", "}text"):
            self._last = text if kind == "sign" else kind
        return Token(kind, text, loose, written)

    def _number(self, text: str, start: int) -> Iterator[Token]:
        if "," in text and not (self._spelling.grouped and self._is_group(text, start)):
            for index, part in enumerate(text.split(",")):
                if index:
                    yield self._token("sign", ",")
                yield self._token("number", part)
        else:
            yield self._token("number", text.replace(",", ""))

    def _is_group(self, text: str, start: int) -> bool:
        """Whether commas between digits can group thousands here: all of ``1,234,567``, none of ``1,2,345``."""
        inside = start + text.index(",") in self._separators
        before, after = self._text[max(0, start - 2) : start], self._text[self._at : self._at + 2]
        longer = (before[-1:] == "," and before[:1].isdigit()) or (after[:1] == "," and after[1:].isdigit())
        return not inside and not longer and not text.startswith("0")

    def _scientific(self, match: re.Match[str]) -> Iterator[Token]:
        text = match["scientific"]
        if not self._spelling.scientific and _TWO_WAYS.fullmatch(text):
            self._at = match.start() + text.index("e")
            yield self._token("number", text[: text.index("e")])
        elif abs(int(re.split("[eE]", text)[1])) > _LARGEST_EXPONENT:
            raise NotUnderstood("too large an exponent")
        else:
            yield self._token("number", text)

    def _command(self, name: str) -> Iterator[Token]:
        if name in TEXT_COMMANDS or name in FONT_COMMANDS or name in _TRANSPARENT:
            yield from self._styled(name)
        elif name in ("mathbb", "Bbb", "mathds"):
            yield self._token("domain", self._domain())
        elif name == "dollar" or (
            name == "Omega" and self._last == "number" and not self._text[self._at :].strip(" }.")
        ):
            yield self._token("word", name)
        elif name in _GREEK:
            yield self._token("name", name)
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
        elif sign == "@" or not sign.isascii():
            raise NotUnderstood(f"unknown sign {sign!r}")
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
            yield self._token("word" if unit or (run == "a" and self._is_article()) else "name", run, run)
        elif self._is_word(run):
            yield self._token("word", run.casefold(), run)
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
        if self._last == "number" and run in _BARE_UNITS:
            return True
        if (lower in _SHORT_WORDS and not run.isupper()) or (self._prose and lower in _PROSE_WORDS):
            return True
        return len(run) > 3 and list(run) != sorted(run)  # noqa: PLR2004
