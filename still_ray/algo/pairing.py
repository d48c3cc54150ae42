"""Which trajectories become preference pairs, by rules that are objects with a name, a meaning and a source."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from still_ray.algo.seeds import derived_seed
from still_ray.algo.selection import is_usable
from still_ray.config import PairConfig
from still_ray.types import Candidate, PairKeys, Verdict

Sides = tuple[list[Candidate], list[Candidate]]
"""The correct and the incorrect trajectories of one problem."""

Matches = list[tuple[Candidate, Candidate]]
"""Correct and incorrect trajectories joined, the best match first, none of them twice."""


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """One way to join the two sides of a problem.

    Attributes:
        name: As the recipe has it in `pairs.rule`.
        meaning: Which pairs it makes, in one sentence.
        source: Where it comes from.
        match: Joins the sides, each sorted by key.
    """

    name: str
    meaning: str
    source: str
    match: Callable[[Sides, random.Random], Matches]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The pairs, and why the other problems have none.

    Attributes:
        pairs: Sorted.
        num_only_correct: Problems without a usable incorrect response.
        num_only_incorrect: Problems without a usable correct response.
    """

    pairs: tuple[PairKeys, ...]
    num_only_correct: int
    num_only_incorrect: int


def pair_trajectories(candidates: Iterable[Candidate], config: PairConfig, *, seed: int) -> Pairing:
    """Pairs correct with incorrect trajectories of the same problem.

    Only verdicts `correct` and `incorrect` take part: a timeout or an error says nothing about the answer. A trajectory
    is in one pair at most.

    Args:
        candidates: The pool.
        config: The rule and the caps.
        seed: Decides for the rule `random`, and which pairs remain under `max_pairs`.
    """
    correct: dict[str, list[Candidate]] = defaultdict(list)
    incorrect: dict[str, list[Candidate]] = defaultdict(list)
    for row in sorted((row for row in candidates if is_usable(row)), key=lambda row: row.key):
        if row.verdict is Verdict.CORRECT:
            correct[row.key.problem_id].append(row)
        elif row.verdict is Verdict.INCORRECT:
            incorrect[row.key.problem_id].append(row)
    draw = random.Random(derived_seed(seed, "pairs"))
    rule = RULES[config.rule]
    pairs = [
        PairKeys(chosen=chosen.key, rejected=rejected.key)
        for problem in sorted(correct.keys() & incorrect.keys())
        for chosen, rejected in rule.match((correct[problem], incorrect[problem]), draw)[: config.max_per_problem]
    ]
    if config.max_pairs is not None and len(pairs) > config.max_pairs:
        pairs = draw.sample(pairs, config.max_pairs)
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.chosen)),
        num_only_correct=len(correct.keys() - incorrect.keys()),
        num_only_incorrect=len(incorrect.keys() - correct.keys()),
    )


def _by_perplexity(*, chosen: int, rejected: int) -> Callable[[Sides, random.Random], Matches]:
    """Joins two rankings from the front; 1 ranks the lowest perplexity first, -1 the highest."""

    def match(sides: Sides, draw: random.Random) -> Matches:
        first, second = _ranked(sides[0], chosen), _ranked(sides[1], rejected)
        return list(zip(first, second, strict=False))

    return match


def _ranked(rows: list[Candidate], sign: int) -> list[Candidate]:
    return sorted(rows, key=lambda row: (sign * row.perplexity, row.key))


def _at_random(sides: Sides, draw: random.Random) -> Matches:
    first, second = (draw.sample(rows, len(rows)) for rows in sides)
    return list(zip(first, second, strict=False))


def _by_like_length(sides: Sides, draw: random.Random) -> Matches:
    """Takes the two whose thoughts differ least in length, then the next two of those that are left."""
    joined = sorted(
        ((one, other) for one in sides[0] for other in sides[1]),
        key=lambda pair: (abs(pair[0].thought_chars - pair[1].thought_chars), pair[0].key, pair[1].key),
    )
    used = set()
    matches = []
    for one, other in joined:
        if one.key not in used and other.key not in used:
            used |= {one.key, other.key}
            matches.append((one, other))
    return matches


_ALL: Final = (
    PairRule(
        name="paper",
        meaning="Correct with the highest perplexity against incorrect with the lowest.",
        source="paper",
        match=_by_perplexity(chosen=-1, rejected=1),
    ),
    PairRule(
        name="reverse",
        meaning="Correct with the lowest perplexity against incorrect with the highest.",
        source="ours: the opposite, after a report that the paper's rule made a model stop stopping",
        match=_by_perplexity(chosen=1, rejected=-1),
    ),
    PairRule(
        name="random",
        meaning="Any correct against any incorrect, by the seed.",
        source="ours: the baseline",
        match=_at_random,
    ),
    PairRule(
        name="length_matched",
        meaning="The correct and the incorrect whose thoughts differ least in length, characters.",
        source="ours: takes length away as a signal, which DPO is known to exploit (arXiv 2403.19159)",
        match=_by_like_length,
    ),
)

RULES: Final[Mapping[str, PairRule]] = {rule.name: rule for rule in _ALL}
"""Every rule by its name in the recipe."""
