"""Training methods: found by name or path, rounds as lists of them, and what the light halves take of the pool."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from still_ray.algo.stages import plan_stages
from still_ray.config.loading import recipe_from
from still_ray.config.methods import METHODS, Expected, Method, Pool, Prepared, Request, RowSource, method_named
from still_ray.config.recipe import Recipe
from still_ray.driver.rounds import Driver
from still_ray.methods.kto import KtoConfig
from still_ray.methods.sft import SftConfig
from still_ray.types import (
    Candidate,
    Demonstration,
    FinishReason,
    InputError,
    StageKind,
    TrainingExample,
    Trajectory,
    TrajectoryKey,
    Verdict,
    candidate_of,
)
from tests.fakes import BACKBONE, Crashed, Disk, FakeWorld, Fuse, make_demonstration, make_recipe, make_trajectory

HERE = f"{__name__}:Shortest"
SMALL = {"samples_per_problem": 3, "skip_solved": False, "num_problems": 4}


class Shortest(Method[SftConfig, TrainingExample]):
    """A method of a user's own, found by its path: SFT on the demonstration with the shortest thought."""

    name = "shortest"
    title = "Shortest"
    settings = SftConfig
    record = TrainingExample
    table = "shortest.parquet"
    trainer = "still_ray.trainer.methods.sft:SftTraining"
    needs_pool = False
    source_columns = ("source", "source_id")

    def prepare(self, pool: Pool, request: Request[SftConfig]) -> Prepared[TrainingExample]:
        shown = min(pool.demonstrations(), key=lambda row: len(row.thought))
        row = TrainingExample(
            source="demonstration",
            source_id=shown.id,
            domain=shown.domain,
            question=shown.question,
            thought=shown.thought,
            solution=shown.solution,
        )
        return Prepared(rows=[row], counts={"num_demonstrations": 1})

    def expected_rows(self, settings: SftConfig, expected: Expected) -> int:
        return 1

    def source(self, row: TrainingExample) -> RowSource:
        return RowSource(ids=(), demonstration=row.source_id)

    def texts(self, row: TrainingExample) -> tuple[str, ...]:
        return (row.thought,)


def names(recipe: Recipe) -> list[str]:
    return [stage.name for stage in plan_stages(recipe)]


def complaint(**sections: Any) -> str:
    with pytest.raises(InputError) as error:
        recipe_from({**make_recipe().model_dump(mode="json"), **sections}, (), origin="r.yaml")
    return str(error.value)


# -- by name ----------------------------------------------------------------------------------------------------------


def test_every_built_in_method_has_the_name_that_it_is_found_by_and_a_table_of_its_own() -> None:
    methods = {name: method_named(name) for name in METHODS}
    assert {name: method.name for name, method in methods.items()} == {name: name for name in METHODS}
    assert len({method.table for method in methods.values()}) == len(METHODS)


def test_a_method_of_ones_own_has_a_section_a_folder_and_a_way_through_another_process() -> None:
    rounds = [{"train": [HERE], "shortest": {"epochs": 7.0}}, {"train": [HERE]}]
    recipe = make_recipe(rounds=rounds, shortest={"epochs": 5.0})
    assert names(recipe)[2:] == ["001-shortest", "002-shortest"]
    assert [step.settings.epochs for step in recipe.steps[1:]] == [7.0, 5.0]
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe and names(again) == names(recipe)


def test_a_method_of_ones_own_trains_what_it_prepared() -> None:
    world = FakeWorld(make_recipe(rounds=[{"train": [HERE]}]))
    Driver(world.recipe, world.ports(), backbone=BACKBONE).run()
    assert world.disk.data["001-shortest/data"] == ("d1",)
    assert world.orders()["001-shortest"].method == HERE


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"rounds": [{"train": ["sftt"]}]}, "rounds.0.train.0: unknown name 'sftt'; did you mean sft?"),
        ({"rounds": [{"method": "ktoo"}]}, "rounds.0.method: unknown name 'ktoo'; did you mean kto?"),
        ({"rounds": [{"train": ["no_such_module:M"]}]}, "rounds.0.train.0: no_such_module:M cannot be loaded"),
        ({"rounds": [{"train": [f"{__name__}:names"]}]}, "is no training method but function"),
        ({"rounds": [{"method": "sft", "train": ["sft"]}]}, "rounds.0: give either method or train, not both"),
        ({"rounds": [{"train": ["sft", "sft"]}]}, "rounds.0: train names sft twice"),
        ({"rounds": [{"train": ["dpo"]}]}, "rounds.0.train: dpo learns from explored responses, and no round has"),
        ({"rounds": [{"train": ["sft"], "sft": {"epoch": 1.0}}]}, "rounds.0.sft.epoch: unknown key; did you mean"),
        ({"dpo": {"loss": "ipoo"}}, "dpo.loss: unknown loss 'ipoo'; did you mean ipo?"),
        ({"dpo": {"loss": ["sigmoid", "sft"], "sft_weight": 1.0}}, "dpo: sft_weight is short for the loss sft"),
        ({"dpo": {"loss": ["ipo", "exo_pair"]}}, "dpo: the loss exo_pair needs a label_smoothing above 0"),
        ({"dpo": {"loss": "ipo", "label_smoothing": 0.1}}, "dpo: label_smoothing changes none of ipo, only exo_pair"),
        (
            {"rounds": [{"method": "kto"}], "kto": {"per_device_batch_size": 1}},
            "kto: the loss kto compares rows of a forward pass with one another: set per_device_batch_size to 2",
        ),
        (
            {"rounds": [{"method": "kto"}], "kto": {"micro_batch_tokens": 4096}},
            "kto: the loss kto compares rows of a forward pass with one another, of which micro_batch_tokens may leave",
        ),
        (
            {"sft": {"micro_batch_tokens": 4096, "per_device_batch_size": 8}},
            "sft: micro_batch_tokens takes the place of per_device_batch_size (8): leave that out, or set it to 1",
        ),
        ({"dpo": {"loss": ["ipo", "aot"], "micro_batch_tokens": 4096}}, "dpo: the loss aot compares rows of a forward"),
        (
            {"trainer": {"offload_activations": True, "gradient_checkpointing": False}},
            "trainer: offload_activations needs gradient_checkpointing",
        ),
        (
            {"trainer": {"num_workers": 3}, "imitate": {"micro_batch_tokens": 4096, "global_batch_size": 8}},
            "imitate.global_batch_size (8) must be a multiple of trainer.num_workers (3)",
        ),
        (
            {"rounds": [{"method": "dpo", "dpo": {"reference": "002-sft"}}]},
            "rounds.0.dpo.reference: '002-sft' must be start, backbone or a training stage before this one: 000-imi",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(sections: dict[str, Any], text: str) -> None:
    found = complaint(**sections)
    assert found.startswith("r.yaml: ") and text in found and "\n" not in found


# -- rounds as lists --------------------------------------------------------------------------------------------------


def test_a_round_explores_where_it_says_so_or_names_a_method() -> None:
    rounds = [{"explore": {}, "train": ["sft", "dpo"]}, {"train": ["dpo"]}, {"method": "kto"}, {}, {"explore": {}}]
    recipe = make_recipe(rounds=[*rounds, {"explore": {}, "train": []}])
    assert names(recipe)[2:] == [
        *("001-explore", "001-sft", "001-dpo", "002-dpo", "003-explore", "003-kto", "004-explore", "004-sft"),
        *("005-explore", "005-sft", "006-explore"),
    ]
    versions = {stage.name: stage.policy_version for stage in plan_stages(recipe)}
    assert [versions[name] for name in ("001-explore", "001-sft", "001-dpo", "002-dpo")] == [1, 2, 3, 4]
    assert (versions["003-explore"], versions["003-kto"], versions["006-explore"]) == (4, 5, 7)
    assert {stage.kind for stage in plan_stages(recipe) if stage.method} == {StageKind.IMITATE, StageKind.TRAIN}


def test_method_reads_as_a_list_of_one_and_the_resolved_recipe_reads_back() -> None:
    short, long = make_recipe(rounds=[{"method": "dpo"}]), make_recipe(rounds=[{"explore": {}, "train": ["dpo"]}])
    assert short == long
    assert Recipe.model_validate(long.model_dump(mode="json")) == long
    assert "method" not in long.model_dump()["rounds"][0]


def test_sft_then_dpo_on_the_same_pool_start_from_one_another() -> None:
    rounds = [{"explore": {}, "train": ["sft", "dpo"]}, {"train": ["kto"], "kto": {"reference": "001-sft"}}]
    world = FakeWorld(make_recipe(rounds=rounds, explore=SMALL))
    lines = Driver(world.recipe, world.ports(), backbone=BACKBONE).run()
    orders = world.orders()
    assert orders["001-sft"].init_model == BACKBONE
    assert orders["001-dpo"].init_model == orders["001-sft"].checkpoint
    assert orders["002-kto"].init_model == orders["001-dpo"].checkpoint
    assert orders["002-kto"].reference_model == orders["001-sft"].checkpoint
    assert orders["001-dpo"].reference_model == ""
    assert [line.policy_version for line in lines] == [0, 1, 2, 3, 4]
    pool = {"/".join(map(str, key)) for key in world.disk.trajectories[1]}
    assert {side for pair in world.disk.data["001-dpo/data"] for side in pair.split(" > ")} <= pool


def test_a_crash_between_two_methods_of_a_round_changes_nothing() -> None:
    recipe = make_recipe(rounds=[{"explore": {}, "train": ["sft", "dpo"]}, {"train": ["dpo"]}], explore=SMALL)
    whole = FakeWorld(recipe)
    fuse = Fuse()
    Driver(recipe, whole.ports(fuse), backbone=BACKBONE).run()
    for moment, name in enumerate(fuse.moments):
        if "finish" not in name and "train" not in name:
            continue
        world = FakeWorld(recipe, disk=Disk())
        with pytest.raises(Crashed):
            Driver(recipe, world.ports(Fuse(blows_at=moment)), backbone=BACKBONE).run()
        Driver(recipe, world.ports(), backbone=BACKBONE).run()
        assert world.disk.result() == whole.disk.result()


# -- KTO --------------------------------------------------------------------------------------------------------------


class OfRows:
    """A pool of given trajectories."""

    def __init__(self, rows: Iterable[Trajectory]) -> None:
        self.rows = {row.key: row for row in rows}

    def candidates(self, rounds: Iterable[int]) -> Iterator[Candidate]:
        wanted = set(rounds)
        return (candidate_of(row) for row in self.rows.values() if row.round in wanted)

    def trajectories(self, keys: Sequence[TrajectoryKey]) -> Iterator[Trajectory]:
        return (self.rows[key] for key in keys)

    def demonstrations(self) -> Iterator[Demonstration]:
        return iter([make_demonstration()])

    def num_left_out(self) -> int:
        return 0


POOL = [
    make_trajectory("a", 0),
    make_trajectory("a", 1, verdict=Verdict.INCORRECT, thought="wrong"),
    make_trajectory("a", 2, verdict=Verdict.INCORRECT, thought="wrong"),
    make_trajectory("b", 0, verdict=Verdict.TIMEOUT),
    make_trajectory("b", 1, verdict=Verdict.INCORRECT, finish_reason=FinishReason.LENGTH),
    make_trajectory("b", 2, thought="so", defect="no solution"),
    make_trajectory("c", 0, round_number=2, verdict=Verdict.INCORRECT, thought="later"),
]


def kto(rows: list[Trajectory], round_number: int = 1, **settings: Any) -> Prepared[Any]:
    explored = tuple(range(1, round_number + 1))
    request = Request(settings=KtoConfig(**settings), explored=explored, num_explored=1, seed=0)
    return method_named("kto").prepare(OfRows(rows), request)


def test_kto_takes_every_usable_judged_response_once_without_pairs() -> None:
    found = kto(POOL, 2, rounds="all")
    rows = [(row.source_id, row.desirable) for row in found.rows]
    assert rows == [("1/a/0", True), ("1/a/1", False), ("2/c/0", False)]
    assert found.counts == {
        "num_desirable": 1,
        "num_undesirable": 2,
        "num_equal_responses": 1,
        "num_responses": len(POOL),
        "num_unusable": 3,
        "num_over_cap": 0,
    }
    assert not found.skipped
    assert [row.source_id for row in kto(POOL, 1).rows] == ["1/a/0", "1/a/1"]
    capped = [[row.source_id for row in kto(POOL, 2, rounds="all", max_examples=2).rows] for _ in range(2)]
    assert capped[0] == capped[1] and len({*capped[0]}) == 2


@pytest.mark.parametrize(("kept", "lacking"), [((0,), "no incorrect"), ((1,), "no correct"), ((), "no correct and no")])
def test_kto_without_both_kinds_is_skipped_and_says_which_is_lacking(kept: tuple[int, ...], lacking: str) -> None:
    assert lacking in kto([POOL[index] for index in kept]).skipped
