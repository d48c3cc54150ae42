"""The package as a library: its names are there and light, and the examples that need no engine do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import still_ray
from still_ray import library
from tests.unit.test_imports import loaded_by

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MAX_LINES = 60


def test_every_public_name_is_imported_from_the_package_and_loads_nothing_heavy() -> None:
    assert {name: getattr(still_ray, name) for name in library.__all__} == {
        name: getattr(library, name) for name in library.__all__
    }
    assert loaded_by(f"from still_ray import {', '.join(library.__all__)}; ") == []


def test_the_package_alone_loads_none_of_its_modules() -> None:
    program = "import still_ray, sys; print(sorted(name for name in sys.modules if name.startswith('still_ray.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_examples_are_whole_programs_on_a_page() -> None:
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(sizes) >= 3 and max(sizes.values()) <= MAX_LINES, sizes


def test_judging_a_file(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "domain": "math", "answer": "1/2", "response": r"<think>so</think> It is \boxed{0.5}."},
        {"id": "b", "domain": "math", "answer": "7", "response": r"\boxed{8}"},
        {"id": "c", "domain": "choice", "answer": "B", "response": r"\boxed{B}"},
    ]
    source = tmp_path / "responses.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    program = [sys.executable, str(EXAMPLES / "judge_file.py"), str(source)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("b: incorrect: 8 for 7")
    assert lines[-1] == "correct 2, incorrect 1" and len(lines) == 2
