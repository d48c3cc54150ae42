r"""Cleaning LaTeX and Unicode mathematics: other ways to write the same signs become one. Linear time.

No meaning is lost but "for all x" before "or", which the question takes for granted. What stays: commands that mean
something, braces, ``\text{...}`` (words are told from symbols by the tokens' reader).
"""

import re
import unicodedata
from typing import Final

from still_ray.verifiers.math.wordlists import listed

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

_NOISE: Final = re.compile(
    r"(?P<newline>\\\\)(?:\[[-\d.a-z ]{0,12}\])?"
    r"|(?P<join>(?:\{,\}|,\\!|(?<=\d)\\,(?=\d{3}(?!\d))|(?<=\d)\{\\,\}(?=\d{3}))\s*)"
    r"|\\!|(?P<space>\\[,;:> ~]|(?<!\\)~|\\q?quad(?![A-Za-z])"
    r"|\\(?:hspace|vspace|phantom|hphantom|vphantom)\*?\{[^{}]*\})"
    r"|\\(?:left|right|m?middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*(?P<invisible>\.)?"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|strut|hfill|nonumber|bf|rm|it|sf|tt|cal"
    r"|normalfont|mathopen|mathclose|mathbin|mathrel|protect|ensuremath|large|Large|LARGE|huge|Huge|small)(?![A-Za-z])"
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


def canonical(text: str) -> str:
    r"""The text without delimiters, spacing, sizes and fonts, each sign written one way.

    ``\left( \dfrac12 \right)`` becomes ``( \frac12 )``, a digit group's ``{,}`` or ``,\!`` vanishes, ``√5`` becomes
    ``\sqrt{5}``, ``\leqslant`` becomes ``\le``.
    """
    if not text.isascii():
        text = _without_unicode(text)
    text = _EVERYWHERE.sub(" ", text.replace("{:}", ":"))
    text = _NOISE.sub(_quiet, text)
    text = _COMBINATIONS.sub(_binomial, _COMMAND.sub(_renamed, text))
    text = _HALF_DAY.sub(lambda match: f"{match[1].lower()}m", _BARE_BARS.sub("|", text))
    return _WORDS_JOINED.sub("", " ".join(text.split()))


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
