"""The trainer group around its trainer: what is said while it waits, and a checkpoint that its store refuses.

Mailbox, store and torch's process group are real; the trainer is a fake that writes a file.
"""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState, RestartingState
from safetensors.torch import save

from still_ray.actors.training.mailbox import Mailbox, MailboxNews
from still_ray.actors.training.train_loop import TrainLoopSettings, _Stage
from still_ray.actors.training.trainer_group import DeathNotes, StartNotes, TrainerGroup, is_alive
from still_ray.algo.placement import resolve_trainer
from still_ray.algo.stages import Stage
from still_ray.config import PromptConfig, SyncConfig, TrainerConfig
from still_ray.driver.ports import TrainOrder
from still_ray.formats.prompt import TEMPLATE_FILE
from still_ray.location import ObjectPath
from still_ray.methods.sft import SftConfig
from still_ray.store.policy import read_policy_record
from still_ray.store.scratch import SCRATCH_VARIABLE
from still_ray.store.tables import write_table
from still_ray.trainer.checkpoint import write_checkpoint
from still_ray.trainer.job import ModelFilesError, TrainJob, TrainOutcome
from still_ray.types import RunError, StageKind, TrainingExample, TrainResult
from tests.conftest import grow
from tests.fakes import FakeProgress
from tests.s3_server import S3Server
from tests.tiny_model import build_tiny_checkpoint

pytestmark = pytest.mark.integration

RESULT = TrainResult(steps=3, num_examples=1, num_skipped=0, num_tokens=9, final_loss=0.5, seconds=1.0)
MODEL = torch.nn.Linear(160, 160, bias=False)
WEIGHTS = save(MODEL.state_dict())
WEIGHTS_BYTES = len(WEIGHTS)
SETTINGS = TrainLoopSettings(
    trainer=resolve_trainer(TrainerConfig(num_workers=1), has_gpus=False),
    sync=SyncConfig(transport="checkpoint"),
    prompt=PromptConfig(),
    max_probe_tokens=8,
    trust_remote_code=False,
)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def _one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def order(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainOrder:
    """Imitation on one row, in a run in an object store."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    build_tiny_checkpoint(tmp_path / "start", seed=0)
    folder = s3.place(f"trainer-group/{tmp_path.name}") / "rounds" / "000-imitate"
    row = TrainingExample(source="demonstration", source_id="d", domain="math", question="q", thought="t", solution="s")
    write_table(folder / "training_set.parquet", [row], TrainingExample)
    return TrainOrder(
        stage=Stage(kind=StageKind.IMITATE, round=0, policy_version=1),
        method="sft",
        settings=SftConfig(),
        init_model=str(tmp_path / "start"),
        data_path=str(folder / "training_set.parquet"),
        checkpoint=str(folder / "checkpoint"),
        seed=1,
    )


class Trainer:
    """A fake `TrainerWorker` that counts what it trained: always the same weights."""

    model = MODEL

    def __init__(self) -> None:
        self.num_trained = 0

    def train(self, job: TrainJob, rows: Any, **_: Any) -> TrainOutcome:
        self.num_trained += 1
        refusal = write_checkpoint(write_weights, job, num_bytes=WEIGHTS_BYTES)
        return TrainOutcome(result=RESULT, resumed_from_step=0, startup_s=0.0, save_s=0.0, probes=(), refusal=refusal)


def write_weights(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)


def carried_out(order: TrainOrder, trainer: Trainer) -> MailboxNews:
    """What the driver hears of a group that carries the order out."""
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote("test")
    group = ray.get(mailbox.register.remote(""))
    worker: Any = trainer
    _Stage(replace(SETTINGS, mailbox=mailbox), worker, 0, order, group=group).run()
    news: MailboxNews = ray.get(mailbox.news.remote())
    return news


@pytest.mark.usefixtures("_cluster", "_one_rank")
def test_a_checkpoint_that_the_store_refused_is_uploaded_by_the_next_run_and_not_trained_again(
    order: TrainOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: ObjectPath, file: Path) -> NoReturn:
        raise RunError(f"{place}: cannot be written: access is denied") from OSError("AWS Error ACCESS_DENIED: no")

    trainer = Trainer()
    with monkeypatch.context() as patched:
        patched.setattr(ObjectPath, "copy_from", refuse)
        refused = carried_out(order, trainer)
    assert refused.record is None and len(refused.failure.splitlines()) == 1
    assert [event.name for event in refused.events] == ["sync/publish_seconds"]
    assert "cannot be written: access is denied; the trained checkpoint is kept in" in refused.failure
    assert f"on {socket.gethostname()}; the same command uploads it" in refused.failure

    stored = carried_out(order, trainer)
    assert stored.failure == "" and stored.record is not None and stored.record.result == RESULT
    assert trainer.num_trained == 1
    assert read_policy_record(order.checkpoint) == stored.record
    assert not list((tmp_path / "scratch").glob("runs/*/staged/*"))


@pytest.mark.usefixtures("_cluster", "_one_rank")
def test_a_checkpoint_that_was_kept_for_another_seed_is_trained_anew(
    order: TrainOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: ObjectPath, file: Path) -> NoReturn:
        raise RunError(f"{place}: cannot be written") from ValueError("no")

    trainer = Trainer()
    with monkeypatch.context() as patched:
        patched.setattr(ObjectPath, "copy_from", refuse)
        assert carried_out(order, trainer).failure
    (kept,) = (tmp_path / "scratch").glob("runs/*/staged/*/rank-0/checkpoint")
    shutil.rmtree(kept)  # the real trainer puts another folder in its place
    assert carried_out(replace(order, seed=2), trainer).record is not None
    assert trainer.num_trained == 2


@pytest.mark.usefixtures("_cluster", "_one_rank")
def test_a_full_disk_ends_the_stage_and_the_next_run_stores_what_was_trained(
    order: TrainOrder, small_disk: Path, tmp_path: Path
) -> None:
    trainer, place = Trainer(), small_disk / "rounds/000-imitate/checkpoint"
    on_disk = replace(order, checkpoint=str(place))
    refused = carried_out(on_disk, trainer)
    assert refused.failure.startswith(
        f"{place}: a checkpoint of {WEIGHTS_BYTES:,} bytes cannot be written, 65,536 are free there"
    )
    assert "the trained checkpoint is kept in" in refused.failure and str(tmp_path / "scratch") in refused.failure
    still = carried_out(on_disk, trainer)
    assert still.failure.startswith(f"{place}: the checkpoint cannot be written")
    grow(small_disk)
    stored = carried_out(on_disk, trainer)
    assert stored.failure == "" and stored.record == read_policy_record(place)
    assert trainer.num_trained == 1
    assert (place / TEMPLATE_FILE).is_file()


class Breaks(Trainer):
    """Raises instead of training."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def train(self, job: TrainJob, rows: Any, **_: Any) -> TrainOutcome:
        raise self._error


def loading(error: Exception) -> ModelFilesError:
    """What the worker makes of an error while it loads the start model."""
    failure = ModelFilesError("/model cannot be loaded")
    failure.__cause__ = error
    return failure


@pytest.mark.usefixtures("_cluster", "_one_rank")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (loading(KeyError("qwen9")), "it cannot be trained: /model cannot be loaded: KeyError: 'qwen9'"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/run/state"), "it cannot be trained: /run/state: Disk quota"),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"), "it cannot be trained: "),
        (loading(RuntimeError("gloo/transport/tcp/pair.cc:537] Connection closed by peer")), ""),
        (loading(OSError(errno.ESTALE, "Stale file handle")), ""),
        (RuntimeError("a peer went away"), ""),
    ],
)
def test_what_loading_and_saving_raise_ends_the_run_and_the_rest_is_a_death(
    order: TrainOrder, error: Exception, words: str
) -> None:
    """A death is what the worker group is built again for: its exception leaves the loop."""
    if words:
        assert carried_out(order, Breaks(error)).failure.startswith(words)
    else:
        with pytest.raises(type(error)):
            carried_out(order, Breaks(error))


class NotedError(Exception):
    """Ends a wait that would have no end."""


@pytest.mark.usefixtures("_cluster")
def test_a_group_without_room_says_what_it_waits_for(order: TrainOrder, tmp_path: Path) -> None:
    class Impatient(FakeProgress):
        def doing(self, what: str) -> None:
            raise NotedError(what)

    settings = replace(
        SETTINGS, trainer=resolve_trainer(TrainerConfig(num_workers=2, cpus_per_worker=64.0), has_gpus=False)
    )
    group = TrainerGroup(settings, name="no-room", storage=tmp_path, max_restarts=0)
    with pytest.raises(NotedError, match=r"^waiting for the trainer group: 2 ranks of 64 CPU each$"):
        group.train(order, progress=Impatient())
    group.close(timeout_s=0.1)


@pytest.mark.usefixtures("_cluster")
def test_a_group_that_fails_is_told_with_its_cause_and_not_built_a_third_time_for_the_same_one(
    order: TrainOrder,
) -> None:
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote("test")
    ray.get(mailbox.post.remote(order))
    out_of_memory = ray.exceptions.OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: "
        "ef4252b8) was 22.41GB used / 23.54GB limit (0.95)\nTop 10 memory users: PID\tMEM(GB)\tCOMMAND\n"
        "7487\t14.21\tray::RayTrainWorker\nRefer to the documentation: https://docs.ray.io/x.html."
    )
    ranks = {
        0: RuntimeError("gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
        1: WorkerHealthCheckFailedError("A worker health check failed.", failure=out_of_memory),
    }
    found = []
    for _ in range(2):
        DeathNotes(mailbox).after_exception(None, ranks)
        found.append(ray.get(mailbox.news.remote()))
    said = (
        "Ray killed it for lack of memory on its node 192.0.2.2 (22.41 of 23.54 GB used): RayTrainWorker 14.21 GB; "
        "lower imitate.per_device_batch_size, imitate.max_length or trainer.num_workers"
    )
    assert all(news.notes[0].startswith(f"the trainer group failed: {said}") for news in found)
    assert not found[0].failure and found[1].failure.startswith(f"the trainer group failed twice alike: {said}")


@pytest.mark.usefixtures("_cluster")
def test_a_group_whose_ranks_do_not_start_is_told_as_well() -> None:
    """Ray Train tries again and tells no `UserCallback`; its states are those of the pinned release."""
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote("test")
    notes = StartNotes(mailbox)
    by_worker = WorkerGroupError("", {0: RuntimeError("told by DeathNotes")})
    notes.after_controller_state_update(InitializingState(), RestartingState(by_worker))
    assert ray.get(mailbox.news.remote()).notes == ()
    failure = ControllerError(WorkerGroupStartupFailedError("a worker died while it was initialized"))
    notes.after_controller_state_update(InitializingState(), ReschedulingState(failure))
    (said,) = ray.get(mailbox.news.remote()).notes
    assert said.startswith("the trainer group failed: ") and "a worker died while it was initialized" in said


@pytest.mark.usefixtures("_cluster")
def test_a_group_is_up_as_long_as_its_first_rank_lives() -> None:
    class Rank:
        def name(self) -> str:
            return str(ray.get_runtime_context().get_actor_id())

    rank: Any = ray.remote(Rank).options(num_cpus=0).remote()
    actor_id = ray.get(rank.name.remote())
    assert is_alive(actor_id)
    ray.kill(rank)
    for _ in range(100):
        if not is_alive(actor_id):
            return
        ray.wait([rank.name.remote()], timeout=0.1)
    raise AssertionError("still up")
