"""Ranks that share rows, each with a slice: losses, gradients, scores, states and memory against whole rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from still_ray.algo.placement import resolve_trainer
from still_ray.algo.planning.findings import total_bytes
from still_ray.algo.planning.trainer_memory import Batch, trainer_memory
from still_ray.config.schema import TrainerConfig
from still_ray.trainer.environment import trainer_environment
from tests.integration.sequence_rank import LONG_ROW, WORLDS, rows
from tests.integration.test_trainer_ranks import _free_port
from tests.tiny_model import build_tiny_checkpoint
from tests.unit.test_planning_memory import SMALL, trainer

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 300
EXACT = 1e-5
"""Relative: float32 adds the same numbers in another order."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where groups of one, two and four ranks ran every scenario."""
    path = tmp_path_factory.mktemp("slices")
    for seed, name in enumerate(("start", "other")):
        build_tiny_checkpoint(path / name, seed=seed, tied=False, num_heads=4, num_kv_heads=2)
    environment = trainer_environment(
        resolve_trainer(TrainerConfig(num_workers=2, threads=1), has_gpus=False), use_gpu=False
    )
    ports = [str(_free_port()) for _ in WORLDS]
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.sequence_rank", str(path), *ports],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return path


def seen(directory: Path, world: int, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(directory / f"{world}-{rank}.pt")
    return found


@pytest.mark.parametrize(
    ("world", "name", "whole_world", "whole"),
    [
        (4, "sft-2", 1, "sft-1"),
        (4, "sft-4", 1, "sft-1"),
        (2, "sft-zero-2", 1, "sft-1"),
        (4, "sft-recomputed", 1, "sft-1"),
        (4, "sft-tokens", 1, "sft-1"),
        (4, "dpo-2", 1, "dpo-1"),
        (4, "dpo-4", 1, "dpo-1"),
        (2, "dpo-lora", 1, "dpo-lora"),
        (4, "kto-4", 1, "kto-1"),
        (4, "kto-2", 2, "kto-1"),  # its KL term is of the rows of all groups in one forward pass
    ],
)
def test_shared_rows_give_the_loss_and_gradients_of_whole_ones(
    directory: Path, world: int, name: str, whole_world: int, whole: str
) -> None:
    """There are two heads for keys, which four ranks share; odd lengths, padding, and slices without any label."""
    expected, found = seen(directory, whole_world)[whole], seen(directory, world)[name]
    assert found["loss"] == pytest.approx(expected["loss"], rel=EXACT)
    assert found["gradients"].keys() == expected["gradients"].keys() and len(expected["gradients"]) > 10
    for parameter, gradient in expected["gradients"].items():
        error = (found["gradients"][parameter] - gradient).norm()
        assert error <= EXACT * gradient.norm(), (parameter, error)  # both 0 of an adapter's first matrix
    for ours, theirs in zip(found["scores"], expected["scores"], strict=True):
        assert ours == pytest.approx(theirs, rel=EXACT, abs=EXACT)


@pytest.mark.parametrize(("world", "name", "whole"), [(4, "dpo-4", "dpo-1"), (4, "kto-4", "kto-1")])
def test_metrics_count_a_shared_row_once(directory: Path, world: int, name: str, whole: str) -> None:
    expected, found = seen(directory, 1)[whole]["metrics"], seen(directory, world)[name]["metrics"]
    assert found.keys() == expected.keys() and found["num_tokens"] >= sum(len(a) + len(b) for a, b in rows())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_every_rank_of_a_group_sees_the_same_loss(directory: Path) -> None:
    of_ranks = [seen(directory, 4, rank) for rank in range(4)]
    for name in ("dpo-4", "kto-4"):
        assert len({found[name]["loss"] for found in of_ranks}) == 1
        assert len({found[name]["metrics"]["logps/chosen"] for found in of_ranks}) == 1


def test_a_state_goes_on_in_slices_whether_it_is_of_slices_or_of_whole_rows(directory: Path) -> None:
    """The group has two ranks either way, and DeepSpeed's shards are by ranks."""
    found = seen(directory, 2)
    assert [found[f"{name} from step"] for name in ("whole", "resumed", "resumed-across")] == [0, 2, 2]
    start, whole, resumed, across = (
        load_file(directory / name / "model.safetensors")
        for name in ("start", "whole-of-2", "resumed-of-2", "resumed-across-of-2")
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    moved = max((whole[name] - start[name]).abs().max().item() for name in whole)
    apart = {name: (whole[name] - across[name]).abs().max().item() for name in whole if "k_proj.bias" not in name}
    assert moved > 1e-3 and max(apart.values()) < moved / 100, apart


def test_a_checkpoint_names_no_attention_of_ours(directory: Path) -> None:
    config = json.loads((directory / "sft-zero-2-of-2" / "config.json").read_text(encoding="utf-8"))
    start = json.loads((directory / "start" / "config.json").read_text(encoding="utf-8"))
    assert config == start


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("again", [False, True])
def test_planned_activations_are_those_that_a_rank_keeps(directory: Path, world: int, again: bool) -> None:
    config = trainer(1, has_gpus=False, bf16=True, gradient_checkpointing=again)
    planned = trainer_memory(SMALL, config, Batch(rows=2, tokens=LONG_ROW, sequence_parallel_size=world))
    activations = next(part.num_bytes for part in planned.passing if part.name == "activations")
    passing = total_bytes(part for part in planned.passing if part.name != "gradient buckets")
    for rank in range(world):
        kept, peak = seen(directory, world, rank)["recomputed" if again else "kept"]
        assert activations == pytest.approx(kept, rel=0.15)
        assert passing == pytest.approx(peak, rel=0.15)
