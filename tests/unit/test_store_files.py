"""Files of the run directory: whole or absent, checked by manifests, refused when another release wrote them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from still_ray.algo.stages import plan_stages
from still_ray.store import manifest as manifests
from still_ray.store import policy, tables
from still_ray.store.atomic import (
    full_disk_line,
    is_full_disk,
    is_refused,
    read_json,
    write_atomically,
    write_json,
    write_text,
)
from still_ray.store.manifest import read_manifest, write_manifest
from still_ray.store.policy import PolicyRecord, read_policy_record, write_policy_record
from still_ray.store.run_directory import RunDirectory
from still_ray.store.tables import iter_table, read_table, schema_of, write_table
from still_ray.types import SCHEMA_VERSION, InputError, ProbeSequence, TrainingExample, TrainResult, Trajectory
from tests.fakes import make_recipe, make_trajectory, stage_facts

SFT = plan_stages(make_recipe(rounds=[{}]))[-1]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- atomic writes ----------------------------------------------------------------------------------------------------


def test_a_long_table_has_several_row_groups_and_a_short_one_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_trajectory("p", index, response="r" * 100, thought="t" * 100) for index in range(20)]
    assert write_table(tmp_path / "one.parquet", iter(rows), Trajectory) == 20
    monkeypatch.setattr(tables, "GROUP_CHARS", 1000)
    assert write_table(tmp_path / "several.parquet", iter(rows), Trajectory) == 20
    assert pq.ParquetFile(tmp_path / "one.parquet").num_row_groups == 1
    assert pq.ParquetFile(tmp_path / "several.parquet").num_row_groups > 3
    assert read_table(tmp_path / "several.parquet", Trajectory) == rows


def test_a_write_makes_its_folders_and_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "whole ½")
    assert path.read_text(encoding="utf-8") == "whole ½"
    assert names_in(path.parent) == ["text.txt"]


def test_a_full_disk_is_told_with_its_folder_and_its_room(small_disk: Path) -> None:
    rows = [make_trajectory(f"p{number}", response=os.urandom(2000).hex()) for number in range(200)]
    writes: list[Callable[[], Any]] = [
        lambda: write_text(small_disk / "text.txt", "x" * 100_000),
        lambda: write_table(small_disk / "table.parquet", rows, Trajectory),
    ]
    for write in writes:
        with pytest.raises(OSError, match="No space left") as refused:
            write()
        assert is_full_disk(refused.value) and is_refused(refused.value)
        line = full_disk_line(refused.value, small_disk)
        assert line.startswith(str(small_disk)) and line.endswith(
            f": cannot be written: No space left on device; 65,536 bytes are free in {small_disk}"
        )
    assert names_in(small_disk) == []
    assert not is_full_disk(PermissionError(13, "Permission denied")) and is_refused(PermissionError(13, ""))
    assert not is_refused(FileNotFoundError(2, "No such file or directory"))


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    write_text(path, "old")

    def torn(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write_atomically(path, torn)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["text.txt"]


def test_a_writer_killed_in_the_middle_leaves_the_old_file_readable(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"stage": "old"})
    program = """
import os, pathlib, signal, sys
from still_ray.store.atomic import write_atomically

def torn(temporary):
    temporary.write_text('{"stage": "ne')
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(pathlib.Path(sys.argv[1]), torn)
"""
    process = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert process.returncode == -9
    assert read_json(path) == {"stage": "old"}
    write_json(path, {"stage": "new"})
    assert read_json(path) == {"stage": "new"}


def test_json_keeps_letters_and_an_absent_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    assert read_json(path) is None
    write_json(path, {"name": "½"})
    assert read_json(path) == {"name": "½"}
    assert "½" in path.read_text(encoding="utf-8")


# -- manifests --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "001-sft"
    write_text(folder / "training_set.parquet", "rows")
    write_text(folder / "checkpoint" / "model.safetensors", "weights")
    write_manifest(folder, stage_facts(SFT, policy_version=2))
    return folder


def test_a_manifest_names_every_file_below_the_stage_and_the_facts(stage: Path) -> None:
    manifest = read_manifest(stage)
    assert manifest is not None
    assert manifest.facts.policy_version == 2
    assert json.loads((stage / "manifest.json").read_text())["schema_version"] == SCHEMA_VERSION
    assert manifest.files.keys() == {"training_set.parquet", "checkpoint/model.safetensors"}


@pytest.mark.parametrize("name", ["training_set.parquet", "checkpoint/model.safetensors"])
def test_a_stage_is_incomplete_when_a_file_changed(stage: Path, name: str) -> None:
    text = (stage / name).read_text()
    (stage / name).write_text(text[::-1])
    assert read_manifest(stage) is None
    (stage / name).write_text(text)
    assert read_manifest(stage) is not None
    (stage / name).unlink()
    assert read_manifest(stage) is None


def test_a_manifest_of_a_later_release_is_refused_in_one_line(stage: Path) -> None:
    """To take the stage for incomplete would do it again over what that release left."""
    manifest = json.loads((stage / "manifest.json").read_text())
    write_json(stage / "manifest.json", {**manifest, "schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(InputError, match=r"001-sft/manifest\.json: schema_version is 2: another version of still-ray"):
        read_manifest(stage)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seconds": "long"}, r"manifest\.json: seconds should be a valid number.*, not 'long'"),
        ({"training": {"steps": 1}}, r"manifest\.json: has no training\.num_examples"),
        ({"sync": 3}, r"manifest\.json: sync should be .*, not 3"),
    ],
)
def test_a_broken_value_in_a_manifest_is_one_line(stage: Path, changed: dict[str, Any], said: str) -> None:
    manifest = json.loads((stage / "manifest.json").read_text())
    write_json(stage / "manifest.json", {**manifest, **changed})
    with pytest.raises(InputError, match=said) as refused:
        read_manifest(stage)
    assert "\n" not in str(refused.value)


def test_a_stage_is_incomplete_without_a_manifest(stage: Path) -> None:
    (stage / "manifest.json").unlink()
    assert read_manifest(stage) is None
    assert read_manifest(stage / "nowhere") is None


@pytest.mark.parametrize("text", ["", '{"schema_version": 1, "fil', "[]", "null"])
def test_a_broken_manifest_is_none(stage: Path, text: str) -> None:
    (stage / "manifest.json").write_text(text)
    assert read_manifest(stage) is None


def test_a_file_added_later_does_not_undo_a_stage(stage: Path) -> None:
    write_text(stage / "notes.txt", "mine")
    assert read_manifest(stage) is not None


def test_a_large_file_is_checked_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "DIGEST_LIMIT_BYTES", 10)
    write_text(tmp_path / "large", "x" * 11)
    write_manifest(tmp_path, stage_facts(SFT))
    (tmp_path / "large").write_text("y" * 11)
    assert read_manifest(tmp_path) is not None
    (tmp_path / "large").write_text("x" * 12)
    assert read_manifest(tmp_path) is None


def test_a_manifest_written_again_does_not_name_itself(stage: Path) -> None:
    write_manifest(stage, stage_facts(SFT, policy_version=3))
    manifest = read_manifest(stage)
    assert manifest is not None
    assert "manifest.json" not in manifest.files


# -- tables -----------------------------------------------------------------------------------------------------------


def test_the_columns_of_a_trajectory_are_those_that_the_design_promises() -> None:
    promised = (
        "round, problem_id, sample_index, domain, question, answer, response, thought, solution, extracted, verdict, "
        "policy_version, seed, num_tokens, thought_tokens, mean_logprob, perplexity, finish_reason, sampler, "
        "latency_s, created_at"
    )
    assert set(promised.split(", ")) <= set(schema_of(Trajectory).names)


def test_a_table_of_another_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, [make_trajectory()], Trajectory)
    with pytest.raises(InputError, match=rf"^{path}: holds Trajectory rows .* needed: TrainingExample of 1$"):
        read_table(path, TrainingExample)


def test_a_table_of_another_schema_version_is_refused_before_its_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rewritten_as_version(path, SCHEMA_VERSION + 1)
    with pytest.raises(InputError, match=f"{path}: holds Trajectory rows of schema version 2; needed: Trajectory of 1"):
        next(iter_table(path, Trajectory))


def test_a_table_that_somebody_else_wrote_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match="needed: Trajectory"):
        read_table(path, Trajectory)


def rewritten_as_version(path: Path, version: int) -> None:
    write_table(path, [make_trajectory()], Trajectory)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"record": "Trajectory", "schema_version": str(version)}), path)


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, [], Trajectory)
    assert read_table(path, Trajectory) == []
    assert pq.read_schema(path).names == schema_of(Trajectory).names


def test_a_table_streams_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [make_trajectory(sample_index=index) for index in range(25)]
    write_table(path, rows, Trajectory)
    assert list(iter_table(path, Trajectory, batch_rows=10)) == rows


def test_a_field_that_has_no_column_type_is_an_error_at_once() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        values: tuple[int, ...]

    with pytest.raises((KeyError, TypeError)):
        schema_of(Odd)


# -- the record of a checkpoint ---------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_schema_counts_as_unfinished(tmp_path: Path) -> None:
    result = TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.5, seconds=0.5)
    write_policy_record(tmp_path, PolicyRecord(policy_version=1, stage="000-imitate", result=result, probes=()))
    assert read_policy_record(tmp_path) is not None
    raw = read_json(tmp_path / policy.POLICY_FILE)
    write_json(tmp_path / policy.POLICY_FILE, {**raw, "schema_version": SCHEMA_VERSION + 1})
    assert read_policy_record(tmp_path) is None


def test_a_record_of_before_says_nothing_of_the_weights_that_changed(tmp_path: Path) -> None:
    result = TrainResult(
        steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.5, seconds=0.5, share_changed=0.25
    )
    write_policy_record(tmp_path, PolicyRecord(policy_version=1, stage="000-imitate", result=result, probes=()))
    found = read_policy_record(tmp_path)
    assert found is not None and found.result == result
    raw = read_json(tmp_path / policy.POLICY_FILE)
    del raw["result"]["share_changed"]
    write_json(tmp_path / policy.POLICY_FILE, raw)
    older = read_policy_record(tmp_path)
    assert older is not None and older.result == dataclasses.replace(result, share_changed=None)


def test_a_record_of_a_former_release_has_no_digests(tmp_path: Path) -> None:
    result = TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.0, seconds=0.0)
    probe = ProbeSequence(token_ids=(1, 2), logprobs=(-1.0,), start_logprobs=(-2.0,))
    record = PolicyRecord(policy_version=1, stage="s", result=result, probes=(probe,), digests={"weight": "abc"})
    write_policy_record(tmp_path, record)
    assert read_policy_record(tmp_path) == record
    written = json.loads((tmp_path / policy.POLICY_FILE).read_text())
    del written["digests"], written["probes"][0]["start_logprobs"]
    (tmp_path / policy.POLICY_FILE).write_text(json.dumps(written))
    assert read_policy_record(tmp_path) == dataclasses.replace(
        record, digests={}, probes=(dataclasses.replace(probe, start_logprobs=()),)
    )


# -- the folder and its lock ------------------------------------------------------------------------------------------


HOLDER = """
import pathlib, sys
from still_ray.store.run_directory import RunDirectory

with RunDirectory(pathlib.Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.create()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(InputError, match=f"^{tmp_path}: another still-ray works in this folder"),
            directory.locked(),
        ):
            pass
        holder.kill()
        holder.wait()
    with directory.locked():
        pass


def test_a_lock_is_let_go_when_its_work_fails(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with pytest.raises(RuntimeError, match="work"), directory.locked():
        raise RuntimeError("work")
    with directory.locked():
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=rf"^{root}: cannot be written to .*give another folder$"):
            RunDirectory(root).create()


def test_creating_a_folder_leaves_nothing_in_it_and_may_be_repeated(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "run")
    directory.create()
    directory.create()
    assert names_in(tmp_path / "a" / "run") == []
