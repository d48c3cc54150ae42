"""What there is of unfinished responses: it grows token for token, of one policy, and outlives the process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from still_ray.algo.partial_responses import PartialResponses
from still_ray.algo.seeds import continuation_seed
from still_ray.location import Location
from still_ray.store import partial_responses as module
from still_ray.store.partial_responses import StoredPartialResponses, drop_partial_responses
from still_ray.types import FinishReason, PartialResponse
from tests.fakes import make_part

FIRST = make_part()
KEY = FIRST.key


def after(*parts: PartialResponse) -> PartialResponse:
    partials = PartialResponses()
    for part in parts:
        partials.take([part])
    (only,) = partials.of([KEY])
    return only


def test_parts_join_to_one_response() -> None:
    whole = after(FIRST, make_part(start=4), make_part(start=8, finish_reason=FinishReason.STOP))
    assert (whole.start, whole.token_ids) == (0, tuple(range(12)))
    assert whole.sum_logprob == -6.0 and whole.latency_s == pytest.approx(1.2)
    assert whole.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    "other",
    [
        make_part(start=5),
        make_part(start=3),
        make_part(start=4, policy_version=2),
        make_part(start=4, continued_at="2"),
        make_part(ids=(7, 7)),
    ],
    ids=["a gap", "an overlap", "other weights", "another's after a cut elsewhere", "a shorter whole"],
)
def test_what_does_not_follow_token_for_token_is_not_joined(other: PartialResponse) -> None:
    assert after(FIRST, other) == FIRST


def test_a_whole_of_other_weights_or_a_longer_one_takes_its_place() -> None:
    newer, longer = make_part(ids=(7,), policy_version=2), make_part(ids=(7,) * 5)
    assert after(FIRST, newer) == newer
    assert after(FIRST, longer) == longer


def test_cuts_add_up_and_a_finished_response_is_not_cut() -> None:
    assert FIRST.cut_here == "4"
    twice = after(FIRST, make_part(start=4, continued_at="4"), make_part(start=8, continued_at="4 8"))
    assert (twice.continued_at, twice.cut_here, twice.num_tokens) == ("4 8", "4 8 12", 12)
    assert make_part(finish_reason=FinishReason.LENGTH).cut_here == ""
    assert len({continuation_seed(seed, tokens) for seed in (1, 2) for tokens in (4, 8)}) == 4


def test_only_what_is_known_is_left_out_of_the_next_question() -> None:
    partials = PartialResponses()
    partials.take([FIRST, make_part("p2", start=4)])
    assert partials.known([KEY, make_part("p2").key]) == {KEY: (1, 4)}
    partials.forget([KEY])
    assert partials.known([KEY]) == {} and partials.all() == []


def reopened(place: Location) -> list[PartialResponse]:
    return sorted(StoredPartialResponses(place).all(), key=lambda part: part.key)


def take_all(partials: PartialResponses, rows: Sequence[PartialResponse]) -> None:
    for row in rows:
        partials.take([row])


def test_a_killed_process_leaves_what_it_had_taken(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    monkeypatch.setattr(module, "REMOTE_FLUSH_S", 0.0)
    partials = StoredPartialResponses(place)
    assert partials.all() == []
    take_all(partials, [FIRST, make_part("p2"), make_part(start=4)])
    assert reopened(place) == sorted(partials.all(), key=lambda part: part.key)
    further = StoredPartialResponses(place)
    take_all(further, [make_part(start=8)])
    assert StoredPartialResponses(place).known([KEY]) == {KEY: (1, 12)}


def test_many_parts_become_one_without_what_is_judged(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    monkeypatch.setattr(module, "REMOTE_FLUSH_S", 0.0)
    monkeypatch.setattr(module, "MOST_PARTS", 5)
    partials = StoredPartialResponses(place)
    take_all(partials, [make_part("p2"), *(make_part(start=start) for start in range(0, 16, 4))])
    partials.forget([make_part("p2").key])
    assert len(reopened(place)) == 2 and len(list(place.glob("*"))) == 5
    partials.take([make_part(start=16)])
    assert len(list(place.glob("*"))) == 1
    (whole,) = reopened(place)
    assert whole.token_ids == tuple(range(20))
    drop_partial_responses(place)
    assert list(place.glob("*")) == [] and reopened(place) == []


def test_a_part_that_was_being_written_at_a_kill_does_not_keep_a_round_open(tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / ".part-00003-0a1b2c3d.parquet.77.tmp").touch()
    drop_partial_responses(tmp_path / "partial")
    assert not (tmp_path / "partial").exists()


def test_writes_wait_for_their_time(place: Location) -> None:
    partials = StoredPartialResponses(place)
    partials.take([FIRST])
    assert reopened(place) == [], "a few seconds' tokens are work in flight"
    drop_partial_responses(place)
