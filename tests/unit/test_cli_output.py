"""What the command line says of a run: its status, its progress, and when it counts as complete."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from still_ray.algo.stages import plan_stages
from still_ray.cli.console.progress import ConsoleProgress
from still_ray.cli.console.tables import print_loading, stage_table
from still_ray.cli.main import app
from still_ray.cli.preflight.resume import is_complete
from still_ray.config import Recipe
from still_ray.driver.rounds import Driver
from still_ray.facts import SummaryLine, summary_to_json
from still_ray.location import location
from still_ray.store.atomic import write_text
from still_ray.store.metrics_log import MetricsLog
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from tests.fakes import BACKBONE, Crashed, FakeWorld, Fuse, evaluation_facts, make_recipe, stage_facts, train_progress

RECIPE = make_recipe(rounds=[])
STAGES = plan_stages(RECIPE)
LINE = SummaryLine(
    name="000-backbone",
    round=0,
    policy_version=0,
    evaluation=evaluation_facts(accuracy=0.5, ci95=(0.25, 0.75), mean_thought_tokens=12.5, truncation_rate=0.125),
    seconds=3.0,
)


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "run")
    found.create()
    return found


@pytest.mark.parametrize(("changed", "shown"), [(0.0134, True), (None, False)])
def test_the_table_says_how_much_of_the_model_a_stage_changed(changed: float | None, *, shown: bool) -> None:
    """Lines of before do not say it, and have no column for it; nor has the backbone a cell."""
    table = stage_table([LINE, replace(LINE, name="000-imitate", share_changed=changed)])
    headings = [column.header for column in table.columns]
    assert ("weights changed" in headings) is shown
    assert headings[-1] == "time"
    if shown:
        assert list(table.columns[headings.index("weights changed")].cells) == ["", "1.3%"]


def test_the_table_shows_a_backbone_as_it_comes_and_asked_as_the_run_trains() -> None:
    taught = replace(LINE.evaluation, accuracy=0.0)
    table = stage_table([replace(LINE, baseline="plain", in_form=taught)])
    assert list(table.columns[0].cells) == [f"{LINE.name}, plain", f"{LINE.name}, as trained"]
    assert list(table.columns[2].cells) == [f"{LINE.evaluation.accuracy:.1%}", "0.0%"]


# -- status -----------------------------------------------------------------------------------------------------------


def test_the_status_of_a_run_that_goes_on(directory: RunDirectory) -> None:
    store = RunStore(directory, STAGES)
    store.write_summary([LINE])
    store.begin(STAGES[1], 0)
    with directory.locked():
        plain = CliRunner().invoke(app, ["status", str(directory.root)])
        as_json = CliRunner().invoke(app, ["status", str(directory.root), "--json"])
    assert plain.exit_code == 0
    assert plain.stdout.startswith("running: stage 000-imitate, round 0, policy version 0")
    row = next(line for line in plain.stdout.splitlines() if "000-backbone" in line)
    for cell in ("v0", "50.0%", "25.0% - 75.0%", "10", "12.5 tokens", "12.5%", "3 s"):
        assert cell in row
    assert as_json.exit_code == 0
    state = json.loads(as_json.stdout)
    assert (state["status"], state["stage"], state["stages"]) == (
        "running",
        "000-imitate",
        json.loads(json.dumps([summary_to_json(LINE)])),
    )


def test_the_status_names_syncs_that_were_proved_weakly(directory: RunDirectory) -> None:
    store = RunStore(directory, STAGES)
    store.write_summary([LINE, replace(LINE, name="002-dpo", weak_sync=True)])
    store.begin(STAGES[1], 0)
    said = CliRunner().invoke(app, ["status", str(directory.root)]).stdout
    assert "weak proof of the weight sync: 002-dpo (" in said


def test_the_status_of_a_run_that_just_began(directory: RunDirectory) -> None:
    RunStore(directory, STAGES).begin(STAGES[0], 0)
    result = CliRunner().invoke(app, ["status", str(directory.root), "--json"])
    assert json.loads(result.stdout)["stages"] == []


@pytest.mark.parametrize("place", ["/runs/x/checkpoint", "s3://bucket/x/checkpoint"])
def test_the_last_lines_say_how_the_result_is_loaded_and_prompted(place: str) -> None:
    text = io.StringIO()
    print_loading(Console(file=text, width=1000), location(place))
    lines = text.getvalue().splitlines()
    assert lines[-1].startswith(
        f"  prompt:        it was trained on questions in the words of {place}/prompt_template.txt"
    )
    assert "{question}" in lines[-1]


# -- complete runs ----------------------------------------------------------------------------------------------------


def test_a_run_is_complete_only_after_its_last_line() -> None:
    """A process may die between the last manifest and the summary: the next one has to write the summary."""
    whole = Fuse()
    Driver(RECIPE, FakeWorld(RECIPE).ports(whole), backbone=BACKBONE).run()
    last_manifest = len(whole.moments) - 1 - whole.moments[::-1].index("after FakeStore.finish")
    world = FakeWorld(RECIPE)
    with pytest.raises(Crashed):
        Driver(RECIPE, world.ports(Fuse(blows_at=last_manifest)), backbone=BACKBONE).run()
    assert world.disk.manifests.keys() == {stage.name for stage in STAGES}
    assert len(world.disk.summary) == 1
    Driver(RECIPE, world.ports(), backbone=BACKBONE).run()
    assert len(world.disk.summary) == 2


def test_all_manifests_without_the_end_of_the_run_are_not_a_complete_run(directory: RunDirectory) -> None:
    store = RunStore(directory, STAGES)
    for stage in STAGES:
        store.begin(stage, 0)
        store.finish(stage, stage_facts(stage))
        assert not is_complete(directory, RECIPE)
    store.end(1)
    assert is_complete(directory, RECIPE)
    assert not is_complete(directory, longer(RECIPE))


def longer(recipe: Recipe) -> Recipe:
    return make_recipe(rounds=[{}])


def test_a_complete_run_with_a_damaged_file_is_not_complete(directory: RunDirectory) -> None:
    store = RunStore(directory, STAGES)
    for stage in STAGES:
        store.begin(stage, 0)
        write_text(directory.stage(stage) / "eval.json", "{}")
        store.finish(stage, stage_facts(stage))
    store.end(1)
    write_text(directory.stage(STAGES[0]) / "eval.json", "{ }")
    assert not is_complete(directory, RECIPE)


# -- progress ---------------------------------------------------------------------------------------------------------


def shown(tmp_path: Path) -> tuple[ConsoleProgress, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, highlight=False, soft_wrap=True, width=200)
    return ConsoleProgress(MetricsLog(tmp_path / "metrics.jsonl"), console), text


def test_text_that_looks_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    progress, text = shown(tmp_path)
    with progress:
        progress.stage_started(STAGES[0], "evaluate [red]")
        progress.noted("run directory /tmp/[bold]/x[/y]")
        progress.advanced(1, 1, {"name": "[/z]"})
    assert "evaluate [red]" in text.getvalue()
    assert "/tmp/[bold]/x[/y]" in text.getvalue()
    assert "name [/z]" in text.getvalue()


def test_plain_progress_says_the_end_of_an_activity_and_not_every_step(tmp_path: Path) -> None:
    progress, text = shown(tmp_path)
    with progress:
        progress.stage_started(STAGES[0], "evaluate")
        for done in range(1, 101):
            progress.advanced(done, 100, {"rollouts": f"{done}/100"})
    lines = [line for line in text.getvalue().splitlines() if "rollouts" in line]
    assert len(lines) <= 2
    assert lines[-1].endswith("rollouts 100/100")


def test_a_long_silence_is_broken_by_what_goes_on_less_and_less_often(tmp_path: Path) -> None:
    now, text = [0.0], io.StringIO()
    progress = ConsoleProgress(None, Console(file=text, width=200), clock=lambda: now[0])
    progress.stage_started(STAGES[0], "evaluate")
    progress.doing("waiting for replica-0 to start [its engine]")
    while now[0] < 400:
        now[0] += 1
        progress.doing("waiting for replica-0 to start [its engine]")  # said again, as after a look
        progress.break_silence()
    said = [line.strip().split("  ", 1)[1] for line in text.getvalue().splitlines()[1:]]
    silences = ["10 s", "30 s", "1 min 10 s", "2 min 30 s", "5 min 10 s"]
    assert said == [f"{STAGES[0].name}  waiting for replica-0 to start [its engine] ({took})" for took in silences]


def test_a_line_of_any_kind_begins_the_silence_anew(tmp_path: Path) -> None:
    now, text = [0.0], io.StringIO()
    progress = ConsoleProgress(None, Console(file=text, width=200), clock=lambda: now[0])
    progress.stage_started(STAGES[0], "evaluate")
    for second in range(1, 40):
        now[0] = second
        if second % 9 == 0:
            progress.noted("so it is")
        progress.break_silence()
    assert [line for line in text.getvalue().splitlines()[1:] if "so it is" not in line] == []


def test_lines_of_progress_come_less_and_less_often(tmp_path: Path) -> None:
    now, text = [0.0], io.StringIO()
    progress = ConsoleProgress(None, Console(file=text, width=200), clock=lambda: now[0])
    progress.stage_started(STAGES[0], "evaluate")
    for second in range(3600):
        now[0] = second
        progress.advanced(1, 100, {"rollouts": "1/100"})
    at = [int(line.split(":")[0]) * 60 + int(line.split(":")[1][:2]) for line in text.getvalue().splitlines()[1:]]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps[0] == 5 and gaps[-1] == 60 and gaps == sorted(gaps)


def test_a_training_report_is_both_a_metric_and_a_line(tmp_path: Path) -> None:
    progress, text = shown(tmp_path)
    with progress:
        progress.stage_started(STAGES[1], "train by SFT")
        progress.trained(STAGES[1], train_progress(step=4, total_steps=4, loss=0.75, metrics={"rewards/margins": 2.0}))
    assert "000-imitate  step 4/4, loss 0.750, tokens/s 1,234" in text.getvalue()
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = ["train/loss", "train/tokens_per_s", "train/learning_rate", "train/epoch", "train/rewards/margins"]
    assert [line["name"] for line in written] == names
    assert all(line["labels"] == {"step": "4", "total": "4", "stage": "000-imitate"} for line in written)


# -- the last line ----------------------------------------------------------------------------------------------------

LATE = """
import atexit, os, sys, threading, time

class Late:
    def __del__(self):
        raise RuntimeError("a finalizer")

def fail_late():
    try:
        time.sleep(0.2)
        raise RuntimeError("an interrupted thread")
    finally:
        os.write(2, b"native code\\\\n")

kept = Late()
atexit.register(lambda: 1 / 0)
threading.Thread(target=fail_late).start()
import still_ray.cli.run as commands
def run_recipe(*_):
    {failure}
commands.run_recipe = run_recipe
sys.argv = ["still-ray", "run", "r.yaml"]
from still_ray.cli import main
main()
"""


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        ("raise KeyboardInterrupt", 130, "still-ray: interrupted; resume with: still-ray run r.yaml"),
        ("from still_ray.types import InputError; raise InputError('no such key')", 2, "still-ray: no such key"),
        ("from still_ray.types import RunError; raise RunError('no room')", 1, "still-ray: no room; resume with: "),
        (
            "raise OSError(28, 'No space left on device', '/run/recipe.yaml')",
            1,
            "still-ray: /run/recipe.yaml: cannot be written: No space left on device; resume with: ",
        ),
    ],
)
def test_nothing_comes_after_the_last_line(failure: str, status: int, line: str) -> None:
    """Threads, finalizers and exit handlers that fail while Python ends, as Ray's do after an interrupt."""
    done = subprocess.run(
        [sys.executable, "-c", LATE.replace("{failure}", failure)], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert done.stderr.splitlines()[-1].startswith(line)


PRINTING = """
import sys
import still_ray.cli.run as commands
commands.run_recipe = lambda *_: print("runs/数学, \\udcff")
sys.argv = ["still-ray", "run", "r.yaml"]
from still_ray.cli import main
main()
"""


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "runs/\\u6570\\u5b66, \\udcff"), ("utf-8", "runs/数学, \\udcff")]
)
def test_a_terminal_without_the_letters_of_a_name_shows_their_numbers(encoding: str, shown: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PRINTING], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding) == f"{shown}\n"


EARLY = """
import sys
from still_ray.cli import main

class Interrupted:
    def __getattr__(self, name):
        raise KeyboardInterrupt

sys.modules["still_ray.cli.run"] = Interrupted()
sys.argv = ["still-ray", "run", "r.yaml"]
main()
"""


def test_an_interrupt_before_a_command_has_begun_is_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == ""
