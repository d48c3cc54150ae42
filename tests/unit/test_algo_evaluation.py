"""The summary of an evaluation against counting, majority votes by hand, comparisons and repetitions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.algo.evaluation.comparison import LEVEL, ModelResult, compare_models
from still_ray.algo.evaluation.majority import AnswerPair, majority_is_correct
from still_ray.algo.evaluation.repetition import compare_repetition
from still_ray.algo.evaluation.statistics import exact_binomial_interval
from still_ray.algo.evaluation.summary import (
    evaluation_request,
    interval_over_problems,
    open_pairs,
    summarize,
    summarize_groups,
)
from still_ray.config import EvaluateConfig
from still_ray.types import Domain, FinishReason, Trajectory, Verdict
from tests.fakes import make_problem, make_trajectory

RIGHT = "7"


def answers(*given: str | None, problem: str = "p1") -> list[Trajectory]:
    """One sample for each answer; 7 is the right one."""
    return [
        make_trajectory(
            problem,
            index,
            extracted=answer,
            verdict=Verdict.CORRECT if answer == RIGHT else Verdict.INCORRECT if answer else Verdict.UNPARSABLE,
        )
        for index, answer in enumerate(given)
    ]


def graded(**correct: int) -> list[Trajectory]:
    """Four samples of each problem, so many of them right."""
    return [
        row
        for problem, count in correct.items()
        for row in answers(*[RIGHT] * count, *["1"] * (4 - count), problem=problem)
    ]


# -- one sample -------------------------------------------------------------------------------------------------------


def test_a_summary_counts_every_verdict_and_only_correct_ones_as_correct() -> None:
    verdicts = [*[Verdict.CORRECT] * 3, *[Verdict.INCORRECT] * 2, Verdict.TIMEOUT, Verdict.ERROR, Verdict.UNPARSABLE]
    rows = [make_trajectory(f"p{i}", verdict=verdict, thought_tokens=10 * i) for i, verdict in enumerate(verdicts)]
    summary = summarize(rows)
    assert (summary.num_problems, summary.num_correct, summary.accuracy) == (8, 3, 3 / 8)
    assert summary.ci95 == exact_binomial_interval(3, 8) and summary.ci95_method == "exact binomial"
    assert summary.verdicts == {"correct": 3, "incorrect": 2, "unparsable": 1, "timeout": 1, "error": 1}
    assert summary.mean_thought_tokens == 35
    assert summary.thought_tokens == {"p10": 0, "median": 30, "p90": 70, "max": 70}
    assert list(summary.pass_at_k) == ["1"] and summary.majority is None


def test_a_summary_names_absent_verdicts_and_the_share_of_truncated_responses() -> None:
    reasons = (FinishReason.LENGTH, *[FinishReason.STOP] * 3)
    rows = [make_trajectory(f"p{i}", finish_reason=reason) for i, reason in enumerate(reasons)]
    summary = summarize(rows)
    assert (summary.truncation_rate, summary.num_truncated) == (0.25, 1)
    assert summary.verdicts["timeout"] == 0
    assert set(summary.verdicts) == {verdict.value for verdict in Verdict}


def test_nothing_and_problems_without_all_their_samples_cannot_be_summarized() -> None:
    with pytest.raises(ValueError, match="no responses"):
        summarize([])
    with pytest.raises(ValueError, match="2 to 4 samples"):
        summarize([*graded(a=1), *answers(RIGHT, "1", problem="b")])


# -- several samples --------------------------------------------------------------------------------------------------


def test_avg_pass_and_majority_of_four_samples_by_hand() -> None:
    summary = summarize(graded(a=0, b=1, c=3, d=4))
    assert (summary.num_problems, summary.num_responses, summary.num_samples) == (4, 16, 4)
    assert summary.accuracy == 8 / 16 and summary.ci95_method == "bootstrap over problems"
    # pass@2: b misses 3 of its 6 pairs, c and d none.
    values = {k: estimate.value for k, estimate in summary.pass_at_k.items()}
    assert values == pytest.approx({"1": 0.5, "2": (0 + 0.5 + 1 + 1) / 4, "3": (0 + 0.75 + 1 + 1) / 4, "4": 0.75})
    assert summary.majority is not None and summary.majority.value == 0.5
    for estimate in summary.pass_at_k.values():
        assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]


def test_problems_that_are_never_solved_leave_a_doubt_that_a_bootstrap_does_not_see() -> None:
    summary = summarize(graded(**{f"p{number}": 0 for number in range(20)}))
    assert summary.ci95 == exact_binomial_interval(0, 20) == summary.pass_at_k["4"].ci95
    assert summary.ci95_method == "exact binomial"
    assert summarize(graded(a=4, b=4)).ci95 == exact_binomial_interval(2, 2)


def test_problems_that_are_all_alike_leave_a_doubt_too() -> None:
    one = summarize(graded(a=2))
    assert (one.accuracy, one.ci95, one.ci95_method) == (0.5, (0.0, 1.0), "Hoeffding's bound over problems")
    eight = interval_over_problems([0.5] * 8)
    assert eight.value == 0.5 and eight.ci95 == pytest.approx((0.0198, 0.9802), abs=1e-4)  # 0.5 +- sqrt(ln 40 / 16)
    assert summarize(graded(a=2, b=3)).ci95_method == "bootstrap over problems"


def test_the_order_of_arrival_changes_nothing() -> None:
    rows = graded(a=0, b=1, c=3, d=4)
    assert summarize(rows[::-1]) == summarize(rows)


def test_groups_have_their_own_numbers_and_problems_without_a_group_none() -> None:
    groups = summarize_groups(graded(a=0, b=1, c=3, d=4), {"a": "2", "b": "2", "d": "1"})
    assert list(groups) == ["1", "2"]
    assert list(summarize_groups(graded(a=0, b=1, c=2), {"a": "10", "b": "x", "c": "9"})) == ["9", "10", "x"]
    assert (groups["2"].num_problems, groups["2"].accuracy) == (2, 1 / 8)
    assert groups["1"].verdicts["correct"] == 4


def test_the_seeds_of_an_evaluation_follow_from_its_seed_and_not_from_the_round() -> None:
    config = EvaluateConfig(num_samples=3)
    first = evaluation_request(make_problem(), config, (0, 1, 2), round_number=1)
    later = evaluation_request(make_problem(), config, (1,), round_number=4)
    other = evaluation_request(make_problem(), config.model_copy(update={"seed": 1}), (1,), round_number=4)
    assert first and later and other
    assert first.seeds[1:2] == later.seeds != other.seeds and len(set(first.seeds)) == 3
    assert (first.settings.temperature, first.settings.top_p) == (0.6, 0.95)
    assert evaluation_request(make_problem(), config, (), round_number=1) is None


def test_one_sample_is_greedy_unless_a_temperature_is_given_and_several_cannot_be() -> None:
    assert EvaluateConfig().sampling.temperature == 0 and EvaluateConfig().sampling.top_p == 1
    assert EvaluateConfig(temperature=1.0).sampling.top_p == 0.95
    with pytest.raises(ValueError, match="one and the same"):
        EvaluateConfig(num_samples=2, temperature=0.0)


# -- majority ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((RIGHT, RIGHT, "1"), True),
        ((RIGHT, "1", "1"), False),
        ((RIGHT, "1", "2"), True),  # one vote each: the first sampled wins
        (("1", RIGHT, "2"), False),
        ((RIGHT, None, None), True),  # what gives no answer does not vote
        ((None, None, None), False),
        (("1 ", "1", RIGHT), False),  # spacing makes no other answer
    ],
)
def test_majorities(given: tuple[str | None, ...], expected: bool) -> None:
    assert majority_is_correct(answers(*given), ()) is expected


def test_answers_that_a_verifier_calls_the_same_vote_together() -> None:
    rows = answers(RIGHT, RIGHT, "0.5", "1/2", r"\frac{1}{2}", problem="q")
    (question,) = {row.question for row in rows}

    def pair(first: str, second: str) -> AnswerPair:
        return AnswerPair(domain=Domain.MATH, question=question, first=first, second=second)

    asked = open_pairs(rows)
    assert asked == [pair("0.5", "1/2"), pair("0.5", r"\frac{1}{2}"), pair("1/2", r"\frac{1}{2}")]
    assert majority_is_correct(rows, ())
    assert majority_is_correct(rows, asked[:1])  # two against two
    assert not majority_is_correct(rows, [asked[0], asked[2]])  # the third by way of the second
    elsewhere = [AnswerPair(domain=Domain.MATH, question="another", first=p.first, second=p.second) for p in asked]
    assert majority_is_correct(rows, elsewhere)


@pytest.mark.parametrize(
    "given",
    [
        (RIGHT, RIGHT, RIGHT, "1", "2"),  # no merger can win
        ("1", "2", "3", "4", "5"),  # no right answer that could lose
        (RIGHT, "1", "1", "2", "3"),  # lost already
        (RIGHT, "1"),
    ],
)
def test_a_verifier_is_asked_only_where_the_vote_hinges_on_it(given: tuple[str, ...]) -> None:
    assert open_pairs(answers(*given)) == []


def test_programs_have_no_majority() -> None:
    rows = [make_trajectory("p", index, extracted=None, domain=Domain.CODE) for index in range(3)]
    assert summarize(rows).majority is None and open_pairs(rows) == []


@given(given=st.lists(st.sampled_from([RIGHT, "1", "2", None]), min_size=2, max_size=9))
def test_an_answer_with_more_than_half_of_all_samples_is_the_majority(given: list[str | None]) -> None:
    if given.count(RIGHT) * 2 > len(given):
        assert majority_is_correct(answers(*given), ())
    if max(given.count("1"), given.count("2")) * 2 > len(given):
        assert not majority_is_correct(answers(*given), ())


# -- comparisons ------------------------------------------------------------------------------------------------------


def result(model: str, correct: dict[str, int], num_samples: int = 1) -> ModelResult:
    return ModelResult(model=model, num_samples=num_samples, correct=correct)


def solved(*flags: int) -> dict[str, int]:
    return {f"p{number}": flag for number, flag in enumerate(flags)}


def test_a_difference_is_called_one_only_when_the_test_says_so() -> None:
    five, six = solved(*[0] * 5, 1, 1), solved(*[0] * 6, 1)
    (few,) = compare_models({"b": [result("x", five), result("y", dict.fromkeys(five, 1))]})
    assert few.difference == pytest.approx(5 / 7) and few.p_value == 0.0625
    assert few.finding == "no difference shown" and few.ci95[0] > 0, "whatever the bootstrap says"
    (enough,) = compare_models({"b": [result("x", six), result("y", dict.fromkeys(six, 1))]})
    assert (enough.p_value, enough.finding, enough.test) == (0.03125, "second is better", "McNemar, exact")
    assert (enough.only_first, enough.only_second) == (0, 6)
    (worse,) = compare_models({"b": [result("y", dict.fromkeys(six, 1)), result("x", six)]})
    assert (worse.finding, worse.difference) == ("first is better", -enough.difference)


def test_more_comparisons_need_more_evidence() -> None:
    six = solved(*[0] * 6, 1)
    all_right = dict.fromkeys(six, 1)
    pairs = compare_models({"b": [result("x", six), result("y", all_right), result("z", six)], "c": [result("x", six)]})
    assert [(pair.first, pair.second) for pair in pairs] == [("x", "y"), ("x", "z")]
    assert pairs[0].p_value < LEVEL < pairs[0].p_value_corrected == 0.0625
    assert {pair.finding for pair in pairs} == {"no difference shown"}


def test_several_samples_are_compared_problem_by_problem() -> None:
    """Four problems, each a little better: 2 of 16 sign patterns are as far out, however many samples there are."""
    first, second = solved(1, 2, 3, 4), solved(3, 4, 5, 6)
    (pair,) = compare_models({"b": [result("x", first, 8), result("y", second, 8)]})
    assert pair.p_value == pytest.approx(2 / 16) and "permutation" in pair.test
    assert pair.difference == pytest.approx(0.25) and pair.ci95 == pytest.approx((0.25, 0.25))


def test_models_that_were_asked_other_problems_are_not_compared() -> None:
    with pytest.raises(ValueError, match="b: x and y"):
        compare_models({"b": [result("x", solved(1)), result("y", {"q": 1})]})


# -- repetitions ------------------------------------------------------------------------------------------------------


def record(**changes: Any) -> dict[str, Any]:
    parts = {part: {"sha256": part} for part in ("model", "benchmark", "prompt", "chat_template", "verifier")}
    parts["model"]["files_sha256"] = "files"
    return {**parts, "versions": {"vllm": "1"}, "accuracy": 0.5, **changes}


def test_the_same_again_matches_whatever_the_clock_says() -> None:
    rows = graded(a=1, b=2)
    later = [make_trajectory(**{**vars(row), "round_number": row.round, "latency_s": 9.0}) for row in rows]
    found = compare_repetition(record(), record(versions={"vllm": "2"}), rows, later)
    assert found.matches and found.num_same == found.num_responses == 8
    assert found.versions == {"vllm": ("1", "2")}


def test_what_differs_is_named() -> None:
    rows = answers(RIGHT, "1", problem="a") + answers("1", "1", problem="b") + answers("1", problem="c")
    other = answers(RIGHT, "1", problem="a") + answers("1", RIGHT, problem="b")
    other[0] = make_trajectory("a", 0, extracted=RIGHT, response="other words")
    found = compare_repetition(record(), record(model={"sha256": "new", "files_sha256": "new"}), rows, other)
    assert not found.matches
    assert (found.other_text, found.other_verdict, found.num_same) == (("a", "c"), ("b",), 2)
    assert found.inputs == {"model": ("model", "new"), "model files": ("files", "new")}


def test_an_unknown_digest_proves_nothing() -> None:
    rows = graded(a=1)
    unknown = record(model={"sha256": None, "files_sha256": "files"})
    assert not compare_repetition(unknown, unknown, rows, rows).matches
