"""The examples that need engines, as a user starts them: real replicas, verifiers and trainer on the tiny world."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from still_ray.methods.kto import JudgedExample
from still_ray.store.tables import read_table

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("data.tiny_world.num_demonstrations=60", "data.tiny_world.num_test=30", "imitate.epochs=24"),
    *("explore.num_problems=80", "dpo.epochs=1", "dpo.sft_weight=0"),
)


def example(name: str, run_dir: Path, *overrides: str) -> list[str]:
    """What an example prints."""
    program = [sys.executable, str(ROOT / "examples" / name), str(run_dir), *SMALL, *overrides]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def losses(run_dir: Path, stage: str) -> list[float]:
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["value"] for line in lines if line["name"] == "train/loss" and line["labels"]["stage"] == stage]


def test_the_loop_by_hand_with_two_methods_on_one_pool(tmp_path: Path) -> None:
    settings = "{epochs: 2.0, global_batch_size: 16, per_device_batch_size: 8, max_length: 512}"
    overrides = (f"kto={settings}", "kto.optimizer.learning_rate=1e-4", "rounds=[{explore: {}, train: [sft, kto]}]")
    printed = example("loop_by_hand.py", tmp_path / "run", *overrides)
    evaluated = [line.partition(":")[0] for line in printed if "% of 30 problems" in line]
    assert evaluated == ["000-backbone", "000-imitate", "001-sft", "001-kto"]
    assert sum(line.startswith("training set: 60 demonstrations + ") for line in printed) == 2
    (note,) = [line for line in printed if " incorrect of " in line and "responses; left out" in line]
    judged = len(read_table(tmp_path / "run" / "rounds" / "001-kto" / "judged.parquet", JudgedExample))
    right, _, _, wrong, *_ = note.split()
    assert int(right) > 0 and int(wrong) > 0 and int(right) + int(wrong) == judged
    found = losses(tmp_path / "run", "001-kto")
    assert found and all(math.isfinite(loss) for loss in found)
    start, made = (tmp_path / "run" / "rounds" / name / "checkpoint" for name in ("001-sft", "001-kto"))
    assert (start / "model.safetensors").read_bytes() != (made / "model.safetensors").read_bytes()


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    printed = example("own_loss.py", tmp_path / "run")
    assert [line.partition(":")[0] for line in printed][-1] == "001-simpo"
    manifest = json.loads((tmp_path / "run" / "rounds" / "001-simpo" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["num_pairs"] == manifest["training"]["num_examples"] > 0
    found = losses(tmp_path / "run", "001-simpo")
    # With beta 2 and margin 1 the loss of pairs that the policy tells in no way apart is -log sigmoid(-1).
    assert math.isclose(found[0], math.log1p(math.e), abs_tol=0.6)
