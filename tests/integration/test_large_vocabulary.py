"""A model of Gemma's shape with nothing said of sizes: 262,144 tokens, layers with a sliding window, bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from still_ray.cli.preflight.models import BACKBONE
from tests.model_configs import GEMMA_3_270M
from tests.runs import json_of, rows_of, started, write_recipe

pytestmark = pytest.mark.integration

WINDOW = 16
"""Tokens: far fewer than a prompt has."""
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "head_dim": 32,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 345,
    "pad_token_id": 343,
}


def random_model(folder: Path) -> Path:
    """Weights drawn at random, with the tokenizer and the templates of the tiny world."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(BACKBONE, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    values = {**GEMMA_3_270M, **SHAPE}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Sampled from, trained by a step, brought to the replica, and sampled from again."""
    folder = tmp_path_factory.mktemp("gemma")
    recipe = {
        "model": {"path": str(random_model(folder / "model"))},
        "data": {"tiny_world": {"num_demonstrations": 4, "num_problems": 4, "num_test": 3}},
        "imitate": {"epochs": 1, "global_batch_size": 4, "optimizer": {"learning_rate": 1e-3}},
        "evaluate": {"max_tokens": 24},
        "rounds": [],
    }
    with started(write_recipe(folder, recipe), folder / "run") as run:
        assert run.wait() == 0, run.text()
    return folder / "run", run.text()


def test_a_stage_is_trained_and_served_though_nothing_is_said_of_sizes(finished: tuple[Path, str]) -> None:
    """Log-probabilities prove the sync, of sequences longer than the window, which neither side may forget."""
    run_dir, text = finished
    assert [stage["policy_version"] for stage in json_of(run_dir / "summary.json")["stages"]] == [0, 1]
    for stage, version in (("000-backbone", 0), ("000-imitate", 1)):
        rows = rows_of(run_dir / "rounds" / stage / "eval.parquet")
        assert [row["policy_version"] for row in rows] == [version] * 3
        assert all(0 < row["num_tokens"] <= 24 for row in rows)
    assert "4 rows (left out: 0 too long" in text and "; version 1 on 1 replicas in " in text


def test_what_was_decided_is_printed_and_the_lengths_are_kept(finished: tuple[Path, str]) -> None:
    run_dir, text = finished
    (line,) = [line for line in text.splitlines() if " sizes by 16," in line]
    for part in (
        "model.max_length 1,024",
        "sampler.num_replicas 1",
        "trainer.num_workers 1",
        "sampler.max_num_seqs 16",
    ):
        assert part in line
    stored = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    assert (stored["model"]["max_length"], stored["imitate"]["max_length"]) == (1024, 1024)
    assert (stored["evaluate"]["max_tokens"], stored["sampler"]["num_replicas"]) == (24, "auto")
