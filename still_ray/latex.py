r"""Cleaning LaTeX and Unicode mathematics: other ways to write the same signs become one. Linear time.

No meaning is lost but "for all x" before "or", which the question takes for granted. What stays: commands that mean
something, braces, ``\text{...}`` (words are told from symbols by the tokens' reader).
"""

import re
import unicodedata
from typing import Final

from still_ray.languages import in_english
from still_ray.wordlists import listed, words

_SIGNS: Final = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2010": "-", "\u2011": "-", "\u00d7": r"\times ",
    "\u22c5": r"\cdot ",
    "\u00b7": r"\cdot ", "\u2219": r"\cdot ", "\u2217": "*", "\u00f7": r"\div ", "\u2215": "/", "\u2044": "/",
    "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2a7d": r"\le ", "\u2a7e": r"\ge ",
    "\u2260": r"\ne ", "\u2248": r"\approx ", "\u2261": r"\equiv ", "\u222a": r"\cup ", "\u2229": r"\cap ",
    "\u2208": r"\in ", "\u2209": r"\notin ", "\u2205": r"\emptyset ", "\u2216": r"\setminus ", "\u00b1": r"\pm ",
    "\u2213": r"\mp ", "\u00b0": r"^\circ ", "\u2032": "'", "\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"',
    "\u230a": r"\lfloor ", "\u230b": r"\rfloor ", "\u2308": r"\lceil ", "\u2309": r"\rceil ",
    "\u27e8": r"\langle ", "\u27e9": r"\rangle ", "\u2223": "|", "\u2102": r"\mathbb{C}", "\u2115": r"\mathbb{N}",
    "\u211a": r"\mathbb{Q}", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u20ac": r"\text{euro}",
    "\u00a3": r"\text{pounds}", "\u2026": r"\ldots ", "\u22ef": r"\cdots ", "\u2192": r"\to ", "\u2220": r"\angle ",
    "\u2200": r"\forall ", "\u2211": r"\sum ", "\u220f": r"\prod ", "\u00bd": r"\frac{1}{2}", "\u2153": r"\frac{1}{3}",
    "\u2154": r"\frac{2}{3}", "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u2155": r"\frac{1}{5}",
    "\u2156": r"\frac{2}{5}", "\u2157": r"\frac{3}{5}", "\u2158": r"\frac{4}{5}", "\u2159": r"\frac{1}{6}",
    "\u215a": r"\frac{5}{6}", "\u215b": r"\frac{1}{8}", "\u215c": r"\frac{3}{8}", "\u215d": r"\frac{5}{8}",
    "\u215e": r"\frac{7}{8}", "\u03d5": r"\phi ", "\u03b5": r"\epsilon ", "\u03c9": r"\omega ", "\u0399": "I",
    "\u2236": ":", "\u3001": ", ", "\u3002": ".", "\u00a5": r"\text{yen}", "\u20b9": r"\text{rupees}",
    "\u20bd": r"\text{rubles}", "\u20a9": r"\text{won}",
}  # fmt: skip
_GREEK: Final = listed(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigmaf sigma tau "
    "upsilon phi chi psi omega"
)
_SIGNS_OF: Final = str.maketrans(
    {chr(0x3B1 + index): rf"\{name} " for index, name in enumerate(_GREEK)}
    | {chr(0x391 + index): rf"\{name.capitalize()} " for index, name in enumerate(_GREEK)}
    | _SIGNS
)
_UNIVERSAL: Final = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f"
_RAISED: Final = str.maketrans(_UNIVERSAL, "0123456789-n")
_LOWERED: Final = str.maketrans("\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089\u2099", "0123456789n")
_POWERS: Final = re.compile(f"[{_UNIVERSAL}]+")
_INDICES: Final = re.compile("[\u2080-\u2089\u2099]+")
_ROOT: Final = re.compile(r"(\d?)\u221a\s*(?:(\d+(?:\.\d+)?)|([A-Za-z])|(?=[({\\]))")
_CUBE_ROOT: Final = re.compile(r"\u221b\s*(\d+|[A-Za-z])?")

TEXT_COMMANDS: Final = words("text mbox textbf textrm textit textnormal texttt textsf emph textsc hbox")
FONT_COMMANDS: Final = words(
    "mathrm operatorname mathbf mathit mathsf mathtt mathcal boldsymbol bm mathfrak mathscr pmb vec hat tilde"
)
KEPT_FONTS: Final = words("vec hat tilde mathcal mathfrak mathscr")
"""Fonts and accents that make another symbol of a letter."""
_SIZES: Final = listed(
    "left right middle mleft mright big bigl bigr bigm Big Bigl Bigr Bigm bigg biggl biggr biggm Bigg Biggl Biggr Biggm"
)
_STYLES: Final = listed(
    "displaystyle textstyle scriptstyle limits nolimits mathstrut strut hfill nonumber bf rm it sf tt cal normalfont "
    "mathopen mathclose mathbin mathrel protect ensuremath large Large LARGE huge Huge small"
)
_NOISE: Final = re.compile(
    r"(?P<newline>\\\\)(?:\[[-\d.a-z ]{0,12}\])?"
    r"|(?P<point>(?<=\d)\{,\}(?=\d{1,2}(?!\d)|\d{4})|(?<![\d}]0)(?<=0)\{,\}(?=\d))"
    r"|(?P<join>(?:\{,\}|,\\!|(?<=\d)\\,(?=\d{3}(?!\d))|(?<=\d)\{\\,\}(?=\d{3}))\s*)"
    r"|\\!|(?P<space>\\[,;:> ~]|(?<!\\)~|\\q?quad(?![A-Za-z])"
    r"|\\(?:hspace|vspace|phantom|hphantom|vphantom)\*?\{[^{}]*\})"
    rf"|\\(?:{'|'.join(_SIZES)})(?![A-Za-z])\s*(?P<invisible>\.)?"
    rf"|\\(?:{'|'.join(_STYLES)})(?![A-Za-z])"
    r"|(?P<dollar>\\\$)|\\[()\[\]]|\$|\\(?:label|tag)\*?\{[^{}]*\}"
)
_RENAMED: Final = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac", "dbinom": "binom",
    "tbinom": "binom", "leq": "le", "leqslant": "le", "leqq": "le", "geq": "ge", "geqslant": "ge", "geqq": "ge",
    "neq": "ne", "lt": "<", "gt": ">", "ast": "*", "colon": ":", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
    "varnothing": "emptyset",
    "backslash": "setminus", "smallsetminus": "setminus", "degree": "^{circ}", "degrees": "^{circ}",
    "textdegree": "^{circ}",
    "percent": r"\%", "varphi": "phi", "vartheta": "theta", "varepsilon": "epsilon", "land": "wedge", "lor": "vee",
    "thinspace": " ", "enspace": " ", "space": " ", "reals": r"\mathbb{R}", "R": r"\mathbb{R}", "Z": r"\mathbb{Z}",
    "N": r"\mathbb{N}", "Q": r"\mathbb{Q}", "C": r"\mathbb{C}", "dots": "ldots", "dotsc": "ldots", "cdots": "ldots",
    "tg": "tan", "ctg": "cot", "cotg": "cot", "arctg": "arctan", "arccot": "arccot", "cosec": "csc", "sh": "sinh",
    "ch": "cosh", "lg": "lg", "iff": "Leftrightarrow", "implies": "Rightarrow", "prime": "'", "bullet": "cdot",
    "rightarrow": "to", "longrightarrow": "to", "uplus": "cup", "sqcup": "cup", "bigcup": "cup",
    "lbrac": r"\{", "lang": "langle", "rang": "rangle", "owns": "ni", "thicksim": "sim",
    "imath": "i", "infin": "infty", "Re": "Re", "degreeCelsius": "^{circ}",
}  # fmt: skip
_COMMAND: Final = re.compile(r"\\([A-Za-z]+)")
_SIGN_VALUES: Final = {"^{circ}": r"^{\circ}"}
_WORDS_JOINED: Final = re.compile(r"(?<=[A-Za-z]{3})-(?=[A-Za-z]{3})")
_HALF_DAY: Final = re.compile(r"\b([AaPp])\.\s?[Mm]\.?(?![A-Za-z])")
_SMALL: Final = r"(?:\{\s*(\w+)\s*\}|(\w))"
_COMBINATIONS: Final = re.compile(rf"(?<![A-Za-z\\])C_{_SMALL}\s*\^{_SMALL}")
_EVERYWHERE: Final = re.compile(
    r"\\text\s*\{\s*for (?:all|every|any)(?: real| integer)?(?: numbers?| values? of)?\s*\}\s*[a-z]"
    r"(?:\s*\\in\s*\\mathbb\s*\{?\s*[A-Z]\s*\}?)?(?=\s*(?:,\s*)?\\text\s*\{\s*(?:or|and)\b)"
)
_BARE_BARS: Final = re.compile(r"\\[|]")
_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Unicode's format characters (category Cf) and those that are ignorable by default."""
_BOLD: Final = re.compile(r"(?<![\w)\]}*])(\*\*|__)(?=[^\s*_])([^*]{0,300}?[^\s*_])\1(?![\w(\[{\\*])")
_EMPHASIS: Final = re.compile(r"\s*([*_`])([^*_`]+)\1\s*")
_SPACED_THOUSANDS: Final = re.compile(r"(?<![\w.,\\])(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?! ?[\d/])")


_GREEK_WORDS: Final = re.compile("([\u0370-\u03ff\u1f00-\u1fff]{3,})")
"""Words of a Greek text; one or two letters are symbols."""
_HIDDEN: Final = re.compile(r"\\(?:hspace|vspace|phantom|hphantom|vphantom|label|tag)\*?\s*\{[^{}]*\}")
_NAMED: Final = re.compile(
    r"\\(?:operatorname\*?|mathrm|text|textrm|mbox)\s*\{\s*"
    r"((?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|gcd|lcm|max|min|det|deg|lim)\s*\}"
)
_ENVIRONMENT: Final = re.compile(
    r"\\(?:begin|end)\s*\{(?:displaymath|math|equation|align|aligned|alignat|alignedat|flalign|gather|gathered|split"
    r"|multline|eqnarray|center)\*?\}"
)
_OVER_COMMANDS: Final = re.compile(r"\\(?:over|choose)(?![A-Za-z])")
_OVER: Final = re.compile(r"\{([^{}]*?)\\(over|choose)(?![A-Za-z])([^{}]*)\}")
_WRITTEN: Final = re.compile(r"\\(?:([A-Za-z]+)\*?|(.))", re.DOTALL)
_SPACES: Final = listed("quad qquad thinspace enspace space noindent par dollar ldots cdots dots dotsc dotsb dotsm")
_ESCAPED: Final = dict.fromkeys(",;:> ~\n\\()[]$&/-", " ") | {"!": "", "%": "%", "#": "#", "_": "_", "|": "|"}
_SAME: Final = dict.fromkeys((FONT_COMMANDS - KEPT_FONTS) | TEXT_COMMANDS | {*_SIZES, *_STYLES, "bold"}, "") | {
    **dict.fromkeys(_SPACES, " "),
    "times": "*", "cdot": "*", "ast": "*", "bullet": "*", "div": "/", "bmod": " mod ", "mod": " mod ",
    "bar": r"\overline ", "widehat": r"\hat ", "widetilde": r"\tilde ", "overrightarrow": r"\vec ",
    "Vert": "|", "lVert": "|", "rVert": "|",
}  # fmt: skip
_MODULUS: Final = re.compile(r"\\pmod\s*(\{[^{}]*\}|[^\W_])")
_SHORT_FRACTION: Final = re.compile(r"\\(frac|binom)\s*([^\W_])\s*([^\W_]?)")
_FRACTION: Final = re.compile(r"\\(frac|binom)\s*(\{[^{}]*\})\s*([^\W_])")
_ROOT_OF: Final = re.compile(r"\\sqrt\s*(\d)(?=\d)")
_DIGIT_SCRIPT: Final = re.compile(r"([\^_])\s*(?:\{\s*(\d)\s*\}\s*|(\d)\s+)(?=\d)")
r"""What stands after ``^2 18`` may as well be written ``^218`` or ``^{2}18``."""
_PRIMES: Final = re.compile(r"\^\s*\{?\s*('+)\s*\}?")
_QUOTED: Final = re.compile("``([^`']{0,300})''")
_GROUPING: Final = re.compile(r"[, ](?<=\d.)(?=\d{3}(?!\d))")
"""What parts thousands."""


def canonical(text: str) -> str:
    r"""The text without delimiters, spacing, sizes and fonts, each sign written one way.

    ``\left( \dfrac12 \right)`` becomes ``( \frac12 )``, a digit group's ``{,}`` or ``,\!`` vanishes (before one or
    two digits it is a decimal point), ``√5`` becomes ``\sqrt{5}``, ``\leqslant`` becomes ``\le``, ``10 000`` becomes
    ``10000``. What Unicode does not show, and Markdown's emphasis, vanish; other languages' words become English ones.
    """
    if not text.isascii():
        text = _without_unicode(_INVISIBLE.sub("", text))
    emphasized = _EMPHASIS.fullmatch(text)
    text = in_english(emphasized[2] if emphasized else _BOLD.sub(r"\2", text))
    text = _EVERYWHERE.sub(" ", text.replace("{:}", ":"))
    text = _NOISE.sub(_quiet, text)
    text = _COMBINATIONS.sub(_binomial, _COMMAND.sub(_renamed, text))
    text = _HALF_DAY.sub(lambda match: f"{match[1].lower()}m", _BARE_BARS.sub("|", text))
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), " ".join(text.split()))
    return _WORDS_JOINED.sub("", text)


def spelled_alike(text: str) -> str:
    r"""The text in one spelling of its formulas, to be cut into words where braces, spaces and dollar signs part them.

    ``\dfrac12``, ``{1 \over 2}`` and ``½`` read as ``\frac{1}{2}`` does, ``\cdot`` and ``\times`` as ``*``,
    ``10{,}000`` and ``10,000`` as ``10000``; sizes, fonts, styles and spaces are gone. It may say less than the text
    (``\ldots``), so it serves to find what is equal and not to be read.
    """
    if not text.isascii():
        parts = _GREEK_WORDS.split(_INVISIBLE.sub("", text))
        text = "".join(part if index % 2 else _without_unicode(part) for index, part in enumerate(parts))
    text = text.replace("$", " ").replace("~", " ")
    if "\\" in text:
        text = _NAMED.sub(r"\\\1 ", _ENVIRONMENT.sub(" ", _HIDDEN.sub(" ", text)))
        text = _OVER.sub(_fraction_of, text) if _OVER_COMMANDS.search(text) else text
        text = _WRITTEN.sub(_spelled, text)
        text = _FRACTION.sub(r"\\\1 \2 \3 ", _SHORT_FRACTION.sub(r"\\\1 \2 \3 ", text))
        text = _ROOT_OF.sub(r"\\sqrt \1 ", _MODULUS.sub(r"(mod \1)", text))
    text = text.replace("{,}", ",").replace("<=", r" \le ").replace(">=", r" \ge ")
    if "'" in text:
        text = _PRIMES.sub(r"\1", _QUOTED.sub(r"\1", text))
    return _GROUPING.sub("", _DIGIT_SCRIPT.sub(r"\1\2\3", text))


def _spelled(match: re.Match[str]) -> str:
    name, sign = match[1], match[2]
    if name is None:
        return _ESCAPED.get(sign, match[0])
    same = _SAME.get(name)
    return f"{_renamed(match)} " if same is None else same


def _fraction_of(match: re.Match[str]) -> str:
    name = "frac" if match[2] == "over" else "binom"
    return rf"\{name}{{{match[1]}}}{{{match[3]}}}"


def _binomial(match: re.Match[str]) -> str:
    """``C_8^3``, as combinations are written in many countries; ``C_1^2`` is a constant's square."""
    lower, upper = match[1] or match[2], match[3] or match[4]
    if lower.isdigit() and upper.isdigit() and int(lower) < int(upper):
        return match[0]
    return rf"\binom{{{lower}}}{{{upper}}}"


def _quiet(match: re.Match[str]) -> str:
    if match["newline"]:
        return r"\\ "
    if match["dollar"]:
        return r"\dollar "
    if match["point"]:
        return "."
    return "" if match["join"] else " "


def _renamed(match: re.Match[str]) -> str:
    new = _RENAMED.get(match[1])
    if new is None:
        return match[0]
    new = _SIGN_VALUES.get(new, new)
    return rf"\{new}" if new[0].isalpha() and new != "i" else f"{new} " if new != "i" else "i "


def _without_unicode(text: str) -> str:
    text = _POWERS.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    text = _INDICES.sub(lambda match: f"_{{{match[0].translate(_LOWERED)}}}", text)
    text = _ROOT.sub(
        lambda match: rf"{match[1]}\sqrt" + (f"{{{match[2] or match[3]}}}" if match[2] or match[3] else " "), text
    )
    text = _CUBE_ROOT.sub(lambda match: r"\sqrt[3]" + (f"{{{match[1]}}}" if match[1] else ""), text)
    text = text.translate(_SIGNS_OF)
    return text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_SIGNS_OF)
