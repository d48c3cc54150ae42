"""The trainer group's mailbox: orders for the workers, news for the driver, and whose news counts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from still_ray.actors.training.mailbox import Mailbox, MailboxNews
from still_ray.actors.training.train_loop import TrainLoopSettings
from still_ray.actors.training.trainer_group import is_alive, wanted
from still_ray.algo.placement import resolve_trainer
from still_ray.config import PromptConfig, SyncConfig, TrainerConfig
from still_ray.store.policy import PolicyRecord
from still_ray.types import Event, TrainResult
from tests.fakes import train_progress

RECORD = PolicyRecord(
    policy_version=1,
    stage="000-imitate",
    result=TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.5, seconds=0.5),
    probes=(),
)


def all_of(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    async def run() -> list[Any]:
        return [await call for call in calls]

    return asyncio.run(run())


def news_from(mailbox: Mailbox, group: int) -> MailboxNews:
    """What the driver hears when a group says everything that it can say."""
    calls = (
        mailbox.report(group, Event(name="train/loss", value=0.5)),
        mailbox.trained(group, train_progress()),
        mailbox.note(group, "states are left over"),
        mailbox.finish(group, RECORD, None),
        mailbox.fail(group, "no rows"),
    )
    news: MailboxNews = all_of(*calls, mailbox.news())[-1]
    return news


def test_the_driver_hears_of_the_newest_group_once() -> None:
    mailbox = Mailbox("test")
    (group,) = all_of(mailbox.register("actor-a"))
    news = news_from(mailbox, group)
    assert [event.name for event in news.events] == ["train/loss"] and news.notes == ("states are left over",)
    assert news.progress == (train_progress(),)
    assert (news.record, news.failure, news.leader) == (RECORD, "no rows", "actor-a")
    (again,) = all_of(mailbox.news())
    assert (again.events, again.progress, again.notes) == ((), (), ())


def test_late_messages_of_a_group_that_was_replaced_are_not_taken_for_its_successors() -> None:
    mailbox = Mailbox("test")
    old, new, _ = all_of(mailbox.register("actor-a"), mailbox.register("actor-b"), mailbox.news())
    assert news_from(mailbox, old) == MailboxNews(leader="actor-b")
    assert news_from(mailbox, new).record == RECORD


def test_what_is_waited_for_names_the_bundle() -> None:
    settings = TrainLoopSettings(
        trainer=resolve_trainer(
            TrainerConfig(num_workers=16, cpus_per_worker=8.0, node_labels={"still-ray.io/role": "trainer"}),
            has_gpus=True,
        ),
        sync=SyncConfig(),
        prompt=PromptConfig(),
        max_probe_tokens=8,
        trust_remote_code=False,
    )
    assert wanted(settings) == "16 ranks of 8 CPU, 1 GPU each on nodes with still-ray.io/role=trainer"


def test_before_the_first_group_none_is_up() -> None:
    assert not is_alive("")


def failures(*deaths: tuple[str, bool, int]) -> MailboxNews:
    """What the driver hears of groups that fail: why, whether by themselves, and after which step."""
    mailbox = Mailbox("test")
    news = MailboxNews()
    for cause, has_reason, step in deaths:
        (group,) = all_of(mailbox.register("actor"))
        calls = (mailbox.trained(group, replace(train_progress(), step=step)),) if step else ()
        news = all_of(*calls, mailbox.died(cause, has_reason=has_reason), mailbox.news())[-1]
    return news


MEMORY = "the machine has no memory left: {} bytes were wanted; lower sft.per_device_batch_size"


def test_a_group_that_fails_is_told_when_it_does() -> None:
    news = failures((MEMORY.format(5), True, 0))
    assert news.notes == (f"the trainer group failed: {MEMORY.format(5)}",) and news.failure == ""


@pytest.mark.parametrize(
    ("deaths", "ends"),
    [
        ([(MEMORY.format(5), True, 0), (MEMORY.format(77), True, 0)], True),
        ([(MEMORY.format(5), True, 3), (MEMORY.format(5), True, 0)], True),
        ([(MEMORY.format(5), True, 0), (MEMORY.format(5), True, 3)], False),
        ([("its process died", False, 0), ("its process died", False, 0)], False),
        ([(MEMORY.format(5), True, 0), ("its process died", False, 0), (MEMORY.format(5), True, 0)], False),
        ([(MEMORY.format(5), True, 0), ("KeyError: 'a'", True, 0)], False),
    ],
)
def test_what_fails_alike_twice_and_gets_no_further_ends_the_order(
    deaths: list[tuple[str, bool, int]], *, ends: bool
) -> None:
    news = failures(*deaths)
    assert bool(news.failure) is ends
    assert not ends or news.failure == f"the trainer group failed twice alike: {deaths[-1][0]}"
