"""What a run costs: samples that adaptive exploration needs, waits by placement, held and worked device-hours."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.algo.exploration import Allotment
from still_ray.algo.planning.budget import (
    GPU_ENGINE_START_S,
    SLEEP_WAKE_S,
    STORAGE_BYTES_PER_S,
    SYNC_BYTES_PER_S,
    TRAINER_START_S,
    DeviceCounts,
    RunCost,
    Speed,
    StageCost,
    Wait,
    flops_per_token,
    stage_costs,
    waits,
)
from still_ray.algo.planning.bundles import PLACEMENTS, Bundle, Placement, held_devices
from still_ray.algo.planning.cluster import NodeType
from still_ray.algo.planning.model import KNOWN_SHAPES
from still_ray.algo.planning.workload import StageWork, expected_samples
from still_ray.config import ExploreConfig
from still_ray.types import TrajectoryKey, Verdict

SEVEN_B = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]


def explore(cap: int = 20, **waves: int) -> ExploreConfig:
    return ExploreConfig.model_validate({"samples_per_problem": cap, "adaptive": waves or None})


# -- operations -------------------------------------------------------------------------------------------------------


def test_flops_are_those_of_the_matrices_that_a_token_meets() -> None:
    """Counted matrix by matrix: two operations an entry forward, four backward; half of the attention is masked."""
    length = 20_000
    layer = 3584 * 3584 * 2 + 2 * 3584 * 512 + 3 * 3584 * 18_944  # queries and output, keys and values, the MLP
    matrices = 28 * layer + 152_064 * 3584
    attention = 28 * 2 * 3584 * length / 2  # scores and weighted values, over half of the length on average
    assert flops_per_token(SEVEN_B, mean_tokens=length) == pytest.approx(6 * matrices + 6 * attention, rel=1e-4)


def test_a_tied_head_counts_and_an_embedding_that_is_looked_up_does_not() -> None:
    tied = KNOWN_SHAPES["Qwen/Qwen2.5-1.5B-Instruct"]
    assert flops_per_token(tied, mean_tokens=0) == 6 * tied.num_parameters
    assert flops_per_token(SEVEN_B, mean_tokens=0) == 6 * (SEVEN_B.num_parameters - SEVEN_B.num_embedding)


# -- samples of adaptive exploration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "solve_rate", "expected"),
    [
        (explore(20), 0.5, 20.0),
        (explore(20, initial=4, step=4), 0.0, 20.0),  # nobody stops
        (explore(20, initial=4, step=4), 1.0, 4.0),  # everybody does
        # 4 (1 + 0.5^(4/20) + 0.5^(8/20) + 0.5^(12/20) + 0.5^(16/20))
        (explore(20, initial=4, step=4), 0.5, 4 * (1 + 0.870551 + 0.757858 + 0.659754 + 0.574349)),
        # each sample is right with 1/2: two, and a third unless both were right
        (explore(3, initial=2, step=1, enough_correct=2), 0.875, 2 + 0.75),
        (explore(6, initial=4, step=4), 0.5, 4 + 2 * 0.5 ** (4 / 6)),  # the last wave is cut at the cap
    ],
)
def test_samples_of_a_problem_by_hand(config: ExploreConfig, solve_rate: float, expected: float) -> None:
    assert expected_samples(config, solve_rate) == pytest.approx(expected, rel=1e-5)


def drawn(config: ExploreConfig, right: float, draw: random.Random) -> int:
    """Samples that one problem is given by the allotment that a round really uses."""
    allotment = Allotment(config, {})
    while indices := allotment.wanted("p"):
        for index in indices:
            verdict = Verdict.CORRECT if draw.random() < right else Verdict.INCORRECT
            allotment.record(TrajectoryKey(round=1, problem_id="p", sample_index=index), verdict)
    return config.samples_per_problem - allotment.num_saved


@pytest.mark.parametrize("waves", [{"initial": 4, "step": 4}, {"initial": 3, "step": 5, "enough_correct": 2}])
def test_the_mean_is_that_of_the_allotment_itself(waves: dict[str, int]) -> None:
    config, right, draw = explore(20, **waves), 0.1, random.Random(0)
    solve_rate = 1 - (1 - right) ** 20
    mean = sum(drawn(config, right, draw) for _ in range(4000)) / 4000
    assert expected_samples(config, solve_rate) == pytest.approx(mean, rel=0.03)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 8))
@settings(deadline=None)
def test_problems_of_different_difficulty_never_need_more(rights: list[float], initial: int, step: int) -> None:
    config = explore(12, initial=initial, step=step)
    solved = [1 - (1 - right) ** 12 for right in rights]
    each = [expected_samples(config, rate) for rate in solved]
    assert sum(each) / len(each) <= expected_samples(config, sum(solved) / len(solved)) + 1e-6


# -- waits ------------------------------------------------------------------------------------------------------------

SAMPLING = StageWork(name="explore", num_rollouts=1, expected_rollouts=1, sampled_tokens=3600)
TRAINING = StageWork(name="sft", num_rows=1, num_steps=1, trained_tokens=3600)
RUN = (SAMPLING, TRAINING, SAMPLING, SAMPLING, TRAINING, SAMPLING)
"""Evaluate, train, evaluate, explore, train, evaluate."""
GB = 10**9
READING = 9 * GB / STORAGE_BYTES_PER_S


def found(placement: str, *, released: bool) -> dict[str, Any]:
    rule = PLACEMENTS[placement]
    found = waits(RUN, rule.phases, released=released, sleeps=rule.sleeps, model_bytes=9 * GB, on_gpu=True)
    return {wait.name: (wait.times, wait.seconds) for wait in found}


def test_who_stays_up_starts_once_and_is_sent_the_weights() -> None:
    assert found("dedicated", released=False) == {
        "start of sampler and trainer": (1, pytest.approx(GPU_ENGINE_START_S + READING)),  # the slower of the two
        "start model": (1, pytest.approx(READING)),  # of the second stage: the first is read at the start
        "checkpoint": (2, pytest.approx(READING)),
        "weight sync": (2, pytest.approx(9 * GB / SYNC_BYTES_PER_S)),
    }


def test_who_shares_devices_starts_anew_each_time_and_reads_the_checkpoint() -> None:
    assert found("shared", released=True) == {
        "start of sampler": (3, pytest.approx(GPU_ENGINE_START_S + READING)),
        "start of trainer": (2, pytest.approx(TRAINER_START_S + READING)),
        "checkpoint": (2, pytest.approx(READING)),
    }


def test_engines_that_sleep_start_once_and_read_the_weights_when_they_wake() -> None:
    assert found("elastic", released=False) == {
        "start of sampler and trainer": (1, pytest.approx(GPU_ENGINE_START_S + READING)),
        "start model": (1, pytest.approx(READING)),
        "checkpoint": (2, pytest.approx(READING)),
        "sleep and wake": (2, SLEEP_WAKE_S),
        "weight sync": (2, pytest.approx(READING)),
    }


def test_replicas_that_are_released_come_back_beside_the_trainer() -> None:
    assert found("dedicated", released=True) == {
        "start of sampler and trainer": (1, pytest.approx(GPU_ENGINE_START_S + READING)),
        "start of sampler": (2, pytest.approx(GPU_ENGINE_START_S + READING)),
        "start model": (1, pytest.approx(READING)),
        "checkpoint": (2, pytest.approx(READING)),
    }


# -- held and worked --------------------------------------------------------------------------------------------------


def test_hours_by_hand() -> None:
    """3,600 tokens at one a second and device are an hour; six operations and a context of 0 leave 6 x parameters."""
    operations = 6.0 * (SEVEN_B.num_parameters - SEVEN_B.num_embedding)
    speed = Speed(device_tflops=operations * 2 / 1e12, mfu=0.5, sampler_tokens_per_s=1.0)
    devices = DeviceCounts(sampling=4, training=2, held=8)
    costs = stage_costs(RUN, SEVEN_B, speed, devices, mean_tokens=0)
    assert [cost.device_hours for cost in costs] == [1.0] * 6
    assert [cost.hours for cost in costs] == [0.25, 0.5, 0.25, 0.25, 0.5, 0.25]


def test_what_is_held_is_paid_whether_it_works_or_not() -> None:
    costs = [
        StageCost(work=SAMPLING, device_hours=16.0, hours=4.0),  # four devices
        StageCost(work=TRAINING, device_hours=4.0, hours=0.5),  # eight
    ]
    wait = Wait(name="start", times=2, seconds=900.0, source="")
    budget = RunCost(stages=tuple(costs), waits=(wait,), held_devices=8.0, price=3.0)
    assert (budget.hours, budget.hours_of("sampler"), budget.waiting_hours) == (5.0, 4.0, 0.5)
    assert (budget.held_hours, budget.work_hours, budget.idle_share) == (40.0, 20.0, 0.5)
    assert budget.money == 120.0


def bundle(role: str, gpus: float) -> Bundle:
    return Bundle(role=role, cpus=1.0, gpus=gpus, key="")


@pytest.mark.parametrize(
    ("gpus", "placement", "held"),
    [
        (8, "dedicated", 16.0),  # of three machines two hold something, one of them a verifier alone
        (0, "dedicated", 5.0),  # two replicas and three ranks, side by side
        (0, "shared", 3.0),  # three ranks, or two replicas
    ],
)
def test_devices_are_held_by_the_machine(gpus: float, placement: str, held: float) -> None:
    each = 1.0 if gpus else 0.0
    bundles = [*[bundle("sampler", each)] * 2, *[bundle("trainer", each)] * 3, bundle("verifier", 0)]
    nodes: list[Any] = [
        NodeType(name="node", count=3, cpus=8, gpus=gpus),
        NodeType(name="head", count=1, cpus=8, gpus=0),
    ]
    placed = (("node", ("sampler", "trainer")), ("node", ("verifier",)), ("node", ()), ("head", ("reader",)))
    where = Placement(nodes=placed, unplaced=())
    assert held_devices(bundles, nodes, where, PLACEMENTS[placement].phases) == held
