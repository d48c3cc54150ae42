"""Majority voting: whether the answer that most samples of a problem give is the right one.

Answers that read alike are one, and so are all that the verifier called correct. Whether two other answers are the same
value (0.5 and 1/2) is a question for a verifier; it is asked only where the vote hinges on it. Of answers with equally
many votes, the one that was sampled first wins. Source: self-consistency (Wang et al. 2022); the rules are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from still_ray.types import Trajectory, Verdict


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """Two wrong answers to one problem that may be the same value.

    Attributes:
        domain: How they are compared.
        question: What they answer.
        first: One answer.
        second: The other, with which it is compared as with a reference.
    """

    domain: str
    question: str
    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class _Vote:
    """An answer, how many samples gave it, the first of them, and whether it is right."""

    answer: str
    count: int
    first: int
    correct: bool

    @property
    def rank(self) -> tuple[int, int]:
        """The winner has the highest."""
        return self.count, -self.first


def pairs_to_compare(samples: Sequence[Trajectory]) -> list[AnswerPair]:
    """The pairs of wrong answers that decide the vote on one problem; empty where they cannot change it.

    Args:
        samples: The samples of one problem.
    """
    votes = _votes(samples)
    right = _right(votes)
    if right is None:
        return []
    wrong = [vote for vote in votes if not vote.correct]
    largest = max((vote.count for vote in wrong), default=0)
    if len(wrong) < 2 or largest > right.count or sum(vote.count for vote in wrong) < right.count:  # noqa: PLR2004
        return []
    domain, question = samples[0].domain, samples[0].question
    return [
        AnswerPair(domain=domain, question=question, first=one.answer, second=other.answer)
        for one, other in combinations(wrong, 2)
    ]


def majority_is_correct(samples: Sequence[Trajectory], same: Collection[AnswerPair]) -> bool:
    """Whether the most frequent answer to one problem is right; False where no sample gives an answer.

    Args:
        samples: The samples of one problem.
        same: The pairs of wrong answers that a verifier called the same.
    """
    votes = _votes(samples)
    right = _right(votes)
    if right is None:
        return False
    question = samples[0].question
    merged = {(pair.first, pair.second) for pair in same if pair.question == question}
    wrong = _merged([vote for vote in votes if not vote.correct], merged)
    return all(right.rank > vote.rank for vote in wrong)


def has_votes(samples: Sequence[Trajectory]) -> bool:
    """Whether a vote means anything: programs and some verifiers of the user's own name no answer."""
    return all(row.extracted is not None for row in samples if row.verdict is Verdict.CORRECT)


def _votes(samples: Sequence[Trajectory]) -> list[_Vote]:
    """One vote for each distinct answer as it reads, spacing left out; the right ones together."""
    votes: dict[str, _Vote] = {}
    for row in sorted(samples, key=lambda row: row.sample_index):
        if row.extracted is None:
            continue
        key = "".join(row.extracted.split())
        vote = votes.get(key) or _Vote(answer=row.extracted, count=0, first=row.sample_index, correct=False)
        votes[key] = replace(vote, count=vote.count + 1, correct=vote.correct or row.verdict is Verdict.CORRECT)
    right = [vote for vote in votes.values() if vote.correct]
    wrong = [vote for vote in votes.values() if not vote.correct]
    return [*([_together(right)] if right else []), *wrong]


def _right(votes: Sequence[_Vote]) -> _Vote | None:
    return next((vote for vote in votes if vote.correct), None)


def _together(votes: Sequence[_Vote]) -> _Vote:
    first = min(votes, key=lambda vote: vote.first)
    return replace(first, count=sum(vote.count for vote in votes))


def _merged(votes: Sequence[_Vote], same: Collection[tuple[str, str]]) -> list[_Vote]:
    """The votes with those put together that are the same, directly or by way of a third."""
    groups: list[list[_Vote]] = []
    for vote in votes:
        linked = [group for group in groups if any((other.answer, vote.answer) in same for other in group)]
        groups = [group for group in groups if group not in linked]
        groups.append([vote, *(other for group in linked for other in group)])
    return [_together(group) for group in groups]
