"""Where a plan puts the actors of a run: labels, turns, packing, and the limit of machines."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.algo.planning.bundles import Bundle, place
from still_ray.algo.planning.cluster import NodeType
from still_ray.algo.planning.placement_fit import placement_findings

ALL = (frozenset({"sampler", "trainer", "verifier", "reader"}),)
TURNS = (frozenset({"sampler", "verifier"}), frozenset({"trainer", "verifier"}))
SAMPLER = Bundle(role="sampler", cpus=8, gpus=4, key="sampler.num_replicas")
RANK = Bundle(role="trainer", cpus=4, gpus=1, key="trainer.num_workers")
VERIFIER = Bundle(role="verifier", cpus=8, gpus=0, key="verifier.num_workers")


def node(name: str = "gpu", count: int = 1, cpus: float = 96, gpus: float = 8) -> NodeType:
    return NodeType(name=name, count=count, cpus=cpus, gpus=gpus, least=0)


@pytest.mark.parametrize(
    ("wanted", "labels", "fits"),
    [
        ("spot", {"market": "spot"}, True),
        ("spot", {"market": "on-demand"}, False),
        ("spot", {}, False),
        ("!spot", {"market": "on-demand"}, True),
        ("!spot", {}, True),
        ("in(spot, cheap)", {"market": "cheap"}, True),
        ("!in(spot, cheap)", {"market": "cheap"}, False),
    ],
)
def test_labels_select_as_ray_does(wanted: str, labels: dict[str, str], fits: bool) -> None:
    from ray._private.label_utils import validate_label_selector

    assert validate_label_selector({"market": wanted.replace(", ", ",")}) is None
    assert replace(node(), labels=labels).satisfies({"market": wanted}) is fits


def test_who_takes_turns_fits_where_both_at_once_do_not() -> None:
    bundles = [SAMPLER, SAMPLER, *[RANK] * 8, VERIFIER]
    assert place(bundles, [node()], phases=TURNS).unplaced == ()
    at_once = place(bundles, [node()], phases=ALL)
    assert Counter(bundle.role for bundle in at_once.unplaced) == {"trainer": 8}


def test_who_stays_keeps_its_place_and_its_room() -> None:
    small = node(cpus=16)
    assert place([SAMPLER, VERIFIER, *[RANK] * 3], [small], phases=TURNS).unplaced == (RANK,)


def test_ranks_lie_where_replicas_lend_them_gpus() -> None:
    rank = replace(RANK, gpus=0, shared_gpus=1)
    placement = place([*[SAMPLER] * 6, *[rank] * 16, VERIFIER], [node(count=4)], phases=ALL)
    held = [Counter(roles) for _, roles in placement.nodes]
    assert placement.unplaced == () and sorted(counts["trainer"] for counts in held) == [0, 0, 8, 8]
    assert all(counts["trainer"] <= 4 * counts["sampler"] for counts in held)
    (found,) = placement_findings(
        [SAMPLER, *[rank] * 5], [node(count=4)], place([SAMPLER, *[rank] * 5], [node(count=4)], phases=ALL)
    )
    assert found.key == "trainer.num_workers" and "1 of 5 trainer actors find no machine with" in found.text
    assert "and a GPU of a replica" in found.text


def test_ranks_are_packed() -> None:
    placement = place([RANK] * 16, [node(count=4)], phases=ALL)
    assert placement.num_trainer_machines == 2


def test_ranks_that_lie_apart_are_said() -> None:
    wide = replace(SAMPLER, gpus=5)  # leaves three GPUs of each machine
    bundles = [wide, wide, wide, *[RANK] * 8]
    nodes = [node(count=3)]
    (found,) = placement_findings(bundles, nodes, place(bundles, nodes, phases=ALL))
    assert (found.severity, found.key) == ("warning", "trainer.node_labels")
    assert "on 3 machines where 1 would hold them" in found.text


def test_no_machine_more_than_the_limit_holds_anything() -> None:
    head = replace(node("head", cpus=0, gpus=0), least=1)
    placement = place([RANK] * 24, [head, node(count=3)], phases=ALL, max_nodes=3)
    assert (len(placement.unplaced), placement.is_full) == (8, True)


@given(
    st.lists(st.sampled_from([SAMPLER, RANK, VERIFIER]), max_size=30),
    st.lists(st.builds(node, count=st.integers(1, 3), cpus=st.integers(1, 64), gpus=st.integers(0, 8)), max_size=3),
    st.none() | st.integers(1, 6),
)
def test_no_machine_holds_more_than_it_has_and_no_actor_is_forgotten(
    bundles: list[Bundle], nodes: list[NodeType], max_nodes: int | None
) -> None:
    placement = place(bundles, nodes, phases=ALL, max_nodes=max_nodes)
    machines = [machine for machine in nodes for _ in range(machine.count)]
    sizes = {bundle.role: bundle for bundle in (SAMPLER, RANK, VERIFIER)}
    for machine, (_, roles) in zip(machines, placement.nodes, strict=True):
        assert sum(sizes[role].gpus for role in roles) <= machine.gpus
        assert sum(sizes[role].cpus for role in roles) <= machine.cpus
    placed = Counter(role for _, roles in placement.nodes for role in roles)
    assert placed + Counter(bundle.role for bundle in placement.unplaced) == Counter(b.role for b in bundles)
