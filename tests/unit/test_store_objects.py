"""A run directory in an object store: lease, metrics, checkpoints and states; and models fetched from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from still_ray.algo.stages import plan_stages
from still_ray.location import ObjectPath, is_lasting
from still_ray.store import cache, digests, metrics_log, retry, transfer
from still_ray.store.atomic import write_json
from still_ray.store.cache import local_model
from still_ray.store.digests import weights_sample_digest
from still_ray.store.lock import LOCK, Lease, LeaseClaim
from still_ray.store.manifest import read_manifest, write_manifest
from still_ray.store.metrics_log import MetricsLog
from still_ray.store.policy import PolicyRecord, read_policy_record, write_policy_record
from still_ray.store.run_directory import RunDirectory
from still_ray.store.scratch import SCRATCH_VARIABLE, scratch
from still_ray.store.staging import StoredStates, discard_finished, staging_of
from still_ray.types import Event, InputError, RunError, TrainResult
from tests.conftest import grow
from tests.fakes import make_recipe, stage_facts
from tests.s3_server import S3Server

SFT = plan_stages(make_recipe(rounds=[{}]))[-1]

RECORD = PolicyRecord(
    policy_version=1,
    stage="000-imitate",
    result=TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.5, seconds=0.5),
    probes=(),
)


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture
def root(s3: S3Server, request: pytest.FixtureRequest) -> ObjectPath:
    return s3.place(f"objects/{request.node.name}")


def no_note(text: str) -> None:
    raise AssertionError(f"waits: {text}")


# -- the folder and its lease -----------------------------------------------------------------------------------------


def test_what_stays_on_this_machine_is_a_folder_of_each_run(root: ObjectPath, own_scratch: Path) -> None:
    one, other = RunDirectory(str(root / "a")), RunDirectory(root / "b")
    folders = {one.logs, one.ray_train, other.logs, other.ray_train}
    assert len(folders) == 4
    assert all(folder.is_dir() and own_scratch in folder.parents for folder in folders)
    assert str(one.root) == str(root / "a")


def test_a_scratch_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(InputError, match=rf"^{tmp_path}/file/models: cannot be made .*give another STILL_RAY_SCRATCH$"):
        scratch("models")


HOLDER = """
import sys
from still_ray.store.run_directory import RunDirectory

with RunDirectory(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_second_driver_is_refused_until_the_first_ends_however_it_ends(root: ObjectPath) -> None:
    directory = RunDirectory(root)
    command = [sys.executable, "-c", HOLDER, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(InputError, match=rf": another still-ray \(process {holder.pid} on .*\) works in this"),
            directory.locked(),
        ):
            pass
        holder.kill()
        holder.wait()
    with directory.locked(note=no_note):
        assert (root / LOCK).exists()
    assert not (root / LOCK).exists()


def elsewhere() -> LeaseClaim:
    return replace(LeaseClaim.of_this_process(), owner="another", machine="another boot", host="far")


def quick(root: ObjectPath, note: Callable[[str], None], *, stale_s: float) -> Lease:
    return Lease(root, note, heartbeat_s=0.1, stale_s=stale_s, settle_s=0.1)


def test_a_lease_of_another_machine_that_does_not_change_becomes_stale(root: ObjectPath) -> None:
    write_json(root / LOCK, asdict(elsewhere()))
    notes: list[str] = []
    started = time.monotonic()
    with quick(root, notes.append, stale_s=1.0).held():
        assert time.monotonic() - started > 1.0
    assert len(notes) == 1 and "looking for 1 s whether another still-ray" in notes[0] and "on far" in notes[0]


def test_a_lease_of_another_machine_that_beats_is_respected(root: ObjectPath) -> None:
    write_json(root / LOCK, asdict(elsewhere()))
    threading.Timer(0.3, lambda: write_json(root / LOCK, asdict(replace(elsewhere(), beat=1)))).start()
    with pytest.raises(InputError, match="on far"), quick(root, lambda _: None, stale_s=30.0).held():
        pass
    assert (root / LOCK).exists()


def test_of_two_that_come_at_once_the_one_whose_lease_is_overwritten_gives_up(root: ObjectPath) -> None:
    lease = quick(root, no_note, stale_s=30.0)
    lease._settle_s = 0.6
    threading.Timer(0.3, lambda: write_json(root / LOCK, asdict(elsewhere()))).start()
    with pytest.raises(InputError, match="on far"), lease.held():
        pass


def work_while_another_takes_over(root: ObjectPath) -> None:
    write_json(root / LOCK, asdict(elsewhere()))
    time.sleep(30)


def test_a_driver_that_lost_its_lease_stops(root: ObjectPath) -> None:
    started = time.monotonic()
    with (
        pytest.raises(RunError, match=r"stopped: another still-ray .* on far\) took this folder over"),
        quick(root, no_note, stale_s=30.0).held(),
    ):
        work_while_another_takes_over(root)
    assert time.monotonic() - started < 10
    assert "another" in (root / LOCK).read_text(), "what belongs to another is left alone"


def test_a_lease_beats_while_it_is_held(root: ObjectPath) -> None:
    with quick(root, no_note, stale_s=30.0).held():
        first = (root / LOCK).read_text()
        time.sleep(1.0)
        assert (root / LOCK).read_text() != first


# -- manifests --------------------------------------------------------------------------------------------------------


def test_a_stage_is_incomplete_when_an_object_is_gone_or_has_another_size(root: ObjectPath, tmp_path: Path) -> None:
    for name in ("eval.json", "checkpoint/model.safetensors"):
        (root / name).write_bytes(b"content")
    write_manifest(root, stage_facts(SFT, policy_version=2))
    manifest = read_manifest(root)
    assert manifest is not None and manifest.facts.policy_version == 2
    assert manifest.files.keys() == {"eval.json", "checkpoint/model.safetensors"}
    shutil.copytree(copied(root, tmp_path / "copy"), tmp_path / "again")
    assert read_manifest(tmp_path / "again") is not None, "a copy on a disk is as valid"
    (root / "eval.json").write_bytes(b"other size")
    assert read_manifest(root) is None
    (root / "eval.json").unlink()
    assert read_manifest(root) is None


def test_a_stage_that_was_recorded_on_a_disk_is_valid_in_a_store(root: ObjectPath, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text("content")
    write_manifest(tmp_path, stage_facts(SFT))
    for file in tmp_path.iterdir():
        if file.is_file():
            (root / file.name).copy_from(file)
    assert read_manifest(root) is not None


def copied(root: ObjectPath, folder: Path) -> Path:
    for name in root.files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).copy_to(folder / name)
    return folder


# -- metrics ----------------------------------------------------------------------------------------------------------


def event(value: float) -> Event:
    return Event(name="train/loss", value=value, labels={})


def num_lines(root: ObjectPath) -> int:
    path = root / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_events_are_stored_at_intervals_on_request_and_at_the_end(
    root: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(root / "metrics.jsonl")
    log.append(event(1))
    log.flush()
    until(lambda: num_lines(root) == 1)
    log.append(event(2))
    log.close()
    assert num_lines(root) == 2
    monkeypatch.setattr(metrics_log, "UPLOAD_S", 0.1)
    again = MetricsLog(root / "metrics.jsonl")
    again.append(event(3))
    until(lambda: num_lines(root) == 3)
    again.close()


def test_a_driver_killed_here_loses_no_event_and_one_killed_elsewhere_those_since_the_last_upload(
    root: ObjectPath, own_scratch: Path
) -> None:
    program = """
import os, signal, sys, time
from still_ray.location import location
from still_ray.store.metrics_log import MetricsLog
from still_ray.types import Event

log = MetricsLog(location(sys.argv[1]))
log.append(Event(name="a", value=1, labels={}))
log.flush()
while not location(sys.argv[1]).exists():
    time.sleep(0.01)
time.sleep(0.3)
log.append(Event(name="a", value=2, labels={}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(root / "metrics.jsonl")], check=False)
    assert killed.returncode == -9
    assert num_lines(root) == 1
    kept = own_scratch.with_name("kept")
    shutil.copytree(own_scratch, kept)
    for left, expected in ((True, 3), (False, 4)):
        if not left:
            shutil.rmtree(own_scratch)
        log = MetricsLog(root / "metrics.jsonl")
        log.append(event(3))
        log.close()
        assert num_lines(root) == expected


def test_large_weights_are_told_apart_by_samples_wherever_they_lie(
    root: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SAMPLED_BYTES", 1000)
    monkeypatch.setattr(digests, "SAMPLE_BYTES", 40)
    content = bytes(number % 251 for number in range(5000))
    found = {}
    for name, changed in (("one", ()), ("copy", ()), ("first", (0,)), ("last", (4999,)), ("all", range(5000))):
        weights = bytearray(content)
        for position in changed:
            weights[position] ^= 1
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (root / name / "model.safetensors").write_bytes(bytes(weights))
        found[name] = weights_sample_digest(str(tmp_path / name))
        assert weights_sample_digest(str(root / name)) == found[name]
    assert found["one"] == found["copy"] and len(set(found.values())) == 4
    assert weights_sample_digest("somebody/model-on-a-hub") is None


# -- checkpoints and states -------------------------------------------------------------------------------------------


def trained(folder: Path, weights: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)


def test_a_published_checkpoint_is_whole_and_this_machine_need_not_fetch_it(
    root: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(root / "checkpoint")
    (root / "checkpoint/left-by-an-upload.bin").write_bytes(b"half")
    staging = staging_of(checkpoint, 0)
    trained(staging.folder, b"weights")
    assert read_policy_record(checkpoint) is None
    staging.publish(RECORD)
    staging.close()
    assert read_policy_record(checkpoint) == RECORD
    names = {"config.json", "tokenizer.json", "model.safetensors", "still_ray_policy.json"}
    assert (root / "checkpoint").files().keys() == names
    monkeypatch.setattr(cache, "download", None)
    assert (Path(local_model(checkpoint)) / "model.safetensors").read_bytes() == b"weights"


def test_a_state_is_kept_until_the_record_says_that_the_checkpoint_is_whole(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    state = tmp_path / "checkpoint.partial-state"
    trained(checkpoint, b"weights")
    state.mkdir()
    staging_of(str(checkpoint), 0).publish(RECORD)
    assert read_policy_record(str(checkpoint)) == RECORD
    assert not state.exists()


def test_a_checkpoint_that_its_disk_did_not_take_is_kept_and_put_there_once_it_fits(
    small_disk: Path, own_scratch: Path
) -> None:
    place = str(small_disk / "run/rounds/000-imitate/checkpoint")
    staging = staging_of(place, 0)
    assert staging.spare is not None and staging.spare.is_relative_to(own_scratch)
    trained(staging.spare, b"w" * 100_000)
    staging.keep_aside(RECORD, "the order", is_there=True)
    staging.close()
    assert staging_of(place, 1).kept("the order") is None, "only the first rank puts it there"

    again = staging_of(place, 0)
    assert again.kept("the order") == RECORD
    with pytest.raises(RunError, match=rf"^{place}: the checkpoint cannot be written: .*No space left .* 65,536 bytes"):
        again.publish(RECORD)
    again.close()
    assert again.kept("the order") == RECORD and read_policy_record(place) is None
    grow(small_disk)
    assert again.publish(RECORD) == ""
    again.close()
    assert read_policy_record(place) == RECORD
    assert (Path(place) / "model.safetensors").stat().st_size == 100_000
    assert not list(own_scratch.glob("runs/*/staged/*")), "nothing is left on this machine"


def test_weights_that_lack_but_their_record_are_kept_too(small_disk: Path, own_scratch: Path) -> None:
    place = small_disk / "run/rounds/000-imitate/checkpoint"
    trained(place, b"w" * 40_000)
    (small_disk / "filler").write_bytes(b"f" * (shutil.disk_usage(small_disk).free))
    staging = staging_of(str(place), 0)
    with pytest.raises(RunError, match="No space left"):
        staging.publish(RECORD)
    staging.keep_aside(RECORD, "the order", is_there=False)
    assert not place.exists(), "it would only fill the disk"
    grow(small_disk)
    again = staging_of(str(place), 0)
    assert again.kept("the order") == RECORD
    again.publish(RECORD)
    assert (place / "model.safetensors").stat().st_size == 40_000
    assert staging_of(str(place), 0).kept("the order") is None


def test_a_state_on_a_disk_that_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "checkpoint", b"weights")
    state = tmp_path / "checkpoint.partial-state"
    state.mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    assert str(state) in staging_of(str(tmp_path / "checkpoint"), 0).publish(RECORD)


KILLED_UPLOAD = """
import os, signal, sys
from pathlib import Path
from still_ray.store import staging
from tests.unit.test_store_objects import RECORD, trained

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

staging.write_policy_record = killed
place = staging.staging_of(sys.argv[1], 0)
trained(place.folder, b"weights")
place.publish(RECORD)
"""


def test_an_upload_killed_before_the_record_leaves_no_valid_checkpoint_and_is_done_again(root: ObjectPath) -> None:
    checkpoint = str(root / "checkpoint")
    assert subprocess.run([sys.executable, "-c", KILLED_UPLOAD, checkpoint], check=False).returncode == -9
    assert (root / "checkpoint/model.safetensors").exists()
    assert read_policy_record(checkpoint) is None
    again = staging_of(checkpoint, 0)
    trained(again.folder, b"again")
    again.publish(RECORD)
    assert read_policy_record(checkpoint) == RECORD
    assert (root / "checkpoint/model.safetensors").read_bytes() == b"again"


class Refusing:
    """A method of `ObjectPath` that the store answers with an error so many times before it does its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, *, times: int, answer: str) -> None:
        self.num_calls = 0
        real = getattr(ObjectPath, method)

        def refusing(place: ObjectPath, *arguments: object, **options: object) -> object:
            self.num_calls += 1
            if self.num_calls > times:
                return real(place, *arguments, **options)
            raise RunError(f"{place}: cannot be written") from OSError(answer)

        monkeypatch.setattr(ObjectPath, method, refusing)


BUSY = "When completing multiple part upload: AWS Error SLOW_DOWN during PutObject operation: reduce your request rate"
DENIED = "When initiating multiple part upload: AWS Error ACCESS_DENIED during PutObject operation: no"


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("no_pauses")
def test_a_store_that_fails_for_a_while_costs_neither_the_checkpoint_nor_the_manifest(
    root: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = staging_of(str(root / "checkpoint"), 0)
    trained(staging.folder, b"weights")
    for method in ("copy_from", "write_bytes", "unlink", "remove_all"):
        Refusing(monkeypatch, method, times=3, answer=BUSY)
    assert staging.publish(RECORD) == ""
    assert read_policy_record(root / "checkpoint") == RECORD
    Refusing(monkeypatch, "files", times=3, answer=BUSY)
    Refusing(monkeypatch, "write_bytes", times=3, answer=BUSY)
    write_manifest(root, stage_facts(SFT, policy_version=1))
    assert read_manifest(root) is not None


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(("answer", "num_tries"), [(BUSY, 4), (DENIED, 1)])
def test_what_would_be_refused_again_is_not_tried_again(
    root: ObjectPath, monkeypatch: pytest.MonkeyPatch, answer: str, num_tries: int
) -> None:
    refusing = Refusing(monkeypatch, "write_bytes", times=100, answer=answer)
    with pytest.raises(RunError, match="cannot be written"):
        write_json(root / "state.json", {})
    assert refusing.num_calls == num_tries


def test_a_bucket_that_is_not_there_is_not_waited_for(root: ObjectPath) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match="there is no such bucket") as refused:
        write_json(ObjectPath("s3://nobodys-bucket/state.json", root.query), {})
    assert is_lasting(refused.value)
    assert time.monotonic() - started < retry.PAUSES_S[0] + retry.PAUSES_S[1]


@pytest.mark.usefixtures("no_pauses")
def test_a_checkpoint_that_the_store_refused_is_kept_for_its_own_order_and_uploaded_later(
    root: ObjectPath, own_scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(root / "000-imitate/checkpoint")
    staging = staging_of(checkpoint, 0)
    trained(staging.folder, b"weights")
    staging.keep(RECORD, "the order")
    with monkeypatch.context() as patched:
        Refusing(patched, "copy_from", times=100, answer=DENIED)
        with pytest.raises(RunError):
            staging.publish(RECORD)
    assert str(staging.folder) in staging.whereabouts
    staging.close()
    assert read_policy_record(checkpoint) is None

    again = staging_of(checkpoint, 0)
    assert again.kept("the order") == RECORD
    assert again.publish(RECORD) == ""
    again.close()
    assert read_policy_record(checkpoint) == RECORD
    assert (root / "000-imitate/checkpoint/model.safetensors").read_bytes() == b"weights"
    assert not list(own_scratch.glob("runs/*/staged/*")), "nothing is left on this machine"


def test_a_checkpoint_that_was_kept_for_another_order_is_not_taken(root: ObjectPath) -> None:
    staging = staging_of(str(root / "000-imitate/checkpoint"), 0)
    trained(staging.folder, b"weights")
    staging.keep(RECORD, "the order")
    for _ in range(2):
        assert staging.kept("another order") is None
    assert staging.kept("the order") is None, "it will be overwritten"


def test_states_that_cannot_be_removed_are_named(root: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = staging_of(str(root / "checkpoint"), 0)
    trained(staging.folder, b"weights")
    assert staging.states is not None
    staging.states.open("job")
    real = ObjectPath.remove_all

    def refused(place: ObjectPath) -> None:
        if place.name.endswith("partial-state"):
            raise RunError(f"{place}: cannot be removed: access is denied")
        real(place)

    monkeypatch.setattr(ObjectPath, "remove_all", refused)
    note = staging.publish(RECORD)
    states = root / "checkpoint.partial-state"
    assert note == f"{states}: cannot be removed: access is denied; it is of no use any more"
    assert read_policy_record(root / "checkpoint") == RECORD, "the stage is complete all the same"


def test_what_killed_ranks_left_of_finished_stages_goes_when_the_next_one_begins(root: ObjectPath) -> None:
    stages = ("000-imitate", "001-sft", "002-sft")
    places = [staging_of(str(root / stage / "checkpoint"), rank) for stage in stages for rank in (0, 1)]
    for place in places:
        trained(place.folder, b"weights")
    write_policy_record(root / "000-imitate/checkpoint", RECORD)
    write_policy_record(root / "002-sft/checkpoint", RECORD)
    discard_finished(str(root / "002-sft/checkpoint"))
    assert [place.folder.exists() for place in places] == [False, False, True, True, True, True]


def test_a_path_is_its_own_staging(tmp_path: Path) -> None:
    staging = staging_of(str(tmp_path / "checkpoint"), 3)
    assert staging.folder == tmp_path / "checkpoint" and staging.states is None
    trained(staging.folder, b"weights")
    staging.publish(RECORD)
    staging.close()
    assert read_policy_record(tmp_path / "checkpoint") == RECORD


def ranks_of(root: ObjectPath, folder: Path, digest: str = "job") -> Iterator[tuple[int, Path, StoredStates]]:
    """Two ranks that open the stored states as a stage does."""
    step = None
    for rank in range(2):
        own = folder / f"rank-{rank}"
        states = StoredStates(root / "state", own, rank)
        if rank == 0:
            step = states.open(digest)
        states.fetch(step)
        yield rank, own, states


def save(rank: int, folder: Path, step: int) -> None:
    """What DeepSpeed and transformers write on a rank under ZeRO-3."""
    shards = folder / f"checkpoint-{step}" / f"global_step{step}"
    shards.mkdir(parents=True)
    (shards / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").write_text(f"model {rank} {step}")
    (shards / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_text(f"optimizer {rank} {step}")
    (shards.parent / f"rng_state_{rank}.pth").write_text(f"random {rank}")
    if rank == 0:
        (shards.parent / "latest").write_text(f"global_step{step}")
        (folder / "reference.json").write_text("{}")


def test_each_rank_gets_its_shards_of_the_newest_whole_state_and_what_belongs_to_all(
    root: ObjectPath, tmp_path: Path
) -> None:
    first = list(ranks_of(root, tmp_path / "first"))
    for step in (10, 20):
        for rank, folder, states in first:
            save(rank, folder, step)
            states.keep()
        first[0][2].complete(step)
    for rank, folder, states in first:  # the group dies before every rank has kept its part
        save(rank, folder, 30)
        if rank == 0:
            states.keep()
    for rank, folder, _ in ranks_of(root, tmp_path / "second"):
        shards = folder / "checkpoint-20/global_step20"
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-20", "reference.json"]
        assert (shards.parent / "latest").read_text() == "global_step20"
        assert sorted(path.name for path in shards.iterdir()) == [
            f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
            f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt",
        ]
    for _, folder, _ in ranks_of(root, tmp_path / "third", digest="another job"):
        assert list(folder.iterdir()) == []
    assert (root / "state").files().keys() == {"job"}


# -- models -----------------------------------------------------------------------------------------------------------


def model_in(root: ObjectPath, weights: bytes = b"weights") -> str:
    for name, content in {"config.json": b"{}", "model.safetensors": weights}.items():
        (root / "model" / name).write_bytes(content)
    return str(root / "model")


def test_a_model_is_fetched_once_and_again_when_it_was_written_again(
    root: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    real = transfer.download

    def counted(source: ObjectPath, folder: Path, names: dict[str, int]) -> None:
        fetched.extend(names)
        time.sleep(0.3)
        real(source, folder, names)

    monkeypatch.setattr(cache, "download", counted)
    model = model_in(root)
    threads = [threading.Thread(target=local_model, args=(model,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in Path(local_model(model, weights=False)).iterdir()) == ["config.json"]
    before = Path(local_model(model))
    time.sleep(1.1)  # S3 tells times in seconds
    model_in(root, b"WEIGHTS")
    after = Path(local_model(model))
    assert after != before and (after / "model.safetensors").read_bytes() == b"WEIGHTS"


def test_a_path_and_a_hub_id_are_left_alone_and_an_empty_place_is_refused(root: ObjectPath) -> None:
    assert local_model("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
    assert local_model("/models/a") == "/models/a"
    with pytest.raises(InputError, match="no such model: there is nothing at this place"):
        local_model(str(root / "nothing"))


def test_old_folders_go_when_the_disk_is_short_and_used_ones_stay(
    root: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, used = (scratch("models", name) for name in ("a" * 16 + "-old", "b" * 16 + "-used"))
    os.utime(old, (0, 0))
    free = iter([0, 10**9, 10**9])
    monkeypatch.setattr(cache, "_free_bytes", lambda _: next(free))
    folder = Path(local_model(model_in(root)))
    assert folder.exists() and used.exists() and not old.exists()
    os.utime(folder, (0, 0))
    time.sleep(1.1)
    free = iter([10**9] * 3)
    model_in(root, b"WEIGHTS")
    assert local_model(str(root / "model")) != str(folder) and not folder.exists(), "superseded"
    free = iter([0] * 3)
    time.sleep(1.1)
    model_in(root, b"larger")
    with pytest.raises(RunError, match=r"does not fit, 0.0 GiB are free; make room or give STILL_RAY_SCRATCH"):
        local_model(str(root / "model"))
