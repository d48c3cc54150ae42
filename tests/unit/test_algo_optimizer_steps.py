"""How many steps a stage makes, and what each of them may move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.algo.optimizer_steps import learning_rate_factor, num_steps, total_learning_rate, warmup_steps

STEPS = st.integers(1, 300)
RATIOS = st.floats(0, 1)


def factors(total: int, ratio: float) -> list[float]:
    warmup = warmup_steps(total_steps=total, warmup_ratio=ratio)
    return [learning_rate_factor(step, total_steps=total, num_warmup=warmup) for step in range(total)]


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "steps"), [(96, 1.0, 96, 1), (97, 1.0, 96, 2), (10, 0.5, 4, 2), (1, 0.1, 8, 1)]
)
def test_steps_cover_the_rows(rows: int, epochs: float, batch: int, steps: int) -> None:
    assert num_steps(num_rows=rows, epochs=epochs, global_batch_size=batch) == steps


@pytest.mark.parametrize(
    ("total", "ratio", "steps"), [(100, 0.1, 10), (5, 0.1, 1), (30, 0.1, 3), (7, 0.0, 0), (7, 1.0, 6), (1, 0.1, 0)]
)
def test_warm_up_is_rounded_up(total: int, ratio: float, steps: int) -> None:
    assert warmup_steps(total_steps=total, warmup_ratio=ratio) == steps


@given(total=STEPS, ratio=RATIOS)
def test_no_step_is_lost_and_one_is_at_the_peak(total: int, ratio: float) -> None:
    found = factors(total, ratio)
    assert min(found) > 0
    assert found.count(max(found)) == 1 and max(found) == 1.0


@given(total=STEPS, ratio=RATIOS)
def test_the_rate_rises_to_the_peak_and_falls_after_it(total: int, ratio: float) -> None:
    found = factors(total, ratio)
    peak = found.index(1.0)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert peak == warmup_steps(total_steps=total, warmup_ratio=ratio)


def test_the_sum_is_about_half_the_peak_for_each_step() -> None:
    """Half a cosine and a straight line both have a mean of one half."""
    assert total_learning_rate(peak=2.0, total_steps=1000, warmup_ratio=0.1) == pytest.approx(1000, rel=0.01)
    assert total_learning_rate(peak=5e-7, total_steps=1, warmup_ratio=0.1) == 5e-7
