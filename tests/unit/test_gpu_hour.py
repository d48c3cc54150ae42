"""The GPU benchmark's matrix and model; that it runs is shown on a CPU by `tests/integration/test_gpu_hour.py`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.gpu_hour import RowTimeoutError, Session, alarm, measure_all, recipe_of, sessions
from benchmarks.gpu_rows import Hour, Table, equal_share, planned_bytes
from benchmarks.gpus import INDEX, SHAPES, TINY, Devices, fitting_shape, write_model
from still_ray.algo.placement import AtHand, Hardware, resolve, resolve_trainer
from still_ray.algo.planning.plan import misfits
from still_ray.config import TrainerConfig

GIB = 2**30


@pytest.mark.parametrize(("num_devices", "gib", "expected"), [(1, 24, "0.5B"), (8, 80, "14B"), (16, 80, "32B")])
def test_the_largest_shape_that_fits_is_chosen(num_devices: int, gib: int, expected: str) -> None:
    trainer = resolve_trainer(TrainerConfig(num_workers=num_devices), has_gpus=True)
    assert fitting_shape(trainer, device_bytes=gib * GIB, length=20_000) == expected


def test_a_small_device_is_said_so() -> None:
    trainer = resolve_trainer(TrainerConfig(num_workers=1), has_gpus=True)
    with pytest.raises(SystemExit, match="no shape fits 1 x 0 GiB"):
        fitting_shape(trainer, device_bytes=GIB // 2, length=4096)


def hour_of(folder: Path, *, num_devices: int, shape: str, gib: int) -> Hour:
    (folder / "prompt.txt").write_text("{question}", encoding="utf-8")
    return Hour(
        devices=Devices(kind="cuda", name="a GPU", count=num_devices, num_bytes=gib * GIB, peak_flops=1e15),
        shape=SHAPES[shape],
        model=folder,
        folder=folder,
        table=Table(),
        deadline=0.0,
        row_s=0.0,
    )


def refused(hour: Hour, session: Session, machine: Hardware | None) -> list[str]:
    at_hand = AtHand(shape=hour.shape, machine=machine)
    found = misfits(resolve(recipe_of(hour, session), has_gpus=True, at_hand=at_hand), at_hand)
    return [finding.text for finding in found]


def test_two_machines_of_eight_gpus_take_every_session_of_a_32b(tmp_path: Path) -> None:
    hour = hour_of(tmp_path, num_devices=16, shape="32B", gib=80)
    assert (hour.devices_per_replica, hour.sharing) == (4, 4)
    for session in sessions(hour):
        assert not session.refusal
        assert not refused(hour, session, None), session.name


def test_every_stage_of_a_32b_is_planned_to_fit_there(tmp_path: Path) -> None:
    hour = hour_of(tmp_path, num_devices=16, shape="32B", gib=80)
    for recipe in (recipe_of(hour, session) for session in sessions(hour)):
        for step in recipe.steps:
            assert planned_bytes(hour, recipe, step) < 76 * GIB, step


@pytest.mark.parametrize(("num_devices", "shape", "gib"), [(8, "7B", 80), (1, "0.5B", 80)])
def test_a_single_machine_takes_every_session_that_its_devices_allow(
    tmp_path: Path, num_devices: int, shape: str, gib: int
) -> None:
    hour = hour_of(tmp_path, num_devices=num_devices, shape=shape, gib=gib)
    machine = Hardware(cores=64, memory_bytes=1024 * GIB, num_gpus=num_devices, device_bytes=gib * GIB)
    given = [session for session in sessions(hour) if not session.refusal]
    for session in given:
        assert not refused(hour, session, machine), session.name
    left_out = {session.name for session in sessions(hour)} - {session.name for session in given}
    assert left_out == ({"sequence-parallel", "broadcast", "object_store"} if num_devices == 1 else set())


def test_no_two_rows_have_one_name(tmp_path: Path) -> None:
    every = sessions(hour_of(tmp_path, num_devices=8, shape="7B", gib=80))
    names = [row.name for session in every for row in session.rows]
    assert len(set(names)) == len(names)


def test_rows_for_which_no_time_is_left_are_named_and_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hour = hour_of(tmp_path, num_devices=16, shape="32B", gib=80)
    measure_all(hour, ["sft", "dpo", "elastic"], after_each=lambda: None)
    failed = {line["name"]: line["failed"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert failed == dict.fromkeys(
        ("sft-4096", "sft-20000", "dpo-4096", "dpo-14000", "elastic-1", "elastic-2"), "the time is over"
    )
    assert sum("the time is over" in line for line in hour.table.page("").splitlines()) == len(failed)


def test_a_row_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    hour = hour_of(tmp_path, num_devices=1, shape="0.5B", gib=80)
    hour.deadline, hour.row_s = time.monotonic() + 60, 0.05
    started = time.monotonic()
    with pytest.raises(RowTimeoutError, match=r"took longer than 0\.05 s"), alarm(hour):
        time.sleep(30)
    assert time.monotonic() - started < 30
    time.sleep(0.1)  # and nothing after it is


def test_texts_are_compared_up_to_the_first_difference() -> None:
    assert equal_share("abcd", "abxd") == 0.5
    assert equal_share("ab", "abcd") == 0.5
    assert equal_share("ab", "ab") == equal_share("", "") == 1.0


def test_the_model_has_every_weight_of_its_shape_and_no_two_rows_of_them_alike(tmp_path: Path) -> None:
    write_model(TINY, tmp_path, "cpu")
    places = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))["weight_map"]
    tensors = {}
    for name, file in places.items():
        with safe_open(tmp_path / file, "pt") as weights:
            tensors[name] = weights.get_tensor(name)
    assert sum(tensor.numel() for tensor in tensors.values()) == TINY.num_parameters
    rows = torch.cat([tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]])
    assert len({tuple(row) for row in rows.tolist()}) == 2 * TINY.vocab_size
