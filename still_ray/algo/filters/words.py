"""A text as an array of hashed words: what n-gram rules, near-duplicate signatures and evaluation overlap work on.

A word is a run of letters and digits in lower case, a single operator (``+ - * / ^ = < > %``: "2+2" is not "2-2"), or
one character of the scripts that put no space between words. Spacing and other punctuation do not count, so LaTeX with
and without dollar signs is the same. Hashes are the same in every process, 64 bits wide, and made by numpy in a few
passes over the bytes: a Python loop over words would take most of the time of the whole preparation.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]

OPERATORS: Final = b"+-*/^=<>%"
_SLICE_CHARS: Final = 1 << 14
_BETWEEN: Final = "\x1e"
"""Stands between texts that are hashed together: ASCII's record separator."""
_SEPARATOR, _LETTER, _OPERATOR, _LEAD = 0, 1, 2, 3
_WIDE_LEAD: Final = 0xE0
"""First byte of a UTF-8 character of three or four bytes: Chinese, Japanese, Korean, mathematical symbols."""

_BASE: Final = np.uint64(0x9E3779B97F4A7C15)
_NGRAM_BASE: Final = 0xD6E8FEB86659FD93
_WORD_MASK: Final = (1 << 64) - 1
_TYPOGRAPHY: Final = {0x2212: "-", 0x2013: "-", 0xD7: "*", 0xB7: "*", 0x22C5: "*", 0xF7: "/"} | dict.fromkeys(
    (0x2018, 0x2019, 0x201C, 0x201D), " "
)
"""Signs and quotes in print (minus, dash, times, dots, divided by) as they are typed; translated after NFKC."""


def word_hashes(text: str) -> Hashes:
    """The words of a text in order, one 64-bit hash each."""
    parts = [_hashed(data)[0] for data in map(_encoded, _slices(_plain(text)))]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def word_hashes_of(texts: Sequence[str]) -> list[Hashes]:
    """The words of each text; short ones in one pass, since for them numpy's calls are what takes time."""
    joined = _plain(_BETWEEN.join(texts))
    if len(joined) <= _SLICE_CHARS:
        data = _encoded(joined)
        cuts = np.flatnonzero(data == ord(_BETWEEN))
        if len(cuts) == len(texts) - 1:
            hashes, starts = _hashed(data)
            return np.split(hashes, np.searchsorted(starts, cuts))
    return [word_hashes(text) for text in texts]


def ngram_hashes(words: Hashes, length: int) -> Hashes:
    """One hash for each run of `length` words; empty for a shorter text. Takes O(log length) passes."""
    if len(words) < length:
        return words[:0]
    result, done = words[:0], 0
    block, width = words, 1
    remaining = length
    while True:
        if remaining & 1:
            result = _joined(result, done, block, width) if done else block
            done += width
        remaining >>= 1
        if not remaining:
            return result
        block, width = _joined(block, width, block, width), 2 * width


def sequence_hash(words: Hashes) -> int:
    """One hash of a whole text's words, and of how many they are."""
    whole = ngram_hashes(words, len(words)) if len(words) else words
    return (int(whole[0] if len(whole) else 0) * _NGRAM_BASE + len(words)) & _WORD_MASK


def mixed(values: Hashes) -> Hashes:
    """Spreads hashes over all 64 bits (the finalizer of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _plain(text: str) -> str:
    lowered = text.lower()
    return lowered if lowered.isascii() else unicodedata.normalize("NFKC", lowered).translate(_TYPOGRAPHY)


def _slices(text: str) -> list[str]:
    """Cuts a long text at spaces, so that the tables of powers stay small."""
    if len(text) <= _SLICE_CHARS:
        return [text]
    cuts = [0]
    while len(text) - cuts[-1] > _SLICE_CHARS:
        space = text.rfind(" ", cuts[-1] + 1, cuts[-1] + _SLICE_CHARS)
        cuts.append(space if space > 0 else cuts[-1] + _SLICE_CHARS)
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _encoded(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8", errors="surrogatepass"), np.uint8)


def _hashed(data: NDArray[np.uint8]) -> tuple[Hashes, NDArray[np.intp]]:
    """The words' hashes and where they start.

    Each word's bytes are digits of a number in base `_BASE`, modulo 2^64; the sums of all words come in one pass.
    """
    kinds = _kinds()[data]
    starts = np.flatnonzero(_starts(kinds))
    if not len(starts):
        return np.zeros(0, np.uint64), starts
    powers, inverses = _powers()
    digits = (data + np.uint64(1)) * powers[: len(data)]
    digits *= kinds != _SEPARATOR
    return mixed(np.add.reduceat(digits, starts) * inverses[starts]), starts


def _starts(kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    starts: NDArray[np.bool_] = kinds >= _OPERATOR
    letters = kinds == _LETTER
    starts[:1] |= letters[:1]
    starts[1:] |= letters[1:] & (kinds[:-1] & 1 == 0)  # after a separator or an operator
    return starts


def _joined(left: Hashes, left_width: int, right: Hashes, right_width: int) -> Hashes:
    """The hashes of runs of words, made of those of their left and their right parts."""
    num = len(left) - right_width
    return left[:num] * _shift(right_width) + right[left_width : left_width + num]


@cache
def _shift(width: int) -> np.uint64:
    return np.uint64(pow(_NGRAM_BASE, width, 1 << 64))


@cache
def _kinds() -> NDArray[np.uint8]:
    """What each byte of UTF-8 is; bit 0 is set where the next letter goes on with the same word."""
    kinds = np.zeros(256, np.uint8)
    for byte in range(256):
        character = chr(byte)
        if byte >= _WIDE_LEAD:
            kinds[byte] = _LEAD
        elif byte >= 0x80 or character.isalnum():  # noqa: PLR2004 - not ASCII: part of a longer character
            kinds[byte] = _LETTER
        elif byte in OPERATORS:
            kinds[byte] = _OPERATOR
    return kinds


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse modulo 2^64, enough for a slice (up to four bytes a character).

    NFKC may lengthen a text before it is cut, never after.
    """
    size = 4 * _SLICE_CHARS
    inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
    table = [np.multiply.accumulate(np.concatenate([[np.uint64(1)], np.full(size - 1, b)])) for b in (_BASE, inverse)]
    return table[0].astype(np.uint64), table[1].astype(np.uint64)
