"""Overlap with evaluation sets: shared n-grams of words, short questions as a whole.

Words that notation is made of (operators, single letters, LaTeX commands) must agree but do not count: by 13 of them
"Let $a, b, c$ be positive real numbers such that $a + b + c = 1$" would be taken for any other problem that begins so.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from still_ray.config.prepare import OverlapConfig
from still_ray.prepare.filters.row import Drop, RowTexts
from still_ray.prepare.filters.words import (
    Hashes,
    counted_runs,
    counted_words,
    ngram_hashes,
    sequence_hash,
    unspaced_hash,
    word_hashes,
)

NAME: Final = "decontaminate"


@dataclass(frozen=True, kw_only=True)
class EvaluationIndex:
    """The evaluation questions as hashes.

    Attributes:
        ngrams: Sorted runs of as many counted words as an n-gram has, that no row may contain.
        short: Questions that no row may contain: by their first words, how many words they have, and all of them.
        beginnings: The keys of `short`, sorted.
        whole: Hashes of whole questions that no row's question may equal.
        num_questions: Different questions in it.
    """

    ngrams: Hashes
    short: Mapping[int, Sequence[tuple[int, int]]]
    beginnings: Hashes
    whole: frozenset[int]
    num_questions: int


def build_index(questions: Iterable[str], limits: OverlapConfig) -> EvaluationIndex:
    """The index of evaluation questions.

    A question of `ngram` counted words or more gives its n-grams, but those that more than `max_sharing` different
    questions share ("where m and n are relatively prime positive integers. Find the value of m+n."); a shorter one of
    `min_words`, or of `ngram` with signs and all, may be contained by none; every question may be equalled by none.
    """
    different = {unspaced_hash(text): (text, words) for text, words in _with_signs(questions) if len(words)}
    sharing: Counter[int] = Counter()
    short: dict[int, list[tuple[int, int]]] = {}
    for text, words in different.values():
        counted = counted_words(text)
        num_counted = int(counted.halves.sum(dtype=np.int64)) // 2
        if num_counted >= limits.ngram:
            sharing.update(set(counted_runs(counted, limits.ngram).tolist()))
        elif len(words) >= (limits.min_words if num_counted >= limits.min_words else limits.ngram):
            beginning = int(ngram_hashes(words[: limits.min_words], limits.min_words)[0])
            short.setdefault(beginning, []).append((len(words), sequence_hash(words)))
    return EvaluationIndex(
        ngrams=_sorted({ngram for ngram, count in sharing.items() if count <= limits.max_sharing}),
        short=short,
        beginnings=_sorted(set(short)),
        whole=frozenset(different),
        num_questions=len(different),
    )


def check_overlap(texts: RowTexts, index: EvaluationIndex, limits: OverlapConfig) -> Drop | None:
    """Whether a row contains or is an evaluation question."""
    if unspaced_hash(texts.question) in index.whole:
        return Drop(NAME, "same_question", "the question is one of an evaluation set")
    places = [texts.question] if limits.scope == "question" else [texts.question, texts.thought, texts.solution]
    for text in places:
        if _places_of(index.ngrams, counted_runs(counted_words(text), limits.ngram)).any():
            return Drop(NAME, "ngrams", f"{limits.ngram} words in a row are those of an evaluation question")
        if len(index.beginnings) and (length := _contained(text, index, limits)):
            return Drop(NAME, "short_question", f"{length} words in a row are all those of an evaluation question")
    return None


def _with_signs(questions: Iterable[str]) -> Iterable[tuple[str, Hashes]]:
    return ((text, word_hashes(text, signs=True)) for text in questions)


def _contained(text: str, index: EvaluationIndex, limits: OverlapConfig) -> int:
    """The words of a short evaluation question that a text contains; 0 if it contains none."""
    words = word_hashes(text, signs=True)
    beginnings = ngram_hashes(words, limits.min_words)
    for start in np.flatnonzero(_places_of(index.beginnings, beginnings)).tolist():
        for length, hash_of_all in index.short[int(beginnings[start])]:
            part = words[start : start + length]
            if len(part) == length and sequence_hash(part) == hash_of_all:
                return length
    return 0


def _places_of(known: Hashes, hashes: Hashes) -> NDArray[np.bool_]:
    """Which hashes are among the sorted known ones."""
    if not len(known):
        return np.zeros(len(hashes), np.bool_)
    positions = np.searchsorted(known, hashes)
    positions[positions == len(known)] = 0
    found: NDArray[np.bool_] = known[positions] == hashes
    return found


def _sorted(values: set[int]) -> Hashes:
    return np.sort(np.fromiter(values, np.uint64, len(values)))
