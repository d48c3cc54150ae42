"""The arithmetic of batches and the order of rows."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.trainer.reference import batches_of, new_turns
from still_ray.trainer.schedule import gradient_accumulation_steps, row_order
from still_ray.types import InputError

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


def test_accumulation_makes_up_the_global_batch() -> None:
    assert gradient_accumulation_steps(global_batch_size=96, per_device_batch_size=1, num_workers=8) == 12
    assert gradient_accumulation_steps(global_batch_size=32, per_device_batch_size=16, num_workers=2) == 1


def test_a_global_batch_that_does_not_divide_is_refused_with_its_numbers() -> None:
    with pytest.raises(InputError, match=r"global_batch_size \(10\).*\(4 x 2\)"):
        gradient_accumulation_steps(global_batch_size=10, per_device_batch_size=4, num_workers=2)


@given(lengths=LENGTHS, batch=st.integers(1, 16), epochs=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_every_row_comes_as_often_as_any_other_give_or_take_one(lengths: list[int], batch: int, epochs: float) -> None:
    order = row_order(lengths, epochs=epochs, global_batch_size=batch, seed=1)
    assert len(order) % batch == 0
    assert len(order) >= Fraction(epochs) * len(lengths)
    times = Counter(order)
    counts = [times[row] for row in range(len(lengths))]
    assert max(counts) - min(counts) <= 1


@given(lengths=LENGTHS, batch=st.integers(1, 16))
def test_rows_of_one_step_lie_from_long_to_short(lengths: list[int], batch: int) -> None:
    order = row_order(lengths, epochs=1.0, global_batch_size=batch, seed=1)
    for start in range(0, len(order), batch):
        step = [lengths[row] for row in order[start : start + batch]]
        assert step == sorted(step, reverse=True)


def test_length_does_not_decide_which_rows_share_a_step() -> None:
    short_first = row_order(list(range(1, 65)), epochs=1.0, global_batch_size=8, seed=5)
    long_first = row_order(list(range(64, 0, -1)), epochs=1.0, global_batch_size=8, seed=5)
    steps = [[set(order[i : i + 8]) for i in range(0, 64, 8)] for order in (short_first, long_first)]
    assert steps[0] == steps[1]


@given(lengths=LENGTHS, world=st.integers(1, 3), per_device=st.integers(1, 3), epochs=st.sampled_from([1.0, 2.0, 3.0]))
def test_every_batch_of_a_stage_is_in_a_pass_of_the_reference(
    lengths: list[int], world: int, per_device: int, epochs: float
) -> None:
    """None twice for nothing: with one row a batch and one rank, there is a pass for each row."""
    order = row_order(lengths, epochs=epochs, global_batch_size=2 * world * per_device, seed=1)
    batches = batches_of(order, per_device)
    turns = list(new_turns(batches, world))
    assert [len(turn) for turn in turns] == [world] * len(turns)
    assert {batch for turn in turns for batch in turn} == set(batches)
    if world == per_device == 1:
        assert len(turns) == len(set(order))


def test_the_seed_decides_the_order() -> None:
    first, again, other = (row_order([5] * 40, epochs=1.0, global_batch_size=8, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_first_step_of_a_start_and_the_last_one_are_reported_whatever_the_interval() -> None:
    from transformers import TrainerControl, TrainerState

    from still_ray.trainer.callbacks import ProgressCallback

    callback = ProgressCallback(tokens_of_step=[10] * 7, rows_per_step=1, num_rows=7, report=lambda _: None)
    state, arguments, reported = TrainerState(global_step=2, max_steps=7), cast(Any, None), []
    callback.on_train_begin(arguments, state, TrainerControl())
    for state.global_step in range(3, 8):
        control = TrainerControl()
        callback.on_step_end(arguments, state, control)
        reported.append(control.should_log)
    assert reported == [True, False, False, False, True]
