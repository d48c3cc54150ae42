"""The GPU benchmark's whole path on a CPU: a checkpoint made here, a rank of its own, figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def test_every_length_is_measured_against_the_peak() -> None:
    options = ["--device", "cpu", "--lengths", "48,64", "--steps", "2"]
    command = [sys.executable, "-m", "benchmarks.gpu_trainer", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert [figure["name"] for figure in figures] == [f"sft_tiny_{length}_tokens_on_1_x_CPU" for length in (48, 64)]
    assert {figure["unit"] for figure in figures} == {"tokens/s"}
    assert all(0 < figure["value"] < figure["baseline"] for figure in figures), "a share of the peak"
