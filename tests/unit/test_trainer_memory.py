"""What a model leaves behind in the heap goes back to the system."""

from __future__ import annotations

import ctypes
from pathlib import Path

from still_ray.trainer.model import give_back_heap

BLOCK = 100_000  # below glibc's least threshold for a mapping of its own
NUM_BLOCKS = 1000


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def test_what_was_freed_below_a_block_in_use_is_given_back() -> None:
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    blocks = [libc.malloc(BLOCK) for _ in range(NUM_BLOCKS)]
    in_use = libc.malloc(BLOCK)
    for block in (*blocks, in_use):
        ctypes.memset(block, 1, BLOCK)
    for block in blocks:
        libc.free(block)
    kept = resident_bytes()
    give_back_heap()
    assert kept - resident_bytes() > 0.9 * BLOCK * NUM_BLOCKS
    libc.free(in_use)
