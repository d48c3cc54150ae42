"""Transports by name: the alias of older recipes, a user's own, what plan and rehearsals ask them, and their offers.

A transport of a user's own brings real replicas to a version in tests/integration/test_weight_broadcast.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from still_ray.algo.placement import resolve
from still_ray.algo.planning.fit import transport_findings
from still_ray.algo.planning.model import KNOWN_SHAPES
from still_ray.algo.planning.trainer_memory import trainer_memories
from still_ray.algo.rehearsal.sizes import Sizes, cut
from still_ray.config import dump_recipe
from still_ray.config.loading import recipe_from
from still_ray.types import InputError
from still_ray.weight_sync.rendezvous import Backend, Rendezvous
from still_ray.weight_sync.transports import FALLBACK, TRANSPORTS, preferred, transport_named
from still_ray.weight_sync.transports.base import Offer, Transport, TransportMemory
from still_ray.weight_sync.transports.broadcast import Broadcast
from still_ray.weight_sync.transports.exchange import (
    PublishedWeights,
    Receivers,
    SyncRequest,
    TransferNews,
    TransferOrder,
)
from still_ray.weight_sync.transports.object_store import ObjectStore
from tests.fakes import make_recipe


def test_the_older_name_reads_as_todays() -> None:
    older, todays = (make_recipe(sync={"transport": name}) for name in ("nccl", "broadcast"))
    assert older == todays and older.sync.transport == "broadcast"
    assert yaml.safe_load(dump_recipe(older, {}))["sync"]["transport"] == "broadcast"
    written = make_recipe().model_dump(mode="json")
    assert recipe_from(written, ["sync.transport=nccl"], origin="r.yaml").sync.transport == "broadcast"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("brodcast", "sync.transport: unknown name 'brodcast'; did you mean broadcast?: give one of auto, broadcast"),
        ("nowhere.transports:Mine", "sync.transport: nowhere.transports:Mine cannot be loaded: ModuleNotFoundError"),
        ("still_ray.types:SyncReport", "sync.transport: still_ray.types:SyncReport is no transport"),
    ],
)
def test_what_is_no_transport_is_refused_in_one_line(name: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        recipe_from(make_recipe().model_dump(mode="json"), [f"sync.transport={name}"], origin="r.yaml")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_auto_prefers_what_is_fastest_and_always_finds_one() -> None:
    def chosen(**sections: Any) -> str:
        return resolve(make_recipe(**sections), has_gpus=True).sync.transport

    assert chosen() == "broadcast"
    assert chosen(trainer={"use_gpu": False}) == "object_store"
    assert chosen(placement="elastic") == "object_store", "what ranks held on their devices is gone when engines wake"
    assert chosen(placement="shared") == chosen(sampler={"release_while_training": True}) == FALLBACK
    assert all(preferred(devices_apart=a, all_on_gpus=g) in TRANSPORTS for a in (True, False) for g in (True, False))


def test_each_knows_its_name_and_is_rehearsed_as_one_of_them() -> None:
    for name in TRANSPORTS:
        transport = transport_named(name)
        assert isinstance(transport, Transport) and transport.name == name
        assert transport_named(transport.rehearsed_as).rehearsed_as == transport.rehearsed_as


class Mirrored(Transport):
    """A user's own: a whole copy of the weights lies on both sides."""

    def memory(self, *, model_bytes: int, group_bytes: int) -> TransportMemory:
        return TransportMemory(trainer_device=model_bytes, sampler_device=model_bytes, source="a copy")


def test_a_transport_of_ones_own_is_planned_and_rehearsed() -> None:
    name = f"{__name__}:Mirrored"
    recipe = make_recipe(sync={"transport": name}, rounds=[{}])
    assert recipe.sync.transport == resolve(recipe, has_gpus=True).sync.transport == name
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]
    memory = trainer_memories(resolve(recipe, has_gpus=True), shape)["imitate"]
    assert [(part.num_bytes, part.source) for part in memory.sending] == [(2 * shape.num_parameters, "a copy")]
    assert [found.severity for found in transport_findings(recipe, shape, 80 * 2**30)] == ["error"]
    small, cuts = cut(recipe, Sizes(), has_gpus=True)
    assert small.sync.transport == "checkpoint"
    assert [(one.before, one.after) for one in cuts if one.key == "sync.transport"] == [(name, "checkpoint")]


# -- offers -----------------------------------------------------------------------------------------------------------


class Trainer:
    """A trainer group that answers a request in a given way, and remembers."""

    def __init__(self, *news: TransferNews) -> None:
        self._news = list(news)
        self.orders: list[TransferOrder] = []
        self.num_cancelled = 0

    def request(self, order: TransferOrder) -> Trainer:
        self.orders.append(order)
        return self

    def news(self) -> TransferNews:
        return self._news.pop(0) if self._news else TransferNews()

    def cancel(self) -> None:
        self.num_cancelled += 1


def request_to(
    trainer: Trainer, behind: Sequence[str], *, backend: Backend = "gloo", timeout_s: float = 60
) -> SyncRequest:
    return SyncRequest(
        weights=PublishedWeights(policy_version=3, num_bytes=8, parts=("first", "second")),
        behind=lambda: behind,
        receivers=Receivers(ranks_per_replica=2, backend=backend),
        timeout_s=timeout_s,
        request=trainer.request,
    )


def opened(backend: Backend) -> TransferNews:
    return TransferNews(rendezvous=Rendezvous(host="h", port=1, world_size=5, backend=backend))


@pytest.mark.parametrize(("backend", "carrier"), [("nccl", "broadcast"), ("gloo", "gloo")])
def test_a_broadcast_meets_each_replica_that_was_behind(backend: Backend, carrier: str) -> None:
    trainer = Trainer(TransferNews(), opened(backend))
    offer = Broadcast("broadcast").offer(request_to(trainer, ["a", "b"], backend=backend))
    (order,) = trainer.orders
    assert (order.num_receivers, order.timeout_s, offer.carrier, offer.refusal) == (4, 30, carrier, "")
    updates = [offer.payloads(name) for name in ("a", "b", "came later")]
    assert [[payload["rank_offset"] for payload in update] for update in updates] == [[1], [3], []]
    offer.cancel()
    assert trainer.num_cancelled == 1


def test_a_broadcast_that_nobody_needs_or_the_trainer_refuses_leaves_the_checkpoint() -> None:
    def offered(trainer: Trainer, behind: Sequence[str] = ("a",), timeout_s: float = 60) -> tuple[Offer, str]:
        offer = Broadcast("broadcast").offer(request_to(trainer, behind, timeout_s=timeout_s))
        assert not offer.payloads("a")
        return offer, offer.refusal

    idle, silent = Trainer(), Trainer()
    assert offered(idle, behind=())[1] == "" and not idle.orders
    assert offered(Trainer(TransferNews(ended=True, failure="no memory")))[1] == "no memory"
    assert offered(silent, timeout_s=0.1)[1] == "the trainer did not open it in time" and silent.num_cancelled == 1


def test_buckets_are_for_every_replica_also_for_one_that_takes_anothers_place() -> None:
    trainer = Trainer()
    offer = ObjectStore("object_store").offer(request_to(trainer, ["a"]))
    assert [tuple(offer.payloads(name)) for name in ("a", "came later")] == 2 * [("first", "second")]
    assert (offer.carrier, trainer.orders) == ("object_store", [])
