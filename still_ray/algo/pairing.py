"""Which trajectories become preference pairs: one pair for each problem that has both kinds."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from still_ray.algo.seeds import derived_seed
from still_ray.algo.selection import is_usable
from still_ray.config import PairConfig
from still_ray.types import Candidate, PairKeys, Verdict


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The pairs, and why the other problems have none.

    Attributes:
        pairs: At most one for each problem, sorted.
        num_only_correct: Problems without a usable incorrect response.
        num_only_incorrect: Problems without a usable correct response.
    """

    pairs: tuple[PairKeys, ...]
    num_only_correct: int
    num_only_incorrect: int


def pair_trajectories(candidates: Iterable[Candidate], config: PairConfig, *, seed: int) -> Pairing:
    """Pairs a correct with an incorrect trajectory of the same problem.

    Only verdicts `correct` and `incorrect` take part: a timeout or an error says nothing about the answer.

    Args:
        candidates: The pool.
        config: The rule and the cap; `paper` is STILL-2's: correct with the highest perplexity against incorrect with
            the lowest.
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
    both = sorted(correct.keys() & incorrect.keys())
    pairs = [_pair(correct[problem], incorrect[problem], config, draw) for problem in both]
    if config.max_pairs is not None and len(pairs) > config.max_pairs:
        pairs = draw.sample(pairs, config.max_pairs)
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.chosen)),
        num_only_correct=len(correct.keys() - incorrect.keys()),
        num_only_incorrect=len(incorrect.keys() - correct.keys()),
    )


def _pair(correct: list[Candidate], incorrect: list[Candidate], config: PairConfig, draw: random.Random) -> PairKeys:
    if config.rule == "random":
        return PairKeys(chosen=draw.choice(correct).key, rejected=draw.choice(incorrect).key)
    sign = 1 if config.rule == "paper" else -1
    chosen = max(correct, key=lambda row: (sign * row.perplexity, row.key))
    rejected = min(incorrect, key=lambda row: (sign * row.perplexity, row.key))
    return PairKeys(chosen=chosen.key, rejected=rejected.key)
