"""Mixed languages, told by the scripts of the letters."""

import re
import unicodedata
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from still_ray.config.prepare import LanguageConfig
from still_ray.prepare.filters.row import Drop, RowTexts

NAME: Final = "language"

SCRIPTS: Final = (
    "LATIN",
    "CJK",
    "HANGUL",
    "CYRILLIC",
    "ARABIC",
    "HEBREW",
    "DEVANAGARI",
    "BENGALI",
    "TAMIL",
    "TELUGU",
    "THAI",
    "GEORGIAN",
    "ARMENIAN",
    "ETHIOPIC",
)
_MATHEMATICS: Final = re.compile(r"\\[A-Za-z]+|(?<![A-Za-z])[A-Za-z]{1,3}(?![A-Za-z])")
_FENCED: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SAME: Final = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK"}  # one text mixes all three
_ASTRAL_CJK: Final = (0x20000, 0x3FFFF)
_BMP: Final = 0x10000


def check_language(texts: RowTexts, limits: LanguageConfig) -> Drop | None:
    """Drops a response with too many letters of another script than its main one; a question stands for itself."""
    text = f"{texts.thought}\n{texts.solution}" if texts.response_chars else texts.question
    if text.isascii():
        return None
    counts = script_counts(_FENCED.sub(" ", text))  # programs are English in every language
    main = max(counts, key=lambda name: counts[name], default="")
    total = sum(counts.values())
    latin = counts.get("LATIN", 0) if main != "LATIN" else 0
    foreign = total - counts.get(main, 0) - latin
    for number, share in ((foreign, limits.max_foreign_share), (latin, limits.max_latin_share)):
        if number >= limits.min_foreign_letters and number > share * total:
            others = ", ".join(name.lower() for name in counts if name != main)
            return Drop(NAME, "mixed_scripts", f"{number / total:.1%} of the letters are foreign: {others}, not {main}")
    return None


def script_counts(text: str) -> dict[str, int]:
    """Letters of each script.

    Not counted is what is mathematics in every language: digits, signs, Greek, LaTeX commands, Latin names of up to
    three letters.
    """
    text = _MATHEMATICS.sub("", text)
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    kinds = _scripts()[np.minimum(codes, _BMP)]
    kinds[(codes >= _ASTRAL_CJK[0]) & (codes <= _ASTRAL_CJK[1])] = SCRIPTS.index("CJK") + 1
    counts = np.bincount(kinds, minlength=len(SCRIPTS) + 1)[1:]
    return {name: int(count) for name, count in zip(SCRIPTS, counts, strict=True) if count}


@cache
def _scripts() -> NDArray[np.uint8]:
    """For each character of the Basic Multilingual Plane, 1 + the index of its script; 0: none."""
    table = np.zeros(_BMP + 1, np.uint8)
    for code in range(_BMP):
        character = chr(code)
        if character.isalpha():
            first = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
            name = _SAME.get(first, first)
            if name in SCRIPTS and unicodedata.decomposition(character)[:6] != "<font>":
                table[code] = SCRIPTS.index(name) + 1
    return table
