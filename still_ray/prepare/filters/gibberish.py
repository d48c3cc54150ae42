"""Gibberish: damaged encodings, one character over and over, endless runs without a space, key mashing."""

import math
import re
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from still_ray.config.prepare import GibberishConfig
from still_ray.prepare.filters.row import Drop, RowTexts

NAME: Final = "gibberish"

MIN_CHARS: Final = 200
"""Shorter texts say too little for an entropy."""
MIN_WORDS: Final = 20
"""Fewer words say too little for a share of odd ones."""
MIN_DAMAGED: Final = 3
"""So few damaged characters are a slip."""
MIN_WORD_CHARS: Final = 4
CONSONANTS_IN_A_ROW: Final = 6

_DAMAGED: Final = re.compile(
    "[\ufffd\ue000-\uf8ff\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]"  # replaced, private, control
    "|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2[\u0080\u20ac]."  # UTF-8 read as Latin-1 or Windows-1252
)
_OTHER, _VOWEL, _CONSONANT, _BACKSLASH = 0, 1, 2, 3


def check_gibberish(texts: RowTexts, limits: GibberishConfig) -> Drop | None:
    """The first rule that the texts break, all three as one."""
    text = f"{texts.question}\n{texts.thought}\n{texts.solution}"
    data = np.frombuffer(text.encode("utf-8", errors="surrogatepass"), np.uint8)
    damaged = _num_damaged(text, data)
    if damaged >= MIN_DAMAGED and damaged > limits.max_damaged_share * len(text):
        return Drop(NAME, "damaged", f"{damaged} damaged characters of {len(text)}")
    if (longest := longest_unbroken(data)) > limits.max_unbroken_chars:
        return Drop(NAME, "unbroken", f"{longest} characters without a space")
    longest_part = (texts.thought or texts.question).encode("utf-8", errors="surrogatepass")
    bits = entropy_bits(np.frombuffer(longest_part, np.uint8))
    if len(longest_part) >= MIN_CHARS and bits < limits.min_entropy_bits:
        return Drop(NAME, "entropy", f"{bits:.2f} bits a character")
    share = odd_word_share(data)
    if share > limits.max_odd_word_share:
        return Drop(NAME, "odd_words", f"{share:.0%} of the words cannot be spoken")
    return None


def entropy_bits(data: NDArray[np.uint8]) -> float:
    """Shannon entropy of a byte, bits, between 0 and 8."""
    counts = np.bincount(data)
    shares = counts[counts > 0] / len(data)
    return -math.fsum((shares * np.log2(shares)).tolist())


def odd_word_share(data: NDArray[np.uint8]) -> float:
    r"""The share of ASCII words of 4 letters or more without a vowel or with 6 consonants in a row, in 0 to 1.

    LaTeX commands such as ``\sqrt`` are no words; "y" is a vowel. 0 for fewer than 20 words.
    """
    kinds = _letter_kinds()[data]
    inside = np.zeros(len(kinds) + 2, np.bool_)
    inside[1:-1] = (kinds == _VOWEL) | (kinds == _CONSONANT)
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts >= MIN_WORD_CHARS
    long &= (starts == 0) | (kinds[np.maximum(starts, 1) - 1] != _BACKSLASH)
    starts, ends = starts[long], ends[long]
    if len(starts) < MIN_WORDS:
        return 0.0
    vowels = _running_count(kinds == _VOWEL)
    single = kinds == _CONSONANT
    double = single[:-1] & single[1:]
    run = double[:-4] & double[2:-2] & double[4:]  # CONSONANTS_IN_A_ROW is 6
    runs = _running_count(run)
    last = np.maximum(np.minimum(ends - CONSONANTS_IN_A_ROW + 1, len(run)), starts)
    odd = (vowels[ends] == vowels[starts]) | (runs[last] > runs[starts])
    return float(np.count_nonzero(odd) / len(odd))


def _num_damaged(text: str, data: NDArray[np.uint8]) -> int:
    if text.isascii():
        return int(np.count_nonzero(_controls()[data]))
    return sum(1 for _ in _DAMAGED.finditer(text))


def longest_unbroken(data: NDArray[np.uint8]) -> int:
    """Length of the longest run of visible ASCII characters, in UTF-8 bytes."""
    breaks = np.flatnonzero(data - np.uint8(ord("!")) > ord("~") - ord("!"))  # smaller bytes wrap around
    if not len(breaks):
        return len(data)
    inside = int((breaks[1:] - breaks[:-1]).max(initial=1)) - 1
    return max(int(breaks[0]), inside, len(data) - 1 - int(breaks[-1]))


def _running_count(flags: NDArray[np.bool_]) -> NDArray[np.int32]:
    counts = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=counts[1:])
    return counts


@cache
def _letter_kinds() -> NDArray[np.uint8]:
    kinds = np.zeros(256, np.uint8)
    for byte in range(128):
        character = chr(byte).lower()
        if character in "aeiouy":
            kinds[byte] = _VOWEL
        elif character.isalpha():
            kinds[byte] = _CONSONANT
    kinds[ord("\\")] = _BACKSLASH
    return kinds


@cache
def _controls() -> NDArray[np.bool_]:
    """Which ASCII characters are controls other than white space."""
    return np.array([byte == 0x7F or (byte < ord(" ") and not 9 <= byte <= 13) for byte in range(256)])  # noqa: PLR2004
