"""MinHash signatures of texts, and the bands in which near-duplicates meet.

Source: Broder 1997 (MinHash), Indyk and Motwani 1998 (bands), Li and Koenig 2010 (values cut to b bits).

Written in numpy on the word hashes that the filters share, because the libraries want the shingles as Python strings:
datasketch took 3 to 5 times as long a row (and needs scipy), rensa as long as this.
"""

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from still_ray.prepare.filters.words import Hashes, mixed, ngram_hashes

_SLICE: Final = 512
"""Shingles hashed at a time: the products of one slice stay in the processor's cache."""


def signature(words: Hashes, *, shingle: int, num_permutations: int) -> Hashes:
    """The least value of each permutation over a text's shingles (runs of `shingle` words; of all words if fewer)."""
    shingles = mixed(ngram_hashes(words, min(shingle, len(words)))) if len(words) else np.zeros(1, np.uint64)
    factors, offsets = _permutations(num_permutations)
    least = np.full(num_permutations, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), _SLICE):
        products = factors * shingles[start : start + _SLICE]
        products += offsets
        np.minimum(least, products.min(axis=1), out=least)
    return least


def band_hashes(signatures: Sequence[Hashes], bands: int, apart: Hashes) -> Hashes:
    """One hash for each row and band; rows with equal signatures in a band meet in it.

    Args:
        signatures: One for each row.
        bands: How many; the permutations must be a multiple of it.
        apart: A number for each row; rows with other numbers never meet.

    Returns:
        An array of shape (rows, bands).
    """
    if not signatures:
        return np.zeros((0, bands), np.uint64)
    values = mixed(np.stack(signatures)).reshape(len(signatures), bands, -1)
    hashes = np.tile(apart[:, None], (1, bands))
    for position in range(values.shape[2]):
        hashes = mixed(hashes + values[:, :, position])
    return hashes


def cut_signatures(signatures: Sequence[Hashes], num_permutations: int) -> NDArray[np.uint8]:
    """One byte of each value, enough to estimate similarity; shape (rows, permutations)."""
    if not signatures:
        return np.zeros((0, num_permutations), np.uint8)
    return (mixed(np.stack(signatures)) & np.uint64(0xFF)).astype(np.uint8)


def estimated_jaccard(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Similarity of pairs of cut signatures, row by row, in 0 to 1.

    Different values agree in their one byte with probability 1/256, which the estimate takes out again.
    """
    agreement: NDArray[np.float64] = np.mean(left == right, axis=-1)
    estimate: NDArray[np.float64] = np.maximum(0.0, (agreement - 1 / 256) / (1 - 1 / 256))
    return estimate


@cache
def _permutations(number: int) -> tuple[Hashes, Hashes]:
    """Odd factors and offsets modulo 2^64, the same in every process."""
    draw = np.random.Generator(np.random.PCG64(1997))
    values = draw.integers(0, 1 << 63, (2, number, 1), dtype=np.uint64)
    return values[0] * np.uint64(2) + np.uint64(1), values[1]
