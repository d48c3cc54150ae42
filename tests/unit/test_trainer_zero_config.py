from __future__ import annotations

from typing import Any, Literal

import pytest

from still_ray.config.schema import TrainerConfig
from still_ray.trainer.zero_config import zero_config


def section(stage: Literal[2, 3], offload: Literal["none", "cpu"], *, use_gpu: bool) -> dict[str, Any]:
    trainer = TrainerConfig(zero_stage=stage, offload=offload)
    found: dict[str, Any] = zero_config(trainer, use_gpu=use_gpu)["zero_optimization"]
    return found


def test_offload_moves_what_the_stage_shards() -> None:
    """ZeRO-2 can only move the optimizer's state; ZeRO-3 the parameters too (DeepSpeed's documentation)."""
    two, three = (section(stage, "cpu", use_gpu=True) for stage in (2, 3))
    assert two["offload_optimizer"]["device"] == three["offload_optimizer"]["device"] == "cpu"
    assert three["offload_param"]["device"] == "cpu" and "offload_param" not in two


@pytest.mark.parametrize(("offload", "use_gpu"), [("none", True), ("cpu", False)])
def test_nothing_is_moved_unless_asked_and_away_from_a_gpu(offload: Literal["none", "cpu"], *, use_gpu: bool) -> None:
    assert not {"offload_optimizer", "offload_param"} & section(3, offload, use_gpu=use_gpu).keys()


def test_what_is_handed_on_is_merged_within_sections() -> None:
    trainer = TrainerConfig(deepspeed={"zero_optimization": {"sub_group_size": 7}, "wall_clock_breakdown": True})
    plain, found = (zero_config(each, use_gpu=True) for each in (TrainerConfig(), trainer))
    assert found["zero_optimization"] == plain["zero_optimization"] | {"sub_group_size": 7}
    assert found == plain | {"zero_optimization": found["zero_optimization"], "wall_clock_breakdown": True}


def test_deepspeed_itself_takes_the_section() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    raw = {name: value for name, value in section(3, "cpu", use_gpu=True).items() if value != "auto"}
    parsed = DeepSpeedZeroConfig(**raw)
    assert (parsed.offload_optimizer.device, parsed.offload_param.device) == ("cpu", "cpu")
    assert parsed.offload_optimizer.pin_memory and parsed.offload_param.pin_memory
