"""Intervals, pass@k and paired tests against published values, brute force and their own definitions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.algo.evaluation.statistics import (
    bootstrap_interval,
    exact_binomial_interval,
    hoeffding_interval,
    holm_correction,
    mcnemar_exact,
    mean,
    pass_at_k,
    sign_flip_test,
)

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""

samples = st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@pytest.mark.parametrize(
    ("value", "num_values", "expected"),
    [(0.5, 1, (0.0, 1.0)), (0.5, 200, (0.40397, 0.59603)), (0.05, 200, (0.0, 0.14603)), (1.0, 50, (0.80794, 1.0))],
)
def test_hoeffdings_bound_by_hand(value: float, num_values: int, expected: tuple[float, float]) -> None:
    """ln 40 = 3.688879: 0.096033 for 200 values, 0.192065 for 50."""
    assert hoeffding_interval(value, num_values) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("value", "num_values"), [(1.1, 5), (-0.1, 5), (0.5, 0)])
def test_hoeffdings_bound_is_for_shares(value: float, num_values: int) -> None:
    with pytest.raises(ValueError, match=r"no mean of values in \[0, 1\]"):
        hoeffding_interval(value, num_values)


def test_the_mean_of_nothing_is_nothing() -> None:
    assert mean([]) == 0.0
    assert mean([0.1] * 10) == 0.1


# -- the exact binomial interval --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_correct", "num_total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857-872, Table I, method 5 (Clopper-Pearson).
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_the_published_exact_intervals(num_correct: int, num_total: int, low: float, high: float) -> None:
    assert exact_binomial_interval(num_correct, num_total) == pytest.approx((low, high), abs=5e-5)


@given(num_total=st.integers(1, 5000), level=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_with_nothing_correct_the_exact_interval_has_a_closed_form(num_total: int, level: float) -> None:
    """(1 - p)^n = (1 - level) / 2, and the mirror image of it."""
    end = 1 - ((1 - level) / 2) ** (1 / num_total)
    assert exact_binomial_interval(0, num_total, level) == pytest.approx((0.0, end), rel=1e-7)
    assert exact_binomial_interval(num_total, num_total, level) == pytest.approx((1 - end, 1.0), rel=1e-7)


@given(sample=st.integers(2, 60).flatmap(lambda total: st.tuples(st.integers(1, total - 1), st.just(total))))
def test_at_an_end_of_the_exact_interval_a_result_so_far_out_has_a_chance_of_a_fortieth(
    sample: tuple[int, int],
) -> None:
    correct, total = sample
    low, high = exact_binomial_interval(correct, total)
    assert chance(range(correct, total + 1), total, low) == pytest.approx(0.025, rel=1e-6)
    assert chance(range(correct + 1), total, high) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.8])
def test_at_least_95_of_100_samples_have_the_truth_in_their_exact_interval(share: float) -> None:
    holding = [correct for correct in range(31) if inside(share, exact_binomial_interval(correct, 30))]
    assert chance(holding, 30, share) >= 0.95


@given(sample=samples)
def test_an_exact_interval_holds_what_was_seen_and_mirrors(sample: tuple[int, int]) -> None:
    correct, total = sample
    low, high = exact_binomial_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    assert exact_binomial_interval(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(total=st.integers(1, 300))
def test_more_problems_narrow_the_exact_interval(total: int) -> None:
    few, many = exact_binomial_interval(total, 2 * total), exact_binomial_interval(2 * total, 4 * total)
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize(("num_correct", "num_total"), [(0, 0), (-1, 5), (6, 5), (1, 0)])
def test_what_is_no_proportion_has_no_interval(num_correct: int, num_total: int) -> None:
    with pytest.raises(ValueError, match=f"{num_correct} of {num_total}"):
        exact_binomial_interval(num_correct, num_total)


@pytest.mark.parametrize("level", [0, 1, -0.5])
def test_an_interval_has_a_level_between_0_and_1(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        exact_binomial_interval(1, 2, level)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], seed=0, level=level)


def chance(counts: Iterable[int], total: int, share: float) -> float:
    """Probability of these counts, by the binomial formula."""
    return math.fsum(math.comb(total, count) * share**count * (1 - share) ** (total - count) for count in counts)


def inside(value: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= value <= ends[1]


# -- the bootstrap ----------------------------------------------------------------------------------------------------


def test_a_bootstrap_of_three_problems_has_the_quantiles_of_all_27_resamples() -> None:
    values = [0.0, 0.25, 1.0]
    means = sorted(sum(resample) / 3 for resample in itertools.product(values, repeat=3))
    low, high = bootstrap_interval(values, seed=1, level=0.8)
    assert (low, high) == pytest.approx((means[2], means[24]))  # 10 % of 27 are 2.7


def test_a_bootstrap_is_repeatable_and_has_about_the_width_of_the_normal_interval() -> None:
    draw = random.Random(3)
    values = [draw.random() for _ in range(400)]
    low, high = bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) == (low, high) != bootstrap_interval(values, seed=6)
    centre = sum(values) / 400
    half = Z95 * math.sqrt(sum((value - centre) ** 2 for value in values)) / 400
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=0.1 * half)


def test_samples_of_one_problem_are_not_independent_so_ten_of_each_say_little_more_than_one() -> None:
    """The same ten problems, solved always or never: the interval is that of ten results, not of a hundred."""
    values = [1.0] * 5 + [0.0] * 5
    low, high = bootstrap_interval(values, seed=0)
    of_hundred = bootstrap_interval(values * 10, seed=0)
    assert high - low > 2.5 * (of_hundred[1] - of_hundred[0])


def test_equal_values_leave_no_doubt_and_no_values_no_interval() -> None:
    assert bootstrap_interval([0.5] * 4, seed=0) == (0.5, 0.5)
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_interval([], seed=0)


# -- pass@k -----------------------------------------------------------------------------------------------------------


@given(data=st.data(), num_samples=st.integers(1, 7))
def test_pass_at_k_is_the_share_of_all_subsets_with_a_correct_sample(data: st.DataObject, num_samples: int) -> None:
    num_correct = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    samples = [index < num_correct for index in range(num_samples)]
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(sample=samples)
def test_pass_at_1_is_the_share_of_correct_samples_and_pass_at_n_whether_there_is_one(sample: tuple[int, int]) -> None:
    correct, total = sample
    assert pass_at_k(total, correct, 1) == pytest.approx(correct / total)
    assert pass_at_k(total, correct, total) == float(correct > 0)


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(4, 2, 5), (4, 2, 0), (0, 0, 1), (4, 5, 2), (4, -1, 2)])
def test_beyond_what_was_drawn_pass_at_k_is_undefined(num_samples: int, num_correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"undefined|no proportion"):
        pass_at_k(num_samples, num_correct, k)


# -- paired tests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 0.0625),  # 2 / 2^5
        (0, 6, 0.03125),
        (1, 9, 0.021484375),  # 2 (1 + 10) / 2^10
    ],
)
def test_the_exact_test_of_mcnemar_by_hand(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar_exact(only_first, only_second) == p_value == mcnemar_exact(only_second, only_first)


def test_many_discordant_problems_are_no_trouble_and_negative_ones_are() -> None:
    assert 0 < mcnemar_exact(1000, 1400) < 1e-15
    with pytest.raises(ValueError, match="-1"):
        mcnemar_exact(-1, 2)


@given(differences=st.lists(st.integers(-4, 4), max_size=8))
def test_the_permutation_test_counts_the_sign_patterns_that_are_as_far_out(differences: list[int]) -> None:
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(sign * value for sign, value in zip(signs, differences, strict=True))) for signs in patterns]
    expected = sum(total >= abs(sum(differences)) for total in sums) / len(sums)
    assert sign_flip_test(differences) == pytest.approx(expected)


@given(only_first=st.integers(0, 40), only_second=st.integers(0, 40), ties=st.integers(0, 5))
def test_with_one_sample_the_permutation_test_is_mcnemars(only_first: int, only_second: int, ties: int) -> None:
    differences = [1] * only_first + [-1] * only_second + [0] * ties
    assert sign_flip_test(differences) == pytest.approx(mcnemar_exact(only_first, only_second), abs=1e-12)


def test_holms_correction_by_hand() -> None:
    """0.01 x 3; 0.03 x 2; 0.04 x 1 is less than the one before, so it becomes that."""
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.9, 0.8]) == [1.0, 1.0]
    assert holm_correction([]) == []


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_a_corrected_p_value_is_never_smaller_and_never_beyond_bonferronis(p_values: list[float]) -> None:
    for before, after in zip(p_values, holm_correction(p_values), strict=True):
        assert before <= after <= min(1.0, len(p_values) * max(p_values))
