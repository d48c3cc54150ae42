"""The GPU benchmark's arithmetic; that it runs is shown on a CPU by `tests/integration/test_gpu_trainer.py`."""

from __future__ import annotations

import pytest

from benchmarks.gpu_trainer import SHAPES, fitting_shape, flops_per_token

GIB = 2**30
PLENTY = 4096 * GIB


def test_flops_are_those_of_the_matrices_that_a_token_meets() -> None:
    """Counted matrix by matrix: two operations an entry forward, four backward; half of the attention is masked."""
    shape, length = SHAPES["7B"], 20_000
    layer = 3584 * 3584 * 2 + 2 * 3584 * 512 + 3 * 3584 * 18_944  # queries and output, keys and values, the MLP
    matrices = 28 * layer + 152_064 * 3584
    attention = 28 * 2 * 3584 * length / 2  # scores and weighted values, over half of the length on average
    assert flops_per_token(shape, length) == pytest.approx(6 * matrices + 6 * attention, rel=1e-4)


def test_a_tied_head_counts_and_an_embedding_that_is_looked_up_does_not() -> None:
    tied, untied = SHAPES["1.5B"], SHAPES["7B"]
    assert flops_per_token(tied, 0) == 6 * tied.num_parameters
    assert flops_per_token(untied, 0) == 6 * (untied.num_parameters - untied.num_embedding)


@pytest.mark.parametrize(("num_devices", "gib", "expected"), [(1, 24, "0.5B"), (8, 80, "14B")])
def test_the_largest_shape_that_fits_is_chosen(num_devices: int, gib: int, expected: str) -> None:
    chosen = fitting_shape(num_devices=num_devices, device_bytes=gib * GIB, host_bytes=PLENTY, length=32_768)
    assert chosen == expected


def test_a_small_host_or_device_is_said_so() -> None:
    assert fitting_shape(num_devices=8, device_bytes=80 * GIB, host_bytes=8 * GIB, length=4096) in ("0.5B", "1.5B")
    with pytest.raises(SystemExit, match="no shape fits 1 x 0 GiB"):
        fitting_shape(num_devices=1, device_bytes=GIB // 2, host_bytes=PLENTY, length=4096)
