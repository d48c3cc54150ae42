"""What bfloat16 lets a sum of learning rates change, against torch's own rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.algo.planning.model import KNOWN_SHAPES
from still_ray.algo.planning.movement import (
    LEAST_SHARE,
    adapter_reach,
    enough,
    largest_movable,
    movable_share,
    movement_findings,
)
from still_ray.algo.planning.workload import Workload, stage_works
from still_ray.config import LoraConfig, Recipe
from tests.fakes import make_recipe

TOTALS = st.floats(1e-7, 1e-2)


WEIGHTS = torch.arange(0x3080, 0x3F80, dtype=torch.int16).view(torch.bfloat16)
"""All bfloat16 numbers from 2^-30 to 1."""


@given(total=TOTALS)
@settings(deadline=None)
def test_a_weight_can_grow_exactly_if_it_is_below_the_limit(total: float) -> None:
    weights = WEIGHTS
    grown = (weights.float() + total).bfloat16() != weights
    unit = torch.finfo(torch.bfloat16).eps * 2.0 ** torch.floor(torch.log2(weights.float()))
    no_tie = unit / 2 != torch.tensor(total)
    expected = weights.float() < largest_movable(float(torch.tensor(total)))
    assert torch.equal(grown[no_tie], expected[no_tie])


@given(total=TOTALS)
@settings(deadline=None)
def test_no_larger_weight_shrinks_either(total: float) -> None:
    larger = WEIGHTS[WEIGHTS.float() > largest_movable(total)]
    half_unit = torch.finfo(torch.bfloat16).eps / 2 * 2.0 ** torch.floor(torch.log2(larger.float()))
    told_apart = half_unit - total > larger.float() * torch.finfo(torch.float32).eps  # the subtraction rounds as well
    assert torch.equal((larger.float() - total).bfloat16()[told_apart], larger[told_apart])
    assert told_apart[1:].all()


def test_the_share_is_that_of_normal_weights_which_really_change() -> None:
    weights = (torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    for total in (3e-6, 3e-5, 1e-4):
        changed = (weights.float() + total * weights.float().sign()).bfloat16() != weights
        assert movable_share(total) == pytest.approx(changed.float().mean().item(), abs=0.01)


@given(total=TOTALS, more=st.floats(1.0, 100.0))
def test_more_learning_never_moves_less(total: float, more: float) -> None:
    assert movable_share(total) <= movable_share(total * more) <= 1.0
    assert movable_share(0.0) == 0.0


def recipe(**dpo: Any) -> Recipe:
    return make_recipe(rounds=[{"method": "dpo"}], dpo=dpo)


def keys(planned: Recipe, *, bf16: bool = True) -> list[str]:
    works = stage_works(planned, Workload(num_demonstrations=5000, num_problems=2000, num_test=10))
    return [
        finding.key
        for finding in movement_findings(planned, works, KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"], bf16=bf16)
    ]


DPO_KEY = "rounds.0.dpo.optimizer.learning_rate"


def test_eleven_steps_at_5e_7_are_warned_of_and_not_in_float32() -> None:
    idle = recipe(global_batch_size=96, epochs=1.0, optimizer={"learning_rate": 5e-7})
    assert keys(idle) == [DPO_KEY]
    assert keys(idle, bf16=False) == []


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": {"learning_rate": 1e-5}},
        {"global_batch_size": 2, "optimizer": {"learning_rate": 5e-7}},
        {"epochs": 50.0, "optimizer": {"learning_rate": 5e-7}},
    ],
)
def test_what_the_warning_asks_for_silences_it(change: dict[str, Any]) -> None:
    assert keys(recipe(**{"global_batch_size": 96, "epochs": 1.0, **change})) == []


def with_adapters(learning_rate: float) -> Recipe:
    dpo = {"global_batch_size": 96, "epochs": 1.0, "optimizer": {"learning_rate": learning_rate}}
    return make_recipe(rounds=[{"method": "dpo"}], dpo=dpo, trainer={"lora": {"rank": 16, "alpha": 32}})


def test_adapters_are_warned_of_by_how_far_their_product_can_move_a_weight() -> None:
    """11 steps at 5e-7 move a product of inner size 16 by a millionth or so; at 1e-5 by a ten-thousandth."""
    assert keys(with_adapters(5e-7)) == [DPO_KEY]
    assert keys(with_adapters(5e-5)) == []


def test_no_product_of_an_adapter_moves_further_than_its_reach() -> None:
    lora, inputs, total = LoraConfig(rank=4, alpha=8), 256, 1e-2
    first = torch.full((4, inputs), inputs**-0.5) + total  # every entry of A as large as it begins, and moved up
    moved = lora.scale * (torch.full((1, 4), total) @ first)
    assert moved.max().item() == pytest.approx(adapter_reach(total, lora, num_inputs=inputs), rel=1e-5)


def test_the_sum_that_the_warning_names_is_the_least_that_is_enough() -> None:
    assert movable_share(enough()) >= LEAST_SHARE > movable_share(enough() / 2)
