"""Intervals against published values and their own definition; the summary of an evaluation against counting."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.algo.evaluation import summarize
from still_ray.algo.statistics import Z95, mean, wilson_interval
from still_ray.types import FinishReason, Verdict
from tests.fakes import make_trajectory

samples = st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@pytest.mark.parametrize(
    ("num_correct", "num_total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857-872, Table I, method 3 (score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_published_intervals(num_correct: int, num_total: int, low: float, high: float) -> None:
    assert wilson_interval(num_correct, num_total) == pytest.approx((low, high), abs=5e-5)


@given(sample=samples)
def test_the_ends_are_the_shares_that_lie_exactly_z_standard_errors_from_what_was_seen(
    sample: tuple[int, int],
) -> None:
    num_correct, num_total = sample
    seen = num_correct / num_total
    for end in wilson_interval(num_correct, num_total):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(seen - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / num_total), rel=1e-6, abs=1e-9)


@given(sample=samples)
def test_an_interval_holds_what_was_seen_and_mirrors(sample: tuple[int, int]) -> None:
    num_correct, num_total = sample
    low, high = wilson_interval(num_correct, num_total)
    assert 0 <= low <= num_correct / num_total + 1e-12
    assert num_correct / num_total - 1e-12 <= high <= 1
    mirrored = wilson_interval(num_total - num_correct, num_total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_about_95_of_100_samples_have_the_truth_in_their_interval(share: float) -> None:
    """Exact coverage from the binomial distribution, which swings around 95 %."""
    total = 100
    covered = 0.0
    for correct in range(total + 1):
        low, high = wilson_interval(correct, total)
        if low <= share <= high:
            covered += math.comb(total, correct) * share**correct * (1 - share) ** (total - correct)
    assert 0.93 < covered < 0.97


@given(total=st.integers(1, 500))
def test_more_problems_narrow_the_interval(total: int) -> None:
    few, many = wilson_interval(total, 2 * total), wilson_interval(2 * total, 4 * total)
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize(("num_correct", "num_total"), [(0, 0), (-1, 5), (6, 5), (1, 0)])
def test_what_is_no_proportion_has_no_interval(num_correct: int, num_total: int) -> None:
    with pytest.raises(ValueError, match=f"{num_correct} of {num_total}"):
        wilson_interval(num_correct, num_total)


def test_the_mean_of_nothing_is_nothing() -> None:
    assert mean([]) == 0.0
    assert mean([0.1] * 10) == 0.1


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_a_summary_counts_every_verdict_and_only_correct_ones_as_correct() -> None:
    verdicts = [*[Verdict.CORRECT] * 3, *[Verdict.INCORRECT] * 2, Verdict.TIMEOUT, Verdict.ERROR, Verdict.UNPARSABLE]
    rows = [make_trajectory(f"p{i}", verdict=verdict, thought_tokens=10 * i) for i, verdict in enumerate(verdicts)]
    summary = summarize(rows)
    assert (summary.num_problems, summary.num_correct, summary.accuracy) == (8, 3, 3 / 8)
    assert summary.ci95 == wilson_interval(3, 8)
    assert summary.verdicts == {"correct": 3, "incorrect": 2, "unparsable": 1, "timeout": 1, "error": 1}
    assert summary.mean_thought_tokens == 35


def test_a_summary_names_absent_verdicts_and_the_share_of_truncated_responses() -> None:
    reasons = (FinishReason.LENGTH, *[FinishReason.STOP] * 3)
    rows = [make_trajectory(f"p{i}", finish_reason=reason) for i, reason in enumerate(reasons)]
    summary = summarize(rows)
    assert summary.truncation_rate == 0.25
    assert summary.verdicts["timeout"] == 0
    assert set(summary.verdicts) == {verdict.value for verdict in Verdict}


def test_nothing_cannot_be_summarized() -> None:
    with pytest.raises(ValueError, match="0 of 0"):
        summarize([])
