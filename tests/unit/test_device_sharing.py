"""Devices that replicas hold and trainer ranks work on: which, who sleeps for it, and what a lost machine changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import ray

from still_ray.actors.training import device_sharing
from still_ray.actors.training.device_sharing import DeviceSharing
from still_ray.actors.training.live_trainer import DevicesLostError, LiveTrainer, SessionTrainer
from still_ray.algo.devices import Device, Devices, devices_for_ranks, own_gpu, visible_index
from still_ray.algo.placement import resolve
from still_ray.driver.ports import Progress, TrainOrder
from still_ray.types import RunError, TrainResult
from tests.fakes import FakeProgress, make_recipe
from tests.unit.test_shared_session import RESULT, Group, order


def gpus(node_id: str, *numbers: int) -> Devices:
    return tuple(Device(node_id=node_id, gpu=str(number)) for number in numbers)


A, B, C = gpus("a", *range(8)), gpus("b", *range(8)), gpus("c", *range(8))
HELD = {"r0": A[:4], "r1": B[4:], "r2": C[:4], "r3": A[4:], "r4": B[:4]}
"""Replicas of four GPUs: two machines are held whole, a third one by half."""


# -- which devices ----------------------------------------------------------------------------------------------------


def test_ranks_lie_on_as_few_machines_as_can_be_and_replica_by_replica() -> None:
    assert devices_for_ranks(HELD, 16) == (*A, *B[4:], *B[:4]), "r1 comes before r4"
    assert devices_for_ranks(HELD, 4) == A[:4], "one engine has to sleep"
    assert devices_for_ranks(HELD, 20) == (*A, *B[4:], *B[:4], *C[:4])
    assert devices_for_ranks(HELD, 21) is None
    halves = {"r0": A[:1], "r1": A[:1], "r2": A[1:2]}
    assert devices_for_ranks(halves, 2) == A[:2], "two replicas on one GPU lend it once"
    assert devices_for_ranks(halves, 3) is None


def test_a_group_stays_where_it_is_while_replicas_hold_its_devices() -> None:
    present = (*C[:4], *A[:4])
    assert devices_for_ranks(HELD, 8, preferred=present) == present
    without = {name: held for name, held in HELD.items() if name != "r2"}
    assert devices_for_ranks(without, 8, preferred=present) == A


def test_a_rank_finds_its_gpu_among_all_that_its_machine_shows_it() -> None:
    devices = (*gpus("a", 4, 5), *gpus("b", 1, 0))
    assert [own_gpu(devices, node_id, rank) for node_id in "ab" for rank in (0, 1)] == ["4", "5", "1", "0"]
    assert visible_index("5", None) == 5
    assert visible_index("5", "7,5") == 1, "a raylet that was started with some of the GPUs"
    for shown in ("", "7"):
        with pytest.raises(RunError, match=r"GPU 5 and CUDA_VISIBLE_DEVICES"):
            visible_index("5", shown)


# -- who sleeps -------------------------------------------------------------------------------------------------------


class Method:
    """A remote method that records its call."""

    def __init__(self, pool: Pool, name: str, what: str) -> None:
        self._pool, self._name, self._what = pool, name, what

    def remote(self) -> tuple[str, str]:
        self._pool.called.append((self._name, self._what))
        return self._name, self._what


class Member:
    """A replica: up, and perhaps dying when it is told to sleep."""

    def __init__(self, pool: Pool, name: str, held: Devices, *, dies: bool = False) -> None:
        self.name, self.held, self.dies, self.up, self.ready = name, held, dies, True, True
        self.handle = self
        self.devices, self.sleep = Method(pool, name, "devices"), Method(pool, name, "sleep")


class Pool:
    """What `DeviceSharing` asks of a pool; a replica that dies is replaced by one on the same devices, not up yet."""

    def __init__(self, held: dict[str, Devices], *, dying: Sequence[str] = ()) -> None:
        self.called: list[tuple[str, str]] = []
        self.by_name = {name: Member(self, name, devices, dies=name in dying) for name, devices in held.items()}
        self.num_settled = 0

    def resume(self) -> None:
        """All are there."""

    def members(self) -> list[Member]:
        return list(self.by_name.values())

    def suspend(self, name: str) -> None:
        self.by_name[name].ready = False

    def starting(self) -> list[str]:
        return [member.name for member in self.members() if not member.up]

    def settle_next(self) -> None:
        self.num_settled += 1
        next(member for member in self.members() if not member.up).up = True

    def replace_unless_refused(self, name: str, error: BaseException, **_: Any) -> None:
        dead = self.by_name.pop(name)
        newcomer = Member(self, f"{name}'", dead.held)
        newcomer.up = False
        self.by_name[newcomer.name] = newcomer

    def slept(self) -> set[str]:
        return {name for name, what in self.called if what == "sleep"}


class Dead(ray.exceptions.RayError):  # type: ignore[misc]
    """What a call to a dead actor comes to."""


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a `DeviceSharing` of sixteen ranks over a pool, on three machines; the pool answers Ray's calls."""

    def make(pool: Pool, **trainer: Any) -> DeviceSharing:
        def answer(reference: tuple[str, str], **_: Any) -> Devices | None:
            name, what = reference
            if what == "sleep" and pool.by_name[name].dies:
                raise Dead
            return pool.by_name[name].held if what == "devices" else None

        nodes = [
            {"NodeID": node_id, "Alive": True, "Labels": {"market": "spot" if node_id == "c" else "owned"}}
            for node_id in "abc"
        ]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        monkeypatch.setattr(ray, "get", answer)
        monkeypatch.setattr(device_sharing, "as_they_end", lambda asked, timeout_s: list(asked))
        sections = {"placement": "elastic", "trainer": {"num_workers": 16, **trainer}}
        return DeviceSharing(resolve(make_recipe(**sections), has_gpus=True), cast(Any, pool))

    return make


def test_only_those_sleep_on_whose_devices_ranks_work(sharing: Any) -> None:
    pool = Pool(HELD)
    assert sharing(pool).vacate(()) == (*A, *B[4:], *B[:4])
    assert pool.slept() == {"r0", "r1", "r3", "r4"}
    assert [name for name, member in pool.by_name.items() if member.ready] == ["r2"], "no work goes to who sleeps"


def test_one_that_dies_falling_asleep_is_replaced_and_waited_for_where_its_devices_are_needed(sharing: Any) -> None:
    pool = Pool({name: HELD[name] for name in ("r0", "r1", "r3", "r4")}, dying=["r3"])
    assert set(sharing(pool).vacate(())) == {*A, *B}
    assert (pool.num_settled, "r3'" in pool.slept(), "r3" in pool.by_name) == (1, True, False)


def test_where_others_hold_enough_nobody_waits_for_it(sharing: Any) -> None:
    pool = Pool({**HELD, "r5": C[4:]}, dying=["r3"])
    assert set(sharing(pool).vacate(())) == {*B, *C}
    assert pool.num_settled == 0


def test_ranks_lie_only_where_their_labels_are(sharing: Any) -> None:
    pool = Pool({"r0": C, "r1": A, "r2": B})
    assert set(sharing(pool, node_labels={"market": "!spot"}).vacate(())) == {*A, *B}
    assert pool.slept() == {"r1", "r2"}
    with pytest.raises(RunError, match=r"hold fewer than 16 devices \(trainer.num_workers\)"):
        sharing(Pool({"r0": C, "r1": A}), node_labels={"market": "!spot"}).vacate(())


def test_without_gpus_everybody_sleeps_and_ranks_ask_for_what_they_need(sharing: Any) -> None:
    pool = Pool({"r0": (), "r1": ()})
    assert sharing(pool, use_gpu=False).vacate(()) == ()
    assert pool.slept() == {"r0", "r1"}


# -- the group --------------------------------------------------------------------------------------------------------


class Places:
    """Devices for the ranks, one answer after the other."""

    def __init__(self, *found: Devices | None) -> None:
        self._found = list(found)

    def present(self, preferred: Devices) -> Devices | None:
        return self._found[0]

    def vacate(self, preferred: Devices) -> Devices:
        return cast(Devices, self._found.pop(0))


class Losing(Group):
    """A group that loses a machine."""

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        raise DevicesLostError("a machine is lost")


def trainer_of(places: Places, *groups: Group, max_moves: int = 1) -> tuple[SessionTrainer, list[tuple[str, Devices]]]:
    """A session's trainer that launches these groups, and where it did."""
    launched: list[tuple[str, Devices]] = []
    left = list(groups)

    def launch(suffix: str, devices: Devices) -> LiveTrainer:
        launched.append((suffix, devices))
        return left.pop(0)

    return SessionTrainer(launch, each_stage=False, sharing=places, max_moves=max_moves), launched


def test_a_group_starts_when_replicas_are_up_and_goes_on_while_its_devices_are_there(tmp_path: Path) -> None:
    group = Group()
    trainer, launched = trainer_of(Places(A, A, A), group)
    trainer.begin_run()
    assert launched == [], "nobody knows yet where it will lie"
    for _ in range(2):
        trainer.replicas_are_up()
        trainer.train(order(tmp_path), progress=FakeProgress())
    assert launched == [("", A)] and not group.is_closed and trainer.published() is not None


def test_too_few_replicas_are_not_waited_for_before_a_stage() -> None:
    trainer, launched = trainer_of(Places(None, A), Group())
    trainer.begin_run()
    trainer.replicas_are_up()
    assert launched == []


def test_models_that_are_only_evaluated_get_no_trainer() -> None:
    trainer, launched = trainer_of(Places(A), Group())
    trainer.replicas_are_up()
    assert launched == []


def test_a_group_moves_with_the_devices_and_within_its_budget(tmp_path: Path) -> None:
    first, lost = Group(), Losing()
    trainer, launched = trainer_of(Places(A, B, C), first, lost, Group())
    trainer.train(order(tmp_path), progress=FakeProgress())
    assert trainer.train(order(tmp_path), progress=FakeProgress()) == RESULT
    assert launched == [("", A), ("-1", B), ("-2", C)] and first.is_closed and lost.is_closed
    unlucky, _ = trainer_of(Places(A, B), Losing(), Losing())
    with pytest.raises(RunError, match=r"a machine is lost, and failures.max_trainer_restarts \(1\) is used up"):
        unlucky.train(order(tmp_path), progress=FakeProgress())
