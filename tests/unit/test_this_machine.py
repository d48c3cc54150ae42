"""What a machine offers, within the limits of control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from still_ray.cli.preflight.machines import (
    computes_in_bf16,
    cpu_quota,
    measured_machine,
    memory_limit,
    this_machine,
)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """Where a test puts what the kernel would say."""
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def limits(kernel: Path, own: str, **files: str) -> tuple[int | None, float | None]:
    """The limits of memory and cores of a process in the groups `own`, a file's path written with __ for /."""
    (kernel / "own").write_text(own)
    for name, text in files.items():
        path = kernel / "cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    places = kernel / "cgroup", kernel / "own"
    return memory_limit(*places), cpu_quota(*places)


def test_the_least_limit_of_all_groups_around_holds(kernel: Path) -> None:
    """A pod of 8 GiB and 2.5 cores; its container names no memory, and the root has no files at all."""
    found = limits(
        kernel,
        "0::/kubepods/pod1/box\n",
        kubepods__memory_DOT_max="68719476736",
        kubepods__pod1__memory_DOT_max="8589934592",
        kubepods__pod1__cpu_DOT_max="250000 100000",
        kubepods__pod1__box__memory_DOT_max="max",
        kubepods__pod1__box__cpu_DOT_max="max 100000",
    )
    assert found == (8 * 2**30, 2.5)


def test_inside_a_container_the_root_is_the_group(kernel: Path) -> None:
    """The path that the kernel names is the host's, and is not there."""
    assert limits(kernel, "0::/../../docker/abc\n", memory_DOT_max="4294967296", cpu_DOT_max="100000 100000") == (
        4 * 2**30,
        1.0,
    )


def test_version_1_has_a_folder_for_each_controller_and_a_number_for_no_limit(kernel: Path) -> None:
    own = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/\n"
    found = limits(
        kernel,
        own,
        memory__docker__abc__memory_DOT_limit_in_bytes="2147483648",
        memory__memory_DOT_limit_in_bytes="9223372036854771712",
        cpu__docker__abc__cpu_DOT_cfs_quota_us="50000",
        cpu__docker__abc__cpu_DOT_cfs_period_us="100000",
        cpu__cpu_DOT_cfs_quota_us="-1",
        cpu__cpu_DOT_cfs_period_us="100000",
    )
    assert found == (2 * 2**30, 0.5)


def test_without_limits_there_are_none(kernel: Path) -> None:
    assert limits(kernel, "0::/\n", memory_DOT_max="max") == (None, None)
    assert (memory_limit(kernel / "nowhere", kernel / "nothing"), cpu_quota(kernel, kernel)) == (None, None)


@pytest.mark.parametrize(
    ("cpuinfo", "computes"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2\nmodel name\t: bf16 in its name\n", False),
        ("", False),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(cpuinfo: str, computes: bool) -> None:
    assert computes_in_bf16(cpuinfo) is computes


def test_this_machine_is_measured_unless_a_run_goes_to_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here = this_machine()
    assert here == measured_machine()
    assert here is not None and here.num_gpus == 0 and here.cores >= 1
    assert here.memory_bytes is not None and here.memory_bytes > 2**28
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert this_machine() is None
