from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from still_ray.weight_sync.packing import ALIGNMENT, Bucket, pack, unpack
from still_ray.weight_sync.transports.object_store import ObjectStore

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
STORE = ObjectStore("object_store")
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def unpacked(buckets: list[Bucket]) -> Iterator[tuple[str, torch.Tensor]]:
    for bucket in buckets:
        payload = STORE.payload(bucket)
        payload["bucket"].setflags(write=False)
        yield from unpack(payload["bucket"], payload["specs"])


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=12), st.integers(1, 600))
def test_what_is_packed_comes_out_again(kinds: list[tuple[tuple[int, ...], torch.dtype]], bucket_bytes: int) -> None:
    tensors = [(f"t{i}", tensor(shape, dtype, i)) for i, (shape, dtype) in enumerate(kinds)]
    buckets = list(pack(iter(tensors), bucket_bytes))

    for (name, before), (after_name, after) in zip(tensors, unpacked(buckets), strict=True):
        assert (name, before.dtype, before.shape) == (after_name, after.dtype, after.shape)
        assert torch.equal(before, after)
    for bucket in buckets:
        assert bucket.data.nbytes <= bucket_bytes or sum(spec.nbytes > 0 for spec in bucket.specs) == 1
        assert all(spec.offset % ALIGNMENT == 0 for spec in bucket.specs)


def test_one_bucket_is_held_at_a_time() -> None:
    drawn: list[int] = []

    def source() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(10):
            drawn.append(i)
            yield f"t{i}", torch.zeros(64, dtype=torch.uint8)

    next(pack(source(), 128))
    assert len(drawn) == 3


def test_a_view_and_a_transposed_tensor_are_packed_by_value() -> None:
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    buckets = list(pack([("t", whole.T), ("row", whole[1])], 1000))
    after = dict(unpacked(buckets))
    assert torch.equal(after["t"], whole.T)
    assert torch.equal(after["row"], whole[1])


def test_unpacking_read_only_memory_copies_nothing_and_warns_of_nothing() -> None:
    data = np.frombuffer(bytes(range(64)), dtype=np.uint8)
    specs = [{"name": "t", "dtype": "uint8", "shape": [64], "offset": 0, "nbytes": 64}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((_, after),) = unpack(data, specs)
    assert after.data_ptr() == data.ctypes.data


def test_a_tensor_keeps_its_bucket_alive() -> None:
    (bucket,) = pack([("t", torch.full((100_000,), 7.0))], 1)
    ((_, after),) = unpack(bucket.data, STORE.payload(bucket)["specs"])
    del bucket
    np.random.default_rng(0).bytes(400_000)
    assert bool((after == 7.0).all())


def test_a_large_tensor_gets_a_bucket_of_its_own() -> None:
    sizes = [10, 5000, 10]
    buckets = list(pack([(str(i), torch.zeros(n, dtype=torch.uint8)) for i, n in enumerate(sizes)], 1000))
    assert [bucket.data.nbytes for bucket in buckets] == sizes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_travels_by_name(dtype: torch.dtype) -> None:
    (bucket,) = pack([("t", torch.zeros(2, dtype=dtype))], 100)
    assert STORE.payload(bucket)["specs"][0]["dtype"] == str(dtype).removeprefix("torch.")
