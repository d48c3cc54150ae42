"""Which trajectories become preference pairs: rules that are functions, each with its source, in one table by name.

One of a user's own is named in the recipe as `package.module:function`.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from still_ray.algo.seeds import derived_seed
from still_ray.algo.selection.select import distinct_candidates, is_usable
from still_ray.config import PairConfig, Scope
from still_ray.extensions import load_named
from still_ray.types import Candidate, FinishReason, InputError, PairKeys, TrajectoryKey, Verdict

GROUP: Final = "still_ray.pair_rules"
"""Entry points of pair rules."""

Match = tuple[Candidate, Candidate]
"""Two trajectories of one problem: the chosen one, the rejected one."""


@dataclass(frozen=True, kw_only=True)
class ProblemResponses:
    """What a pair rule decides on: the responses to one problem, each list sorted by key, of equal ones the first.

    Attributes:
        correct: Correct, well-formed and whole ones.
        incorrect: Incorrect, well-formed and whole ones.
        truncated: Those that the token limit cut off in a thought or a solution that they had begun.
    """

    correct: Sequence[Candidate]
    incorrect: Sequence[Candidate]
    truncated: Sequence[Candidate]

    @property
    def keys(self) -> set[TrajectoryKey]:
        """The keys of all of them."""
        return {row.key for row in (*self.correct, *self.incorrect, *self.truncated)}


class PairRule(Protocol):
    """One way to pair; the first paragraph of its docstring says what it joins, "Source:" where it comes from."""

    def __call__(self, responses: ProblemResponses, draw: random.Random, /) -> Iterable[Match]:
        """Every match that may become a pair, the one to make first in front.

        Of the rest, those remain whose trajectories are in no pair yet; `pairs.max_per_problem` says how many are made.

        Args:
            responses: To one problem.
            draw: Random numbers that follow from the run's seed; problems come in the order of their ids.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The pairs, and why the other problems have none.

    Every problem with a response is in one of the counts of problems: they add up to `num_problems`.

    Attributes:
        pairs: Sorted.
        num_problems: Problems with any response.
        num_matched: Problems of which the rule joins responses.
        num_only_correct: Problems without a pair for want of a usable incorrect response.
        num_only_incorrect: Problems without a pair for want of a usable correct response.
        num_unusable: Problems without a usable response of either kind: all of them are malformed, cut off or without
            a verdict on their answer.
        num_unmatched: Problems with usable responses of both kinds of which the rule joins none.
        num_only_equal: Problems of which the rule joins none but equal sides.
        num_equal_responses: Usable responses that fell out because an equal one of the same verdict and problem has a
            smaller key. Equal is what is learnt equally, here and below.
        num_equal_sides: Pairs that the rule would have made, but for sides that are equal.
        num_equal_pairs: Pairs left out because an equal pair, of a problem with the same question, is there.
        num_over_cap: Pairs left out by `max_pairs`.
    """

    pairs: tuple[PairKeys, ...]
    num_problems: int
    num_matched: int
    num_only_correct: int
    num_only_incorrect: int
    num_unusable: int
    num_unmatched: int
    num_only_equal: int
    num_equal_responses: int
    num_equal_sides: int
    num_equal_pairs: int
    num_over_cap: int


def pair_trajectories(candidates: Iterable[Candidate], config: PairConfig, *, scope: Scope, seed: int) -> Pairing:
    """Pairs trajectories of the same problem by a rule.

    Of whole responses only those with the verdict `correct` or `incorrect` take part: a timeout or an error says
    nothing about the answer. A trajectory is in one pair at most. Of those that teach the same under the scope the
    first by key takes part.

    Args:
        candidates: The pool.
        config: The rule and the caps.
        scope: What is learnt of a trajectory: trajectories are equal where that is.
        seed: Decides for the rule `random`, and which pairs remain under `max_pairs`.

    Raises:
        InputError: A rule of the user's own gives what it was not given.
        ValueError: It cannot be loaded.
    """
    rule: PairRule = load_named(config.rule, RULES, group=GROUP)
    sides = _Sides(candidates, scope)
    draw = random.Random(derived_seed(seed, "pairs"))
    matches: list[Match] = []
    kinds: Counter[str] = Counter()
    num_equal_sides = 0
    for problem in sides.problems:
        responses = sides.of(problem)
        if not responses.keys:
            kinds["neither"] += 1
            continue
        made, num_equal = _from_the_front(rule(responses, draw), responses, config.max_per_problem, scope)
        matches += made
        num_equal_sides += num_equal
        kinds["matched" if made else "equal" if num_equal else _kinds(responses)] += 1
    distinct = pairs = _distinct_pairs(matches, scope)
    if config.max_pairs is not None and len(pairs) > config.max_pairs:
        pairs = draw.sample(pairs, config.max_pairs)
    return Pairing(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.chosen)),
        num_problems=len(sides.problems),
        num_matched=kinds["matched"],
        num_only_correct=kinds["correct"],
        num_only_incorrect=kinds["incorrect"],
        num_unusable=kinds["neither"],
        num_unmatched=kinds["both"],
        num_only_equal=kinds["equal"],
        num_equal_responses=sides.correct.num_equal + sides.incorrect.num_equal,
        num_equal_sides=num_equal_sides,
        num_equal_pairs=len(matches) - len(distinct),
        num_over_cap=len(distinct) - len(pairs),
    )


def _kinds(responses: ProblemResponses) -> str:
    """Which whole responses a problem has."""
    if responses.correct:
        return "both" if responses.incorrect else "correct"
    return "incorrect" if responses.incorrect else "neither"


class _Sides:
    """The pool as pair rules see it, one side for each list of `ProblemResponses`.

    Attributes:
        problems: Ids of the problems with any response, sorted.
    """

    def __init__(self, candidates: Iterable[Candidate], scope: Scope) -> None:
        pool = list(candidates)
        self.problems = sorted({row.key.problem_id for row in pool})
        usable = [row for row in pool if is_usable(row)]
        self.correct = _Side((row for row in usable if row.verdict is Verdict.CORRECT), scope)
        self.incorrect = _Side((row for row in usable if row.verdict is Verdict.INCORRECT), scope)
        self.truncated = _Side((row for row in pool if _is_cut_off(row)), scope)

    def of(self, problem: str) -> ProblemResponses:
        """The responses to a problem."""
        sides = (side.rows.get(problem, ()) for side in (self.correct, self.incorrect, self.truncated))
        correct, incorrect, truncated = sides
        return ProblemResponses(correct=correct, incorrect=incorrect, truncated=truncated)


def _is_cut_off(row: Candidate) -> bool:
    """Whether a response came to no answer: one that was judged had closed its solution before the limit."""
    return row.finish_reason is FinishReason.LENGTH and row.verdict is Verdict.UNPARSABLE and row.thought_chars > 0


class _Side:
    """The trajectories of one side.

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


def _from_the_front(
    ranking: Iterable[Match], responses: ProblemResponses, most: int, scope: Scope
) -> tuple[list[Match], int]:
    """The first matches without a trajectory in two of them, and how many would be among them but for equal sides.

    Raises:
        InputError: A match holds what is no response to the problem.
    """
    known = responses.keys
    used: set[TrajectoryKey] = set()
    made: list[Match] = []
    num_equal = 0
    for one, other in ranking:
        if len(made) == most:
            break
        if not {one.key, other.key} <= known:
            raise InputError(f"the pair rule joins {one.key} and {other.key}, not both of which it was given")
        if used & {one.key, other.key}:
            continue
        if one.digests.under(scope) == other.digests.under(scope):
            num_equal += 1
            continue
        used |= {one.key, other.key}
        made.append((one, other))
    return made, num_equal


def _by_perplexity(rows: Iterable[Candidate], sign: int) -> list[Candidate]:
    """Sorted by perplexity: the lowest first for 1, the highest first for -1."""
    return sorted(rows, key=lambda row: (sign * row.perplexity, row.key))


def paper(responses: ProblemResponses, draw: random.Random) -> Iterator[Match]:
    """Correct with the highest perplexity against incorrect with the lowest.

    Source: paper
    """
    return itertools.product(_by_perplexity(responses.correct, -1), _by_perplexity(responses.incorrect, 1))


def reverse(responses: ProblemResponses, draw: random.Random) -> Iterator[Match]:
    """Correct with the lowest perplexity against incorrect with the highest.

    Source: ours: the opposite, after a report that the paper's rule made a model stop stopping
    """
    return itertools.product(_by_perplexity(responses.correct, 1), _by_perplexity(responses.incorrect, -1))


def at_random(responses: ProblemResponses, draw: random.Random) -> Iterator[Match]:
    """Any correct against any incorrect, by the seed.

    Source: ours: the baseline
    """
    sides = (responses.correct, responses.incorrect)
    if not all(sides):  # nothing is drawn for a problem without a pair
        return iter(())
    first, second = (draw.sample(rows, len(rows)) for rows in sides)
    return itertools.product(first, second)


def length_matched(responses: ProblemResponses, draw: random.Random) -> list[Match]:
    """The correct and the incorrect whose thoughts differ least in length, characters.

    Source: ours: takes length away as a signal, which preference losses are known to exploit (arXiv 2403.19159)
    """
    return sorted(
        itertools.product(responses.correct, responses.incorrect),
        key=lambda match: (abs(match[0].thought_chars - match[1].thought_chars), match[0].key, match[1].key),
    )


def concise(responses: ProblemResponses, draw: random.Random) -> Iterator[Match]:
    """The correct with the shortest thought against the correct with the longest, characters.

    Source: arXiv 2412.21187, which prefers the shortest sampled response to the longest against overthinking
    """
    ranked = sorted(responses.correct, key=lambda row: (row.thought_chars, row.key))
    matches = itertools.product(ranked, reversed(ranked))
    return (match for match in matches if match[0].thought_chars < match[1].thought_chars)


def truncated(responses: ProblemResponses, draw: random.Random) -> Iterator[Match]:
    """The correct with the shortest thought against the truncated with the longest, characters.

    Source: ours: against responses that do not come to an end
    """
    right = sorted(responses.correct, key=lambda row: (row.thought_chars, row.key))
    cut_off = sorted(responses.truncated, key=lambda row: (-row.thought_chars, row.key))
    return itertools.product(right, cut_off)


RULES: Final[Mapping[str, PairRule]] = {
    "paper": paper,
    "reverse": reverse,
    "random": at_random,
    "length_matched": length_matched,
    "concise": concise,
    "truncated": truncated,
}
"""Every rule by its name in the recipe's `pairs.rule`."""
