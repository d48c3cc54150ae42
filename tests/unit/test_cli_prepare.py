"""`prepare` at the command line: its recipe, its options, and one line for what is wrong before anything starts."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from still_ray.cli.main import app
from still_ray.cli.prepare.command import PrepareOptions, prepare_config
from still_ray.config.loading import load_section
from still_ray.config.prepare import FILTERS, PrepareConfig
from still_ray.config.schema import Section
from tests.raw_rows import Raw, RawRows, write_lines
from tests.unit.test_config_schema import sections_below

Fails = Callable[..., str]
EXAMPLE = Path(__file__).parents[2] / "jobs" / "prepare.yaml"


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Runs the command, which must fail for its input before Ray starts, and gives the line that it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "still_ray.actors.prepare", None)
    write_lines(tmp_path / "rows.jsonl", [Raw(RawRows(1).row(), "kept")])

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["prepare", *(arguments or ("rows.jsonl",)), "--output", "out"])
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        (line,) = result.stderr.splitlines()
        return line.removeprefix("still-ray: ")

    return run


def options(**changes: Any) -> PrepareOptions:
    switches = dict.fromkeys(("strict", "force", "as_json"), False)
    given = {**dict.fromkeys(("inputs", "against", "fields", "overrides"), ()), **switches, "samples": None}
    return PrepareOptions(**{**given, "output": Path("out"), "recipe": None, **changes})


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_the_example_has_every_key_with_its_default() -> None:
    assert yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")) == PrepareConfig().model_dump(mode="json")
    assert load_section(PrepareConfig, EXAMPLE) == PrepareConfig()


def test_every_field_says_what_it_means_and_where_its_default_comes_from() -> None:
    for path, section in sections_below(PrepareConfig):
        assert issubclass(section, Section) and section.__doc__
        for name, field in section.model_fields.items():
            meaning, found, source = (field.description or "").partition("Source: ")
            assert meaning.strip() and found and source.endswith("."), f"{path}.{name}"


def test_every_filter_is_a_section_with_a_switch() -> None:
    assert all(getattr(PrepareConfig(), name).enabled for name in FILTERS)
    switches = {name for name, value in PrepareConfig() if hasattr(value, "enabled")}
    assert switches == set(FILTERS)


def test_options_and_overrides_change_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("decontaminate: {files: [sets/a.jsonl]}\nlength: {min_thought_chars: 5}\n")
    config = prepare_config(
        options(
            recipe=tmp_path / "recipe.yaml",
            against=(tmp_path / "b.jsonl",),
            fields=("question=prompt", "answer=meta.a=b"),
            samples=3,
            overrides=("length.min_thought_chars=7",),
        )
    )
    assert config.decontaminate.files == (str(tmp_path / "sets" / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert (config.fields.question, config.fields.answer) == ("prompt", "meta.a=b")
    assert (config.sample_per_filter, config.length.min_thought_chars) == (3, 7)


# -- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file or directory"),
        (["rows.jsonl", "--recipe", "no.yaml"], "no.yaml: no such file"),
        (["rows.jsonl", "--against", "no.jsonl"], "no.jsonl: no such file"),
        (["rows.jsonl", "--field", "questoin=q"], "--field questoin=q: must be NAME=COLUMN, NAME one of question,"),
        (
            ["rows.jsonl", "--set", "repetition.ngrams=3"],
            "repetition.ngrams: unknown key; did you mean repetition.ngram?",
        ),
        (
            ["rows.jsonl", "--set", "near_duplicates.bands=7"],
            "near_duplicates: num_permutations (128) must be a multiple",
        ),
        (["rows.jsonl", "--set", "length.tokenizer=nowhere"], "length.tokenizer: "),
        (["rows.jsonl", "--set", "length.tokenizer=rows.jsonl"], "rows.jsonl: not a tokenizer.json: "),
        (["out"], "out: is the output as well"),
        (["rows.jsonl", "--samples", "-1"], "sample_per_filter: "),
        (["rows.jsonl", "rows.jsonl"], "rows.jsonl: is given twice"),
    ],
)
def test_wrong_options_are_said_in_one_line(fails: Fails, arguments: list[str], line: str) -> None:
    assert line.replace("repetition.ngram?", "ngram?") in fails(*arguments)


def test_an_evaluation_set_without_questions(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"question": "What is it?"}\n{"answer": 4}\n')
    assert 'eval.jsonl, row 2: missing key "question"' in fails("rows.jsonl", "--against", "eval.jsonl")


def test_prepared_data_is_not_overwritten_unasked(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(json.dumps({}))
    assert fails() == "out: holds report.json already; give another --output, or --force to replace it"


def test_an_output_that_is_a_file(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert fails().startswith("out: cannot be written to (")
