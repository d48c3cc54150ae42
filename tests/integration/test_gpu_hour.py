"""The GPU benchmark on a CPU: a model made here, ranks and engines of its own, figures, and a row that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def test_rows_are_measured_and_one_that_fails_is_named(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    options = ["--device", "cpu", "--run-dir", str(tmp_path / "bench"), "--output", str(page)]
    rows = ["--rows", "elastic-1,speculation-greedy"]
    command = [sys.executable, "-m", "benchmarks.gpu_hour", *options, *rows]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in map(json.loads, done.stdout.splitlines())}
    measured = {f"elastic-1_{what}" for what in ("speed", "sleep", "sleep_wake_sync")}
    assert {*figures} == measured | {"speculation-greedy"}
    assert 0 < figures["elastic-1_speed"]["ratio"] < 1, "a share of the peak"
    assert figures["elastic-1_sleep"]["value"] < figures["elastic-1_sleep_wake_sync"]["value"]
    assert "cannot be used without GPUs" in figures["speculation-greedy"]["failed"]
    lines = page.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.startswith(("| elastic", "| speculation"))]) == len(figures)
