"""The strategies that choose among correct trajectories, each an object with a name, a meaning and a source.

A strategy sees usable, correct trajectories only, in a shuffled order that is the same for the same seed and pool; what
it leaves open, the shuffle decides. It keeps to the caps of its `Choice`.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from still_ray.types import Candidate

NUM_LENGTH_BINS: Final = 10
"""Bins of the teacher's length distribution: its deciles. Source: ours."""

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


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to choose.

    Attributes:
        name: As the recipe has it in `select.strategy`.
        meaning: What it takes, in one sentence.
        source: Where it comes from.
        choose: Takes from a choice.
    """

    name: str
    meaning: str
    source: str
    choose: Callable[[Choice], list[Candidate]]


def _ranked(key: Callable[[Candidate], float] | None) -> Callable[[Choice], list[Candidate]]:
    """Takes from the front of a ranking, smallest key first; without a key the shuffle is the ranking."""

    def choose(choice: Choice) -> list[Candidate]:
        return _from_the_front(sorted(choice.rows, key=key) if key else choice.rows, choice)

    return choose


def _from_the_front(ranking: Sequence[Candidate], choice: Choice) -> list[Candidate]:
    """The first rows under the caps."""
    taken: Counter[str] = Counter()
    chosen = []
    for row in ranking:
        if taken[row.key.problem_id] < choice.max_per_problem:
            taken[row.key.problem_id] += 1
            chosen.append(row)
    return chosen[: choice.max_examples]


def _rarely_solved_first(choice: Choice) -> list[Candidate]:
    """Problems by ascending solve rate; those that were always solved are dropped."""
    rates = choice.solve_rates
    rows = [row for row in choice.rows if rates[row.key.problem_id] < 1]
    return _from_the_front(sorted(rows, key=lambda row: rates[row.key.problem_id]), choice)


def _by_length(choice: Choice) -> list[Candidate]:
    """Follows the teacher's length distribution per domain.

    Every pick takes, among the problem's responses, the one whose length bin is furthest below the teacher's share of
    that bin. A second pick of a problem comes only after every problem had its first: `max_examples` does not spend
    itself on a few problems.
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


_ALL: Final = (
    Strategy(
        name="length_distribution",
        meaning="Thought lengths follow those of the demonstrations, per problem type, decile by decile.",
        source="paper: beat random choice",
        choose=_by_length,
    ),
    Strategy(
        name="random",
        meaning="Any, by the seed.",
        source="paper: its baseline",
        choose=_ranked(None),
    ),
    Strategy(
        name="shortest",
        meaning="The shortest thoughts, characters.",
        source="ours: against overthinking; Kimi k1.5 (arXiv 2501.12599) calls it shortest rejection sampling",
        choose=_ranked(lambda row: row.thought_chars),
    ),
    Strategy(
        name="longest",
        meaning="The longest thoughts, characters.",
        source="ours: the opposite of shortest, to tell length from quality",
        choose=_ranked(lambda row: -row.thought_chars),
    ),
    Strategy(
        name="highest_perplexity",
        meaning="Those that the policy found most surprising.",
        source="paper: perplexity as second selector; also its chosen side of DPO",
        choose=_ranked(lambda row: -row.perplexity),
    ),
    Strategy(
        name="lowest_perplexity",
        meaning="Those that the policy found most likely.",
        source="ours: the opposite of highest_perplexity",
        choose=_ranked(lambda row: row.perplexity),
    ),
    Strategy(
        name="solve_rate",
        meaning="Rarely solved problems first; problems that were always solved are dropped.",
        source="ours: difficulty balance as in DART-Math (arXiv 2407.13690), which favours hard queries",
        choose=_rarely_solved_first,
    ),
)

STRATEGIES: Final[Mapping[str, Strategy]] = {strategy.name: strategy for strategy in _ALL}
"""Every strategy by its name in the recipe."""
