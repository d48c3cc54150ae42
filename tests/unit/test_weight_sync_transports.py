"""Transports by name: the alias of older recipes, a user's own, and what plan and rehearsals ask them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from still_ray.algo.placement import resolved
from still_ray.config import dump_recipe
from still_ray.config.loading import recipe_from
from still_ray.types import InputError
from still_ray.weight_sync.transports import FALLBACK, TRANSPORTS, preferred, transport_named
from still_ray.weight_sync.transports.base import Transport
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
        return resolved(make_recipe(**sections), has_gpus=True).sync.transport

    assert chosen() == "broadcast"
    assert chosen(trainer={"use_gpu": False}) == "object_store"
    assert chosen(placement="shared") == chosen(sampler={"release_while_training": True}) == FALLBACK
    assert all(preferred(devices_apart=a, all_on_gpus=g) in TRANSPORTS for a in (True, False) for g in (True, False))


def test_each_knows_its_name_and_is_rehearsed_as_one_of_them() -> None:
    for name in TRANSPORTS:
        transport = transport_named(name)
        assert isinstance(transport, Transport) and transport.name == name
        assert transport_named(transport.rehearsed_as).rehearsed_as == transport.rehearsed_as
