"""Which trajectories become preference pairs, by rules that are objects with a name, a meaning and a source."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from still_ray.algo.seeds import derived_seed
from still_ray.algo.selection.select import distinct_candidates, is_usable
from still_ray.config import PairConfig, Scope
from still_ray.types import Candidate, PairKeys, TrajectoryKey, Verdict

Sides = tuple[list[Candidate], list[Candidate]]
"""The correct and the incorrect trajectories of one problem."""

Match = tuple[Candidate, Candidate]
"""A correct and an incorrect trajectory of one problem."""


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """One way to join the two sides of a problem.

    Attributes:
        name: As the recipe has it in `pairs.rule`.
        meaning: Which pairs it makes, in one sentence.
        source: Where it comes from.
        rank: Every match of two sides, each sorted by key, the one to make first in front. Of the rest, those remain
            whose trajectories are not in a pair yet.
    """

    name: str
    meaning: str
    source: str
    rank: Callable[[Sides, random.Random], Iterable[Match]]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The pairs, and why the other problems have none.

    Attributes:
        pairs: Sorted.
        num_only_correct: Problems without a usable incorrect response.
        num_only_incorrect: Problems without a usable correct response.
        num_equal_responses: Usable responses that fell out because an equal one of the same verdict and problem has a
            smaller key. Equal is what is learnt equally, here and below.
        num_equal_sides: Pairs that the rule would have made, but for sides that are equal.
        num_equal_pairs: Pairs left out because an equal pair, of a problem with the same question, is there.
    """

    pairs: tuple[PairKeys, ...]
    num_only_correct: int
    num_only_incorrect: int
    num_equal_responses: int
    num_equal_sides: int
    num_equal_pairs: int


def pair_trajectories(candidates: Iterable[Candidate], config: PairConfig, *, scope: Scope, seed: int) -> Pairing:
    """Pairs correct with incorrect trajectories of the same problem.

    Only verdicts `correct` and `incorrect` take part: a timeout or an error says nothing about the answer. A trajectory
    is in one pair at most. Of those that teach the same under the scope the first by key takes part.

    Args:
        candidates: The pool.
        config: The rule and the caps.
        scope: What is learnt of a trajectory: trajectories are equal where that is.
        seed: Decides for the rule `random`, and which pairs remain under `max_pairs`.
    """
    usable = [row for row in candidates if is_usable(row)]
    correct = _Side((row for row in usable if row.verdict is Verdict.CORRECT), scope)
    incorrect = _Side((row for row in usable if row.verdict is Verdict.INCORRECT), scope)
    draw = random.Random(derived_seed(seed, "pairs"))
    matches: list[Match] = []
    num_equal_sides = 0
    for problem in sorted(correct.rows.keys() & incorrect.rows.keys()):
        ranking = RULES[config.rule].rank((correct.rows[problem], incorrect.rows[problem]), draw)
        made, num_equal = _from_the_front(ranking, config.max_per_problem, scope)
        matches += made
        num_equal_sides += num_equal
    pairs = _distinct_pairs(matches, scope)
    num_equal_pairs = len(matches) - len(pairs)
    if config.max_pairs is not None and len(pairs) > config.max_pairs:
        pairs = draw.sample(pairs, config.max_pairs)
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.chosen)),
        num_only_correct=len(correct.rows.keys() - incorrect.rows.keys()),
        num_only_incorrect=len(incorrect.rows.keys() - correct.rows.keys()),
        num_equal_responses=correct.num_equal + incorrect.num_equal,
        num_equal_sides=num_equal_sides,
        num_equal_pairs=num_equal_pairs,
    )


class _Side:
    """The usable trajectories of one verdict.

    Attributes:
        rows: Distinct ones by problem, sorted by key.
        num_equal: How many fell out as equal to another.
    """

    def __init__(self, rows: Iterable[Candidate], scope: Scope) -> None:
        problems: dict[str, list[Candidate]] = defaultdict(list)
        for row in rows:
            problems[row.key.problem_id].append(row)
        self.rows = {problem: distinct_candidates(found, scope) for problem, found in problems.items()}
        self.num_equal = sum(len(problems[problem]) - len(distinct) for problem, distinct in self.rows.items())


def _distinct_pairs(matches: Iterable[Match], scope: Scope) -> list[PairKeys]:
    """The keys of the matches; of those that teach the same, of the first."""
    first: dict[tuple[bytes, bytes], PairKeys] = {}
    for one, other in matches:
        keys = PairKeys(chosen=one.key, rejected=other.key)
        first.setdefault((one.digests.under(scope), other.digests.under(scope)), keys)
    return list(first.values())


def _from_the_front(ranking: Iterable[Match], most: int, scope: Scope) -> tuple[list[Match], int]:
    """The first matches without a trajectory in two of them, and how many would be among them but for equal sides."""
    used: set[TrajectoryKey] = set()
    made: list[Match] = []
    num_equal = 0
    for one, other in ranking:
        if len(made) == most:
            break
        if used & {one.key, other.key}:
            continue
        if one.digests.under(scope) == other.digests.under(scope):
            num_equal += 1
            continue
        used |= {one.key, other.key}
        made.append((one, other))
    return made, num_equal


def _by_perplexity(*, chosen: int, rejected: int) -> Callable[[Sides, random.Random], Iterable[Match]]:
    """Joins two rankings from the front; 1 ranks the lowest perplexity first, -1 the highest."""

    def rank(sides: Sides, draw: random.Random) -> Iterator[Match]:
        return itertools.product(_ranked(sides[0], chosen), _ranked(sides[1], rejected))

    return rank


def _ranked(rows: list[Candidate], sign: int) -> list[Candidate]:
    return sorted(rows, key=lambda row: (sign * row.perplexity, row.key))


def _at_random(sides: Sides, draw: random.Random) -> Iterator[Match]:
    first, second = (draw.sample(rows, len(rows)) for rows in sides)
    return itertools.product(first, second)


def _by_like_length(sides: Sides, draw: random.Random) -> list[Match]:
    """The two whose thoughts differ least in length first."""
    return sorted(
        itertools.product(*sides),
        key=lambda match: (abs(match[0].thought_chars - match[1].thought_chars), match[0].key, match[1].key),
    )


_ALL: Final = (
    PairRule(
        name="paper",
        meaning="Correct with the highest perplexity against incorrect with the lowest.",
        source="paper",
        rank=_by_perplexity(chosen=-1, rejected=1),
    ),
    PairRule(
        name="reverse",
        meaning="Correct with the lowest perplexity against incorrect with the highest.",
        source="ours: the opposite, after a report that the paper's rule made a model stop stopping",
        rank=_by_perplexity(chosen=1, rejected=-1),
    ),
    PairRule(
        name="random",
        meaning="Any correct against any incorrect, by the seed.",
        source="ours: the baseline",
        rank=_at_random,
    ),
    PairRule(
        name="length_matched",
        meaning="The correct and the incorrect whose thoughts differ least in length, characters.",
        source="ours: takes length away as a signal, which DPO is known to exploit (arXiv 2403.19159)",
        rank=_by_like_length,
    ),
)

RULES: Final[Mapping[str, PairRule]] = {rule.name: rule for rule in _ALL}
"""Every rule by its name in the recipe."""
