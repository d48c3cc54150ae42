"""The table of a reference beside the state of a stage: whose numbers it holds, and what earlier versions wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch.distributed as dist

from still_ray.trainer.reference import ReferenceTable, kept_table

BATCHES = [(0, 1), (2, 0)]
TABLE: ReferenceTable = {(0, 1): ((-1.0, -2.0), (-3.0, -4.0)), (2, 0): ((-5.0, -6.0), (-1.5, -2.5))}


@pytest.fixture(autouse=True)
def _one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def not_again() -> NoReturn:
    raise AssertionError("computed again")


@pytest.mark.parametrize("reference", ["", "/run/rounds/000-imitate/checkpoint"])
def test_a_resumed_stage_finds_its_table(tmp_path: Path, reference: str) -> None:
    kept_table(lambda: TABLE, BATCHES, reference=reference, state_dir=tmp_path)
    assert kept_table(not_again, BATCHES, reference=reference, state_dir=tmp_path) == TABLE


@pytest.mark.parametrize(("first", "second"), [("", "a"), ("a", ""), ("a", "b")])
def test_a_table_of_another_reference_is_not_taken(tmp_path: Path, first: str, second: str) -> None:
    other: ReferenceTable = dict.fromkeys(BATCHES, ((0.0, 0.0),) * 2)
    kept_table(lambda: other, BATCHES, reference=first, state_dir=tmp_path)
    assert kept_table(lambda: TABLE, BATCHES, reference=second, state_dir=tmp_path) == TABLE
    assert kept_table(not_again, BATCHES, reference=second, state_dir=tmp_path) == TABLE


@pytest.mark.parametrize(
    "stored",
    [
        [[list(batch), sums] for batch, sums in TABLE.items()],
        {"0": [-1.0, -2.0], "1": [-3.0, -4.0], "2": [-5.0, -6.0]},
    ],
    ids=["batches", "rows"],
)
def test_tables_of_earlier_versions_are_those_of_the_start_model(tmp_path: Path, stored: Any) -> None:
    (tmp_path / "reference.json").write_text(json.dumps(stored), encoding="utf-8")
    found = kept_table(not_again, BATCHES, reference="", state_dir=tmp_path)
    assert found[0, 1] == TABLE[0, 1] and found[2, 0][0] == TABLE[2, 0][0]
    assert kept_table(lambda: TABLE, BATCHES, reference="another", state_dir=tmp_path) == TABLE
