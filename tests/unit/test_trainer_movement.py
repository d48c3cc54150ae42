"""The share of changed weights, counted on one rank in plain torch; sharded models are in test_trainer_ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from still_ray.trainer.movement import share_changed
from tests.tiny_model import build_tiny_checkpoint


@pytest.fixture(autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model_of(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def num_weights(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("shards", ["5GB", "40KB"])
def test_each_weight_counts_once_wherever_its_file_is(tmp_path: Path, shards: str) -> None:
    folder = build_tiny_checkpoint(tmp_path, seed=0, max_shard_size=shards)
    model = model_of(folder)
    assert share_changed(model, str(folder)) == 0.0
    with torch.no_grad():
        model.model.embed_tokens.weight[3, :5] += 1.0
        model.model.norm.weight[0] += 1.0
    assert share_changed(model, str(folder)) == 6 / num_weights(model)


def test_what_bfloat16_rounds_away_has_not_changed(tmp_path: Path) -> None:
    folder = build_tiny_checkpoint(tmp_path, seed=0)
    model = model_of(folder, torch.bfloat16)
    assert share_changed(model, str(folder)) == 0.0, "the start is float32: its rounding is no training"
    masters = {name: tensor.float() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: master * (1 + 1 / 600) for name, master in masters.items()})
    assert share_changed(model, str(folder)) == 0.0
    model.load_state_dict({name: master * (1 + 1 / 100) for name, master in masters.items()})
    share = share_changed(model, str(folder))
    assert share is not None and share > 0.95, "all but zeros"


def test_a_start_that_cannot_be_compared_gives_no_figure(tmp_path: Path) -> None:
    folder = build_tiny_checkpoint(tmp_path / "tied", seed=0)
    untied = model_of(build_tiny_checkpoint(tmp_path / "untied", seed=0, tied=False))
    wider = model_of(build_tiny_checkpoint(tmp_path / "wider", seed=0, hidden_size=96))
    assert share_changed(untied, str(folder)) is None, "it has a head that the start has not"
    assert share_changed(wider, str(folder)) is None
    assert share_changed(untied, str(tmp_path / "nowhere")) is None
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs")
    assert share_changed(model_of(tmp_path / "untied"), str(folder)) is None
