"""What the report reads of a run directory: whole, unfinished, damaged; on disk and in an S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from still_ray.location import Location
from still_ray.report.facts import Inputs, read_run
from still_ray.store.run_directory import RunDirectory
from still_ray.store.tables import write_table
from still_ray.types import InputError, Trajectory
from tests.report_run import BACKBONE, DPO, EXPLORE_1, IMITATE, PLAN, ReportRun, first_round, rollout, whole_run


def test_a_whole_run_is_read_wherever_it_is(place: Location) -> None:
    facts = whole_run(place / "run").facts()
    assert [stage.name for stage in facts.stages] == [stage.name for stage in PLAN]
    assert {number: len(rows) for number, rows in facts.rounds.items()} == {1: 6, 2: 4}
    assert [len(stage.responses) for stage in facts.stages] == [4, 4, 0, 4, 0, 4]
    assert [row.source_id for row in facts.stages[3].sources] == ["d0", "d1", "1/p1/0", "1/p2/0"]
    assert [(pair.chosen_id, pair.rejected_id) for pair in facts.stages[5].pairs] == [("2/p2/0", "2/p2/1")]
    assert facts.versions == {"ray": "2.60.0"} and "# ray" not in facts.recipe_text
    assert facts.is_complete and not facts.is_rehearsal and facts.notes == ()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        read_run(RunDirectory(tmp_path), Inputs())


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    facts = ReportRun(tmp_path).facts()
    assert not facts.is_complete and facts.evaluated == () and facts.rounds == {}
    assert all(stage.facts is None for stage in facts.stages)


def test_rollouts_that_are_not_merged_yet_are_seen_once(tmp_path: Path) -> None:
    """An interrupted merge leaves a part beside the merged file."""
    run = ReportRun(tmp_path)
    run.store.commit(1, first_round())
    run.store.close_round(1)
    extra = [*first_round()[:2], rollout("p9", 0, "correct")]
    write_table(run.directory.trajectories(1) / "part-00007.parquet", extra, Trajectory)
    ids = [row.id for row in run.facts().rounds[1]]
    assert len(ids) == len(set(ids)) == 7


def test_a_line_cut_off_in_the_middle_is_left_out(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    run.event("train/loss", 1.0, stage="000-imitate", step="1", total="2")
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"time": 1.0, "name": "train/lo')
    assert [event.name for event in run.facts().events] == ["run/started", "train/loss"]


def test_a_damaged_manifest_makes_a_stage_incomplete_and_is_named(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    (tmp_path / "rounds" / IMITATE.name / "manifest.json").write_text("{")
    facts = run.facts()
    assert facts.stages[1].facts is None and facts.stages[3].facts is not None
    assert len(facts.notes) == 1 and "000-imitate" in facts.notes[0]


def test_a_stage_that_was_skipped_is_named(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    run.finish(DPO, skipped="no problem has both a correct and an incorrect response")
    (note,) = run.facts().notes
    assert note == "002-dpo was skipped: no problem has both a correct and an incorrect response."


def test_a_manifest_of_another_version_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    path = tmp_path / "rounds" / IMITATE.name / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    facts = run.facts()
    assert facts.stages[1].facts is None and "another version" in facts.notes[0]


def test_a_table_that_is_gone_costs_itself_and_is_named(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    (tmp_path / "rounds" / BACKBONE.name / "eval.parquet").write_bytes(b"no parquet")
    facts = run.facts()
    assert facts.stages[0].responses == () and facts.stages[0].evaluation is not None
    assert len(facts.notes) == 1 and "eval.parquet of 000-backbone" in facts.notes[0]


def test_reading_changes_nothing(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run.facts()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_round_without_its_manifest_counts(tmp_path: Path) -> None:
    """The pool of a round that goes on is shown."""
    run = ReportRun(tmp_path)
    run.store.begin(EXPLORE_1, 1)
    run.store.commit(1, first_round())
    run.store.close_round(1)
    assert len(run.facts().rounds[1]) == 6
