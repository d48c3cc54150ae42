"""A user's own model directory, released demonstrations, and problems in the format of MATH_OAI."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.runs import json_of, keys_of, rows_of, run_to_end, small_recipe, write_recipe
from tests.tiny_model import build_tiny_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A model of random weights with the default prompt, and three small files in the published formats."""
    build_tiny_checkpoint(tmp_path / "model", seed=3)
    thought = "<|begin_of_thought|>\n\nTwo and {n} make {m}.\n\nLet me check: {m}.\n\n<|end_of_thought|>\n\n"
    solution = "<|begin_of_solution|>\n\nThe answer is \\boxed{{{m}}}.\n\n<|end_of_solution|>"
    demonstrations = [
        {"question": f"What is 2+{n}?", "combined_text": (thought + solution).format(n=n, m=n + 2), "domain": "math"}
        for n in range(24)
    ]
    problems = [
        {
            "problem": f"Find ${n}+{n}$.",
            "solution": f"It is \\boxed{{{2 * n}}}.",
            "answer": str(2 * n),
            "subject": "Prealgebra",
            "level": 1 + n % 5,
            "unique_id": f"test/prealgebra/{n}.json",
        }
        for n in range(20)
    ]
    write_lines(tmp_path / "demonstrations.jsonl", demonstrations)
    write_lines(tmp_path / "problems.jsonl", problems[:12])
    write_lines(tmp_path / "test.jsonl", problems[12:])
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("demonstrations", "problems", "test")}


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_imitate_explore_and_sft_on_own_files_by_checkpoint(files: dict[str, str], tmp_path: Path) -> None:
    training = {"epochs": 1, "global_batch_size": 8, "per_device_batch_size": 4, "max_length": 2048, "save_steps": 1}
    recipe = small_recipe(
        model={"path": str(tmp_path / "model"), "max_length": 2048},
        prompt={"template": None},
        data=files,
        imitate=training,
        sft=training,
        explore={"samples_per_problem": 2, "max_tokens": 24},
        evaluate={"max_tokens": 24},
        sync={"transport": "checkpoint"},
    )
    run_dir = tmp_path / "run"
    run_to_end(write_recipe(tmp_path, recipe), run_dir)
    assert set(keys_of(run_dir).values()) == {1} and len(keys_of(run_dir)) == 12 * 2
    assert len(rows_of(run_dir / "rounds/001-sft/eval.parquet")) == 8
    for stage in ("000-imitate", "001-sft"):
        manifest = json_of(run_dir / f"rounds/{stage}/manifest.json")
        assert manifest["sync"]["transport"] == "checkpoint" and manifest["sync"]["num_bytes"] == 0
        assert manifest["training"]["num_examples"] >= 24 and manifest["training"]["num_skipped"] == 0
        assert math.isfinite(manifest["training"]["final_loss"])
