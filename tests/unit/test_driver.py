"""The real driver over fakes: what a run does in which order, and that a crash anywhere leaves its result the same."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.algo.selection.select import demonstrated, distinct_demonstrations, select_trajectories
from still_ray.config import Recipe, SelectConfig
from still_ray.driver.ports import (
    EvaluateOrder,
    ExploreOrder,
    Explorer,
    OnLoad,
    Ports,
    Progress,
    SamplingLoad,
    Trainer,
    TrainOrder,
)
from still_ray.driver.progress_counter import ProgressCounter
from still_ray.driver.rounds import Driver
from still_ray.facts import summary_to_json
from still_ray.types import RunError, TrainResult, TrajectoryKey, Verdict, candidate_of, trajectory_id
from tests.fakes import (
    BACKBONE,
    NUM_GENERAL,
    Crashed,
    Disk,
    FakeWorld,
    Fuse,
    Skill,
    make_demonstration,
    make_recipe,
    make_trajectory,
)

ROUNDS = [{"method": "sft"}, {"method": "dpo"}, {"method": "sft", "explore": {"num_problems": 2}}]
SMALL = {"samples_per_problem": 3, "skip_solved": False, "num_problems": 4}


def recipe(rounds: Any = ROUNDS, **sections: Any) -> Recipe:
    return make_recipe(**{"rounds": rounds, "explore": SMALL, **sections})


def run(world: FakeWorld, fuse: Fuse | None = None) -> list[dict[str, Any]]:
    lines = Driver(world.recipe, world.ports(fuse), backbone=BACKBONE).run()
    return [summary_to_json(line) for line in lines]


def always(verdict: Verdict) -> Any:
    return lambda key, version: verdict


# -- a whole run ------------------------------------------------------------------------------------------------------


def test_stages_run_in_the_order_of_the_recipe_each_with_the_newest_policy() -> None:
    world = FakeWorld(recipe())
    run(world)
    expected = [
        ("000-backbone", 0),
        ("000-imitate", 0),
        ("001-explore", 1),
        ("001-sft", 1),
        ("002-explore", 2),
        ("002-dpo", 2),
        ("003-explore", 3),
        ("003-sft", 3),
    ]
    assert world.disk.begun == expected
    assert world.disk.finished == [name for name, _ in expected]
    assert world.disk.state == ("complete", 4)


def test_the_summary_has_the_backbone_and_every_trained_policy_with_its_own_version() -> None:
    world = FakeWorld(recipe())
    lines = run(world)
    versions = {line["name"]: line["policy_version"] for line in lines}
    assert versions == {"000-backbone": 0, "000-imitate": 1, "001-sft": 2, "002-dpo": 3, "003-sft": 4}
    assert [line["name"] for line in world.disk.summary] == list(versions)
    for line in lines:
        assert line["accuracy"] == world.disk.evaluations[line["name"]]
        assert line["num_problems"] == world.num_test
        assert line["ci95"][0] <= line["accuracy"] <= line["ci95"][1]


def test_a_backbone_is_asked_as_it_comes_and_then_as_the_run_asks() -> None:
    world = FakeWorld(recipe())
    lines = Driver(world.recipe, world.ports(), backbone=BACKBONE, baseline="plain").run()
    assert world.forms[:3] == ["plain", "", ""]
    assert [(line.name, line.baseline) for line in lines if line.in_form] == [("000-backbone", "plain")]
    assert world.disk.evaluations["000-backbone"] == lines[0].evaluation.accuracy


def test_every_training_stage_says_how_much_of_the_model_it_changed() -> None:
    world = FakeWorld(recipe(), share_changed=0.25)
    shares = {line["name"]: line.get("share_changed") for line in run(world)}
    assert shares == {"000-backbone": None, "000-imitate": 0.25, "001-sft": 0.25, "002-dpo": 0.25, "003-sft": 0.25}
    assert world.disk.facts("002-dpo")["training"]["share_changed"] == 0.25
    events = {event.labels["stage"]: event.value for event in world.progress.events if event.name.endswith("changed")}
    assert events == {name: share for name, share in shares.items() if share}
    assert sum("25.0% of the weights changed" in note for note in world.progress.notes) == 4
    assert not any("warning" in note for note in world.progress.notes)


@pytest.mark.parametrize("share", [0.0, 0.013])
def test_a_stage_that_hardly_changed_the_model_is_warned_of(share: float) -> None:
    world = FakeWorld(recipe([{"method": "dpo"}]), share_changed=share)
    run(world)
    (note,) = [note for note in world.progress.notes if note.startswith("warning: 001-dpo")]
    assert f"{share:.2%} of the weights" in note and "learning_rate" in note and "global_batch_size" in note


def test_what_is_not_known_of_the_weights_is_not_said() -> None:
    world = FakeWorld(recipe(), share_changed=None)
    lines = run(world)
    assert not any("share_changed" in line for line in lines)
    assert not any("weights" in note for note in world.progress.notes)
    assert not any(event.name.endswith("share_changed") for event in world.progress.events)


def test_the_summary_says_which_sync_was_proved_weakly() -> None:
    world = FakeWorld(recipe())
    world.disk.weak_syncs = {3}
    assert [line["name"] for line in run(world) if line.get("weak_sync")] == ["002-dpo"]


def test_every_problem_and_sample_is_stored_once_with_the_version_that_was_served() -> None:
    world = FakeWorld(recipe())
    run(world)
    for number, num_problems in ((1, 4), (2, 4), (3, 2)):
        rows = world.disk.trajectories[number]
        problems = {key.problem_id for key in rows}
        assert len(problems) == num_problems
        assert set(rows) == {TrajectoryKey(number, problem, index) for problem in problems for index in range(3)}
        assert {row.policy_version for row in rows.values()} == {number}


def test_the_facts_of_a_round_count_what_the_store_holds() -> None:
    world = FakeWorld(recipe())
    run(world)
    rows = world.disk.trajectories[1].values()
    facts = world.disk.facts("001-explore")
    correct = [row for row in rows if row.verdict is Verdict.CORRECT]
    assert facts["num_rollouts"] == sum(facts["verdicts"].values()) == 12
    assert facts["verdicts"]["correct"] == len(correct)
    assert facts["num_solved"] == len({row.problem_id for row in correct})


def test_an_sft_stage_learns_all_demonstrations_and_correct_trajectories_of_all_rounds_so_far() -> None:
    world = FakeWorld(recipe([{}, {}]))
    run(world)
    first, second = (world.disk.data[f"00{number}-sft/data"] for number in (1, 2))
    shown = tuple(f"d{number}" for number in range(1, 6))
    assert world.disk.data["000-imitate/data"] == shown
    assert first[:5] == second[:5] == shown
    assert {source.split("/")[0] for source in first[5:]} == {"1"}
    assert {source.split("/")[0] for source in second[5:]} == {"1", "2"}
    stored = {**world.disk.trajectories[1], **world.disk.trajectories[2]}
    for source in second[5:]:
        number, problem, index = source.split("/")
        assert stored[TrajectoryKey(int(number), problem, int(index))].verdict is Verdict.CORRECT


def test_dpo_pairs_come_from_the_latest_round_unless_all_are_asked_for() -> None:
    for rounds, expected in (("latest", {"2"}), ("all", {"1", "2"})):
        world = FakeWorld(recipe([{}, {"method": "dpo", "dpo": {"pairs": {"rounds": rounds}}}]))
        run(world)
        sides = [side for pair in world.disk.data["002-dpo/data"] for side in pair.split(" > ")]
        assert {side.split("/")[0] for side in sides} == expected


@pytest.mark.parametrize(
    ("rounds", "stage", "expected"),
    [
        ([{"sft": {"init": "backbone"}}], "001-sft", BACKBONE),
        ([{"sft": {"init": "previous"}}], "001-sft", "000-imitate/checkpoint"),
        ([{}, {"sft": {"init": "previous"}}], "002-sft", "001-sft/checkpoint"),
        ([{}, {"method": "dpo"}], "002-dpo", "001-sft/checkpoint"),
        ([{}, {"method": "dpo", "dpo": {"init": "backbone"}}], "002-dpo", BACKBONE),
    ],
)
def test_training_starts_from_the_model_that_init_names(rounds: Any, stage: str, expected: str) -> None:
    world = FakeWorld(recipe(rounds))
    run(world)
    assert world.orders()[stage].init_model == expected


def test_imitation_starts_from_the_backbone_because_nothing_is_previous() -> None:
    world = FakeWorld(recipe([], imitate={"init": "previous"}))
    run(world)
    assert world.orders()["000-imitate"].init_model == BACKBONE


def test_every_training_stage_has_its_own_seed() -> None:
    world = FakeWorld(recipe())
    run(world)
    seeds = {order.seed for order in world.orders().values()}
    assert len(seeds) == 4


def test_another_run_seed_explores_other_problems() -> None:
    worlds = [FakeWorld(recipe([{}], seed=seed), num_problems=30) for seed in (1, 2)]
    first, second = ({key.problem_id for key in _explored(world, 1)} for world in worlds)
    assert len(first) == len(second) == 4
    assert first != second


def _explored(world: FakeWorld, number: int) -> set[TrajectoryKey]:
    run(world)
    return set(world.disk.trajectories[number])


def test_progress_counts_up_to_the_rollouts_that_were_announced() -> None:
    world = FakeWorld(recipe([{}]))
    run(world)
    assert "001-explore explore 4 problems, 12 rollouts" in world.progress.titles
    assert (12, 12) in world.progress.steps
    assert all(done <= total for done, total in world.progress.steps)
    names = {event.name for event in world.progress.events}
    assert {"train/loss", "stage/seconds", "evaluate/accuracy", "explore/rollouts", "sync/seconds"} <= names


def test_adaptive_exploration_samples_less_where_a_problem_is_solved_and_says_how_much() -> None:
    """p0 is always solved: 2 of 6 samples; p1 from its fourth sample on: 4 of 6; p2 never: 6 of 6."""
    config = {"samples_per_problem": 6, "adaptive": {"initial": 2, "step": 2}}
    first_right = {"p0": 0, "p1": 3, "p2": 6}
    world = FakeWorld(
        recipe([{}], explore=config),
        num_problems=3,
        skill=lambda key, version: (
            Verdict.CORRECT if key.sample_index >= first_right.get(key.problem_id, 0) else Verdict.INCORRECT
        ),
    )
    run(world)
    counts = Counter(key.problem_id for key in world.disk.trajectories[1])
    assert counts == {"p0": 2, "p1": 4, "p2": 6}
    facts = world.disk.facts("001-explore")
    assert (facts["num_rollouts"], facts["num_rollouts_saved"]) == (12, 6)
    assert "6 of 18 rollouts saved" in "\n".join(world.progress.notes)
    assert world.progress.steps[-1 - world.num_test] == (12, 12)


def test_a_budget_of_tokens_goes_to_the_uncertain_problems_and_what_is_left_over_is_said() -> None:
    """20 tokens a response: first waves take 120 of 165, another one 40. p1 is solved every other time, p2 never."""
    config = {"samples_per_problem": 6, "adaptive": {"initial": 2, "step": 2, "enough_correct": 6}}
    world = FakeWorld(
        recipe([{}], explore={**config, "max_sampled_tokens": 165}),
        num_problems=3,
        skill=lambda key, version: (
            Verdict.CORRECT
            if key.problem_id == "p0" or (key.problem_id == "p1" and key.sample_index % 2)
            else Verdict.INCORRECT
        ),
    )
    run(world)
    assert Counter(key.problem_id for key in world.disk.trajectories[1]) == {"p0": 2, "p1": 4, "p2": 2}
    facts = world.disk.facts("001-explore")
    assert facts["budget"] == {"max_sampled_tokens": 165, "num_sampled_tokens": 160, "num_unaffordable": 3}
    assert facts["num_rollouts_saved"] == 10
    assert "160 tokens sampled of explore.max_sampled_tokens 165" in "\n".join(world.progress.notes)
    assert all(done <= total for done, total in world.progress.steps)


# -- rounds that overlap ----------------------------------------------------------------------------------------------


class Meeting:
    """A trainer and an explorer of which neither ends its work before the other has begun; one may fail then."""

    def __init__(self, ports: Ports, failing: str = "") -> None:
        self._ports = ports
        self._failing = failing
        self._begun = {"train": threading.Event(), "explore": threading.Event()}
        self.ended: list[str] = []

    def ports(self) -> Ports:
        return replace(self._ports, trainer=cast(Trainer, self), explorer=cast(Explorer, self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ports.explorer, name)

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        if order.stage.name == "001-sft":
            self._meet("train", "explore")
        return self._ports.trainer.train(order, progress=progress)

    def explore(self, order: ExploreOrder, **options: Any) -> None:
        if not order.stage.beside:
            self._ports.explorer.explore(order, **options)
            return
        self._meet("explore", "train")
        if self._failing == "train":
            self._sample_for_ever(order, options["on_load"])
        self._ports.explorer.explore(order, **options)

    def _sample_for_ever(self, order: ExploreOrder, on_load: OnLoad) -> None:
        try:
            while True:
                on_load(SamplingLoad(num_running=1, num_waiting=0, num_tokens=0))
        finally:
            self.ended.append(order.stage.name)

    def _meet(self, one: str, other: str) -> None:
        self._begun[one].set()
        assert self._begun[other].wait(30), f"{other} waits for {one}"
        if self._failing == one:
            raise RunError(f"{one} failed")


def overlapping(failing: str = "") -> tuple[FakeWorld, Meeting]:
    world = FakeWorld(recipe([{}, {}], explore={**SMALL, "overlap": 1}))
    return world, Meeting(world.ports(), failing)


def test_a_round_samples_from_the_policy_before_while_the_round_before_it_trains() -> None:
    world, meeting = overlapping()
    Driver(world.recipe, meeting.ports(), backbone=BACKBONE).run()
    assert {row.policy_version for row in world.disk.trajectories[2].values()} == {1}
    alone = ("001-sft", 1)  # said once more when the exploration beside it is complete
    assert world.disk.begun[2:] == [("001-explore", 1), ("002-explore", 1), ("001-sft", 1), alone, ("002-sft", 2)]
    assert world.disk.finished[2:] == ["001-explore", "002-explore", "001-sft", "002-sft"]
    assert {source.split("/")[0] for source in world.disk.data["001-sft/data"][5:]} == {"1"}
    assert {source.split("/")[0] for source in world.disk.data["002-sft/data"][5:]} == {"1", "2"}
    assert world.progress.steps_beside[-1] == (12, 12)
    assert all(done <= total for done, total in world.progress.steps_beside)


def test_what_is_sampled_does_not_depend_on_who_ends_first() -> None:
    world, meeting = overlapping()
    Driver(world.recipe, meeting.ports(), backbone=BACKBONE).run()
    alone = FakeWorld(world.recipe)
    run(alone)
    assert world.disk.result() == alone.disk.result()


def test_an_exploration_that_fails_lets_the_training_reach_its_checkpoint_and_then_ends_the_run() -> None:
    world, meeting = overlapping("explore")
    with pytest.raises(RunError, match=r"^explore failed$"):
        Driver(world.recipe, meeting.ports(), backbone=BACKBONE).run()
    assert "001-sft/checkpoint" in world.disk.checkpoints and "001-sft" not in world.disk.manifests
    assert any("002-explore failed (explore failed); 001-sft goes on" in note for note in world.progress.notes)
    run(world)
    world.orders()  # nothing is trained twice
    assert {row.policy_version for row in world.disk.trajectories[2].values()} == {1}, "though version 2 was there"


def test_a_training_that_fails_ends_the_exploration_at_once() -> None:
    world, meeting = overlapping("train")
    with pytest.raises(RunError, match=r"^train failed$"):
        Driver(world.recipe, meeting.ports(), backbone=BACKBONE).run()
    assert meeting.ended == ["002-explore"] and not any("failed" in note for note in world.progress.notes)


# -- rounds that have nothing to do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [Verdict.CORRECT, Verdict.INCORRECT, Verdict.TIMEOUT])
def test_dpo_without_pairs_is_skipped_and_the_policy_stays(verdict: Verdict) -> None:
    world = FakeWorld(recipe([{"method": "dpo"}, {"method": "sft"}]), skill=always(verdict))
    lines = run(world)
    facts = world.disk.facts("001-dpo")
    why = "whole, well-formed and judged" if verdict is Verdict.TIMEOUT else "both a correct and an incorrect"
    assert why in facts["skipped"]
    assert (facts["policy_version"], facts["num_pairs"]) == (1, 0)
    assert "001-dpo" not in world.orders()
    assert "001-dpo" not in {line["name"] for line in lines}
    assert ("002-explore", 1) in world.disk.begun
    assert {row.policy_version for row in world.disk.trajectories[2].values()} == {1}
    assert world.disk.state == ("complete", 3)


def test_previous_after_a_skipped_stage_is_the_newest_trained_model() -> None:
    rounds = [{"method": "dpo"}, {"sft": {"init": "previous"}}]
    world = FakeWorld(recipe(rounds), skill=always(Verdict.CORRECT))
    run(world)
    assert world.orders()["002-sft"].init_model == "000-imitate/checkpoint"


def test_an_exhausted_pool_skips_exploration_and_training() -> None:
    config = {"samples_per_problem": 2, "skip_solved": True}
    world = FakeWorld(recipe([{}, {}], explore=config), skill=always(Verdict.CORRECT))
    lines = run(world)
    assert len(world.disk.trajectories[1]) == 12
    assert not world.disk.trajectories[2]
    assert world.disk.facts("002-explore")["num_problems"] == 0
    assert "exhausted" in world.disk.facts("002-sft")["skipped"]
    assert [line["name"] for line in lines] == ["000-backbone", "000-imitate", "001-sft"]
    assert world.disk.state == ("complete", 2)


def test_a_later_round_leaves_out_what_an_earlier_one_solved() -> None:
    solved = {"p1", "p4"}
    config = {"samples_per_problem": 2, "skip_solved": True}
    world = FakeWorld(
        recipe([{}, {}], explore=config),
        skill=lambda key, version: Verdict.CORRECT if key.problem_id in solved else Verdict.INCORRECT,
    )
    run(world)
    assert {key.problem_id for key in world.disk.trajectories[2]} == {"p0", "p2", "p3", "p5"}


def test_a_round_without_one_correct_answer_trains_on_the_demonstrations_alone() -> None:
    world = FakeWorld(recipe([{}]), skill=always(Verdict.INCORRECT))
    run(world)
    assert world.disk.data["001-sft/data"] == tuple(f"d{number}" for number in range(1, 6))
    facts = world.disk.facts("001-sft")["data"]
    assert (facts["num_demonstrations"], facts["num_explored"]) == (5, 0)


# -- forgetting -------------------------------------------------------------------------------------------------------


def with_general(alpha: float = 0.05) -> Recipe:
    data = {"tiny_world": {}, "forgetting": {"path": "general.jsonl", "alpha": alpha}}
    return recipe([{}], data=data)


def forgetting(lost_by: int, *, kept: int = 0) -> Skill:
    """A backbone that answers every general problem, and a policy that has lost all but some of them by a version."""

    def skill(key: TrajectoryKey, version: int) -> Verdict:
        lost = key.problem_id.startswith("g") and version >= lost_by and int(key.problem_id[1:]) >= kept
        return Verdict.INCORRECT if lost else Verdict.CORRECT

    return skill


def test_a_policy_that_forgets_is_told_by_an_alarm_that_says_how_much_and_how_sure() -> None:
    world = FakeWorld(with_general(), skill=forgetting(2))
    lines = {line["name"]: line["forgetting"] for line in run(world)}
    assert [line["evaluation"]["accuracy"] for line in lines.values()] == [1.0, 1.0, 0.0]
    assert [line["alarm"] for line in lines.values()] == [False, False, True]
    assert (lines["000-backbone"]["p_value"], lines["000-imitate"]["p_value"]) == (None, 1.0)
    assert lines["001-sft"]["p_value"] == pytest.approx(2 / 2**NUM_GENERAL)  # the exact binomial of 8 against 0
    (alarm,) = (note for note in world.progress.notes if "warning" in note)
    assert alarm.startswith(
        "warning: 001-sft forgets: 0.0% on the general problems, 100.0% by the backbone; 8 problems lost, 0 gained "
        "(exact paired test: p = 0.0078, data.forgetting.alpha 0.05)"
    )
    assert world.disk.facts("001-sft")["forgetting"]["num_lost"] == 8


@pytest.mark.parametrize(("alpha", "kept", "alarms"), [(0.001, 0, 0), (0.01, 0, 1), (0.05, 3, 0), (0.1, 3, 1)])
def test_what_a_fall_is_depends_on_the_recipes_alpha(alpha: float, kept: int, alarms: int) -> None:
    world = FakeWorld(with_general(alpha), skill=forgetting(2, kept=kept))  # 5 of 8 lost: p = 2 / 2**5 = 0.0625
    assert sum(line["forgetting"]["alarm"] for line in run(world)) == alarms


def test_learning_general_problems_is_no_alarm() -> None:
    world = FakeWorld(with_general(), skill=lambda key, version: Verdict.CORRECT if version else Verdict.INCORRECT)
    found = run(world)[-1]["forgetting"]
    assert (found["num_lost"], found["num_gained"], found["alarm"]) == (0, NUM_GENERAL, False)


def test_without_general_problems_nothing_is_asked_and_nothing_is_said() -> None:
    world = FakeWorld(recipe([{}]))
    assert not any("forgetting" in line for line in run(world))
    assert not world.disk.general
    assert "forgetting" not in world.disk.facts("001-sft")


def test_the_alarm_is_the_same_where_the_run_was_resumed_between() -> None:
    world = FakeWorld(with_general(), skill=forgetting(2))
    with pytest.raises(Crashed):
        run(world, Fuse(60))
    assert "000-backbone" in world.disk.manifests
    assert "001-sft" not in world.disk.manifests
    assert run(world)[-1]["forgetting"]["alarm"]


# -- copies ----------------------------------------------------------------------------------------------------------


def test_a_text_that_is_sampled_again_in_a_round_or_in_a_later_one_is_learnt_once() -> None:
    settings = {"select": {"max_per_problem": 9}}
    world = FakeWorld(recipe([{}, {}], sft=settings), thought="As before.", skill=always(Verdict.CORRECT))
    run(world)
    stored = sorted([*world.disk.trajectories[1], *world.disk.trajectories[2]])
    problems = {key.problem_id for key in stored}
    first = [next(key for key in stored if key.problem_id == problem) for problem in problems]
    learnt = world.disk.data["002-sft/data"][5:]
    assert learnt == tuple(map(trajectory_id, sorted(first)))
    facts = world.disk.facts("002-sft")["data"]
    assert (facts["num_explored"], facts["num_as_earlier"]) == (len(problems), len(stored) - len(problems))
    copies = f"({len(stored) - len(problems)} as copies are left out)"
    told = f"{len(problems)} explored of {len(stored)} correct ones {copies}"
    assert told in "\n".join(world.progress.notes)


def test_equal_demonstrations_are_learnt_once_and_equal_responses_not_at_all() -> None:
    texts = {"a": "So.", "b": "So.", "c": "Not so."}
    shown = [make_demonstration(name, question="Why?", thought=text) for name, text in texts.items()]
    same = make_trajectory("p", question="Why?", thought="So.", solution=shown[0].solution)
    rows = [candidate_of(same), candidate_of(make_trajectory("p", 1))]
    seen = demonstrated(shown, "whole")
    assert [row.id for row in distinct_demonstrations(shown, "whole")] == ["a", "c"]
    selection = select_trajectories(rows, SelectConfig(max_per_problem=2), scope="whole", shown=seen, seed=0)
    assert selection.keys == (rows[1].key,)
    assert (seen.num_equal, selection.num_as_demonstrated) == (1, 1)


@pytest.mark.parametrize("scope", ["whole", "thought"])
def test_pairs_of_equal_sides_are_not_learnt_but_counted(scope: str) -> None:
    world = FakeWorld(
        recipe([{"method": "dpo", "dpo": {"scope": scope}}]),
        thought="As before.",
        skill=lambda key, version: Verdict.INCORRECT if key.sample_index else Verdict.CORRECT,
    )
    run(world)
    facts = world.disk.facts("001-dpo")
    assert (facts["num_pairs"], facts["num_equal_sides"], facts["num_equal_responses"]) == (0, 4, 4)
    assert "001-dpo" not in world.orders()


# -- crashes ----------------------------------------------------------------------------------------------------------


def crash_world(overlap: int = 0) -> FakeWorld:
    """Solved problems are left out, so that a round must not count its own answers when it is taken up again."""
    config = {"samples_per_problem": 3, "skip_solved": True, "num_problems": 4, "overlap": overlap}
    rounds = [{"method": "sft"}, {"method": "dpo"}, {"explore": {"num_problems": 2, "adaptive": {"initial": 1}}}]
    return FakeWorld(recipe(rounds, explore=config), num_problems=12)


def whole_run(overlap: int) -> tuple[Disk, list[str]]:
    world, fuse = crash_world(overlap), Fuse()
    run(world, fuse)
    assert all(world.disk.trajectories[number] for number in (1, 2, 3))
    return world.disk, fuse.moments


WHOLE_RUNS = [whole_run(overlap) for overlap in (0, 1)]
MOMENTS = WHOLE_RUNS[0][1]


def crash(world: FakeWorld, moment: int) -> None:
    fuse = Fuse(blows_at=moment)
    try:
        run(world, fuse)
    except Crashed:
        return
    assert moment >= len(fuse.moments), "something caught the crash"


def assert_as_if_nothing_happened(world: FakeWorld, what: str = "", *, overlap: int = 0) -> None:
    whole, _ = WHOLE_RUNS[overlap]
    assert world.disk.result() == whole.result(), what
    assert world.disk.finished == whole.finished
    assert world.orders() == {order.stage.name: order for order in whole.trained}


def test_a_run_has_enough_moments_to_crash_at() -> None:
    assert len(MOMENTS) > 300
    calls = {moment.split(" ")[1] for moment in MOMENTS}
    for call in ("Store.commit", "Store.finish", "Trainer.train", "Sync.sync", "Explorer.evaluate", "Store.end"):
        assert f"Fake{call}" in calls


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_crash_at_any_moment_changes_nothing_of_the_result(overlap: int) -> None:
    for moment, name in enumerate(WHOLE_RUNS[overlap][1]):
        world = crash_world(overlap)
        crash(world, moment)
        run(world)
        assert_as_if_nothing_happened(world, f"crashed {name} ({moment})", overlap=overlap)


@settings(max_examples=60, deadline=None)
@given(moments=st.lists(st.integers(0, len(MOMENTS) - 1), min_size=2, max_size=5))
def test_crashes_one_after_another_change_nothing_either(moments: list[int]) -> None:
    world = crash_world()
    for moment in moments:
        crash(world, moment)
    run(world)
    assert_as_if_nothing_happened(world)


def test_resuming_after_a_crash_in_exploration_asks_only_for_what_is_missing() -> None:
    world = crash_world()
    commits = [moment for moment, name in enumerate(MOMENTS) if name == "after FakeStore.commit"]
    crash(world, commits[3])
    stored = len(world.disk.trajectories[1])
    assert 0 < stored < 12
    run(world)
    assert world.progress.steps[0] == (stored + 3, 12)


def test_running_a_complete_run_again_does_nothing_but_give_its_lines() -> None:
    world = crash_world()
    lines = run(world)
    begun = list(world.disk.begun)
    again = run(world)
    assert world.disk.begun == begun
    assert world.progress.titles == []
    assert_as_if_nothing_happened(world)
    assert [line["name"] for line in again] == [line["name"] for line in lines]


# -- the counter ------------------------------------------------------------------------------------------------------


def test_the_progress_counter_counts_all_and_measures_the_speed_of_what_arrived() -> None:
    now = [100.0]
    counter = ProgressCounter(total=10, already=4, already_correct=2, clock=lambda: now[0])
    now[0] = 102.0
    counter.add([make_trajectory(num_tokens=30), make_trajectory(num_tokens=10, verdict=Verdict.INCORRECT)])
    assert counter.facts() == {
        "rollouts": "6/10",
        "running": "0",
        "tokens": "40",
        "tokens/s": "20",
        "correct so far": "3 (50%)",
    }
    assert dict(counter.events()) == {"rollouts": 6.0, "tokens_per_s": 20.0, "correct": 3.0}


def test_the_progress_counter_counts_the_tokens_of_responses_that_are_not_finished() -> None:
    now = [100.0]
    counter = ProgressCounter(total=2, already=0, already_correct=0, clock=lambda: now[0])
    now[0] = 102.0
    counter.loaded(SamplingLoad(num_running=2, num_waiting=0, num_tokens=60))
    facts = counter.facts()
    assert (facts["running"], facts["tokens"], facts["tokens/s"]) == ("2", "60", "30")
    counter.add([make_trajectory(num_tokens=80), make_trajectory(num_tokens=20)])
    facts = counter.facts()
    assert facts["tokens"] == "100" and "running" not in facts, "what is judged is counted, however old the last look"


def test_what_the_replicas_do_is_shown_before_the_first_answer() -> None:
    world = FakeWorld(recipe([]))
    first: list[tuple[float, float]] = []
    ports = world.ports()

    class Slow:
        """Says what it does, and answers nothing before that."""

        answer_equivalence = ports.explorer.answer_equivalence
        explore = ports.explorer.explore

        def evaluate(self, order: EvaluateOrder, *, on_load: OnLoad, **rest: Any) -> None:
            rest["on_rows"]((), 3)
            on_load(SamplingLoad(num_running=3, num_waiting=0, num_tokens=5))
            first.extend(world.progress.steps)
            ports.explorer.evaluate(order, on_load=on_load, **rest)

    Driver(world.recipe, replace(ports, explorer=Slow()), backbone=BACKBONE).run()
    assert first[0] == (0, 3)
