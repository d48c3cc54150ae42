"""Duplicates: signatures that estimate similarity, the first row of a cluster, and lengths in little space."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.prepare.duplicates import Flags, Indices, first_equals, first_similars
from still_ray.prepare.filters.words import word_hashes
from still_ray.prepare.histogram import Histogram
from still_ray.prepare.minhash import band_hashes, cut_signatures, estimated_jaccard, signature

PERMUTATIONS = 128


def signatures_of(*texts: list[str]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint64]]]:
    return [signature(word_hashes(" ".join(words)), shingle=5, num_permutations=PERMUTATIONS) for words in texts]


def jaccard(left: list[str], right: list[str]) -> float:
    sets = [{tuple(words[start : start + 5]) for start in range(len(words) - 4)} for words in (left, right)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


# -- signatures -------------------------------------------------------------------------------------------------------


def test_signatures_estimate_the_similarity_of_shingles() -> None:
    draw = random.Random(1)
    errors = []
    for _ in range(60):
        words = [f"w{draw.randrange(10**6)}" for _ in range(300)]
        other = [f"v{n}" if draw.random() < draw.choice((0.01, 0.05, 0.2)) else word for n, word in enumerate(words)]
        cut = cut_signatures(signatures_of(words, other), PERMUTATIONS)
        errors.append(float(estimated_jaccard(cut[:1], cut[1:])[0]) - jaccard(words, other))
    assert np.max(np.abs(errors)) < 5 * 0.0442  # five standard errors of 128 draws at one half
    assert abs(np.mean(errors)) < 3 * 0.0442 / np.sqrt(60)


def test_texts_shorter_than_a_shingle_are_compared_as_wholes() -> None:
    same, other, empty = signatures_of(["one", "two"], ["one", "three"], [])
    cut = cut_signatures([same, same, other, empty], PERMUTATIONS)
    assert estimated_jaccard(cut[:1], cut[1:2])[0] == 1
    assert estimated_jaccard(cut[:1], cut[2:3])[0] < 0.1
    assert estimated_jaccard(cut[:1], cut[3:])[0] < 0.1


def test_a_signature_is_the_same_in_every_process() -> None:
    """Shards are written by many processes and compared by one: hashing must not depend on the process."""
    import subprocess
    import sys

    program = (
        "from still_ray.prepare.filters.words import word_hashes\nfrom still_ray.prepare.minhash import signature\n"
        "print(signature(word_hashes('a b c d e f'), shingle=5, num_permutations=8).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(signature(word_hashes("a b c d e f"), shingle=5, num_permutations=8).tolist())


def test_bands_bring_similar_rows_together_unless_they_are_kept_apart() -> None:
    draw = random.Random(2)
    words = [f"w{draw.randrange(10**6)}" for _ in range(300)]
    found = signatures_of(words, ["new", *words], [f"x{n}" for n in range(300)])
    together = band_hashes(found, 16, np.zeros(3, np.uint64))
    assert (together[0] == together[1]).any()
    assert not (together[0] == together[2]).any()
    apart = band_hashes(found, 16, np.array([1, 2, 1], np.uint64))
    assert not (apart[0] == apart[1]).any()


# -- clusters ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=40))
def test_equal_rows_point_to_the_first_of_them(values: list[int]) -> None:
    assert first_equals(np.array(values, np.uint64)).tolist() == [values.index(value) for value in values]


pairs = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


@given(pairs)
def test_clusters_are_what_similar_pairs_connect(edges: list[tuple[int, int]]) -> None:
    """Each pair is a band of its own, so every edge is looked at; the result is that of a plain search."""
    bands = []
    for left, right in edges:
        band = np.arange(20, dtype=np.uint64)
        band[right] = band[left]
        bands.append(band)
    found = first_similars(20, bands, lambda left, right: np.ones(len(left), np.bool_)).tolist()
    assert found == connected(20, edges)


def connected(number: int, edges: list[tuple[int, int]]) -> list[int]:
    first = list(range(number))
    for _ in range(number):
        for left, right in edges:
            first[left] = first[right] = min(first[left], first[right])
    return first


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_rows_that_meet_but_are_not_similar_stay(values: list[int]) -> None:
    """All rows meet in one band; similar are those with equal values."""
    known = np.array(values)

    def similar(left: Indices, right: Indices) -> Flags:
        return np.asarray(known[left] == known[right])

    found = first_similars(len(values), [np.zeros(len(values), np.uint64)], similar).tolist()
    assert found == [values.index(value) for value in values]


def test_many_unlike_rows_in_one_band_cost_a_bounded_number_of_comparisons() -> None:
    compared = 0

    def similar(left: Indices, right: Indices) -> Flags:
        nonlocal compared
        compared += len(left)
        return np.zeros(len(left), np.bool_)

    assert first_similars(5000, [np.zeros(5000, np.uint64)], similar).tolist() == list(range(5000))
    assert compared < 16 * 5000


# -- lengths ----------------------------------------------------------------------------------------------------------

numbers = st.lists(st.integers(0, 10**7), max_size=60)


@given(numbers, numbers)
def test_histograms_of_parts_add_up_to_that_of_the_whole(left: list[int], right: list[int]) -> None:
    parts, whole = [Histogram(), Histogram()], Histogram()
    for part, values in zip(parts, (left, right), strict=True):
        for value in values:
            part.add(value)
            whole.add(value)
    parts[0].merge(parts[1])
    assert parts[0] == whole


@given(numbers.filter(bool), st.sampled_from([0.5, 0.95, 1.0]))
def test_quantiles_are_within_one_percent(values: list[int], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, int(np.ceil(share * len(values))) - 1)]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.01, abs=1)
    summary = histogram.summary()
    assert (summary["count"], summary["min"], summary["max"]) == (len(values), min(values), max(values))
    assert summary["mean"] == pytest.approx(sum(values) / len(values), abs=0.051)


def test_a_histogram_of_nothing() -> None:
    assert Histogram().summary() == {"count": 0, "min": 0, "median": 0, "mean": 0.0, "p95": 0, "max": 0}
