"""``still-ray verify``: one verdict for each row, in order, and nothing written when a row is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from still_ray.formats.response import parse_response, render_response
from still_ray.types import InputError, Verdict
from still_ray.verifiers.code.verdict import CodeSettings
from still_ray.verifiers.files import verify_file
from still_ray.verifiers.pool import VerifierPool


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(1, timeout_s=2.5, code=CodeSettings(sandbox="none")) as pool:
        yield pool


def row(row_id: object, answer: object, response: str, domain: str = "math") -> dict[str, Any]:
    return {"id": row_id, "domain": domain, "answer": answer, "response": response}


def response(answer: str) -> str:
    return render_response("t", f"The answer is \\boxed{{{answer}}}.")


def verify(tmp_path: Path, pool: VerifierPool, *rows: Any) -> list[dict[str, Any]]:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(fields) + "\n" for fields in rows), encoding="utf-8")
    counts = verify_file(source, target, parse=parse_response, pool=pool)
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert counts.total() == len(found)
    return found


def test_each_kind_of_verdict_in_order(tmp_path: Path, pool: VerifierPool) -> None:
    rows = [
        row("a", "1/2", response("0.5")),
        row("b", "9", response("9^{9^{9^9}}")),
        row(3, 5, response("6")),
        row("d", "5", "The answer is \\boxed{5}."),
        row("e", "C", response("C"), "choice"),
        row("f", {"kind": "assert", "code": "assert True"}, render_response("t", "```python\npass\n```"), "code"),
        row("g", "x+1", response("1+x")),
        row("h", "5", "\ud800 " + response("5")),
    ]
    found = verify(tmp_path, pool, *rows)
    assert [fields["id"] for fields in found] == ["a", "b", 3, "d", "e", "f", "g", "h"]
    assert [Verdict(fields["verdict"]) for fields in found] == [
        Verdict.CORRECT,
        Verdict.TIMEOUT,
        Verdict.INCORRECT,
        Verdict.UNPARSABLE,
        Verdict.CORRECT,
        Verdict.ERROR,
        Verdict.CORRECT,
        Verdict.CORRECT,
    ]
    assert all(list(fields) == ["id", "verdict", "extracted", "detail"] for fields in found)
    assert found[3]["extracted"] is None


def test_more_rows_than_fit_in_flight(tmp_path: Path, pool: VerifierPool) -> None:
    rows = [
        row(str(i), "x+1" if i % 50 == 0 else "7", response("1+x" if i % 50 == 0 else str(i % 9))) for i in range(700)
    ]
    found = verify(tmp_path, pool, *rows)
    assert [fields["id"] for fields in found] == [str(i) for i in range(700)]
    assert all((f["verdict"] == "correct") == (i % 50 == 0 or i % 9 == 7) for i, f in enumerate(found))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"id": "x", "domain": "math", "answer": "1"}, 'missing key "response"'),
        (row("x", None, "r"), 'missing key "answer"'),
        (row("x", "1", "r", "maths"), 'key "domain" is "maths", expected one of: math, choice, code, exact, custom'),
        ({**row("x", "1", "r"), "domain": {}}, 'key "domain" is {}'),
        (row("x", " ", "r"), 'key "answer" is blank'),
        (row("x", ["1"], "r"), 'key "answer" must be text or a number'),
        ({**row("x", "1", "r"), "response": 5}, 'key "response" must be a text'),
        (row(["x"], "1", "r"), 'key "id" must be a text or a number'),
        ({**row("x", "1", "r"), "question": ["q"]}, 'key "question" must be a text'),
    ],
)
def test_wrong_row_is_named_before_anything_is_written(
    tmp_path: Path, pool: VerifierPool, wrong: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError) as error:
        verify(tmp_path, pool, row("a", "1", response("1")), wrong)
    assert f"in.jsonl, row 2: {complaint}" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_question_of_a_row_tells_which_option_an_answer_names(tmp_path: Path, pool: VerifierPool) -> None:
    asked = {**row("a", "B", response("Paris"), "choice"), "question": "Which is it?\n(A) Rome\n(B) Paris\n(C) Oslo"}
    found = verify(tmp_path, pool, asked, {**asked, "question": ""}, {**asked, "question": None})
    assert [fields["verdict"] for fields in found] == ["correct", "unparsable", "unparsable"]


def test_target_that_cannot_be_written_is_named(tmp_path: Path, pool: VerifierPool) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row("a", "1", response("1"))), encoding="utf-8")
    with pytest.raises(InputError, match=r"out\.jsonl: cannot be written: No such file or directory"):
        verify_file(source, tmp_path / "missing" / "out.jsonl", parse=parse_response, pool=pool)
