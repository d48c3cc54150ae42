"""Which rows repeat an earlier one. Works on hashes in input order, so no text is needed and parallelism has no say."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from still_ray.prepare.filters.words import Hashes

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]
Similar = Callable[[Indices, Indices], Flags]

MAX_LEADERS = 16
"""Rows of one band's group that the others are compared with in turn; bounds the work on a group of unlike rows."""


def first_equals(hashes: Hashes) -> Indices:
    """For each row the index of the first row with the same hash: its own for a row that repeats none."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def first_similars(num_rows: int, bands: Iterable[Hashes], similar: Similar) -> Indices:
    """For each row the first row of its cluster: its own index for a row that resembles none before it.

    In each band a row is compared with the first row there of every cluster, and joins those that it resembles; so a
    row may go because of one that goes itself. Band by band, so that one band's hashes are in memory at a time.

    Args:
        num_rows: How many rows there are.
        bands: For each band one hash a row; rows with equal hashes are compared.
        similar: Says of pairs (two arrays of indices) which are near-duplicates.
    """
    roots = np.arange(num_rows, dtype=np.int64)
    for hashes in bands:
        rows = _meeting(hashes)
        for rank in range(MAX_LEADERS):
            leaders, members = _candidates(rows, hashes[rows], roots[rows], rank)
            if not len(leaders):
                break
            joined = similar(leaders, members)
            _join(roots, leaders[joined], members[joined])
    return roots


def _meeting(hashes: Hashes) -> Indices:
    """The rows that share their hash with another one, in order."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > 1).astype(np.int64)


def _candidates(rows: Indices, hashes: Hashes, roots: Indices, rank: int) -> tuple[Indices, Indices]:
    """In each group of equal hashes, where one row speaks for all of its root: the one of this rank with all later."""
    order = np.lexsort((rows, roots, hashes))
    rows, hashes, roots = rows[order], hashes[order], roots[order]
    new_group = np.ones(len(rows), np.bool_)
    new_group[1:] = hashes[1:] != hashes[:-1]
    speaks = new_group.copy()
    speaks[1:] |= roots[1:] != roots[:-1]
    rows, starts = rows[speaks], np.flatnonzero(new_group[speaks])
    sizes = np.diff(np.append(starts, len(rows)))
    starts, num_others = starts[sizes > rank + 1], sizes[sizes > rank + 1] - rank - 1
    leaders = np.repeat(rows[starts + rank], num_others)
    firsts = np.repeat(starts + rank + 1 - (np.cumsum(num_others) - num_others), num_others)
    return leaders, rows[firsts + np.arange(len(leaders))]


def _join(roots: Indices, left: Indices, right: Indices) -> None:
    """Gives connected rows the least of their roots; `roots` always holds final roots between calls."""
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        first, second = _root(roots, one), _root(roots, other)
        roots[max(first, second)] = min(first, second)
    while len(left):
        shorter = roots[roots]
        if np.array_equal(shorter, roots):
            return
        roots[:] = shorter


def _root(roots: Indices, index: int) -> int:
    while (parent := int(roots[index])) != index:
        index = parent
    return index
