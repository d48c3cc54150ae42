from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from still_ray.weight_sync import checkpoint
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.expectation import UpdateExpectation

TENSORS = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}


def sharded(directory: Path) -> Path:
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, directory / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in TENSORS}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def single(directory: Path) -> Path:
    save_file(TENSORS, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("write", [sharded, single])
def test_every_tensor_is_read_once(tmp_path: Path, write: object) -> None:
    directory = write(tmp_path)  # type: ignore[operator]
    read = list(checkpoint.iterate(directory))
    assert sorted(name for name, _ in read) == ["a", "b"]
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in read)
    assert checkpoint.shapes(directory) == {"a": (2, 3), "b": (4,)}


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "b.safetensors").unlink()
    with pytest.raises(SyncError, match=r"b\.safetensors is missing"):
        list(checkpoint.iterate(tmp_path))


def test_pickles_are_no_checkpoint(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(SyncError, match=r"model\.safetensors is missing"):
        list(checkpoint.iterate(tmp_path))


SHAPES = {"a": (2, 3), "b": (4,), "lm_head.weight": (5, 3)}


def update(expectation: UpdateExpectation, *names: str) -> list[str]:
    tensors = [(name, torch.zeros(SHAPES.get(name, (1,)))) for name in names]
    return [name for name, _ in expectation.checked(tensors)]


def test_a_complete_update_passes() -> None:
    expectation = UpdateExpectation(SHAPES, tied=False)
    assert update(expectation, "b", "a", "lm_head.weight") == ["b", "a", "lm_head.weight"]
    expectation.require_complete()


def test_what_is_missing_is_named() -> None:
    expectation = UpdateExpectation(SHAPES, tied=False)
    update(expectation, "a")
    with pytest.raises(SyncError, match=r"lacks b, lm_head\.weight$"):
        expectation.require_complete()


def test_a_tied_output_head_may_come_or_not_and_is_not_loaded() -> None:
    expectation = UpdateExpectation(SHAPES, tied=True)
    assert update(expectation, "a", "b", "lm_head.weight") == ["a", "b"]
    expectation.require_complete()


@pytest.mark.parametrize(
    ("names", "complaint"), [(("a", "c"), "no parameter c"), (("a", "a"), "a came twice"), (("d",), "no parameter d")]
)
def test_what_does_not_belong_is_named(names: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(SyncError, match=complaint):
        update(UpdateExpectation(SHAPES, tied=False), *names)


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(SyncError, match=r"a has shape \(3, 2\), the model's is \(2, 3\)"):
        list(UpdateExpectation(SHAPES, tied=False).checked([("a", torch.zeros(3, 2))]))
