"""What a rehearsal is made of: its sizes, its machines, its faults, and what counts as misplaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.algo.placement import resolve
from still_ray.algo.planning.cluster import Fleet, NodeType
from still_ray.algo.rehearsal.device_time import (
    KINDS,
    SAMPLING,
    SYNC,
    TRAINING,
    DeviceSpan,
    DeviceTime,
    device_time,
    devices_at_work,
)
from still_ray.algo.rehearsal.faults import FaultKind, plan_faults
from still_ray.algo.rehearsal.held import Held, Observation, holdings, misplaced
from still_ray.algo.rehearsal.machines import Machine, machines_of_fleet, machines_of_options
from still_ray.algo.rehearsal.sizes import Cut, Sizes, cut
from still_ray.algo.stages import plan_stages
from still_ray.config import Recipe, load_recipe
from still_ray.types import InputError
from tests.fakes import make_recipe

JOBS = Path(__file__).resolve().parents[2] / "jobs"
SIZES = Sizes(problems=40, samples=4, test=20, demonstrations=50)


def recipe(**sections: Any) -> Recipe:
    """Two rounds, two replicas of four GPUs, eight ranks of one."""
    given = {
        "rounds": [{"method": "sft"}, {"method": "dpo"}],
        "sampler": {"num_replicas": 2, "tensor_parallel_size": 4, "gpus_per_replica": 4.0, "cpus_per_replica": 8.0},
        "trainer": {"num_workers": 8, "use_gpu": True, "cpus_per_worker": 4.0},
    }
    return make_recipe(**{**given, **sections})


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2.5-32b", "qwen2.5-7b", "qwen2.5-1.5b", "demo"])
def test_a_cut_recipe_is_a_recipe_with_the_same_stages_resources_and_policies(name: str) -> None:
    full = load_recipe(JOBS / f"{name}.yaml")
    small, _ = cut(full, SIZES, has_gpus=True)
    assert Recipe.model_validate(small.model_dump()) == small
    assert plan_stages(small) == plan_stages(full)
    settled = resolve(full, has_gpus=True)
    assert small.failures == full.failures and small.placement == settled.placement
    assert small.trainer == full.trainer.model_copy(
        update={"report_to": (), "num_workers": settled.trainer.num_workers}
    )
    assert all(one.num_problems == 40 and one.samples_per_problem == 4 for _, one in small.explorations)
    assert [step.settings for step in small.steps] == [step.settings for step in full.steps]


def test_what_was_cut_is_named_once_for_alike_rounds() -> None:
    explore = {"samples_per_problem": 20, "num_problems": 7, "adaptive": {"initial": 4, "step": 8, "enough_correct": 1}}
    small, cuts = cut(recipe(explore=explore, verifier={"processes_per_worker": 8}), SIZES, has_gpus=True)
    _, cut_explore = small.explorations[0]
    adaptive = cut_explore.adaptive
    assert adaptive is not None and (adaptive.initial, adaptive.step) == (2, 2), "two waves are left"
    assert cut_explore.num_problems == 7, "never more than the recipe says"
    assert Cut(key="rounds.*.explore.samples_per_problem", before="20", after="4") in cuts
    assert Cut(key="verifier.processes_per_worker", before="8", after="1") in cuts
    assert len({one.key for one in cuts}) == len(cuts)


@pytest.mark.parametrize(
    ("sections", "transport"),
    [
        ({}, "object_store"),
        ({"sync": {"transport": "nccl"}}, "object_store"),
        ({"sync": {"transport": "checkpoint"}}, "checkpoint"),
        ({"placement": "shared"}, "auto"),
    ],
)
def test_only_what_needs_gpus_is_sent_another_way(sections: dict[str, Any], transport: str) -> None:
    small, _ = cut(recipe(**sections), SIZES, has_gpus=True)
    assert small.sync.transport == transport


def test_a_small_model_gets_room_for_the_fakes_bytes() -> None:
    small, _ = cut(
        recipe(model={"path": "x", "max_length": 512}, explore={"max_tokens": 200}, evaluate={"max_tokens": 200}),
        SIZES,
        has_gpus=False,
    )
    assert small.explorations[0][1].max_tokens == small.evaluate.max_tokens == 1024
    assert small.model.longest >= 8 * 1024


# -- machines ---------------------------------------------------------------------------------------------------------


def test_as_many_machines_as_the_actors_need() -> None:
    head, *workers = machines_of_options(recipe(), nodes=None, devices=None, cpus=None)
    assert head.gpus == 0 and [machine.gpus for machine in workers] == [8, 8]
    assert [machine.cpus for machine in workers] == [96, 96]
    _, *more = machines_of_options(recipe(), nodes=5, devices=8, cpus=32)
    assert len(more) == 5 and {machine.cpus for machine in more} == {32}


@pytest.mark.parametrize("placement", ["shared", "elastic"])
def test_trainer_and_samplers_that_share_devices_need_machines_for_one_of_them(placement: str) -> None:
    _, *workers = machines_of_options(recipe(placement=placement), nodes=None, devices=None, cpus=None)
    assert len(workers) == 1


def test_a_recipe_without_gpus_gets_one_machine_with_the_cpus_that_it_asks_for() -> None:
    plain = make_recipe(sampler={"num_replicas": 3, "cpus_per_replica": 2.0}, trainer={"num_workers": 2})
    _, worker = machines_of_options(plain, nodes=None, devices=None, cpus=None)
    assert (worker.gpus, worker.cpus) == (0, 3 * 2 + 2 + 1)


def test_machines_have_the_labels_that_actors_ask_for() -> None:
    labelled = recipe(
        sampler={**recipe().sampler.model_dump(), "node_labels": {"role": "in(sampler, spare)"}},
        trainer={**recipe().trainer.model_dump(), "node_labels": {"role": "trainer", "zone": "!a"}},
    )
    _, *workers = machines_of_options(labelled, nodes=None, devices=8, cpus=None)
    assert [dict(machine.labels) for machine in workers] == [{"role": "sampler"}, {"role": "trainer"}]
    _, *more = machines_of_options(labelled, nodes=4, devices=8, cpus=None)
    assert [machine.labels["role"] for machine in more].count("sampler") == 3


@pytest.mark.parametrize(
    ("nodes", "devices", "said"),
    [(1, 8, "--nodes 1: the actors of the recipe need 2 machines"), (None, 2, "one sampler asks for 4 GPUs")],
)
def test_machines_that_are_too_few_or_too_small_are_refused(nodes: int | None, devices: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        machines_of_options(recipe(), nodes=nodes, devices=devices, cpus=None)


def test_of_a_cluster_file_only_what_is_needed_is_declared() -> None:
    role = "role"
    fleet = Fleet(
        nodes=(
            NodeType(name="spot", count=20, cpus=48, gpus=4, labels={role: "sampler"}),
            NodeType(name="top", count=1, cpus=0, gpus=0),
            NodeType(name="big", count=4, cpus=96, gpus=8, labels={role: "trainer"}),
        )
    )
    chosen = recipe(
        sampler={**recipe().sampler.model_dump(), "node_labels": {role: "sampler"}},
        trainer={**recipe().trainer.model_dump(), "node_labels": {role: "trainer"}},
    )
    machines = machines_of_fleet(chosen, fleet, head="top", where="f.yaml")
    assert [machine.name for machine in machines] == ["top", "spot-1", "spot-2", "big-1"]
    with pytest.raises(InputError, match=r"^f.yaml: trainer\.node_labels"):
        machines_of_fleet(chosen, Fleet(nodes=fleet.nodes[:2]), head="top", where="f.yaml")


# -- faults -----------------------------------------------------------------------------------------------------------


def test_each_kind_dies_once_and_the_node_in_a_round_of_its_own() -> None:
    plan = plan_faults(recipe(), num_workers=3)
    stages = {fault.kind: fault.stage for fault in plan.faults}
    assert stages == {
        FaultKind.REPLICA: "001-explore",
        FaultKind.VERIFIER: "001-explore",
        FaultKind.NODE: "002-explore",
        FaultKind.RANK: "001-sft",
    }
    assert plan.left_out == ()
    asleep = {*plan_faults(recipe(placement="elastic"), num_workers=3).faults} - {*plan.faults}
    assert [(fault.kind, fault.stage) for fault in asleep] == [(FaultKind.SLEEPER, "002-dpo")]
    frail = plan_faults(recipe(placement="elastic", failures={"max_replica_restarts": 0}), num_workers=3)
    assert {line.partition(": ")[0] for line in frail.left_out} == {FaultKind.REPLICA, FaultKind.SLEEPER}


@pytest.mark.parametrize(
    ("failures", "num_workers", "kind"),
    [
        ({"max_replica_restarts": 0}, 3, FaultKind.REPLICA),
        ({"max_prompt_attempts": 1}, 3, FaultKind.REPLICA),
        ({"max_verifier_restarts": 0}, 3, FaultKind.VERIFIER),
        ({"max_trainer_restarts": 0}, 3, FaultKind.RANK),
        ({}, 1, FaultKind.NODE),
    ],
)
def test_a_death_that_the_recipe_does_not_survive_is_left_out(
    failures: dict[str, int], num_workers: int, kind: FaultKind
) -> None:
    plan = plan_faults(recipe(failures=failures), num_workers=num_workers)
    assert {fault.kind for fault in plan.faults} == {*FaultKind} - {kind, FaultKind.SLEEPER}
    assert len(plan.left_out) == 1 and plan.left_out[0].startswith(f"{kind}: ")


def test_without_rounds_only_a_rank_can_die() -> None:
    plan = plan_faults(recipe(rounds=[]), num_workers=3)
    assert [(fault.kind, fault.stage) for fault in plan.faults] == [(FaultKind.RANK, "000-imitate")]


# -- placement --------------------------------------------------------------------------------------------------------

MACHINES = {"a": Machine(name="one", cpus=96, gpus=8), "b": Machine(name="two", cpus=96, gpus=8)}


def replica(name: str, node_id: str, **changes: Any) -> Held:
    return Held(**{"role": "sampler", "name": name, "node_id": node_id, "cpus": 8, "gpus": 4, **changes})


def ranks(node_id: str, count: int = 8, gpus: float = 1) -> list[Held]:
    return [Held(role="trainer", name=f"rank-{i}", node_id=node_id, cpus=4, gpus=gpus) for i in range(count)]


def observation(*held: Held, activity: str = "explore") -> Observation:
    return Observation(stage="001", activity=activity, held=held, machines=MACHINES)


def test_what_the_recipe_asks_for_is_in_place() -> None:
    good = observation(replica("r0", "a"), replica("r1", "a"), *ranks("b"))
    assert misplaced(recipe(), [good], has_gpus=True) == []
    assert holdings([good], "explore") == {"one": "2 sampler (8 GPUs)", "two": "8 trainer (8 GPUs)"}


@pytest.mark.parametrize(
    ("held", "activity", "sections", "said"),
    [
        ([replica("r0", "a", gpus=2)], "explore", {}, "r0 holds 8 CPUs and 2 GPUs instead of 8 and 4"),
        ([replica(f"r{i}", "a") for i in range(3)], "explore", {}, "one holds 24 of 96 CPUs and 12 of 8 GPUs"),
        (ranks("b", 7), "train", {}, "7 of 8 trainer ranks are up"),
        ([replica("r0", "a"), *ranks("b")], "train", {"placement": "shared"}, "1 replicas hold devices"),
        (ranks("b"), "explored", {"placement": "shared"}, "8 trainer ranks hold devices"),
        (
            [replica("r0", "a"), *ranks("a", gpus=0)],
            "train",
            {"placement": "elastic"},
            "8 ranks on one, whose replicas hold 4 GPUs",
        ),
        (
            [replica("r0", "a")],
            "explore",
            {"sampler": {**recipe().sampler.model_dump(), "node_labels": {"role": "sampler"}}},
            "r0 is on one, whose labels are {}",
        ),
    ],
)
def test_what_is_held_otherwise_is_named(held: list[Held], activity: str, sections: dict[str, Any], said: str) -> None:
    (line,) = misplaced(recipe(**sections), [observation(*held, activity=activity)], has_gpus=True)
    assert said in line


# -- device time ------------------------------------------------------------------------------------------------------


def held(device: str, begin: float, end: float) -> DeviceSpan:
    return DeviceSpan(device=device, begin_s=begin, end_s=end)


def busy(kind: str, device: str, begin: float, end: float) -> DeviceSpan:
    return DeviceSpan(device=device, begin_s=begin, end_s=end, kind=kind)


def test_gaps_are_idle_and_overlaps_count_once() -> None:
    """Ten seconds: requests at 0-2 and 1-4, nothing, a sync at 6-8 into which a request reaches, a step at 8-9."""
    spans = [
        busy(SAMPLING, "a", 0, 2),
        busy(SAMPLING, "a", 1, 4),
        busy(SYNC, "a", 6, 8),
        busy(SAMPLING, "a", 7, 8),
        busy(TRAINING, "a", 8, 9),
        busy(TRAINING, "a", 9, 9),
    ]
    found = device_time([held("a", 0, 10)], spans)
    assert found == DeviceTime(held_s=10, busy_s={SAMPLING: 4, SYNC: 2, TRAINING: 1})
    assert (found.idle_s, found.share(found.idle_s)) == (3, 0.3)


def test_a_device_that_died_is_held_until_then_and_its_machine_comes_back_as_another() -> None:
    spans = [busy(SAMPLING, "a", 1, 3), busy(SAMPLING, "a", 3.5, 6), busy(TRAINING, "a2", 8, 10)]
    found = device_time([held("a", 0, 4), held("a2", 7, 10), held("never used", 0, 10)], spans)
    assert found == DeviceTime(held_s=4 + 3 + 10, busy_s={SAMPLING: 2.5, SYNC: 0, TRAINING: 2})


def test_nothing_held_is_no_share() -> None:
    assert device_time([], [busy(SAMPLING, "a", 0, 1)]).share(0.0) == 0.0


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("ab"), st.integers(-2, 12), st.integers(0, 5))),
    st.integers(0, 10),
)
def test_the_parts_of_what_is_held_add_up_as_second_by_second(spans: list[Any], died: int) -> None:
    """Against a count of whole seconds, one device to the end and one that dies before."""
    given_spans = [busy(kind, device, begin, begin + length) for kind, device, begin, length in spans]
    found = device_time([held("a", 0, 10), held("b", 0, died)], given_spans)
    counts = dict.fromkeys(KINDS, 0)
    for device, last in (("a", 10), ("b", died)):
        for second in range(last):
            here = {s.kind for s in given_spans if s.device == device and s.begin_s <= second < s.end_s}
            for kind in [kind for kind in KINDS if kind in here][:1]:
                counts[kind] += 1
    assert found.busy_s == counts
    assert found.held_s == 10 + died and found.idle_s == 10 + died - sum(counts.values())


def test_devices_at_work_are_counted_stage_by_stage() -> None:
    spans = [busy(SAMPLING, device, at, at + 1) for device, at in (("a", 0), ("b", 0), ("c", 0), ("a", 5), ("b", 6))]
    assert devices_at_work(spans, SAMPLING, [0.0, 5.0, 20.0]) == 2.5, "three, then two"
    assert devices_at_work(spans, TRAINING, [0.0]) == 0
