"""What ranks send each other in a step, and how the measured rate is told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.actors.training.rank_links import RankLinks, num_beside_frozen, rooms_for, stage_cost
from still_ray.algo.placement import resolve_trainer
from still_ray.algo.planning.communication import (
    TCP_BYTES_PER_S,
    exchanged_bytes,
    key_copies,
    rate_text,
    received_bytes,
    step_text,
)
from still_ray.algo.planning.model import KNOWN_SHAPES
from still_ray.algo.planning.placement_fit import scattered
from still_ray.algo.stages import Stage
from still_ray.cli.preflight.models import BACKBONE
from still_ray.config import LoraConfig, TrainerConfig
from still_ray.driver.ports import TrainOrder
from still_ray.formats.model_files import Tensor
from still_ray.methods.sft import SftConfig
from still_ray.types import StageKind

NUM_PARAMETERS = 1000


def received(*, ranks: int = 2, micro_batches: int = 1, stage: int = 3, width: int = 2) -> int:
    return received_bytes(
        NUM_PARAMETERS, num_ranks=ranks, micro_batches=micro_batches, zero_stage=stage, parameter_bytes=width
    )


def test_a_rank_alone_receives_nothing() -> None:
    assert received(ranks=1) == 0


def test_zero_3_gathers_twice_and_reduces_once_in_every_micro_batch() -> None:
    """Half of it is there already on two ranks: 2 x 2 B + 4 B of every parameter, by hand."""
    assert received() == NUM_PARAMETERS * 8 // 2
    assert received(ranks=4) == NUM_PARAMETERS * 8 * 3 // 4
    assert received(micro_batches=5) == 5 * received()
    assert received(width=4) == NUM_PARAMETERS * 12 // 2


def test_zero_2_gathers_once_a_step() -> None:
    assert received(stage=2) == NUM_PARAMETERS * (2 + 4) // 2
    assert received(stage=2, micro_batches=3) == NUM_PARAMETERS * (2 + 3 * 4) // 2


def test_of_adapters_gradients_alone_are_reduced_and_frozen_weights_gathered() -> None:
    values = {"num_ranks": 2, "micro_batches": 3, "parameter_bytes": 2, "num_trained": 10}
    assert received_bytes(NUM_PARAMETERS, zero_stage=3, **values) == 3 * (2 * 2 * NUM_PARAMETERS + 4 * 10) // 2
    assert received_bytes(NUM_PARAMETERS, zero_stage=2, **values) == (2 * 10 + 3 * 4 * 10) // 2


def test_adapters_are_counted_by_the_matrices_of_the_blocks() -> None:
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]
    block = {f"model.layers.0.{name}.weight": (rows, columns) for name, (columns, rows) in shape.linear_layers.items()}
    other = {"model.layers.0.input_layernorm.weight": (3584,), "model.embed_tokens.weight": (152_064, 3584)}
    tensors = {name: Tensor(dtype="BF16", shape=size, file="a") for name, size in (block | other).items()}
    for lora in (LoraConfig(rank=8), LoraConfig(rank=8, targets=("v_proj", "up_proj"))):
        adapters = shape.num_adapter_parameters(lora) // shape.num_layers
        assert num_beside_frozen(tensors, lora) == adapters
        with_embeddings = lora.model_copy(update={"embeddings": True})
        assert num_beside_frozen(tensors, with_embeddings) == adapters + 152_064 * 3584


def test_the_32b_recipe_moves_more_than_two_hundred_gigabytes_in_a_micro_batch() -> None:
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-32B-Instruct"]
    num_bytes = received_bytes(shape.num_parameters, num_ranks=16, micro_batches=1, zero_stage=3, parameter_bytes=2)
    assert 225 * 2**30 < num_bytes < 235 * 2**30
    assert "to each rank: " in step_text(num_bytes, 50e9) and " s at that rate" in step_text(num_bytes, 50e9)


@pytest.mark.parametrize(
    ("rate", "machines", "use_gpu", "warns"),
    [
        (3e9, 2, True, True),
        (TCP_BYTES_PER_S * 1.01, 2, True, False),
        (3e9, 1, True, False),  # on one machine there is no fabric to miss
        (3e9, 2, False, False),  # gloo is TCP
    ],
)
def test_a_rate_that_tcp_gives_is_said_loudly(rate: float, machines: int, use_gpu: bool, warns: bool) -> None:
    text = rate_text(rate, num_ranks=16, num_machines=machines, use_gpu=use_gpu)
    assert text.startswith("warning: ") == warns == ("no InfiniBand, RoCE or EFA" in text)
    assert f"{rate / 1e9:.2f} GB/s" in text and len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("machines", "rooms", "ranks", "fewest"),
    [
        (2, [8, 8], 16, None),
        (3, [8, 8, 8], 16, 2),
        (2, [8, 2, 1], 8, 1),
        (2, [4, 4], 8, None),
        (1, [8], 8, None),
        (2, [1, 0], 2, None),  # they cannot all be known: one has gone meanwhile
        (4, [1, 1, 1, 1, 2, 2], 4, 2),
    ],
)
def test_ranks_on_more_machines_than_they_need(machines: int, rooms: list[int], ranks: int, fewest: int | None) -> None:
    text = scattered(machines, rooms, num_ranks=ranks)
    assert (text == "") == (fewest is None)
    if fewest is not None:
        assert text.startswith(f"the ranks lie on {machines} machines where {fewest} would hold them")


def test_only_machines_that_are_up_and_carry_the_labels_have_room() -> None:
    trainer = TrainerConfig(cpus_per_worker=4.0, node_labels={"role": "trainer"})
    labels = {"role": "trainer", "market": "on-demand"}
    nodes = [
        {"Alive": True, "Labels": labels, "Resources": {"CPU": 33.0, "GPU": 8.0}},
        {"Alive": True, "Labels": labels, "Resources": {"CPU": 8.0, "GPU": 8.0}},
        {"Alive": True, "Labels": labels, "Resources": {"memory": 1.0}},
        {"Alive": False, "Labels": labels, "Resources": {"CPU": 32.0, "GPU": 8.0}},
        {"Alive": True, "Labels": {"role": "sampler"}, "Resources": {"CPU": 32.0, "GPU": 8.0}},
    ]
    assert rooms_for(resolve_trainer(trainer, has_gpus=True), nodes) == [8, 2, 0]
    assert rooms_for(resolve_trainer(trainer.model_copy(update={"cpus_per_worker": 1.0}), has_gpus=False), nodes) == [
        33,
        8,
        0,
    ]


def test_a_stage_says_what_its_steps_cost() -> None:
    links = RankLinks(num_ranks=2, num_machines=1, bytes_per_s=1e6, notes=())
    order = TrainOrder(
        stage=Stage(kind=StageKind.IMITATE, round=0, policy_version=1),
        method="sft",
        settings=SftConfig(global_batch_size=32, per_device_batch_size=4),
        init_model=str(BACKBONE),
        data_path="-",
        checkpoint="-",
        seed=0,
    )
    trainer = resolve_trainer(TrainerConfig(num_workers=2), has_gpus=False)
    events, text = stage_cost(links, order, str(BACKBONE), trainer, row_tokens=100.0)
    rate, seconds = events
    assert (rate.name, rate.value) == ("train/all_gather_bytes_per_s", 1e6)
    assert seconds.name == "train/communication_s_per_step" and seconds.labels == {"stage": "000-imitate"}
    weights = (BACKBONE / "model.safetensors").stat().st_size  # float32 and a header
    assert seconds.value == pytest.approx(4 * (2 * weights + weights) / 2 / 1e6, rel=0.02), "four micro-batches a rank"
    assert text.startswith("000-imitate: a step brings ")
    third = replace(order, settings=SftConfig(global_batch_size=32, micro_batch_tokens=1250))
    (_, less), _ = stage_cost(links, third, str(BACKBONE), trainer, row_tokens=100.0)
    assert less.value == seconds.value / 2, "two passes of at most twelve rows"
    events, text = stage_cost(links, order, "Qwen/Qwen2.5-7B", trainer, row_tokens=100.0)
    assert [event.name for event in events] == ["train/all_gather_bytes_per_s"] and text == ""


# -- ranks that share rows --------------------------------------------------------------------------------------------


@given(st.sampled_from((1, 2, 3, 4, 8)), st.integers(1, 6), st.sampled_from((2, 3, 4, 5, 6, 8, 16)))
def test_every_rank_has_the_keys_of_its_queries(num_kv_heads: int, group: int, size: int) -> None:
    """Query head i looks at key head i // (query heads / key heads), in the model and within a rank."""
    num_heads = math.lcm(num_kv_heads * group, size)
    of_query = [head // (num_heads // num_kv_heads) for head in range(num_heads)]
    copies = key_copies(num_kv_heads, size)
    repeated = [head for head in range(num_kv_heads) for _ in range(copies)]
    assert len(repeated) % size == 0
    for rank in range(size):
        own, keys = (heads[rank * len(heads) // size :][: len(heads) // size] for heads in (of_query, repeated))
        assert len(own) % len(keys) == 0
        assert own == [keys[head // (len(own) // len(keys))] for head in range(len(own))]
    if num_kv_heads % size == 0:
        assert copies == 1


def test_slices_are_exchanged_there_and_back_in_every_layer() -> None:
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-32B-Instruct"]
    options = {"num_tokens": 32_768, "activation_bytes": 2}
    # 64 layers; queries and output 5120 wide, keys and values 1024; of a slice of 4,096 tokens seven eighths come from
    # others; forward, once more, and backward
    by_hand = 64 * (2 * 5120 + 2 * 1024) * 2 * 4096 * 7 // 8
    assert exchanged_bytes(shape, sequence_parallel_size=8, recomputes=False, **options) == 2 * by_hand
    assert exchanged_bytes(shape, sequence_parallel_size=8, recomputes=True, **options) == 3 * by_hand
    assert exchanged_bytes(shape, sequence_parallel_size=1, recomputes=True, **options) == 0
