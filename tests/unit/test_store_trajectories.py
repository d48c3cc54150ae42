"""The trajectory store: the first write of a key wins, and a crash at any point loses only what was not flushed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.location import Location, ObjectPath
from still_ray.store import external_sort
from still_ray.store import trajectories as module
from still_ray.store.atomic import write_atomically
from still_ray.store.tables import open_table, write_table
from still_ray.store.trajectories import FLUSH_ROWS, REMOTE_FLUSH_ROWS, TrajectoryStore, joined
from still_ray.types import FinishReason, InputError, Trajectory, TrajectoryKey, candidate_of
from tests.fakes import make_trajectory


def rows_of(problem: str, count: int, **changes: Any) -> list[Trajectory]:
    return [make_trajectory(problem, index, **changes) for index in range(count)]


def files_of(folder: Location) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def keys_of(store: TrajectoryStore) -> list[TrajectoryKey]:
    return [row.key for row in store]


def test_the_first_write_of_a_key_wins(place: Location) -> None:
    store = TrajectoryStore(place)
    first, second = make_trajectory(seed=1), make_trajectory(seed=2)
    assert store.commit([first, second]) == [first]
    assert store.commit([second]) == []
    store.flush()
    assert TrajectoryStore(place).commit([second]) == []
    assert list(TrajectoryStore(place)) == [first]


def test_reopening_finds_every_flushed_key_and_no_other(place: Location) -> None:
    store = TrajectoryStore(place)
    store.commit(rows_of("p", 3))
    store.flush()
    store.commit(rows_of("q", 2))
    assert len(store.verdicts) == 5
    reopened = TrajectoryStore(place)
    assert set(reopened.verdicts) == {row.key for row in rows_of("p", 3)}
    assert len(reopened.commit([*rows_of("p", 3), *rows_of("q", 2)])) == 2


def test_a_full_buffer_is_flushed_by_itself(place: Location) -> None:
    limit = REMOTE_FLUSH_ROWS if isinstance(place, ObjectPath) else FLUSH_ROWS
    store = TrajectoryStore(place)
    store.commit(rows_of("p", limit - 1))
    assert not TrajectoryStore(place).verdicts
    store.commit(rows_of("q", 1))
    assert len(TrajectoryStore(place).verdicts) == limit


def test_an_old_buffer_is_flushed_by_itself(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    monkeypatch.setattr(module, "REMOTE_FLUSH_S", 0.0)
    TrajectoryStore(place).commit(rows_of("p", 1))
    assert len(TrajectoryStore(place).verdicts) == 1


def test_a_merge_leaves_one_sorted_file_with_every_row(place: Location) -> None:
    store = TrajectoryStore(place)
    rows = [*rows_of("b", 3), *rows_of("a", 3), *rows_of("c", 2)]
    for start in range(0, 8, 3):
        store.commit(rows[start : start + 3])
        store.flush()
    store.merge()
    assert files_of(place) == ["all.parquet"]
    assert list(store) == list(TrajectoryStore(place)) == sorted(rows, key=lambda row: row.key)
    store.merge()
    assert list(store) == sorted(rows, key=lambda row: row.key)


def test_a_merge_of_several_runs_keeps_every_row_and_leaves_no_other_file(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in (("RUN_BYTES", 4000), ("GROUP_BYTES", 2000), ("BATCH_BYTES", 500)):
        monkeypatch.setattr(external_sort, name, limit)
    store = TrajectoryStore(place)
    draw = random.Random(0)
    rows = [row for problem in "abcdefgh" for row in rows_of(problem, 6, thought="t" * draw.randrange(900))]
    draw.shuffle(rows)
    for start in range(0, len(rows), 5):
        store.commit(rows[start : start + 5])
        store.flush()
    store.merge()
    assert files_of(place) == ["all.parquet"]
    assert list(TrajectoryStore(place)) == sorted(rows, key=lambda row: row.key)
    with open_table(place / "all.parquet") as file:
        assert file.num_row_groups > 5


def test_a_buffer_of_long_texts_is_flushed_before_it_has_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_CHARS", 1000)
    store = TrajectoryStore(tmp_path)
    store.commit(rows_of("p", 1, response="r" * 900))
    assert not TrajectoryStore(tmp_path).verdicts
    store.commit(rows_of("q", 1, response="r" * 100))
    assert len(TrajectoryStore(tmp_path).verdicts) == 2


def test_candidates_are_those_of_the_rows_and_read_once_until_something_changes(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TrajectoryStore(place)
    rows = [
        *rows_of("b", 3, thought="über", defect="no solution"),
        *rows_of("a", 2, finish_reason=FinishReason.LENGTH),
    ]
    store.commit(rows)
    assert store.candidates() == [candidate_of(row) for row in rows]
    store.merge()
    assert store.candidates() == sorted(map(candidate_of, rows), key=lambda row: row.key)
    with monkeypatch.context() as patched:
        patched.setattr(module, "iter_table", lambda *_, **__: pytest.fail("read again"))
        assert len(store.candidates()) == 5
    store.commit(rows_of("c", 1))
    assert [row.key.problem_id for row in store.candidates()] == [*"aabbbc"]


def test_joined_rows_come_in_the_order_of_the_keys_and_as_often(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_sort, "RUN_BYTES", 1000)
    store = filled(place)
    store.merge()
    store.commit(rows_of("late", 2))
    store.flush()
    rows = {row.key: row for row in store}
    keys = random.Random(1).choices(list(rows), k=40)
    assert list(joined([store], keys, place)) == [rows[key] for key in keys]
    assert list(joined([store], [], place)) == []
    with pytest.raises(KeyError):
        list(joined([store], [*keys, TrajectoryKey(1, "unknown", 0)], place))


def test_a_round_without_trajectories_merges_to_nothing(place: Location) -> None:
    store = TrajectoryStore(place / "round=001")
    store.merge()
    assert list(store) == []
    assert not (place / "round=001").exists()


def test_rows_committed_after_a_merge_survive_reopening(place: Location) -> None:
    store = TrajectoryStore(place)
    for problem in "abcde":
        store.commit(rows_of(problem, 1))
        store.flush()
    store.merge()
    store.commit(rows_of("f", 1))
    store.flush()
    reopened = TrajectoryStore(place)
    assert len(reopened.verdicts) == len(keys_of(reopened)) == 6
    for problem in "ghijkl":
        reopened.commit(rows_of(problem, 1))
        reopened.flush()
    last = TrajectoryStore(place)
    assert {key.problem_id for key in keys_of(last)} == set("abcdefghijkl")
    last.merge()
    assert files_of(place) == ["all.parquet"]
    assert len(keys_of(last)) == 12


# -- two writers ------------------------------------------------------------------------------------------------------


def test_a_writer_that_was_taken_over_overwrites_nothing_and_the_first_part_wins(place: Location) -> None:
    first = TrajectoryStore(place)
    first.commit(rows_of("a", 2, seed=1))
    first.flush()
    second = TrajectoryStore(place)
    for store, seed in ((second, 2), (first, 3)):  # the first has not noticed yet
        store.commit([*rows_of("b", 2, seed=seed), *rows_of(f"only-{seed}", 1)])
        store.flush()
    assert len([name for name in files_of(place) if name.startswith("part-00001-")]) == 2, "one part of each"
    after = TrajectoryStore(place)
    seeds = {row.key: row.seed for row in after}
    assert [key.problem_id for key in sorted(seeds)] == ["a", "a", "b", "b", "only-2", "only-3"]
    assert len(after.stored_keys()) == 8 and set(after.verdicts) == set(seeds)
    winner = {seeds[row.key] for row in rows_of("b", 2)}
    assert winner in ({2}, {3}), "both rows of one writer, not one of each"
    after.merge()
    assert {row.key: row.seed for row in TrajectoryStore(place)} == seeds, "the merge keeps what readers saw"
    assert files_of(place) == ["all.parquet"]


def test_a_part_that_comes_after_the_merge_changes_no_row(place: Location) -> None:
    first = TrajectoryStore(place)
    second = TrajectoryStore(place)
    second.commit(rows_of("a", 2, seed=2))
    second.merge()
    first.commit([*rows_of("a", 2, seed=1), *rows_of("late", 1)])
    first.flush()
    found = [(row.problem_id, row.seed) for row in TrajectoryStore(place) if row.problem_id == "a"]
    assert found == [("a", 2), ("a", 2)]


def test_parts_of_an_older_release_are_read_and_numbered_on(place: Location) -> None:
    write_table(place / "part-00004.parquet", rows_of("old", 2), Trajectory)
    store = TrajectoryStore(place)
    assert {key.problem_id for key in store.verdicts} == {"old"}
    store.commit(rows_of("new", 1))
    store.flush()
    assert [name[:10] for name in files_of(place)] == ["part-00004", "part-00005"]
    store.merge()
    assert sorted(row.problem_id for row in TrajectoryStore(place)) == ["new", "old", "old"]


# -- crashes ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ended here."""


def filled(folder: Location) -> TrajectoryStore:
    store = TrajectoryStore(folder)
    for problem in "abc":
        store.commit(rows_of(problem, 4))
        store.flush()
    return store


EVERYTHING = sorted(row.key for problem in "abc" for row in rows_of(problem, 4))


def crashing_unlink(kind: type[Any], after: int) -> Callable[..., None]:
    """The `unlink` of a kind of place that ends the process once so many parts are gone."""
    real, gone = kind.unlink, [0]

    def unlink(self: Location, missing_ok: bool = False) -> None:
        if self.name.startswith("part-"):
            if gone[0] == after:
                raise Killed
            gone[0] += 1
        real(self, missing_ok=missing_ok)

    return unlink


@pytest.mark.parametrize("num_removed", [0, 1, 2])
def test_a_merge_interrupted_in_its_clean_up_is_completed_on_opening(
    place: Location, monkeypatch: pytest.MonkeyPatch, num_removed: int
) -> None:
    store = filled(place)
    with monkeypatch.context() as patched:
        patched.setattr(type(place), "unlink", crashing_unlink(type(place), num_removed))
        with pytest.raises(Killed):
            store.merge()
    assert len(files_of(place)) == 1 + 3 - num_removed
    reopened = TrajectoryStore(place)
    assert files_of(place) == ["all.parquet"]
    assert keys_of(reopened) == EVERYTHING


def test_a_merge_interrupted_before_its_rename_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)

    def killed(path: Path, write: Callable[[Path], None]) -> None:
        write(path.with_name(f".{path.name}.1.tmp"))
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("still_ray.store.tables.write_atomically", killed)
        with pytest.raises(Killed):
            store.merge()
    assert ".all.parquet.1.tmp" in files_of(tmp_path)
    reopened = TrajectoryStore(tmp_path)
    assert set(reopened.verdicts) == set(EVERYTHING)
    reopened.merge()
    assert keys_of(reopened) == EVERYTHING


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 half a file"])
def test_a_torn_temporary_file_is_not_read(tmp_path: Path, content: bytes) -> None:
    filled(tmp_path)
    (tmp_path / ".part-00003.parquet.77.tmp").write_bytes(content)
    reopened = TrajectoryStore(tmp_path)
    assert sorted(keys_of(reopened)) == EVERYTHING
    reopened.commit(rows_of("d", 1))
    reopened.flush()
    assert len(keys_of(TrajectoryStore(tmp_path))) == 13


def test_a_write_that_fails_leaves_the_parts_before_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)

    def torn(path: Path, write: Callable[[Path], None]) -> None:
        def half(temporary: Path) -> None:
            write(temporary)
            temporary.write_bytes(temporary.read_bytes()[:-8])
            raise Killed

        write_atomically(path, half)

    store.commit(rows_of("d", 2))
    with monkeypatch.context() as patched:
        patched.setattr("still_ray.store.tables.write_atomically", torn)
        with pytest.raises(Killed):
            store.flush()
    reopened = TrajectoryStore(tmp_path)
    assert set(reopened.verdicts) == set(EVERYTHING)
    assert len(reopened.commit(rows_of("d", 2))) == 2


def test_trajectories_of_another_schema_version_are_refused_on_opening(tmp_path: Path) -> None:
    filled(tmp_path)
    (path,) = tmp_path.glob("part-00001-*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"record": "Trajectory", "schema_version": "99"}), path)
    with pytest.raises(InputError, match=f"{path}: holds Trajectory rows of schema version 99"):
        TrajectoryStore(tmp_path)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.lists(st.integers(0, 30), max_size=6)),
        st.tuples(st.sampled_from(["flush", "merge", "crash", "crash in merge"]), st.just([])),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(steps=steps, seed=st.integers(0, 3))
def test_whatever_happens_every_flushed_row_is_there_once_and_first(
    tmp_path_factory: pytest.TempPathFactory, steps: Sequence[tuple[str, list[int]]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    store = TrajectoryStore(folder)
    durable: dict[int, int] = {}
    buffered: dict[int, int] = {}
    draw = random.Random(seed)
    for action, indices in steps:
        if action == "commit":
            rows = [make_trajectory("p", index, seed=draw.randrange(10**6)) for index in indices]
            for row in store.commit(rows):
                buffered[row.sample_index] = row.seed
        elif action == "crash":
            store, buffered = TrajectoryStore(folder), {}
        else:
            with pytest.MonkeyPatch.context() as patched:
                if action == "crash in merge":
                    patched.setattr(Path, "unlink", crashing_unlink(Path, draw.randrange(2)))
                with contextlib.suppress(Killed):
                    store.flush() if action == "flush" else store.merge()
            durable, buffered = {**durable, **buffered}, {}
            if action == "crash in merge":
                store = TrajectoryStore(folder)
        assert {key.sample_index for key in store.verdicts} == durable.keys() | buffered.keys()
        found = [(row.sample_index, row.seed) for row in store]
        assert sorted(found) == sorted(durable.items())


def test_parts_of_an_earlier_release_lack_a_column_and_are_merged_with_newer_ones(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path)
    store.commit(rows_of("p", 2))
    store.flush()
    (part,) = tmp_path.glob("part-*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["continued_at"]), part)
    again = TrajectoryStore(tmp_path)
    again.commit(rows_of("q", 1, continued_at="12 30"))
    again.merge()
    assert [row.continued_at for row in again] == ["", "", "12 30"]


def test_tokens_are_counted_by_the_first_write_of_each_key(place: Location) -> None:
    store = TrajectoryStore(place)
    store.commit([make_trajectory(num_tokens=7), make_trajectory(num_tokens=9), make_trajectory("q", num_tokens=5)])
    assert store.num_tokens() == {TrajectoryKey(1, "p1", 0): 7, TrajectoryKey(1, "q", 0): 5}
