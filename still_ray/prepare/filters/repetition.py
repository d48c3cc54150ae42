"""Repetition: paragraphs, sentences, passages and back-to-back loops. Thought and solution are looked at apart."""

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from still_ray.config.prepare import RepetitionConfig
from still_ray.prepare.filters.row import Drop, RowTexts
from still_ray.prepare.filters.words import Hashes, ngram_hashes

NAME: Final = "repetition"

_PARAGRAPHS: Final = re.compile(r"\n\s*\n")
_SENTENCES: Final = re.compile(r"[.!?]\s+|[\u3002\uff01\uff1f\n]")
_LETTER: Final = re.compile(r"[^\W_]")
PROBE: Final = 8
"""Words of the n-gram whose repetitions decide whether it is worth while to look for a loop."""


def check_repetition(texts: RowTexts, limits: RepetitionConfig) -> Drop | None:
    """The first rule that the thought or the solution breaks."""
    for text, words in ((texts.thought, texts.thought_words), (texts.solution, texts.solution_words)):
        if len(text) > limits.min_repeated_chars and (found := _checked(text, words, limits)):
            return found
    return None


def _checked(text: str, words: Hashes, limits: RepetitionConfig) -> Drop | None:
    if (share := repeated_share(_PARAGRAPHS.split(text), limits.min_repeated_chars)) > limits.max_paragraph_share:
        return Drop(NAME, "paragraphs", f"{share:.0%} of the characters are in paragraphs that came before")
    if (share := repeated_share(_SENTENCES.split(text), limits.min_repeated_chars)) > limits.max_sentence_share:
        return Drop(NAME, "sentences", f"{share:.0%} of the characters are in sentences that came before")
    if (share := repeated_ngram_share(words, limits.ngram)) > limits.max_ngram_share:
        return Drop(NAME, "ngrams", f"{share:.0%} of the words are in passages of {limits.ngram} that came before")
    loop = find_loop(
        words,
        repeats=limits.loop_repeats,
        least=limits.loop_words,
        max_period=limits.loop_period,
        min_share=limits.loop_share,
    )
    if loop:
        return Drop(NAME, "loop", f"{loop[1]} words repeat the same {loop[0]}")
    return None


def repeated_share(pieces: Iterable[str], min_chars: int) -> float:
    """The share of characters in pieces that came before, in 0 to 1; shorter pieces and rulers may repeat freely."""
    seen: set[str] = set()
    repeated = total = 0
    for piece in pieces:
        stripped = piece.strip()
        total += len(stripped)
        if len(stripped) < min_chars or not _LETTER.search(stripped):
            continue
        if stripped in seen:
            repeated += len(stripped)
        else:
            seen.add(stripped)
    return repeated / total if total else 0.0


def repeated_ngram_share(words: Hashes, length: int) -> float:
    """The share of words that lie in an n-gram which came before, in 0 to 1."""
    if len(words) <= length:
        return 0.0
    repeats = _came_before(ngram_hashes(words, length))
    if not repeats.any():
        return 0.0
    edges = np.zeros(len(words) + 1, np.int32)
    edges[: len(repeats)] += repeats
    edges[length : length + len(repeats)] -= repeats
    return float(np.count_nonzero(np.cumsum(edges[:-1])) / len(words))


def find_loop(words: Hashes, *, repeats: int, least: int, max_period: int, min_share: float) -> tuple[int, int] | None:
    """The shortest period with which words repeat back to back, and how many words its longest run covers.

    A run counts that ends the text (but for less than another period), or that covers a share of it: a matrix or a
    sequence inside a long thought repeats as much, but the thought goes on.

    Args:
        words: The text.
        repeats: Times that the period must occur, at least.
        least: Words that the run must cover, at least.
        max_period: Longest period that is looked for, words.
        min_share: Share of the words that a run inside the text must cover, in 0 to 1.
    """
    fewest = least - least // repeats - PROBE  # a loop repeats all its n-grams but those of its first period
    if len(words) < least or np.count_nonzero(_came_before(ngram_hashes(words, PROBE))) < fewest:
        return None
    for period in range(1, min(max_period, len(words) // repeats) + 1):
        lengths, ends = _runs(words[period:] == words[:-period])
        covered, after = lengths + period, len(words) - period - ends
        counts = (covered >= max(least, repeats * period)) & ((after < period) | (covered >= min_share * len(words)))
        if counts.any():
            return period, int(covered[counts].max())
    return None


def _came_before(hashes: Hashes) -> NDArray[np.bool_]:
    """For each hash, whether an equal one stands before it."""
    result = np.zeros(len(hashes), np.bool_)
    if len(hashes):
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        result[order[1:]] = ordered[1:] == ordered[:-1]
    return result


def _runs(flags: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The runs of set flags: their lengths, and the index past the end of each."""
    ends = np.append(np.flatnonzero(~flags), len(flags))
    return np.diff(ends, prepend=-1) - 1, ends
