"""Which correct trajectories join the demonstrations.

All strategies see only correct, well-formed, untruncated trajectories, take at most `max_per_problem` of a problem and
`max_examples` in all, and do not depend on the order of their input. Of trajectories that teach the same text to the
same question they see the first by key, and none where a demonstration teaches it already: a text that is sampled twice
would otherwise weigh twice.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from still_ray.algo.seeds import derived_seed
from still_ray.algo.selection.strategies import GROUP, STRATEGIES, Choice, Strategy, TeacherLengths, under_the_caps
from still_ray.config import Scope, SelectConfig
from still_ray.extensions import load_named
from still_ray.types import Candidate, Demonstration, FinishReason, TrajectoryKey, Verdict, learnt_digests

_JUDGED = (Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSABLE)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The trajectories to learn from, and why the other correct ones are not.

    Every correct trajectory is in one of the counts, or among the keys: they add up to `num_correct`.

    Attributes:
        keys: Sorted.
        num_correct: Correct trajectories in the pool.
        num_unusable: Malformed, or cut off.
        num_often_solved: Of problems that are solved more often than `max_solve_rate`.
        num_as_demonstrated: Trajectories that a strategy may take, but for a demonstration with the same text.
        num_as_earlier: Likewise, for a trajectory with the same text and a smaller key.
        num_not_chosen: Left by the strategy, `max_per_problem` and `max_examples`.
    """

    keys: tuple[TrajectoryKey, ...]
    num_correct: int
    num_unusable: int
    num_often_solved: int
    num_as_demonstrated: int
    num_as_earlier: int
    num_not_chosen: int


def is_usable(candidate: Candidate) -> bool:
    """Whether a trajectory may be learnt from: well-formed and not truncated."""
    return candidate.well_formed and candidate.finish_reason is FinishReason.STOP


def solve_rates(candidates: Iterable[Candidate]) -> dict[str, float]:
    """Share of correct responses among those that got a verdict on their answer, by problem id.

    A timeout or an error says nothing of the response and does not count; a response without an answer is not correct.
    """
    judged: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for row in candidates:
        if row.verdict in _JUDGED:
            judged[row.key.problem_id] += 1
            correct[row.key.problem_id] += row.verdict is Verdict.CORRECT
    return {problem_id: correct[problem_id] / count for problem_id, count in judged.items()}


@dataclass(frozen=True, kw_only=True)
class Demonstrated:
    """What selection needs to know of the demonstrations, equal ones taken once.

    Attributes:
        thought_chars: Lengths of the thoughts of those that are not general, characters, by domain.
        digests: Of what they teach.
        num_equal: Demonstrations left out because an equal one came before.
        by_dataset: How many rows an epoch learns of each file, by its name; "" for the only one.
    """

    thought_chars: TeacherLengths
    digests: AbstractSet[bytes] = frozenset()
    num_equal: int = 0
    by_dataset: Mapping[str, int] = field(default_factory=dict)


def demonstrated(demonstrations: Iterable[Demonstration], scope: Scope) -> Demonstrated:
    """Reads demonstrations to their end, keeping none of the text; equal are those that teach the same."""
    lengths: dict[str, list[int]] = defaultdict(list)
    digests: set[bytes] = set()
    by_dataset: Counter[str] = Counter()
    num_equal = 0
    for shown in demonstrations:
        digest = learnt_digests(shown).under(scope)
        if digest in digests:
            num_equal += 1
            continue
        digests.add(digest)
        by_dataset[shown.dataset] += shown.copies
        if not shown.general:
            lengths[shown.domain].append(len(shown.thought))
    return Demonstrated(thought_chars=lengths, digests=digests, num_equal=num_equal, by_dataset=by_dataset)


def distinct_demonstrations(demonstrations: Iterable[Demonstration], scope: Scope) -> Iterator[Demonstration]:
    """Streams the demonstrations that teach a text to a question for the first time."""
    seen = set()
    for shown in demonstrations:
        digest = learnt_digests(shown).under(scope)
        if digest not in seen:
            seen.add(digest)
            yield shown


def distinct_candidates(candidates: Iterable[Candidate], scope: Scope) -> list[Candidate]:
    """Those with the smallest key among all that teach the same text to the same question, sorted by key."""
    first: dict[bytes, Candidate] = {}
    for row in sorted(candidates, key=lambda row: row.key):
        first.setdefault(row.digests.under(scope), row)
    return list(first.values())


def select_trajectories(
    candidates: Iterable[Candidate],
    config: SelectConfig,
    *,
    scope: Scope,
    shown: Demonstrated,
    seed: int,
) -> Selection:
    """Chooses trajectories for SFT.

    Args:
        candidates: The pool, all verdicts.
        config: Strategy and caps.
        scope: What is learnt of a trajectory: trajectories are equal where that is.
        shown: The demonstrations, under the same scope.
        seed: Decides where the strategy leaves a choice.

    Raises:
        InputError: A strategy of the user's own gives what it was not given.
        ValueError: It cannot be loaded.
    """
    strategy: Strategy = load_named(config.strategy, STRATEGIES, group=GROUP)
    pool = list(candidates)
    rates = solve_rates(pool)
    correct = [row for row in pool if row.verdict is Verdict.CORRECT]
    usable = [row for row in correct if is_usable(row)]
    takeable = [row for row in usable if _is_rare(row, rates, config)]
    new = [row for row in takeable if row.digests.under(scope) not in shown.digests]
    distinct = distinct_candidates(new, scope)
    choice = Choice(
        rows=_shuffled(distinct, seed),
        max_per_problem=config.max_per_problem,
        max_examples=config.max_examples,
        teacher=shown.thought_chars,
        solve_rates=rates,
    )
    keys = tuple(sorted(row.key for row in under_the_caps(strategy(choice), choice)))
    return Selection(
        keys=keys,
        num_correct=len(correct),
        num_unusable=len(correct) - len(usable),
        num_often_solved=len(usable) - len(takeable),
        num_as_demonstrated=len(takeable) - len(new),
        num_as_earlier=len(new) - len(distinct),
        num_not_chosen=len(distinct) - len(keys),
    )


def _is_rare(row: Candidate, rates: Mapping[str, float], config: SelectConfig) -> bool:
    return config.max_solve_rate is None or rates[row.key.problem_id] <= config.max_solve_rate


def _shuffled(rows: Sequence[Candidate], seed: int) -> list[Candidate]:
    """The same order for the same rows and seed; they come sorted."""
    ordered = list(rows)
    random.Random(derived_seed(seed, "select")).shuffle(ordered)
    return ordered
