"""Rehearsals as a user starts them: a cluster of five machines and forty GPUs on this one, and what is left of it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from still_ray.cli.run import run_recipe
from still_ray.store.manifest import read_manifest
from still_ray.types import InputError
from tests.runs import COMMAND, events_of, json_of, keys_of, outliving, rows_of

pytestmark = pytest.mark.integration

JOBS = Path(__file__).resolve().parents[2] / "jobs"
STAGES = ["000-backbone", "000-imitate", "001-explore", "001-sft", "002-explore", "002-sft", "003-explore", "003-dpo"]
FAKES = ("ray::FakeReplica", "ray::FakeRank")
ENGINES = ("libtorch", "vllm")


class Rehearsal:
    """One `still-ray rehearse` in a process group of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.run_dir = folder / "run"
        self._out, self._err = folder / "out.json", folder / "err.log"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [COMMAND, "rehearse", *arguments, "--run-dir", str(self.run_dir), "--json"],
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.children: dict[int, psutil.Process] = {}

    def until(self, condition: Callable[[], Any], timeout_s: float = 240.0) -> Any:
        """Waits until a condition holds, and remembers every process that it sees in the meantime."""
        deadline = time.monotonic() + timeout_s
        has_ended = False
        while time.monotonic() < deadline and not has_ended:
            has_ended = self.process.poll() is not None  # before the condition, which is then asked a last time
            with suppress(psutil.NoSuchProcess):
                self.children.update({child.pid: child for child in psutil.Process(self.process.pid).children(True)})
            if found := condition():
                return found
            time.sleep(0.1)
        raise AssertionError(self.text())

    def ended(self) -> int:
        """Waits for the end; returns the exit status."""
        self.until(lambda: self.process.poll() is not None)
        return int(self.process.returncode)

    def text(self) -> str:
        """What was printed for people."""
        return self._err.read_text()

    @property
    def result(self) -> dict[str, Any]:
        """What was printed for programs."""
        found: dict[str, Any] = json.loads(self._out.read_text())
        return found


@contextmanager
def rehearsal(folder: Path, *arguments: str) -> Iterator[Rehearsal]:
    """A rehearsal; whatever is left of it at the end is killed by its own ids."""
    one = Rehearsal(folder, *arguments)
    try:
        yield one
    finally:
        one.process.kill()
        for process in one.children.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def engines_in(processes: dict[int, psutil.Process]) -> set[str]:
    """Libraries of engines that the fakes have mapped, and the fakes that were looked at."""
    found = set()
    for process in list(processes.values()):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            title = " ".join(process.cmdline())
            if title.startswith(FAKES):
                found.add(title.split()[0].split(".")[0])  # a method's name follows while one runs
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                found |= {engine for engine in ENGINES if engine in maps}
    return found


def test_the_32b_recipe_on_five_machines_of_eight_gpus_with_faults_and_rounds_that_overlap(tmp_path: Path) -> None:
    apart = ("--set", "placement=dedicated", "--set", "sampler.num_replicas=2", "--set", "explore.overlap=1")
    with rehearsal(tmp_path, str(JOBS / "qwen2.5-32b.yaml"), "--nodes", "5", "--devices-per-node", "8", *apart) as one:
        looked: set[str] = set()
        one.until(lambda: one.process.poll() is not None or "000-imitate  step" in one.text())
        looked |= engines_in(one.children)
        assert one.ended() == 0, one.text()
        assert outliving(list(one.children.values()), timeout_s=10) == []
    assert looked == set(FAKES), "replicas and ranks were up, and neither loads an engine"
    assert_whole(one.run_dir)
    assert_placed(one.result)
    assert_survived(one)
    with pytest.raises(InputError, match="holds a rehearsal"):
        run_recipe(JOBS / "demo.yaml", str(one.run_dir), [])


def assert_whole(run_dir: Path) -> None:
    """Every stage, and every sample of every problem of three rounds once, by the version before the last."""
    for stage in STAGES:
        assert read_manifest(run_dir / "rounds" / stage) is not None, stage
    state = json_of(run_dir / "state.json")
    assert (state["status"], state["policy_version"], state["rehearsal"]) == ("complete", 4, True)
    assert "\nrehearsal: true\n" in (run_dir / "recipe.yaml").read_text()
    counts = keys_of(run_dir)
    assert set(counts.values()) == {1}
    for number in (1, 2, 3):
        samples: dict[str, set[int]] = {}
        for round_number, problem, index in counts:
            if round_number == number:
                samples.setdefault(problem, set()).add(index)
        assert len(samples) == 40
        assert all(indices in ({0, 1}, {0, 1, 2, 3}) for indices in samples.values()), "waves of two, four at most"
        rows = rows_of(run_dir / f"trajectories/round={number:03d}/all.parquet")
        assert {row["policy_version"] for row in rows} == {max(1, number - 1)}
        assert {"correct", "incorrect", "unparsable"} <= {row["verdict"] for row in rows}


def assert_placed(result: dict[str, Any]) -> None:
    """Two replicas of four GPUs and sixteen ranks, on machines of eight."""
    assert [machine["gpus"] for machine in result["machines"]] == [0, 8, 8, 8, 8, 8]
    held = result["placement"]["train"]
    assert sum(int(text.split("(")[1].split()[0]) for text in held.values() if "GPUs" in text) == 2 * 4 + 16
    ranks = [int(part.split()[0]) for text in held.values() for part in text.split(", ") if "trainer" in part]
    assert sum(ranks) == 16 and max(ranks) <= 8


def assert_survived(one: Rehearsal) -> None:
    """Four deaths, and their traces in what the run wrote."""
    result = one.result
    assert result["holds"] and result["faults_left_out"] == []
    assert len(result["faults"]) == 4 and all(fault["survived"] for fault in result["faults"])
    steps = [int(event["labels"]["step"]) for event in events_of(one.run_dir, "train/loss", "001-sft")]
    num_built = 1 + one.text().count("it is built again")  # for the rank, and for the machine where that held ranks
    assert 2 <= steps.count(1) <= num_built <= 3, "the stage was begun again"
    assert steps[-1] == max(steps)
    last = {row["sampler"] for row in rows_of(one.run_dir / "rounds/003-dpo/eval.parquet")}
    assert last and last.isdisjoint({"replica-1"}) and max(last) >= "replica-2", "replacements serve"
    assert one.text().count("rehearsed fault: ") == 4


def test_trainer_and_samplers_of_the_32b_recipe_take_turns_on_three_machines(tmp_path: Path) -> None:
    one_round = ("--set", "rounds=[{method: sft}]", "--problems", "12", "--no-faults")
    with rehearsal(tmp_path, str(JOBS / "qwen2.5-32b.yaml"), *one_round) as one:
        assert one.ended() == 0, one.text()
    result = one.result
    assert result["holds"] and result["faults"] == []
    assert [machine["gpus"] for machine in result["machines"]] == [0, 8, 8, 8]
    for activity, held in result["placement"].items():
        text = " ".join(held.values())
        assert ("trainer" in text, "sampler" in text) == (activity == "train", activity != "train"), activity
    assert_devices(result)
    sync = json_of(one.run_dir / "rounds/001-sft/manifest.json")["sync"]
    assert (sync["policy_version"], sync["transport"]) == (2, "checkpoint")


def assert_devices(result: dict[str, Any]) -> None:
    """All GPUs sampled and sixteen trained; by plan's hours they are busy, and in seconds nothing is counted twice."""
    devices = result["devices"]
    assert (devices["held"], devices["sampling"], devices["training"]) == (24, 24, 16)
    assert devices["planned"]["idle"] < 0.15
    assert sum(devices["rehearsed"].values()) == pytest.approx(1.0)
    assert all(devices["rehearsed"][kind] > 0 for kind in ("sampling", "training", "sync"))
    assert 0.8 * devices["held_s"] < 24 * result["seconds"]["run"] <= 1.2 * devices["held_s"]


def test_ranks_of_the_32b_recipe_work_on_the_gpus_of_engines_that_sleep_whatever_dies(tmp_path: Path) -> None:
    one_round = ("--set", "rounds=[{method: sft}]", "--problems", "12", "--set", "placement=elastic")
    with rehearsal(tmp_path, str(JOBS / "qwen2.5-32b.yaml"), *one_round) as one:
        assert one.ended() == 0, one.text()
    result = one.result
    assert result["holds"] and len(result["faults"]) == 5 and all(fault["survived"] for fault in result["faults"])
    held = result["placement"]["train"].values()
    ranks = [int(part.split()[0]) for text in held for part in text.split(", ") if "trainer" in part]
    assert sum(ranks) == 16 and all("(8 GPUs)" in text for text in held if "trainer" in text), "replicas hold them"
    devices = result["devices"]
    assert (devices["held"], devices["training"]) == (24, 16) and sum(devices["rehearsed"].values()) == pytest.approx(1)
    dead = {name for fault in result["faults"] if (name := fault["what"].split(", ")[-1]).startswith("replica-")}
    last = {row["sampler"] for row in rows_of(one.run_dir / "rounds/001-sft/eval.parquet")}
    assert len(dead) == 2 and last and last.isdisjoint(dead), "one that explored, and one that slept"


def test_an_interrupted_rehearsal_leaves_no_process_behind(tmp_path: Path) -> None:
    with rehearsal(tmp_path, str(JOBS / "demo.yaml")) as one:
        one.until(lambda: "000-backbone" in one.text())
        one.process.send_signal(signal.SIGINT)
        assert one.ended() == 130, one.text()
        assert outliving(list(one.children.values()), timeout_s=10) == []
    assert one.text().splitlines()[-1].startswith("still-ray: interrupted; start again with: still-ray rehearse ")
