"""The order of a run, and which policy is the newest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from still_ray.algo.stages import Stage, advance, newest_trained, plan_stages
from still_ray.types import StageKind
from tests.fakes import make_recipe, stage_facts

methods = st.lists(st.sampled_from(["sft", "dpo"]), max_size=5)


def plan(*names: str) -> tuple[Stage, ...]:
    return plan_stages(make_recipe(rounds=[{"method": name} for name in names]))


def test_a_plan_is_backbone_imitation_and_two_stages_a_round() -> None:
    stages = plan("sft", "dpo")
    names = ["000-backbone", "000-imitate", "001-explore", "001-sft", "002-explore", "002-dpo"]
    assert [stage.name for stage in stages] == names
    assert [stage.policy_version for stage in stages] == [0, 1, 1, 2, 2, 3]
    assert [stage.trains for stage in stages] == [False, True, False, True, False, True]


def test_an_exploration_that_overlaps_goes_with_the_first_training_stage_of_the_round_before() -> None:
    rounds = [{"explore": {}, "train": ["sft", "dpo"]}, {"method": "sft"}, {"method": "sft", "explore": {"overlap": 0}}]
    stages = plan_stages(make_recipe(rounds=rounds, explore={"overlap": 1}))
    names = ["001-explore", "002-explore", "001-sft", "001-dpo", "002-sft", "003-explore", "003-sft"]
    assert [stage.name for stage in stages][2:] == names, "the first round waits for imitation"
    assert {stage.name: (stage.policy_version, stage.beside) for stage in stages if not stage.trains}.items() >= {
        ("001-explore", (1, "")),
        ("002-explore", (1, "001-sft")),
        ("003-explore", (4, "")),
    }


def test_a_recipe_without_rounds_is_imitation_alone() -> None:
    assert [stage.kind for stage in plan()] == [StageKind.BACKBONE, StageKind.IMITATE]


@given(rounds=methods)
def test_every_training_stage_makes_a_version_of_its_own_and_names_are_unique_and_sorted_by_round(
    rounds: list[str],
) -> None:
    stages = plan(*rounds)
    made = [stage.policy_version for stage in stages if stage.trains]
    assert made == list(range(1, len(rounds) + 2))
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert [stage.round for stage in stages] == sorted(stage.round for stage in stages)


@given(rounds=methods)
def test_advancing_visits_every_stage_once_in_order(rounds: list[str]) -> None:
    stages = plan(*rounds)
    done: list[str] = []
    while (stage := advance(stages, done)) is not None:
        done.append(stage.name)
    assert done == [stage.name for stage in stages]


def test_a_gap_is_filled_before_anything_later() -> None:
    stages = plan("sft")
    stage = advance(stages, {"000-backbone", "001-explore"})
    assert stage is not None
    assert stage.name == "000-imitate"


def test_the_newest_policy_is_the_last_that_left_a_checkpoint() -> None:
    stages = plan("sft", "dpo")
    completed = {stage.name: stage_facts(stage) for stage in stages[:4]}
    assert newest_trained(stages, {"000-backbone": completed["000-backbone"]}) is None
    assert newest_trained(stages, completed) == stages[3]
    explored, skipped = stage_facts(stages[4]), stage_facts(stages[5], skipped="no pairs")
    assert newest_trained(stages, {**completed, "002-explore": explored, "002-dpo": skipped}) == stages[3]
