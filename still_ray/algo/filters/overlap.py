"""Overlap with evaluation sets: shared n-grams of words, short questions as a whole."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from still_ray.algo.filters.row import Drop, RowTexts
from still_ray.algo.filters.words import Hashes, ngram_hashes, sequence_hash, word_hashes
from still_ray.config.prepare import OverlapConfig

NAME: Final = "decontaminate"


@dataclass(frozen=True, kw_only=True)
class EvaluationIndex:
    """The evaluation questions as hashes.

    Attributes:
        ngrams: For each length in words, the sorted n-grams that no row may contain.
        whole: Hashes of whole questions that no row's question may equal.
        num_questions: Different questions in it.
    """

    ngrams: Mapping[int, Hashes]
    whole: frozenset[int]
    num_questions: int


def build_index(questions: Iterable[str], limits: OverlapConfig) -> EvaluationIndex:
    """The index of evaluation questions.

    A question of `ngram` words or more gives its n-grams, but those that more than `max_sharing` different questions
    share ("where m and n are relatively prime positive integers. Find m+n."); a shorter one of `min_words` or more is
    one n-gram of its own length; every question may be equalled by none.
    """
    different = {sequence_hash(words): words for words in map(word_hashes, questions) if len(words)}
    sharing: Counter[int] = Counter()
    short: dict[int, set[int]] = {}
    for words in different.values():
        if len(words) >= limits.ngram:
            sharing.update(set(ngram_hashes(words, limits.ngram).tolist()))
        elif len(words) >= limits.min_words:
            short.setdefault(len(words), set()).update(ngram_hashes(words, len(words)).tolist())
    long = {ngram for ngram, count in sharing.items() if count <= limits.max_sharing}
    ngrams = {length: _sorted(found) for length, found in {**short, limits.ngram: long}.items() if found}
    return EvaluationIndex(ngrams=ngrams, whole=frozenset(different), num_questions=len(different))


def check_overlap(texts: RowTexts, index: EvaluationIndex, limits: OverlapConfig) -> Drop | None:
    """Whether a row contains or is an evaluation question."""
    question = texts.question_words
    if sequence_hash(question) in index.whole:
        return Drop(NAME, "same_question", "the question is one of an evaluation set")
    places = [question] if limits.scope == "question" else [question, texts.thought_words, texts.solution_words]
    for words in places:
        for length, known in index.ngrams.items():
            if _contains_any(known, ngram_hashes(words, length)):
                rule = "ngrams" if length == limits.ngram else "short_question"
                return Drop(NAME, rule, f"{length} words in a row are those of an evaluation question")
    return None


def _contains_any(known: Hashes, hashes: Hashes) -> bool:
    positions = np.searchsorted(known, hashes)
    positions[positions == len(known)] = 0
    return bool((known[positions] == hashes).any())


def _sorted(values: set[int]) -> Hashes:
    return np.sort(np.fromiter(values, np.uint64, len(values)))
