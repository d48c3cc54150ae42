"""The arithmetic of batches and the order of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.trainer.reference import new_turns
from still_ray.trainer.schedule import batches_of, gradient_accumulation_steps, packed, row_order
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


# -- batches by a number of tokens ------------------------------------------------------------------------------------


def padded(batch: Sequence[int], lengths: Sequence[int]) -> int:
    return len(batch) * max(lengths[row] for row in batch)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=6, max_size=24),
    ranks=st.sampled_from([1, 2, 3]),
    most_tokens=st.integers(1, 200),
)
def test_every_rank_makes_as_many_passes_over_the_rows_of_a_step(
    lengths: list[int], ranks: int, most_tokens: int
) -> None:
    """Of the same rows in the same order, each once; a batch over the limit is a single row."""
    rows = sorted(range(len(lengths) // ranks * ranks), key=lambda row: -lengths[row])
    batches = packed(rows, lengths, most_tokens=most_tokens, num_ranks=ranks)
    assert [row for batch in batches for row in batch] == rows
    assert len(batches) % ranks == 0 and all(batches)
    assert all(len(batch) == 1 or padded(batch, lengths) <= most_tokens for batch in batches)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), most_tokens=st.integers(1, 30))
def test_one_rank_makes_as_few_passes_as_neighbouring_rows_allow_and_evens_them_out(
    lengths: list[int], most_tokens: int
) -> None:
    """Against every way to cut the row of rows."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    allowed = [
        cut for cut in cuts(rows) if all(len(batch) == 1 or padded(batch, lengths) <= most_tokens for batch in cut)
    ]
    fewest = min(len(cut) for cut in allowed)
    largest = min(max(padded(batch, lengths) for batch in cut) for cut in allowed if len(cut) == fewest)
    batches = packed(rows, lengths, most_tokens=most_tokens, num_ranks=1)
    assert (len(batches), max(padded(batch, lengths) for batch in batches)) == (fewest, largest)


def cuts(rows: list[int]) -> Iterator[list[list[int]]]:
    """Every way to cut a list into pieces."""
    for places in range(2 ** (len(rows) - 1)):
        pieces = [[rows[0]]]
        for place, row in enumerate(rows[1:]):
            if places >> place & 1:
                pieces.append([row])
            else:
                pieces[-1].append(row)
        yield pieces


def test_rows_of_five_thousand_tokens_take_a_quarter_of_the_passes_in_twenty_thousand() -> None:
    lengths = [5000] * 96
    batches = packed(range(96), lengths, most_tokens=20_000, num_ranks=8)
    assert [len(batch) for batch in batches] == [4] * 24
    assert (
        len(batches) // 8 == 3
        and gradient_accumulation_steps(global_batch_size=96, per_device_batch_size=1, num_workers=8) == 12
    )
