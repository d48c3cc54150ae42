"""Fixtures of several files of tests."""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from still_ray.location import Location
from tests.s3_server import S3Server, s3_server


def pytest_configure() -> None:
    """Takes SIGINT back: a shell's background jobs ignore it, and so would the runs that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server with one bucket, started by the first test that asks for it."""
    with s3_server() as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty place: on this disk, and in an S3 server."""
    if request.param == "folder":
        return tmp_path / "place"
    server: S3Server = request.getfixturevalue("s3")
    return server.place(f"test-{uuid.uuid4().hex}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skips where the test may not mount one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(disk: Path) -> None:
    """Makes room on a `small_disk`."""
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked `cuda(number)` on a machine with fewer CUDA devices; without a number it needs one."""
    mark = item.get_closest_marker("cuda")
    if mark is None:
        return
    import torch

    needed: int = mark.args[0] if mark.args else 1
    found = torch.cuda.device_count()
    if found < needed:
        pytest.skip(f"needs {needed} CUDA device(s), this machine has {found}")
