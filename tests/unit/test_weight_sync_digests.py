"""Digests of weights: what they are bound to, and every accident on the way that they must show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from still_ray.weight_sync import checkpoint, digests
from still_ray.weight_sync.digests import (
    DigestLog,
    digests_of,
    require_equal,
    saved_digests,
    tensor_digest,
    update_digest,
)
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.packing import pack, unpack
from still_ray.weight_sync.transports.object_store import ObjectStore

Weights = dict[str, torch.Tensor]
DTYPES = [torch.float32, torch.bfloat16]


def weights(dtype: torch.dtype) -> Weights:
    torch.manual_seed(0)
    tensors = {f"model.layers.{i}.{part}.weight": torch.randn(6, 5) for i in (0, 1) for part in ("q_proj", "k_proj")}
    return {name: tensor.to(dtype) for name, tensor in {**tensors, "model.norm.weight": torch.ones(5)}.items()}


def flipped(tensor: torch.Tensor) -> torch.Tensor:
    """With the lowest bit of one element the other way round."""
    changed = tensor.clone()
    changed.view(torch.uint8).view(-1)[4] ^= 1
    return changed


def swapped(tensors: Weights) -> Weights:
    one, other = "model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight"
    return {**tensors, one: tensors[other], other: tensors[one]}


ACCIDENTS: dict[str, Callable[[Weights], Weights]] = {
    "a flipped bit": lambda sent: {**sent, "model.norm.weight": flipped(sent["model.norm.weight"])},
    "a dropped tensor": lambda sent: {name: tensor for name, tensor in sent.items() if "norm" not in name},
    "swapped layers": swapped,
    "another shape": lambda sent: {name: tensor.reshape(-1, 1).squeeze() for name, tensor in sent.items()},
    "another type": lambda sent: {
        name: tensor.view(torch.int32 if tensor.itemsize == 4 else torch.float16) for name, tensor in sent.items()
    },
    "the weights before": lambda sent: {name: tensor * 1.01 for name, tensor in sent.items()},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_what_came_otherwise_than_it_was_sent_is_refused(dtype: torch.dtype, accident: str) -> None:
    sent = weights(dtype)
    received = ACCIDENTS[accident](sent)
    with pytest.raises(SyncError, match=r"what came is not what was sent: model\."):
        require_equal(digests_of(sent.items()), digests_of(received.items()))
    assert update_digest(digests_of(received.items())) != update_digest(digests_of(sent.items()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_way_and_the_order_do_not_matter(dtype: torch.dtype, tmp_path: Path) -> None:
    sent = weights(dtype)
    save_file(sent, tmp_path / "model.safetensors")

    def by_buckets() -> Iterator[tuple[str, torch.Tensor]]:
        for bucket in pack(reversed(sent.items()), 100):
            yield from unpack(bucket.data, ObjectStore("object_store").payload(bucket)["specs"])

    expected = digests_of(sent.items())
    assert digests_of(by_buckets()) == digests_of(checkpoint.iterate(tmp_path)) == expected
    for order in itertools.islice(itertools.permutations(sent.items()), 5):
        assert update_digest(digests_of(order)) == update_digest(expected)


def test_a_tensor_is_read_in_pieces_and_wherever_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(1000, dtype=torch.float32).reshape(50, 20)
    whole = tensor_digest("name", tensor)
    monkeypatch.setattr(digests, "CHUNK_BYTES", 77)
    assert tensor_digest("name", tensor) == whole
    assert tensor_digest("name", tensor.T.contiguous().T) == whole, "a view with other strides"
    assert tensor_digest("name", tensor[:0]) != tensor_digest("name", tensor[:0, :0]) != whole
    assert tensor_digest("name", torch.tensor(3.0)) == tensor_digest("name", torch.tensor(3.0))


def test_tensors_are_let_go_while_the_stream_goes_on() -> None:
    """A stream of tensors that are made when they are asked for: never more of them than threads and one."""
    alive = 0

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal alive
        for i in range(40):
            alive += 1
            yield f"{i}", torch.zeros(1000).as_subclass(Counted)

    most, log = 0, DigestLog()
    for _ in log.noted(stream()):
        most = max(most, alive)
    assert len(log.digests()) == 40
    assert most <= digests.MAX_THREADS + 3


def test_parameters_that_are_saved_under_other_names_have_the_digests_of_the_file(tmp_path: Path) -> None:
    sent = weights(torch.float32)
    save_file({**sent, "experts.0.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    held = {**digests_of(sent.items()), "experts.fused": "of the trainer's own form"}
    assert saved_digests(tmp_path, held) == digests_of(checkpoint.iterate(tmp_path))


def test_what_nobody_took_digests_of_is_not_compared() -> None:
    require_equal({}, digests_of(weights(torch.float32).items()))
