"""`still-ray prepare` as a user runs it: every kind of input through Ray Data, and what is planted is what is found."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from still_ray.formats.demonstrations import validate_demonstrations
from still_ray.formats.problems import validate_problems
from tests.raw_rows import EVALUATION, Raw, RawRows, fates, write_damaged_table, write_lines

pytestmark = pytest.mark.integration

PROGRAM = "from still_ray.cli import main; main()"


def prepare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "prepare", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def chat(row: dict[str, Any], keys: tuple[str, str, str], names: tuple[str, str]) -> dict[str, Any]:
    column, role, content = keys
    turns = [{role: names[0], content: row["question"]}, {role: names[1], content: row["combined_text"]}]
    return {column: turns, "answer": row["answer"]}


def r1_style(row: dict[str, Any]) -> dict[str, Any]:
    text = row["combined_text"].replace("<|begin_of_thought|>", "<think>").replace("<|end_of_thought|>", "</think>")
    text = text.replace("<|begin_of_solution|>", "").replace("<|end_of_solution|>", "")
    return {"problem": row["question"], "generation": text, "answer": row["answer"]}


def write_inputs(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """One input of each kind, with duplicates across them; and the rows that each fate has."""
    rows = RawRows(11)
    mixture = rows.mixture(60)
    good = [rows.row() for _ in range(5)]
    first = next(raw.row for raw in mixture if raw.fate == "kept")
    assert isinstance(first, dict)
    paths = [write_lines(folder / "mixture.jsonl", mixture)]
    packed = folder / "more.jsonl.gz"
    packed.write_bytes(gzip.compress(f"{json.dumps(good[0])}\n{json.dumps(first)}\n".encode()))
    array = folder / "array.json"
    array.write_text(json.dumps([r1_style(good[1]), {"problem": "What is 1 + 2 + 3 + 4?", "answer": "10"}]))
    table = folder / "table.parquet"
    shaped = chat(good[2], ("conversations", "from", "value"), ("human", "gpt"))
    pq.write_table(
        pa.Table.from_pylist([shaped, chat(good[3], ("conversations", "from", "value"), ("human", "gpt"))]), table
    )
    import datasets

    saved = folder / "saved"
    datasets.Dataset.from_list([chat(good[4], ("messages", "role", "content"), ("user", "assistant"))]).save_to_disk(
        saved
    )
    expected = fates(mixture)
    expected["kept"] += 6
    expected["exact_duplicates"] += 1
    return [*paths, packed, array, table, saved], expected


def test_every_kind_of_input_in_one_run(tmp_path: Path) -> None:
    inputs, expected = write_inputs(tmp_path)
    (tmp_path / "eval.jsonl").write_text(json.dumps({"problem": EVALUATION}) + "\n")
    output = tmp_path / "out"
    done = prepare(
        *inputs,
        "--output",
        output,
        "--against",
        tmp_path / "eval.jsonl",
        "--json",
        "--samples",
        "2",
        "--set",
        "block_mib=0.02",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((output / "report.json").read_text())
    dropped = {name: entry["dropped"] for name, entry in report["filters"].items()}
    assert {"kept": report["rows"]["out"], "broken": report["rows"]["broken"], **dropped} == expected
    assert report["rows"]["in"] == sum(expected.values())
    assert report["out"] == {"demonstrations": expected["kept"] - 1, "problems": 1}
    assert report["answers"]["incorrect"] == expected["wrong_answer"]
    assert validate_demonstrations(output / "demonstrations.parquet").count == expected["kept"] - 1
    assert validate_problems(output / "problems.parquet").count == 1
    broken = [json.loads(line) for line in (output / "broken.jsonl").read_text().splitlines()]
    assert len(broken) == expected["broken"]
    assert all(entry["why"].startswith(f"{entry['file']}, row {entry['row']}: ") for entry in broken)
    samples = {path.stem: len(path.read_text().splitlines()) for path in (output / "dropped").iterdir()}
    assert samples == {name: min(2, number) for name, number in dropped.items()}
    assert {path.name for path in output.iterdir()} == {
        "demonstrations.parquet", "problems.parquet", "report.json", "broken.jsonl", "dropped", ".lock",
    }  # fmt: skip
    assert "reading and filtering" in done.stderr
    assert "core_worker" not in done.stderr  # what Ray prints of itself is no business of the user


def test_strict_stops_at_the_first_broken_row_and_leaves_nothing(tmp_path: Path) -> None:
    rows = [Raw(RawRows(n).row(), "kept") for n in range(30)]
    rows[17] = rows[23] = Raw("{broken", "broken")
    path = write_lines(tmp_path / "rows.jsonl", rows)
    more = ("--set", "block_mib=0.005", "--set", "max_broken_named=0")  # named or not, it is an error
    done = prepare(path, "--output", tmp_path / "out", "--strict", *more)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"still-ray: {path}, row 18: not valid JSON")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_damaged_file_is_an_error_that_publishes_nothing_unless_it_is_allowed(tmp_path: Path) -> None:
    folder, output = tmp_path / "data", tmp_path / "data" / "out"
    folder.mkdir()
    path = write_damaged_table(folder / "rows.parquet", [RawRows(n).row() for n in range(30)], group=1)
    (folder / "notes.txt").write_text("")
    done = prepare(folder, "--output", output)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert f"{path}, row 11: the file is damaged from here to row 20" in done.stderr
    assert "20 rows read, 10 lost" in done.stderr
    assert "--set allow_damaged=true" in done.stderr
    assert f"not read: {folder / 'notes.txt'}" in done.stderr
    assert [path.name for path in output.iterdir()] == [".lock"]
    done = prepare(folder, "--output", output, "--json", "--set", "allow_damaged=true")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"]["out"], report["rows"]["broken"]) == (20, 10)
    assert [entry["file"] for entry in report["damaged_files"]] == [str(path)]
