"""Which correct trajectories join the demonstrations.

All strategies see only correct, well-formed, untruncated trajectories, take at most `max_per_problem` of a problem and
`max_examples` in all, and do not depend on the order of their input.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from still_ray.algo.seeds import derived_seed
from still_ray.config import SelectConfig
from still_ray.types import Candidate, FinishReason, TrajectoryKey, Verdict

NUM_LENGTH_BINS = 10
"""Bins of the teacher's length distribution: its deciles. Source: ours."""

TeacherLengths = Mapping[str, Sequence[int]]
"""Thought lengths of the demonstrations, characters, by domain."""


def is_usable(candidate: Candidate) -> bool:
    """Whether a trajectory may be learnt from: well-formed and not truncated."""
    return candidate.well_formed and candidate.finish_reason is FinishReason.STOP


def select_trajectories(
    candidates: Iterable[Candidate], config: SelectConfig, *, teacher: TeacherLengths, seed: int
) -> list[TrajectoryKey]:
    """Chooses trajectories for SFT.

    Args:
        candidates: The pool.
        config: Strategy and caps.
        teacher: Thought lengths of the demonstrations, for `length_distribution`.
        seed: Decides where the strategy leaves a choice.

    Returns:
        Keys, sorted.
    """
    correct = sorted(
        (row for row in candidates if row.verdict is Verdict.CORRECT and is_usable(row)), key=lambda row: row.key
    )
    random.Random(derived_seed(seed, "select")).shuffle(correct)
    if config.strategy == "length_distribution":
        chosen = _by_length(correct, config, teacher)
    else:
        chosen = _by_rank(correct, config)
    return sorted(row.key for row in chosen)


def _by_rank(shuffled: list[Candidate], config: SelectConfig) -> list[Candidate]:
    """Takes from the front of a ranking; the shuffle is the ranking of `random` and breaks the ties of the others."""
    if config.strategy == "highest_perplexity":
        shuffled = sorted(shuffled, key=lambda row: -row.perplexity)
    elif config.strategy == "lowest_perplexity":
        shuffled = sorted(shuffled, key=lambda row: row.perplexity)
    taken: Counter[str] = Counter()
    chosen = []
    for row in shuffled:
        if taken[row.key.problem_id] < config.max_per_problem:
            taken[row.key.problem_id] += 1
            chosen.append(row)
    return chosen[: config.max_examples]


def _by_length(shuffled: list[Candidate], config: SelectConfig, teacher: TeacherLengths) -> list[Candidate]:
    """Follows the teacher's length distribution per domain (STILL-2, section on data selection).

    Every pick takes, among the problem's responses, the one whose length bin is furthest below the teacher's share of
    that bin. A second pick of a problem comes only after every problem had its first: `max_examples` does not spend
    itself on a few problems.
    """
    bins = {domain: _Bins(lengths) for domain, lengths in _with_fallback(teacher, shuffled).items()}
    by_problem: dict[str, list[Candidate]] = defaultdict(list)
    for row in shuffled:
        by_problem[row.key.problem_id].append(row)
    chosen: list[Candidate] = []
    for _ in range(config.max_per_problem):
        for rows in by_problem.values():
            if rows and (config.max_examples is None or len(chosen) < config.max_examples):
                best = min(rows, key=lambda row: bins[row.domain].fullness(row.thought_chars))
                rows.remove(best)
                bins[best.domain].add(best.thought_chars)
                chosen.append(best)
    return chosen


def _with_fallback(teacher: TeacherLengths, rows: Sequence[Candidate]) -> dict[str, Sequence[int]]:
    """The teacher's lengths for each domain met; a domain that it lacks uses all its lengths together."""
    everything = [length for lengths in teacher.values() for length in lengths]
    return {row.domain: teacher.get(row.domain) or everything for row in rows}


class _Bins:
    """The picks of one domain, counted in bins cut at the deciles of the teacher's lengths."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """Cuts the bins; with nothing to follow there is one.

        Equal lengths can make deciles coincide, so that shares differ: a bin's share is counted, not assumed.
        """
        ordered = sorted(lengths)
        cuts = [len(ordered) * part // NUM_LENGTH_BINS for part in range(1, NUM_LENGTH_BINS)]
        self._edges = [ordered[cut] for cut in cuts] if ordered else []
        self._shares = Counter(self._bin(length) for length in ordered)
        self._picks: Counter[int] = Counter()

    def fullness(self, length: int) -> float:
        """Picks in the bin of a length, this one included, over the teacher's share of that bin."""
        share = self._shares[self._bin(length)]
        return (self._picks[self._bin(length)] + 1) / share if share else math.inf

    def add(self, length: int) -> None:
        """Counts a pick."""
        self._picks[self._bin(length)] += 1

    def _bin(self, length: int) -> int:
        return bisect.bisect_right(self._edges, length)
