"""What others see of a run: the status that the driver posts, and the one line that a failed run ends with."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import ray
import ray.train

from still_ray.actors.monitoring.run_monitor import POST_INTERVAL_S, RunMonitor
from still_ray.actors.monitoring.status_board import RunStatus, StatusBoard
from still_ray.actors.pool.actor_pool import PoolCounts
from still_ray.actors.pool.failure_message import FailedActor, failure_line, log_of
from still_ray.algo.stages import Stage, plan_stages
from still_ray.cli.status import print_runs
from still_ray.types import Event, RunError, SyncReport, TrainProgress
from tests.fakes import make_recipe, train_progress

STAGES = plan_stages(make_recipe(rounds=[]))
STATUS = RunStatus(name="test", run_dir="/runs/x", dashboard="http://h:8265", started_at=100.0, updated_at=100.0)
REPORT = SyncReport(
    policy_version=3,
    transport="checkpoint",
    num_replicas=2,
    num_bytes=0,
    seconds=1.5,
    max_logprob_difference=0.001,
    probe_shift=0.1,
)


class Inner:
    """Notes which calls were passed on."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def stage_started(self, stage: Stage, title: str) -> None:
        self.calls.append(f"{stage.name} {title}")

    def doing(self, what: str) -> None:
        pass

    def advanced(self, done: float, total: float, facts: Mapping[str, str], *, beside: Stage | None = None) -> None:
        self.calls.append(f"{done}/{total}{f' of {beside.name}' if beside else ''}")

    def trained(self, stage: Stage, report: TrainProgress) -> None:
        self.calls.append(f"{stage.name} {report.step}/{report.total_steps}")

    def event(self, event: Event) -> None:
        self.calls.append(event.name)

    def noted(self, text: str) -> None:
        self.calls.append(text)


class Scene:
    """A watch with a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.inner = Inner()
        self.posted: list[RunStatus] = []
        self.now = 100.0
        self.watch = RunMonitor(self.inner, STATUS, self.posted.append, clock=lambda: self.now)


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- the status -------------------------------------------------------------------------------------------------------


def test_everything_is_passed_on(scene: Scene) -> None:
    scene.watch.stage_started(STAGES[1], "train")
    scene.watch.advanced(1, 4, {})
    scene.watch.event(Event(name="stage/seconds", value=1.0, labels={"stage": STAGES[1].name}))
    scene.watch.noted("so")
    assert scene.inner.calls == [f"{STAGES[1].name} train", "1/4", "stage/seconds", "so"]


def test_progress_is_posted_once_a_second_and_at_its_end(scene: Scene) -> None:
    scene.watch.stage_started(STAGES[0], "evaluate")
    for done in range(1, 100):
        scene.watch.advanced(done, 100, {"rollouts": f"{done}/100"})
    assert [status.done for status in scene.posted] == [0.0]
    scene.now += POST_INTERVAL_S
    scene.watch.advanced(99, 100, {"rollouts": "99/100"})
    scene.watch.advanced(100, 100, {"rollouts": "100/100"})
    assert [status.done for status in scene.posted] == [0.0, 99, 100]
    assert scene.posted[-1].facts == {"rollouts": "100/100"}


def test_a_post_holds_what_was_held_back_before_it(scene: Scene) -> None:
    scene.watch.stage_started(STAGES[0], "evaluate")
    scene.watch.advanced(7, 100, {})
    scene.watch.noted("waiting for replicas")
    assert (scene.posted[-1].done, scene.posted[-1].note) == (7, "waiting for replicas")


def test_an_exploration_beside_a_stage_leaves_the_progress_of_the_stage_alone(scene: Scene) -> None:
    scene.watch.stage_started(STAGES[1], "train")
    scene.watch.advanced(3, 4, {})
    scene.watch.advanced(8, 9, {"rollouts": "8/9"}, beside=STAGES[0])
    scene.watch.noted("now")
    last = scene.posted[-1]
    assert (last.done, last.total, last.beside) == (3, 4, f"{STAGES[0].name}: rollouts 8/9")
    scene.watch.advanced(9, 9, {"rollouts": "9/9"}, beside=STAGES[0])
    assert scene.posted[-1].beside == "", "it is over"
    assert scene.inner.calls[-1] == f"9/9 of {STAGES[0].name}"


def test_a_new_stage_begins_at_nothing(scene: Scene) -> None:
    scene.watch.stage_started(STAGES[0], "evaluate")
    scene.watch.advanced(100, 100, {"rollouts": "100/100"})
    scene.watch.stage_started(STAGES[1], "train by SFT")
    last = scene.posted[-1]
    assert (last.stage, last.activity, last.done, last.total, last.facts) == (STAGES[1].name, "train by SFT", 0, 0, {})
    assert scene.watch.stage == STAGES[1].name


def test_pools_and_syncs_are_part_of_the_status(scene: Scene) -> None:
    scene.watch.pool("verifier", PoolCounts(wanted=1, ready=1))
    scene.watch.pool("replica", PoolCounts(wanted=2, ready=1, starting=1, num_died=1))
    scene.watch.synced(REPORT)
    last = scene.posted[-1]
    assert last.policy_version == 3
    assert last.pools["replica"].num_died == 1 and last.pools["verifier"].ready == 1


def test_training_steps_are_progress(scene: Scene) -> None:
    scene.watch.stage_started(STAGES[1], "train by SFT")
    report = train_progress(step=4, total_steps=4)
    scene.watch.trained(STAGES[1], report)
    assert (scene.posted[-1].done, scene.posted[-1].total) == (4, 4)
    assert scene.posted[-1].training == report
    assert scene.inner.calls[-1] == f"{STAGES[1].name} 4/4"
    scene.watch.stage_started(STAGES[0], "evaluate the backbone")
    assert scene.posted[-1].training is None


def test_a_status_crosses_processes_as_it_is() -> None:
    status = RunStatus(**{**vars(STATUS), "pools": {"replica": PoolCounts(wanted=2)}, "facts": {"a": "b"}})
    assert pickle.loads(pickle.dumps(status)) == status
    board = StatusBoard(STATUS)
    board.post(status)
    assert board.read() == status


def test_a_run_is_shown_with_what_it_has_lost(capsys: pytest.CaptureFixture[str]) -> None:
    pools = {"replica": PoolCounts(wanted=4, ready=3, starting=1, num_died=1, num_lost=2)}
    print_runs([RunStatus(**{**vars(STATUS), "stage": "001-explore", "round": 1, "pools": pools})])
    shown = capsys.readouterr().out
    for text in ("/runs/x", "001-explore, round 1", "3 of 4 up", "1 died, 2 lost with a node", "last sign of life"):
        assert text in shown


def test_a_cluster_without_runs(capsys: pytest.CaptureFixture[str]) -> None:
    print_runs([])
    assert capsys.readouterr().out == "no run goes on at this cluster\n"


# -- the verdict ------------------------------------------------------------------------------------------------------

ACTOR = FailedActor(name="replica-2", node="10.0.0.7", pid=4711)


def test_a_verdict_is_one_line() -> None:
    what = "replica-2 died:\n\tThe worker died.\n There are some potential root causes. (1) The process is killed"
    line = failure_line(what, stage="001-explore", actor=ACTOR, log="/logs/x.err")
    assert line == (
        "stage 001-explore failed: replica-2 died: The worker died; actor replica-2 on node 10.0.0.7; log: /logs/x.err"
    )


def test_a_verdict_before_the_first_stage_and_without_an_actor() -> None:
    assert failure_line("no room", stage="", actor=None, log="/logs") == "no room; log: /logs"


def test_the_log_of_an_actor_is_its_file_that_has_something_in_it(tmp_path: Path) -> None:
    for name, text in (
        ("worker-aa-ffffffff-4711.err", ":job_id:01000000\n:actor_name:R\n"),
        ("worker-aa-ffffffff-4711.out", "the engine died"),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "worker-bb-ffffffff-4712.err").write_text("another")
    assert log_of(ACTOR, tmp_path, here="10.0.0.7") == str(tmp_path / "worker-aa-ffffffff-4711.out")
    (tmp_path / "worker-aa-ffffffff-4711.err").write_text("Traceback")
    assert log_of(ACTOR, tmp_path, here="10.0.0.7") == str(tmp_path / "worker-aa-ffffffff-4711.err")


def test_the_log_of_an_actor_elsewhere_is_named_with_its_node(tmp_path: Path) -> None:
    assert log_of(ACTOR, tmp_path, here="10.0.0.1") == f"{tmp_path}/worker-*-4711.err on 10.0.0.7"


@pytest.mark.parametrize("actor", [None, FailedActor(name="replica-9", node="", pid=0)])
def test_without_a_process_the_folder_is_named(actor: FailedActor | None, tmp_path: Path) -> None:
    assert log_of(actor, tmp_path, here="10.0.0.1") == str(tmp_path)


def test_a_failure_keeps_the_actor_that_it_names() -> None:
    error = RunError("the trainer group failed", actor_id="ab12")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.actor_id) == ("the trainer group failed", "ab12")
    assert not ray.is_initialized()


def test_statuses_for_programs_are_plain_json() -> None:
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(STATUS)))["run_dir"] == "/runs/x"
