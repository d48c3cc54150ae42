"""Tokenized rows reach TRL's collators with exactly the ids that were given."""

from __future__ import annotations

import builtins
from unittest.mock import patch

import pytest

from still_ray.config.schema import TrainerConfig
from still_ray.methods.dpo import DPO, DpoConfig
from still_ray.methods.sft import SFT, SftConfig
from still_ray.trainer.data import TrainingRows, in_order
from still_ray.trainer.job import TrainJob
from still_ray.trainer.methods.dpo import DpoTraining, TokenizedPair
from still_ray.trainer.methods.sft import SftTraining, TokenizedExample
from still_ray.trainer.plan import plan_of
from still_ray.types import InputError

EXAMPLES = [
    TokenizedExample(prompt_ids=(1, 2, 3), completion_ids=(4, 5)),
    TokenizedExample(prompt_ids=(1,), completion_ids=(6,) * 9),
    TokenizedExample(prompt_ids=(7,), completion_ids=(8,)),
]
PAIRS = [
    TokenizedPair(prompt_ids=(1, 2), chosen_ids=(3,), rejected_ids=(4, 5, 6)),
    TokenizedPair(prompt_ids=(1, 2), chosen_ids=(3,) * 8, rejected_ids=(4,)),
    TokenizedPair(prompt_ids=(1, 2), chosen_ids=(3,), rejected_ids=(4,) * 9),
]


def _job(settings: SftConfig | DpoConfig) -> TrainJob:
    method = DPO if isinstance(settings, DpoConfig) else SFT
    return TrainJob(
        name="001-x",
        method=method.name,
        training_path=method.trainer,
        model_path="m",
        output_dir="o",
        settings=settings,
        trainer=TrainerConfig(num_workers=1),
        seed=0,
    )


def sft_rows(rows: list[TokenizedExample], *, max_length: int) -> TrainingRows:
    return SftTraining(SftConfig(max_length=max_length)).training_rows(rows)


def dpo_rows(rows: list[TokenizedPair], *, max_length: int) -> TrainingRows:
    return DpoTraining(DpoConfig(max_length=max_length)).training_rows(rows)


def test_only_the_completion_has_labels() -> None:
    rows = sft_rows(EXAMPLES, max_length=100)
    assert rows.dataset[0] == {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, -100, 4, 5]}
    assert rows.lengths == rows.num_tokens == (5, 10, 2)
    assert rows.num_skipped == 0


def test_a_row_of_the_longest_length_stays_and_longer_ones_are_counted() -> None:
    rows = sft_rows(EXAMPLES, max_length=5)
    assert rows.lengths == (5, 2)
    assert rows.num_skipped == 1
    assert rows.dataset["input_ids"][1] == [7, 8]


def test_a_pair_is_as_long_as_its_longer_side_and_costs_both() -> None:
    rows = dpo_rows(PAIRS, max_length=10)
    assert rows.num_skipped == 1
    assert rows.lengths == (5, 10)
    assert rows.num_tokens == (2 * 2 + 4, 2 * 2 + 9)
    assert rows.dataset[1] == {"prompt_ids": [1, 2], "chosen_ids": [3] * 8, "rejected_ids": [4], "row": [1]}


def test_rows_come_in_the_order_asked_for() -> None:
    rows = sft_rows(EXAMPLES, max_length=100)
    assert [len(ids) for ids in in_order(rows, [2, 0, 2, 1])["input_ids"]] == [2, 5, 2, 10]


def test_making_a_dataset_prints_nothing() -> None:
    """`datasets` lists functions' byte code when it names a dataset itself, and Ray Train logs what is printed."""
    with patch.object(builtins, "print") as printed:
        in_order(sft_rows(EXAMPLES, max_length=100), [1, 0])
        in_order(dpo_rows(PAIRS, max_length=100), [1, 0])
    printed.assert_not_called()


def test_a_plan_says_how_many_tokens_each_step_holds() -> None:
    plan = plan_of(_job(SftConfig(epochs=2.0, global_batch_size=3, max_length=100)), EXAMPLES)
    assert plan.total_steps == 2
    assert plan.tokens_of_step == [17, 17]
    assert len(plan.order) == 6


def test_no_row_short_enough_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"001-x: no row to train on; 3 rows exceed max_length \(1\)"):
        plan_of(_job(SftConfig(global_batch_size=1, max_length=1)), EXAMPLES)


def test_rows_of_the_other_kind_are_an_input_error() -> None:
    with pytest.raises(InputError, match="dpo needs pairs"):
        plan_of(_job(DpoConfig(global_batch_size=1)), EXAMPLES)
    with pytest.raises(InputError, match="sft needs examples"):
        plan_of(_job(SftConfig(global_batch_size=1)), PAIRS)
