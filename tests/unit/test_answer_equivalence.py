"""Two answers posed to a verifier as a response and its reference."""

from __future__ import annotations

import pytest

from still_ray.actors.sampling.answer_equivalence import posed
from still_ray.algo.evaluation.majority import AnswerPair
from still_ray.types import Domain, Verdict
from still_ray.verifiers.judge import judge


@pytest.mark.parametrize(
    ("domain", "first", "second", "same"),
    [
        (Domain.MATH, "0.5", r"\frac{1}{2}", True),
        (Domain.MATH, r"\frac{2}{4}", "1/2", True),
        (Domain.MATH, "(1, 2)", "(2, 1)", False),
        (Domain.MATH, "17", "71", False),
        (Domain.MATH, "}", "1", False),
        (Domain.EXACT, "Paris", "paris", True),
        (Domain.CHOICE, "(B)", "B", True),
        (Domain.CHOICE, "A", "B", False),
    ],
)
def test_answers_are_the_same_where_one_is_correct_for_the_other(
    domain: Domain, first: str, second: str, same: bool
) -> None:
    rollout = posed(AnswerPair(domain=domain, question="Which?", first=first, second=second))
    problem = rollout.problem
    verdict = judge(rollout.parsed, problem.domain, problem.answer, problem.question).verdict
    assert (verdict is Verdict.CORRECT) is same
