"""Readers of problems and demonstrations: every format that is promised, and an error that names file and row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from still_ray.formats.demonstrations import (
    demonstration_from_row,
    demonstration_row,
    read_demonstrations,
    validate_demonstrations,
    write_demonstrations,
)
from still_ray.formats.problems import (
    problem_from_row,
    problem_row,
    read_problems,
    validate_problems,
    write_problems,
)
from still_ray.formats.response import MARKERS, render_response
from still_ray.tiny_world.arithmetic import make_demonstrations, make_problems, write_world
from still_ray.types import Demonstration, Domain, InputError, Problem

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
STDIO = {"kind": "stdio", "cases": [{"input": "1\n", "output": "2\n"}]}
words = st.text(min_size=1).map(str.strip).filter(lambda text: text and not any(mark in text for mark in MARKERS))
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_math_oai_row() -> None:
    row = {
        "problem": " P ",
        "solution": r"\boxed{wrong}",
        "answer": "7",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "a/1",
    }
    expected = Problem(id="a/1", domain=Domain.MATH, question="P", answer="7", subject="Algebra", level=2)
    assert problem_from_row(row, where="f, row 1") == expected


def test_aime_row_takes_the_last_box_and_an_id_from_its_content() -> None:
    row = {"problem": "P", "solution": r"First \boxed{1}, then \boxed{\frac{2}{3}}."}
    problem = problem_from_row(row, where="f, row 1")
    assert problem.answer == r"\frac{2}{3}"
    assert len(problem.id) == 16
    assert problem.id == problem_from_row({**row, "subject": "other"}, where="f, row 9").id
    assert problem.id != problem_from_row({**row, "problem": "Q"}, where="f, row 1").id


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        ({"answer": 7}, "answer", "7"),
        ({"answer": 0.5}, "answer", "0.5"),
        ({"answer": "7", "level": "Level 5"}, "level", 5),
        ({"answer": "7", "level": "3"}, "level", 3),
        ({"answer": "7", "level": "Level ?"}, "level", None),
        ({"answer": "7", "level": float("nan")}, "level", None),
        ({"answer": "7", "id": 0}, "id", "0"),
        ({"answer": "7", "domain": "physics"}, "domain", Domain.MATH),
        ({"answer": r"\sqrt{2}", "domain": "chemistry"}, "domain", Domain.MATH),
        ({"answer": "(C)", "domain": "biology"}, "domain", Domain.CHOICE),
        ({"answer": "a towel", "domain": "puzzle"}, "domain", Domain.EXACT),
        ({"answer": "a towel", "domain": "exact"}, "domain", Domain.EXACT),
        ({"answer": STDIO, "domain": "code"}, "answer", json.dumps(STDIO)),
        ({"answer": json.dumps(STDIO), "domain": "code"}, "answer", json.dumps(STDIO)),
    ],
)
def test_fields_of_a_problem(row: dict[str, Any], field: str, value: object) -> None:
    assert getattr(problem_from_row({"question": "Q", **row}, where="f, row 1"), field) == value


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answer": "7"}, 'missing key "problem" (or "question")'),
        ({"problem": " ", "answer": "7"}, 'key "problem" must be a text that is not blank'),
        ({"problem": ["P"], "answer": "7"}, 'key "problem" must be a text'),
        ({"problem": "P"}, 'missing key "answer" (or "solution" with a \\boxed{})'),
        ({"problem": "P", "solution": r"so \boxed{5"}, 'missing key "answer" (or "solution" with a \\boxed{})'),
        ({"problem": "P", "answer": True}, 'key "answer" must be text, a number or, for code, an object'),
        ({"problem": "P", "answer": STDIO}, 'key "answer" may be an object only where "domain" is "code"'),
        ({"problem": "P", "answer": "7", "domain": "maths"}, 'key "domain" is "maths", expected one of: math, choice'),
        ({"problem": "P", "answer": "7", "domain": ["math"]}, 'key "domain" is ["math"], expected one of'),
        ({"problem": "P", "answer": "12", "domain": "choice"}, 'key "answer" must be a letter'),
        ({"problem": "P", "answer": "x", "domain": "code"}, 'key "answer" must be {"kind": "stdio"'),
        ({"problem": "P", "answer": {"kind": "stdio", "cases": []}, "domain": "code"}, 'key "answer" must be'),
    ],
)
def test_wrong_problem_names_file_row_and_key(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    path = write_lines(tmp_path / "problems.jsonl", {"problem": "P0", "answer": "1"}, "", row)
    with pytest.raises(InputError) as error:
        validate_problems(path)
    assert f"problems.jsonl, row 3: {complaint}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.jsonl", None, "no such file"),
        ("p.jsonl", b"", "the file is empty"),
        ("p.jsonl", b"\n \n", "the file is empty"),
        ("p.csv", b"x", 'unknown suffix ".csv", .jsonl, .json or .parquet is expected'),
        (
            "p.jsonl",
            b'{"problem": "P", "answer": "1"}\n{"problem": \n',
            "row 2: not valid JSON: Expecting value at column",
        ),
        ("p.json", b'[{"problem": "P"}]', "row 1: a JSON object is expected on each line, found a list"),
        ("p.jsonl", b'{"a": "\xff"}\n', "row 1: not UTF-8"),
        ("p.jsonl", b"[" * 200_000, "row 1: not valid JSON: nested too deeply"),
        ("p.jsonl", b'{"level": ' + b"1" * 5000 + b"}", "row 1: not valid JSON"),
        ("p.parquet", b"PAR1 but not really", "not a Parquet file that can be read"),
    ],
)
@pytest.mark.parametrize("validate", [validate_problems, validate_demonstrations])
def test_broken_file_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, complaint: str, validate: Callable[[Path], object]
) -> None:
    if validate is validate_demonstrations and b'"P"' in (content or b""):
        content = (content or b"").replace(
            b'"problem": "P", "answer": "1"', b'"question":"Q","thought":"t","solution":"s"'
        )
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        validate(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        next(read_problems(tmp_path))


def test_same_id_with_other_content_names_both_rows(tmp_path: Path) -> None:
    rows = [{"id": "x", "problem": "P", "answer": "1"}, {"id": "y", "problem": "P", "answer": "1"}]
    path = write_lines(tmp_path / "p.jsonl", *rows, {"id": "x", "problem": "P", "answer": "2"})
    with pytest.raises(InputError, match=r'p\.jsonl, row 3: id "x" was used for other content in row 1'):
        list(read_problems(path))


def test_equal_rows_are_kept_once_and_counted(tmp_path: Path) -> None:
    row = {"problem": "P", "answer": "1"}
    path = write_lines(tmp_path / "p.jsonl", row, {**row, "answer": "2"}, row, row)
    index = validate_problems(path)
    assert (index.count, index.num_duplicates) == (2, 2)
    assert [problem.answer for problem in read_problems(path)] == ["1", "2"]


def test_parquet_and_json_lines_read_alike(tmp_path: Path) -> None:
    problems = make_problems("test", 600, 0)
    rows = [problem_row(problem) for problem in problems]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    write_problems(tmp_path / "p.jsonl", problems)
    assert list(read_problems(tmp_path / "p.parquet")) == list(read_problems(tmp_path / "p.jsonl")) == problems
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**rows[0], "answer": None}]), tmp_path / "q.parquet")
    with pytest.raises(InputError, match=r'q\.parquet, row 1: missing key "answer"'):
        validate_problems(tmp_path / "q.parquet")


def test_tiny_worlds_files_are_read(tmp_path: Path) -> None:
    write_world(tmp_path, 0, num_demonstrations=30, num_problems=40, num_test=20)
    assert list(read_problems(tmp_path / "problems.jsonl")) == make_problems("pool", 40, 0)
    assert list(read_problems(tmp_path / "test.jsonl")) == make_problems("test", 20, 0)
    assert list(read_demonstrations(tmp_path / "demonstrations.jsonl")) == make_demonstrations(30, 0)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")
@pytest.mark.parametrize(
    ("name", "count"),
    [("MATH_OAI", 500), ("AIME24", 30), ("AIME25", 30), ("OlymMATH-EN-EASY", 100), ("OlymMATH-EN-HARD", 100)],
)
def test_published_benchmarks_are_read_whole(name: str, count: int) -> None:
    index = validate_problems(DATA / f"{name}.jsonl")
    assert (index.count, index.num_duplicates, len(set(index.ids))) == (count, 0, count)


@unhurried
@given(words, words, words, st.sampled_from([None, 3]))
def test_problem_rows_read_back(question: str, answer: str, subject: str, level: int | None) -> None:
    problem = Problem(id="i", domain=Domain.MATH, question=question, answer=answer, subject=subject, level=level)
    assert problem_from_row(json.loads(json.dumps(problem_row(problem))), where="f, row 1") == problem


@unhurried
@given(words, words, words)
def test_demonstration_rows_read_back(question: str, thought: str, solution: str) -> None:
    shown = Demonstration(id="i", domain="puzzle", question=question, thought=thought, solution=solution)
    assert demonstration_from_row(json.loads(json.dumps(demonstration_row(shown))), where="f, row 1") == shown
    apart = {"id": "i", "domain": "puzzle", "question": question, "thought": thought, "solution": solution}
    assert demonstration_from_row(apart, where="f, row 1") == shown


def test_demonstrations_repeated_without_ids_are_kept_once(tmp_path: Path) -> None:
    row = {"question": "Q", "combined_text": render_response("t", "s"), "domain": "math"}
    index = validate_demonstrations(write_lines(tmp_path / "d.jsonl", row, row, {**row, "question": "R"}))
    assert (index.count, index.num_duplicates) == (2, 1)


def test_written_demonstrations_read_back(tmp_path: Path) -> None:
    shown = make_demonstrations(10, 3)
    write_demonstrations(tmp_path / "d.jsonl", shown)
    assert list(read_demonstrations(tmp_path / "d.jsonl")) == shown


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"combined_text": "x"}, 'missing key "problem"'),
        ({"question": "Q"}, 'missing key "combined_text" (or "thought" and "solution")'),
        ({"question": "Q", "thought": "t"}, 'missing key "solution"'),
        (
            {"question": "Q", "combined_text": "just text"},
            'key "combined_text" is not a thought followed by a solution',
        ),
        ({"question": "Q", "combined_text": render_response("", "s")}, 'key "combined_text" has an empty thought'),
        ({"question": "Q", "combined_text": render_response("t", "")}, 'key "combined_text" has an empty solution'),
        ({"question": "Q", "thought": MARKERS[1], "solution": "s"}, 'key "thought" is not a thought followed'),
    ],
)
def test_wrong_demonstration_names_row_and_key(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as error:
        demonstration_from_row(row, where="d.jsonl, row 7")
    assert str(error.value).startswith("d.jsonl, row 7: " + complaint.replace("problem", "question"))
    assert "\n" not in str(error.value)


def test_half_a_surrogate_pair_is_refused_before_a_parquet_file_would_choke_on_it(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"problem": "Is \\ud800 a letter?", "answer": "no"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r'row 1: key "problem" holds half of a surrogate pair'):
        list(read_problems(path))
