"""What only GPUs can show. On a machine without them each test skips and says how many devices it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from still_ray.algo.placement import default_tolerance, resolve_trainer
from still_ray.config.schema import TrainerConfig
from still_ray.trainer.environment import trainer_environment
from still_ray.types import ProbeSequence
from still_ray.weight_sync.proof import Claim, prove
from tests.tiny_model import build_tiny_checkpoint

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 500
TRAINER = TrainerConfig(num_workers=1, use_gpu=True, logging_steps=1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A folder with the model that everything starts from."""
    build_tiny_checkpoint(tmp_path / "start", seed=0, hidden_size=128, dtype="bfloat16", scale=0.05)
    return tmp_path


def _started(module: str, arguments: Sequence[object], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=os.environ | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _trainer(directory: Path, *, num_receivers: int, trainer: TrainerConfig = TRAINER) -> subprocess.Popen[str]:
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    environment = (
        trainer_environment(resolve_trainer(trainer, has_gpus=True), use_gpu=True)
        | group
        | {"CUDA_VISIBLE_DEVICES": _devices()[0]}
    )
    arguments = (directory, num_receivers, trainer.model_dump_json())
    return _started("tests.cuda.trainer_process", arguments, environment)


def _replica(directory: Path, name: str, *, first_device: int, num_ranks: int, offset: int) -> subprocess.Popen[str]:
    devices = ",".join(_devices()[first_device : first_device + num_ranks])
    arguments = (directory, name, num_ranks, offset, "cuda")
    return _started("tests.integration.replica_process", arguments, {"CUDA_VISIBLE_DEVICES": devices})


def _devices() -> list[str]:
    import torch

    everything = ",".join(map(str, range(torch.cuda.device_count())))
    return os.environ.get("CUDA_VISIBLE_DEVICES", everything).split(",")


def _finished(*processes: subprocess.Popen[str]) -> None:
    try:
        outputs = [process.communicate(timeout=TIME_LIMIT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)


def _seen(directory: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _assert_proved(directory: Path, name: str) -> None:
    replica = _seen(directory, name)
    probes = [ProbeSequence(**probe) for probe in _seen(directory, "trainer")["probes"]]
    claim = Claim(sampler=name, policy_version=1, probes=probes, tolerance=default_tolerance("bfloat16"))
    assert not prove(claim, replica["after"], replica["before"]).weak, "before, it served another model"
    assert "pigeon" in replica["refusal"]


@pytest.mark.cuda(2)
def test_nccl_brings_a_replica_what_the_trainer_holds(directory: Path) -> None:
    _finished(
        _trainer(directory, num_receivers=1),
        _replica(directory, "replica-0", first_device=1, num_ranks=1, offset=1),
    )
    _assert_proved(directory, "replica-0")


@pytest.mark.cuda(4)
def test_nccl_brings_tensor_parallel_workers_and_another_replica_the_same(directory: Path) -> None:
    _finished(
        _trainer(directory, num_receivers=3),
        _replica(directory, "replica-0", first_device=1, num_ranks=1, offset=1),
        _replica(directory, "replica-1", first_device=2, num_ranks=2, offset=2),
    )
    for name in ("replica-0", "replica-1"):
        _assert_proved(directory, name)


@pytest.mark.cuda(3)
def test_two_tensor_parallel_workers_are_one_replica_and_die_together(directory: Path) -> None:
    _finished(
        _trainer(directory, num_receivers=2),
        _replica(directory, "replica-0", first_device=1, num_ranks=2, offset=1),
    )
    _assert_proved(directory, "replica-0")
    assert _seen(directory, "replica-0")["death"]["owner"] == "one of its worker processes died"


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    "num_ranks", [pytest.param(1, marks=pytest.mark.cuda), pytest.param(2, marks=pytest.mark.cuda(2))]
)
def test_an_engine_that_sleeps_gives_its_device_back_and_serves_what_it_was_sent(
    directory: Path, level: int, num_ranks: int
) -> None:
    """Most of what it holds is cache, 0.3 of the device."""
    build_tiny_checkpoint(directory / "other", seed=1, hidden_size=128, dtype="bfloat16", scale=0.05)
    devices = ",".join(_devices()[:num_ranks])
    _finished(_started("tests.cuda.sleeping_engine", (directory, level, num_ranks), {"CUDA_VISIBLE_DEVICES": devices}))
    seen = _seen(directory, "sleeper")
    assert seen["woken"] == seen["fresh"], "the same kernels on the same weights"
    assert max(seen["asleep"]) < 0.4 * min(seen["awake"])
    assert max(seen["asleep"]) - min(seen["asleep"]) < 2**28, "turns leave nothing behind"


@pytest.mark.cuda
@pytest.mark.parametrize(
    "changes",
    [{}, {"zero_stage": 2}, {"offload": "cpu"}, {"num_mlp_tiles": 3, "offload_activations": True}],
    ids=["zero-3", "zero-2", "offload", "tiles-and-off-loaded-activations"],
)
def test_sft_in_bfloat16_with_gradient_checkpointing_lowers_the_loss(directory: Path, changes: dict[str, Any]) -> None:
    _finished(_trainer(directory, num_receivers=0, trainer=TRAINER.model_copy(update=changes)))
    seen = _seen(directory, "trainer")
    assert seen["losses"][-1] < seen["losses"][0]
    assert (seen["dtype"], seen["checkpointing"]) == ("torch.bfloat16", True)


@pytest.mark.cuda
def test_a_single_long_sequence_needs_no_square_mask(directory: Path) -> None:
    """One sequence a forward pass is not padded, so no mask of length x length is made: packing would gain nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory / "start", dtype=torch.bfloat16).cuda()
    length = 32_768
    ids = torch.randint(0, 256, (1, length), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        model.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert torch.cuda.max_memory_allocated() - before < length * length, "less than one byte for each pair of tokens"


@pytest.mark.cuda
def test_the_benchmark_measures_speed_and_memory_of_every_length(directory: Path) -> None:
    options = ["--shape", "0.5B", "--rows", "sft-", "--run-dir", str(directory / "bench")]
    command = [sys.executable, "-m", "benchmarks.gpu_hour", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_S)
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in map(json.loads, done.stdout.splitlines())}
    for length in (4096, 20_000):
        assert 0 < figures[f"sft-{length}_speed"]["ratio"] < 1, "a share of the peak"
        assert 0 < figures[f"sft-{length}_memory"]["ratio"] < 1.1, "what the plan counts holds it"
