"""A text as an array of hashed words: what n-gram rules, near-duplicate signatures and evaluation overlap work on.

A word is a run of letters and digits in lower case, an operator (``+ - * / ^ = < > %``: "2+2" is not "2-2"; a run of
the same one, such as a ruler, is one word), or one character of the scripts that put no space between words. Spacing
and other punctuation do not count, nor does how LaTeX spells a formula (see `still_ray.latex`), with dollar signs or
without; but where asked for, in questions, the signs ``( ) [ ] | ! ' : _`` are words: "10!" is not "10", and "(1+2)*3"
not "1+2*3".

Hashes are the same in every process, 64 bits wide, and made by numpy in a few passes over the bytes: a Python loop over
words would take most of the time of the whole preparation.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from still_ray.latex import spelled_alike

Hashes: TypeAlias = NDArray[np.uint64]

OPERATORS: Final = b"+-*/^=<>%"
SIGNS: Final = b"()[]|!':_"
_SINGLE: Final = b"()[]|"
"""Signs of which each is a word; of all others a run of the same one is."""
_NO_SIGNS: Final = re.compile(r"(?<=[a-z]{2})[!:'](?=[\s\\]|$)")
"""Characters that are signs elsewhere: punctuation after a word."""
_SLICE_CHARS: Final = 1 << 14
_BETWEEN: Final = "\x1e"
"""Stands between texts that are hashed together: ASCII's record separator."""
_SEPARATOR, _LETTER, _OPERATOR, _LEAD, _BRACKET = 0, 1, 2, 3, 4
_WIDE_LEAD: Final = 0xE0
"""First byte of a UTF-8 character of three or four bytes: Chinese, Japanese, Korean, mathematical symbols."""
_SYMBOL_LEAD: Final = 0xE2
"""First byte of punctuation, arrows and mathematical symbols among these."""

_BASE: Final = np.uint64(0x9E3779B97F4A7C15)
_NGRAM_BASE: Final = 0xD6E8FEB86659FD93
_WORD_MASK: Final = (1 << 64) - 1


class CountedWords(NamedTuple):
    """Words and how much each counts, in half words.

    Attributes:
        hashes: The words, as of `word_hashes`.
        halves: 2 for a word or number of two characters or more; 1 for a character of a script without spaces; 0 for
            operators, single letters and digits, LaTeX commands and symbols: the notation that many texts share.
    """

    hashes: Hashes
    halves: NDArray[np.uint8]


def word_hashes(text: str, *, signs: bool = False) -> Hashes:
    """The words of a text in order, one 64-bit hash each; with the signs of mathematics if asked for."""
    plain = _with_signs(text) if signs else _plain(text)
    parts = [_hashed(data, signs=signs)[0] for data in map(_encoded, _slices(plain))]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def counted_words(text: str) -> CountedWords:
    """The words of a text in order with what they count."""
    parts = []
    for data in map(_encoded, _slices(_plain(text))):
        hashes, starts = _hashed(data)
        parts.append(CountedWords(hashes, _halves(data, starts)))
    return CountedWords(
        np.concatenate([part.hashes for part in parts]), np.concatenate([part.halves for part in parts])
    )


def counted_runs(words: CountedWords, least: int) -> Hashes:
    """One hash for each shortest run that begins with a word that counts and counts so many words, in text order."""
    hashes, halves = words
    counts = np.concatenate([[0], np.cumsum(halves, dtype=np.int64)])
    starts = np.flatnonzero(halves)
    ends = np.searchsorted(counts, counts[starts] + 2 * least)
    starts, ends = starts[ends < len(counts)], ends[ends < len(counts)]
    if not len(starts):
        return hashes[:0]
    powers, inverses = _run_powers(1 << len(hashes).bit_length())
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes * powers[: len(hashes)])])
    return mixed((sums[ends] - sums[starts]) * inverses[starts])


def word_hashes_of(texts: Sequence[str]) -> list[Hashes]:
    """The words of each text; short ones in one pass, since for them numpy's calls are what takes time."""
    joined = _BETWEEN.join(map(_plain, texts))
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


def unspaced_hash(text: str) -> int:
    r"""One hash of a text's letters, digits, operators and signs, whatever parts them; only digits may be apart.

    For texts as a whole it sees through all spacing: ``x\,dx``, "x dx" and "xdx" are one.
    """
    data = _with_signs(text).encode("utf-8", errors="surrogatepass")
    separators, between_digits = _separators()
    kept = between_digits.sub(_BETWEEN.encode(), data).translate(None, separators)
    return int.from_bytes(hashlib.blake2b(kept, digest_size=8).digest())


def mixed(values: Hashes) -> Hashes:
    """Spreads hashes over all 64 bits (the finalizer of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _plain(text: str) -> str:
    return spelled_alike(text).lower()


def _with_signs(text: str) -> str:
    return _NO_SIGNS.sub(" ", _plain(text))


@cache
def _separators() -> tuple[bytes, re.Pattern[bytes]]:
    """The bytes that are no part of a word or sign, and what matches several of them between digits."""
    separators = bytes(np.flatnonzero(_kinds(True) == _SEPARATOR).tolist())
    return separators.replace(_BETWEEN.encode(), b""), re.compile(rb"(?<=\d)[" + re.escape(separators) + rb"]+(?=\d)")


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


def _hashed(data: NDArray[np.uint8], *, signs: bool = False) -> tuple[Hashes, NDArray[np.intp]]:
    """The words' hashes and where they start.

    Each word's bytes are digits of a number in base `_BASE`, modulo 2^64; the sums of all words come in one pass.
    """
    kinds = _kinds(signs)[data]
    starts = np.flatnonzero(_starts(kinds, data))
    if not len(starts):
        return np.zeros(0, np.uint64), starts
    powers, inverses = _powers()
    digits = (data + np.uint64(1)) * powers[: len(data)]
    digits *= kinds != _SEPARATOR
    return mixed(np.add.reduceat(digits, starts) * inverses[starts]), starts


def _starts(kinds: NDArray[np.uint8], data: NDArray[np.uint8]) -> NDArray[np.bool_]:
    starts: NDArray[np.bool_] = kinds >= _OPERATOR
    starts[1:] &= (kinds[1:] != _OPERATOR) | (data[1:] != data[:-1])
    letters = kinds == _LETTER
    digits = (data >= ord("0")) & (data <= ord("9"))
    starts[1:] |= letters[1:] & digits[:-1] & ~digits[1:]  # 2x and 5cm are two words, as with a space between
    starts[:1] |= letters[:1]
    starts[1:] |= letters[1:] & (kinds[:-1] & 1 == 0)  # after a separator or an operator
    return starts


def _halves(data: NDArray[np.uint8], starts: NDArray[np.intp]) -> NDArray[np.uint8]:
    """What the words count that start here in half words, see `CountedWords`."""
    if not len(starts):
        return np.zeros(0, np.uint8)
    inside = (_kinds(False)[data] == _LETTER) & ((data & 0xC0) != 0x80)  # noqa: PLR2004 - first bytes of characters
    num_letters = np.add.reduceat(inside, starts, dtype=np.intp)
    first = data[starts]
    command = (starts > 0) & (data[np.maximum(starts, 1) - 1] == ord("\\"))
    halves = np.where((num_letters >= 2) & ~command, 2, 0)  # noqa: PLR2004 - more than a letter
    halves[first >= _WIDE_LEAD] = 1
    halves[first == _SYMBOL_LEAD] = 0
    return halves.astype(np.uint8)


def _joined(left: Hashes, left_width: int, right: Hashes, right_width: int) -> Hashes:
    """The hashes of runs of words, made of those of their left and their right parts."""
    num = len(left) - right_width
    return left[:num] * _shift(right_width) + right[left_width : left_width + num]


@cache
def _shift(width: int) -> np.uint64:
    return np.uint64(pow(_NGRAM_BASE, width, 1 << 64))


@cache
def _run_powers(size: int) -> tuple[Hashes, Hashes]:
    """Powers of the base of n-grams and of its inverse modulo 2^64."""
    base = np.uint64(_NGRAM_BASE)
    inverse = np.uint64(pow(_NGRAM_BASE, -1, 1 << 64))
    return _powers_of(base, size), _powers_of(inverse, size)


def _powers_of(base: np.uint64, size: int) -> Hashes:
    powers = np.full(size, base)
    powers[0] = 1
    return np.multiply.accumulate(powers)


@cache
def _kinds(signs: bool) -> NDArray[np.uint8]:
    """What each byte of UTF-8 is; bit 0 is set where the next letter goes on with the same word."""
    kinds = np.zeros(256, np.uint8)
    for byte in range(256):
        character = chr(byte)
        if byte >= _WIDE_LEAD:
            kinds[byte] = _LEAD
        elif byte >= 0x80 or character.isalnum():  # noqa: PLR2004 - not ASCII: part of a longer character
            kinds[byte] = _LETTER
        elif signs and byte in _SINGLE:
            kinds[byte] = _BRACKET
        elif byte in OPERATORS or (signs and byte in SIGNS):
            kinds[byte] = _OPERATOR
    return kinds


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse modulo 2^64, enough for a slice (up to four bytes a character).

    NFKC may lengthen a text before it is cut, never after.
    """
    size = 4 * _SLICE_CHARS
    return _powers_of(_BASE, size), _powers_of(np.uint64(pow(int(_BASE), -1, 1 << 64)), size)
