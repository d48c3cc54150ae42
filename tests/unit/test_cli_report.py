"""`still-ray report`: where it writes, what it finds beside a run, and what it says when something is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from still_ray.cli.console.background_report import PROGRAM, reported
from still_ray.cli.console.progress import ConsoleProgress
from still_ray.cli.main import app
from still_ray.cli.report import read_inputs
from still_ray.location import Location
from tests.report_run import BACKBONE, ReportRun, whole_run


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def with_data(run: ReportRun, folder: Path) -> None:
    """Has the run's recipe name files of problems with levels, prepared ones."""
    folder.mkdir(exist_ok=True)
    rows = [{"id": f"t{number}", "problem": "How many?", "answer": "7", "level": number} for number in range(1, 5)]
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "problems.jsonl").write_text(json.dumps({**rows[0], "id": "p1", "level": 9}) + "\n")
    filters = {"length": {"enabled": True, "dropped": 3, "rules": {}}}
    counts = {"rows": {"in": 10, "out": 7, "broken": 0, "dropped": 3}, "filters": filters}
    (folder / "report.json").write_text(json.dumps(counts))
    recipe = Path(str(run.directory.recipe))
    values = yaml.safe_load(recipe.read_text())
    names = {"problems": str(folder / "problems.jsonl"), "test": str(folder / "test.jsonl")}
    recipe.write_text(yaml.safe_dump({**values, "data": {**values["data"], **names}}))


def test_the_report_lies_in_the_run_directory(place: Location) -> None:
    run = ReportRun(place / "run")
    result = CliRunner().invoke(app, ["report", str(run.directory.root)])
    target = run.directory.root / "report.html"
    assert result.exit_code == 0 and result.stdout == f"written: {target}\n", result.stderr
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_or_where_it_is_wanted(tmp_path: Path) -> None:
    run = ReportRun(tmp_path / "run")
    target = tmp_path / "shown.html"
    result = CliRunner().invoke(app, ["report", str(run.directory.root), "--output", str(target)])
    assert result.exit_code == 0 and target.exists() and not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("output", "said"),
    [(".", "is a folder; give a file"), ("nowhere/x.html", "there is no folder")],
)
def test_an_output_that_cannot_be(tmp_path: Path, output: str, said: str) -> None:
    run = ReportRun(tmp_path / "run")
    result = CliRunner().invoke(app, ["report", str(run.directory.root), "--output", str(tmp_path / output)])
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2 and "holds no run (no state.json)" in result.stderr


def test_levels_and_counts_come_from_the_data(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    with_data(run, tmp_path / "data")
    inputs = read_inputs(run.directory)
    assert inputs.test_levels == {"t1": 1, "t2": 2, "t3": 3, "t4": 4} and inputs.problem_levels == {"p1": 9}
    assert inputs.notes == ()
    assert inputs.prepared["problems"]["rows"]["in"] == 10
    assert CliRunner().invoke(app, ["report", str(run.directory.root)]).exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What the filters dropped: problems" in page and "level 4" in page


def test_an_id_that_both_files_use_keeps_both_its_levels(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    with_data(run, tmp_path / "data")
    row = {"id": "t1", "problem": "How many?", "answer": "7", "level": 5}
    (tmp_path / "data" / "problems.jsonl").write_text(json.dumps(row) + "\n")
    inputs = read_inputs(run.directory)
    assert inputs.problem_levels == {"t1": 5} and inputs.test_levels["t1"] == 1


def test_data_that_is_gone_costs_the_levels_alone(tmp_path: Path) -> None:
    run = ReportRun(tmp_path / "run")
    run.finish(BACKBONE, evaluation=run.evaluate(BACKBONE, {"t1": True}))
    assert CliRunner().invoke(app, ["report", str(run.directory.root)]).exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The levels of the problems file are unknown: /data/p.jsonl: no such file" in page
    assert "state no levels, or cannot be read any more" in page


def test_a_run_has_its_report_made_by_the_command_itself(tmp_path: Path) -> None:
    run = ReportRun(tmp_path / "run")
    progress = ConsoleProgress(None)
    with reported(run.directory, progress) as report, progress:
        report.make_missing()
    assert (tmp_path / "run" / "report.html").exists()


def test_the_process_of_a_report_keeps_to_the_time_limit_by_itself() -> None:
    """The alarm is set before anything else: what is left of it is what the limit was, less the start."""
    program = PROGRAM.partition("from still_ray")[0] + "print(signal.alarm(0))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 890 <= int(done.stdout) <= 900
