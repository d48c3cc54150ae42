"""The files of docs/extending.md do what the page says, as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml

from still_ray.algo.selection.pairing import pair_trajectories
from still_ray.algo.selection.select import Demonstrated, select_trajectories
from still_ray.cli.preflight.own_code import check_own_objects
from still_ray.cli.verify import verify_responses
from still_ray.config import PairConfig, PromptConfig, Recipe, SelectConfig
from still_ray.config.loading import recipe_from
from still_ray.config.prepare import FieldsConfig
from still_ray.driver.rounds import Driver
from still_ray.formats.adapters import AdaptedDemonstration, adapt_row
from still_ray.formats.problems import read_problems
from still_ray.formats.responses.markers import render_response
from still_ray.formats.responses.table import format_named
from still_ray.types import FormatDefect, InputError, ParsedResponse, Verdict
from tests.fakes import BACKBONE, FakeWorld, make_candidate, raw_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {match[1]: match[2] for match in re.finditer(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)}
FRAGMENTS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
(COMMAND,) = re.findall(r"```\n(still-ray [^\n]+)\n```", PAGE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the page's files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in FILES:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    return tmp_path


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    """A recipe with everything that the page adds to one."""
    raw: dict[str, Any] = raw_recipe()
    for fragment in FRAGMENTS:
        raw |= fragment
    return recipe_from(raw, (), origin="recipe.yaml")


def test_there_is_a_short_file_of_every_kind() -> None:
    assert len(FILES) == len(FRAGMENTS) == 5
    assert all(len(text.splitlines()) < 30 for text in FILES.values())


def test_a_run_with_all_of_them_can_load_what_it_names(recipe: Recipe) -> None:
    check_own_objects(recipe)


def test_the_verifier_judges_its_own_domain_through_the_command(folder: Path) -> None:
    answers = {"1500 m": "correct", "it is 150000 cm": "correct", "1.5 m": "incorrect", "far": "error"}
    rows = [
        {"id": said, "domain": "physics_units", "answer": "1.5 km", "response": render_response("t", said)}
        for said in answers
    ]
    (folder / "responses.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    program, *arguments = shlex.split(COMMAND)
    assert program == "still-ray"
    command = [sys.executable, "-c", "from still_ray.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdicts = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["id"]: row["verdict"] for row in verdicts} == answers


def test_a_recipe_with_the_verifier_reads_problems_of_its_domain(folder: Path, recipe: Recipe) -> None:
    row = {"problem": "How far?", "answer": "1.5 km", "domain": "physics_units"}
    (folder / "problems.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (problem,) = read_problems(folder / "problems.jsonl", own=recipe.verifier.custom)
    assert problem.domain == "physics_units"


def test_the_format_cuts_what_it_writes(folder: Path, recipe: Recipe) -> None:
    form = format_named(recipe.prompt.format)
    assert form.parse(form.render("2+1=3.", "It is 3.")) == ParsedResponse(thought="2+1=3.", solution="It is 3.")
    assert form.parse(form.render_cut_off("2+1")).defect is FormatDefect.NO_SOLUTION
    assert form.render("2+1=3.", "It is 3.").startswith(form.render_thought("2+1=3."))
    assert form.claims("## Answer\n") and not form.claims("Answer")


def test_responses_in_the_format_are_verified(folder: Path) -> None:
    rows = [
        {
            "id": said,
            "domain": "math",
            "answer": "3",
            "response": f"## Thinking\nIt is \\boxed{{4}}.\n\n## Answer\n{said}",
        }
        for said in (r"\boxed{3}", r"\boxed{4}", "")
    ]
    (folder / "responses.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    verify_responses(folder / "responses.jsonl", folder / "out.jsonl", [], ["format=headings:FORMAT"])
    verdicts = [json.loads(line)["verdict"] for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert verdicts == ["correct", "incorrect", "unparsable"]


def test_rows_in_the_format_are_prepared(folder: Path) -> None:
    fields = FieldsConfig(response_format="headings:FORMAT")
    row = {"question": "2+1?", "response": "## Thinking\n2+1=3.\n\n## Answer\nIt is 3."}
    adapted = adapt_row(row, kind="auto", fields=fields, where="row 1")
    assert isinstance(adapted, AdaptedDemonstration)
    assert (adapted.shown.thought, adapted.shown.solution, adapted.defect) == ("2+1=3.", "It is 3.", None)


def test_a_run_that_names_no_format_says_what_would_be_right(folder: Path, recipe: Recipe) -> None:
    named = recipe.model_copy(update={"prompt": PromptConfig(format="headings:THINKING")})
    with pytest.raises(InputError, match=r"^prompt.format: headings:THINKING is no ResponseFormat but str$"):
        check_own_objects(named)


def test_the_strategy_takes_the_lengths_in_the_middle(folder: Path) -> None:
    pool = [make_candidate(f"p{number}", 0, thought_chars=number * number) for number in range(9)]
    config = SelectConfig.model_validate({**FRAGMENTS[2]["sft"]["select"], "max_examples": 3})
    shown = Demonstrated(thought_chars={})
    chosen = select_trajectories(pool, config, scope="whole", shown=shown, seed=0)
    middle = median(row.thought_chars for row in pool)
    nearest = sorted(pool, key=lambda row: abs(row.thought_chars - middle))[:3]
    assert chosen.keys == tuple(sorted(row.key for row in nearest))


def test_the_rule_joins_what_is_furthest_apart(folder: Path) -> None:
    pool = [
        make_candidate("p", index, verdict=verdict, perplexity=perplexity)
        for index, (verdict, perplexity) in enumerate(
            [(Verdict.CORRECT, 3.0), (Verdict.CORRECT, 6.0), (Verdict.INCORRECT, 5.0), (Verdict.INCORRECT, 1.5)]
        )
    ]
    (pair,) = pair_trajectories(
        pool, PairConfig.model_validate(FRAGMENTS[3]["dpo"]["pairs"]), scope="whole", seed=0
    ).pairs
    assert (pair.chosen.sample_index, pair.rejected.sample_index) == (1, 3)


def test_the_method_is_a_stage_of_its_own_that_learns_from_the_pool_alone(recipe: Recipe) -> None:
    world = FakeWorld(recipe)
    Driver(recipe, world.ports(), backbone=BACKBONE).run()
    rows = world.disk.data["001-rejection_sampling/data"]
    assert rows and all(row.startswith("1/") for row in rows)
    assert world.orders()["001-rejection_sampling"].settings.epochs == 2.0
    assert list(world.orders()) == ["000-imitate", "001-rejection_sampling", "001-dpo"]
