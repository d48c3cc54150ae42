"""The strategies that choose among correct trajectories: functions, each with its source, in one table by name.

A strategy sees usable, correct trajectories only, in a shuffled order that is the same for the same seed and pool; what
it leaves open, the shuffle decides. One of a user's own is named in the recipe as `package.module:function`.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from still_ray.types import Candidate, InputError

NUM_LENGTH_BINS: Final = 10
"""Bins of the teacher's length distribution: its deciles. Source: ours."""

GROUP: Final = "still_ray.strategies"
"""Entry points of strategies."""

TeacherLengths = Mapping[str, Sequence[int]]
"""Thought lengths of the demonstrations, characters, by domain."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a strategy decides on.

    Attributes:
        rows: Usable, correct trajectories in shuffled order.
        max_per_problem: Most trajectories of one problem.
        max_examples: Most trajectories in all; None for no cap.
        teacher: Thought lengths of the demonstrations.
        solve_rates: Share of a problem's judged rollouts that are correct, by problem id.
    """

    rows: Sequence[Candidate]
    max_per_problem: int
    max_examples: int | None
    teacher: TeacherLengths
    solve_rates: Mapping[str, float]


class Strategy(Protocol):
    """One way to choose; the first paragraph of its docstring says what it takes, "Source:" where it comes from."""

    def __call__(self, choice: Choice, /) -> Iterable[Candidate]:
        """Rows of the choice, none twice, the ones to take first in front; the caps are applied to what it returns."""
        ...


def under_the_caps(ranking: Iterable[Candidate], choice: Choice) -> list[Candidate]:
    """The first rows of a ranking that the caps allow.

    Raises:
        InputError: A row stands twice in the ranking, or is none of the choice's.
    """
    left = {row.key for row in choice.rows}
    taken: Counter[str] = Counter()
    chosen = []
    for row in ranking:
        if row.key not in left:
            raise InputError(f"the strategy gives {row.key}, which it was not given or has given before")
        left.remove(row.key)
        if taken[row.key.problem_id] < choice.max_per_problem:
            taken[row.key.problem_id] += 1
            chosen.append(row)
    return chosen[: choice.max_examples]


def in_shuffled_order(choice: Choice) -> Sequence[Candidate]:
    """Any, by the seed.

    Source: paper: its baseline
    """
    return choice.rows


def shortest(choice: Choice) -> list[Candidate]:
    """The shortest thoughts, characters.

    Source: ours: against overthinking; Kimi k1.5 (arXiv 2501.12599) calls it shortest rejection sampling
    """
    return sorted(choice.rows, key=lambda row: row.thought_chars)


def longest(choice: Choice) -> list[Candidate]:
    """The longest thoughts, characters.

    Source: ours: the opposite of shortest, to tell length from quality
    """
    return sorted(choice.rows, key=lambda row: -row.thought_chars)


def highest_perplexity(choice: Choice) -> list[Candidate]:
    """Those that the policy found most surprising.

    Source: paper: perplexity as second selector; also the chosen side of its pairs
    """
    return sorted(choice.rows, key=lambda row: -row.perplexity)


def lowest_perplexity(choice: Choice) -> list[Candidate]:
    """Those that the policy found most likely.

    Source: ours: the opposite of highest_perplexity
    """
    return sorted(choice.rows, key=lambda row: row.perplexity)


def rarely_solved_first(choice: Choice) -> list[Candidate]:
    """Rarely solved problems first; problems that were always solved are dropped.

    Source: ours: difficulty balance as in DART-Math (arXiv 2407.13690), which favours hard queries
    """
    rates = choice.solve_rates
    rows = [row for row in choice.rows if rates[row.key.problem_id] < 1]
    return sorted(rows, key=lambda row: rates[row.key.problem_id])


def length_distribution(choice: Choice) -> list[Candidate]:
    """Thought lengths follow those of the demonstrations, per problem type, decile by decile.

    Every pick takes, among the problem's responses, the one whose length bin is furthest below the teacher's share of
    that bin. A second pick of a problem comes only after every problem had its first: `max_examples` does not spend
    itself on a few problems.

    Source: paper: beat random choice
    """
    bins = {domain: _Bins(lengths) for domain, lengths in _with_fallback(choice).items()}
    by_problem: dict[str, list[Candidate]] = defaultdict(list)
    for row in choice.rows:
        by_problem[row.key.problem_id].append(row)
    chosen: list[Candidate] = []
    for _ in range(choice.max_per_problem):
        for rows in by_problem.values():
            if rows and (choice.max_examples is None or len(chosen) < choice.max_examples):
                best = min(rows, key=lambda row: bins[row.domain].fullness(row.thought_chars))
                rows.remove(best)
                bins[best.domain].add(best.thought_chars)
                chosen.append(best)
    return chosen


def _with_fallback(choice: Choice) -> dict[str, Sequence[int]]:
    """The teacher's lengths for each domain met; a domain that it lacks uses all its lengths together."""
    everything = [length for lengths in choice.teacher.values() for length in lengths]
    return {row.domain: choice.teacher.get(row.domain) or everything for row in choice.rows}


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


STRATEGIES: Final[Mapping[str, Strategy]] = {
    "length_distribution": length_distribution,
    "random": in_shuffled_order,
    "shortest": shortest,
    "longest": longest,
    "highest_perplexity": highest_perplexity,
    "lowest_perplexity": lowest_perplexity,
    "solve_rate": rarely_solved_first,
}
"""Every strategy by its name in the recipe's `select.strategy`."""
