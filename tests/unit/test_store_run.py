"""The run directory as the driver sees it, on a real disk and in an S3 server."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest

from still_ray.algo.evaluation.summary import summarize
from still_ray.algo.stages import Stage, plan_stages
from still_ray.facts import summary_line
from still_ray.location import Location
from still_ray.methods.dpo import preference_pairs
from still_ray.methods.sft import training_examples
from still_ray.store.atomic import write_json
from still_ray.store.metrics_log import MetricsLog
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore, present_state, read_state, read_summary
from still_ray.store.tables import read_table
from still_ray.types import (
    Event,
    FinishReason,
    FormatDefect,
    InputError,
    PairKeys,
    PreferencePair,
    TrainingExample,
    Trajectory,
    TrajectoryKey,
    Verdict,
)
from tests.fakes import make_demonstration, make_recipe, make_trajectory, stage_facts

PLAN = plan_stages(make_recipe(rounds=[{}, {"method": "dpo"}]))
BACKBONE, IMITATE, EXPLORE, SFT, EXPLORE_2, DPO = PLAN


@pytest.fixture
def directory(place: Location) -> RunDirectory:
    found = RunDirectory(place / "run")
    found.create()
    return found


@pytest.fixture
def store(directory: RunDirectory) -> RunStore:
    return RunStore(directory, PLAN)


def complete(store: RunStore, *stages: Stage) -> None:
    for stage in stages:
        store.begin(stage, stage.policy_version)
        store.finish(stage, stage_facts(stage))


def test_the_paths_are_those_that_the_design_promises(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    promised = {
        "recipe.yaml": directory.recipe,
        "state.json": directory.state,
        "summary.json": directory.summary,
        "metrics.jsonl": directory.metrics,
        "inputs.json": directory.inputs,
        "trajectories/round=001": directory.trajectories(1),
        "rounds/000-imitate": directory.stage(IMITATE),
        "rounds/001-sft/training_set.parquet": directory.training_data(SFT),
        "rounds/002-dpo/pairs.parquet": directory.training_data(DPO),
        "rounds/001-sft/checkpoint": directory.checkpoint(SFT),
        "rounds/000-backbone/eval.json": directory.evaluation(BACKBONE),
        "rounds/000-backbone/eval.parquet": directory.evaluation_rows(BACKBONE),
    }
    assert {name: tmp_path / name for name in promised} == promised


# -- stages -----------------------------------------------------------------------------------------------------------


def test_completed_stages_are_found_again_with_their_facts(store: RunStore, directory: RunDirectory) -> None:
    complete(store, BACKBONE, IMITATE)
    completed = RunStore(directory, PLAN).completed()
    assert list(completed) == ["000-backbone", "000-imitate"]
    assert completed["000-imitate"] == stage_facts(IMITATE)


def test_a_stage_after_a_broken_one_does_not_count_as_complete(store: RunStore, directory: RunDirectory) -> None:
    complete(store, BACKBONE)
    store.write_rows(IMITATE, training_examples([make_demonstration()], []), TrainingExample)
    complete(store, IMITATE, EXPLORE)
    directory.training_data(IMITATE).write_bytes(b"torn")
    assert list(store.completed()) == ["000-backbone"]


def test_a_stage_that_began_is_not_complete(store: RunStore) -> None:
    store.begin(BACKBONE, 0)
    assert store.completed() == {}


def test_the_state_says_what_runs_and_what_ended(store: RunStore, directory: RunDirectory) -> None:
    assert read_state(directory) is None
    store.begin(EXPLORE, 1)
    state = read_state(directory)
    assert state is not None
    expected = {"round": 1, "stage": "001-explore", "policy_version": 1, "status": "running", "schema_version": 1}
    raw = json.loads(directory.state.read_text())
    assert raw == {**expected, "updated_at": state.updated_at}
    assert (state.round, state.stage, state.is_complete, state.rehearsal) == (1, "001-explore", False, False)
    store.end(3)
    state = read_state(directory)
    assert state is not None
    assert (state.status, state.stage, state.policy_version) == ("complete", "002-dpo", 3)


@pytest.mark.parametrize(("status", "cause"), [("interrupted", ""), ("failed", "no room for replica-0")])
def test_the_state_says_how_a_run_ended_and_how_it_goes_on(
    status: Literal["interrupted", "failed"], cause: str, directory: RunDirectory
) -> None:
    store = RunStore(directory, PLAN, command="still-ray run r.yaml")
    store.stop(status, cause)
    before_any_stage = read_state(directory)
    assert before_any_stage is not None and (before_any_stage.status, before_any_stage.stage) == (status, "")
    store.begin(EXPLORE, 1)
    store.stop(status, cause)
    state = present_state(directory, print)
    assert state is not None
    assert (state.status, state.stage, state.policy_version) == (status, "001-explore", 1)
    assert (state.cause, state.command) == (cause, "still-ray run r.yaml")
    store.begin(EXPLORE, 1)
    resumed = read_state(directory)
    assert resumed is not None and (resumed.status, resumed.cause) == ("running", "")


def test_a_complete_run_stays_complete(store: RunStore, directory: RunDirectory) -> None:
    store.end(3)
    store.stop("interrupted")
    state = read_state(directory)
    assert state is not None and state.is_complete


HOLDER = """
import pathlib, sys, time
from still_ray.store.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(60)
"""


def test_a_run_is_killed_when_its_process_is_gone_and_running_as_long_as_it_lives(
    store: RunStore, directory: RunDirectory, tmp_path: Path
) -> None:
    store.begin(EXPLORE, 1)
    held = tmp_path / "held"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory.root), str(held)])
    try:
        while not held.exists():
            assert holder.poll() is None
            time.sleep(0.01)
        states = [present_state(directory, print) for _ in range(2)]
        with pytest.raises(InputError, match=r"another still-ray .*works in this folder"), directory.locked():
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert [state.status for state in states if state] == ["running", "running"]
    state = present_state(directory, print)
    assert state is not None and state.status == "killed"
    with directory.locked():
        present = present_state(directory, print)
    assert present is not None and present.status == "running", "resumed"


def test_the_summary_has_the_promised_form(store: RunStore, directory: RunDirectory) -> None:
    line = summary_line(stage_facts(BACKBONE))
    assert line is not None
    store.write_summary([line])
    summary = json.loads(directory.summary.read_text())
    promised = {"name": "000-backbone", "round": 0, "policy_version": 0, "accuracy": 0.5, "ci95": [0.25, 0.75]}
    assert summary["stages"][0].items() >= {**promised, "num_problems": 10, "seconds": 20.0}.items()
    assert read_summary(directory) == (line,)


def test_metrics_are_one_json_object_a_line_and_are_appended(directory: RunDirectory) -> None:
    for value, labels in ((0.5, {"step": "1"}), (0.25, {"text": "a\nb"})):
        log = MetricsLog(directory.metrics)
        log.append(Event(name="train/loss", value=value, labels=labels))
        log.close()
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [line["value"] for line in lines] == [0.5, 0.25]
    assert all(line.keys() == {"time", "name", "value", "labels"} for line in lines)
    assert lines[0]["time"] <= lines[1]["time"]


# -- the pool ---------------------------------------------------------------------------------------------------------


def test_the_pool_of_some_rounds_is_read_before_it_is_flushed(store: RunStore) -> None:
    store.commit(1, [make_trajectory("a", 0)])
    store.commit(2, [make_trajectory("b", 0, round_number=2)])
    store.commit(3, [make_trajectory("c", 0, round_number=3)])
    assert {row.key.problem_id for row in store.candidates([1, 3])} == {"a", "c"}


def test_a_candidate_says_what_selection_needs(store: RunStore) -> None:
    store.commit(
        1,
        [
            make_trajectory("a", 0, thought="12345", perplexity=2.5),
            make_trajectory("a", 1, defect=FormatDefect.TRUNCATED.value, finish_reason=FinishReason.LENGTH),
            make_trajectory("a", 2, verdict=Verdict.TIMEOUT),
        ],
    )
    whole, truncated, late = store.candidates([1])
    assert (whole.key, whole.domain, whole.verdict) == (TrajectoryKey(1, "a", 0), "math", Verdict.CORRECT)
    assert (whole.thought_chars, whole.perplexity, whole.well_formed) == (5, 2.5, True)
    assert (truncated.well_formed, truncated.finish_reason) == (False, FinishReason.LENGTH)
    assert late.verdict is Verdict.TIMEOUT


def test_a_closed_round_is_durable_and_its_keys_are_known_to_the_next_process(
    store: RunStore, directory: RunDirectory
) -> None:
    rows = [make_trajectory("a", index) for index in range(3)]
    store.commit(1, rows)
    store.close_round(1)
    again = RunStore(directory, PLAN)
    assert set(again.explored(1)) == {row.key for row in rows}
    assert again.commit(1, rows) == []
    assert set(again.explored(2)) == set()
    assert [path.name for path in directory.trajectories(1).glob("*")] == ["all.parquet"]


# -- training data ----------------------------------------------------------------------------------------------------


def test_every_row_of_a_training_set_names_its_source(store: RunStore, directory: RunDirectory) -> None:
    store.commit(1, [make_trajectory("a/b", index, thought=f"own thought {index}") for index in range(3)])
    store.commit(2, [make_trajectory("c", 0, round_number=2, thought="another")])
    shown = [make_demonstration("d1", domain="physics"), make_demonstration("d2")]
    keys = [TrajectoryKey(2, "c", 0), TrajectoryKey(1, "a/b", 2)]
    rows_given = training_examples(shown, store.trajectories(keys))
    assert store.write_rows(SFT, rows_given, TrainingExample) == 4
    rows = read_table(directory.training_data(SFT), TrainingExample)
    assert [(row.source, row.source_id) for row in rows] == [
        ("demonstration", "d1"),
        ("demonstration", "d2"),
        ("trajectory", "2/c/0"),
        ("trajectory", "1/a/b/2"),
    ]
    assert [row.thought for row in rows[2:]] == ["another", "own thought 2"]
    assert (rows[0].domain, rows[0].question) == ("physics", shown[0].question)
    assert store.data_path(SFT) == str(directory.training_data(SFT))


def test_a_key_that_is_not_stored_is_an_error_and_not_a_missing_row(store: RunStore) -> None:
    store.commit(1, [make_trajectory("a", 0)])
    with pytest.raises(KeyError):
        store.write_rows(SFT, training_examples([], store.trajectories([TrajectoryKey(1, "a", 1)])), TrainingExample)


def test_pairs_carry_both_texts_and_both_sources(store: RunStore, directory: RunDirectory) -> None:
    store.commit(1, [make_trajectory("a", 0, thought="right", solution="s0", perplexity=3.0)])
    wrong = make_trajectory("a", 1, round_number=2, verdict=Verdict.INCORRECT, thought="wrong", perplexity=2.0)
    store.commit(2, [wrong])
    pair = PairKeys(chosen=TrajectoryKey(1, "a", 0), rejected=TrajectoryKey(2, "a", 1))
    assert store.write_rows(DPO, preference_pairs(store.trajectories(pair.keys)), PreferencePair) == 1
    (row,) = read_table(directory.training_data(DPO), PreferencePair)
    assert (row.problem_id, row.question) == ("a", wrong.question)
    assert (row.chosen_id, row.chosen_thought, row.chosen_solution, row.chosen_perplexity) == (
        "1/a/0",
        "right",
        "s0",
        3.0,
    )
    assert (row.rejected_id, row.rejected_thought, row.rejected_perplexity) == ("2/a/1", "wrong", 2.0)


def test_the_solution_of_a_response_that_was_cut_off_is_in_no_pair(store: RunStore, directory: RunDirectory) -> None:
    cut_off = make_trajectory("a", 1, thought="so", solution="beg", finish_reason=FinishReason.LENGTH)
    store.commit(1, [make_trajectory("a", 0, solution="s0"), cut_off])
    sides = store.trajectories([TrajectoryKey(1, "a", 0), cut_off.key])
    store.write_rows(DPO, preference_pairs(sides), PreferencePair)
    (row,) = read_table(directory.training_data(DPO), PreferencePair)
    assert (row.chosen_solution, row.rejected_thought, row.rejected_solution) == ("s0", "so", "")


def test_an_evaluation_leaves_its_rows_and_its_summary(store: RunStore, directory: RunDirectory) -> None:
    rows = [make_trajectory("a", round_number=0), make_trajectory("b", round_number=0, verdict=Verdict.INCORRECT)]
    store.write_evaluation(BACKBONE, rows, summarize(rows))
    assert read_table(directory.evaluation_rows(BACKBONE), Trajectory) == rows
    summary = json.loads(directory.evaluation(BACKBONE).read_text())
    assert (summary["accuracy"], summary["num_problems"], summary["verdicts"]["incorrect"]) == (0.5, 2, 1)
    assert len(summary["ci95"]) == 2


def test_an_evaluation_says_what_it_is_the_result_of(store: RunStore, directory: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    settings = {"model": {"path": str(tmp_path)}, "benchmark": {"sha256": "12"}, "versions": {"vllm": "1"}}
    write_json(directory.evaluation_settings, settings)
    rows = [make_trajectory("a", round_number=0)]
    store.write_evaluation(BACKBONE, rows, summarize(rows))
    result = json.loads(directory.evaluation(BACKBONE).read_text())
    assert result["benchmark"] == {"sha256": "12"} and result["versions"] == {"vllm": "1"}
    assert result["model"]["path"] == str(tmp_path) and result["model"]["num_bytes"] == len(b"weights")
    raw = directory.evaluation_rows(BACKBONE)
    assert result["raw_outputs"]["sha256"] == hashlib.sha256(raw.read_bytes()).hexdigest()
