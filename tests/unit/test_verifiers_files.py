"""``still-ray verify``: one verdict for each row, in order, and nothing written when the file holds no such rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from still_ray.formats.responses.markers import render_response
from still_ray.formats.responses.reading import read_response
from still_ray.formats.responses.table import FORMATS
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
    lines = (fields if isinstance(fields, str) else json.dumps(fields) for fields in rows)
    source.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    counts = verify_file(source, target, parse=read_response, formats=FORMATS, pool=pool)
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert counts.total() == len(found)
    return found


def test_each_kind_of_verdict_in_order(tmp_path: Path, pool: VerifierPool) -> None:
    rows = [
        row("a", "1/2", response("0.5")),
        row("b", "9", response("9^{9^{9^9}}")),
        row(3, 5, response("6")),
        row("d", "5", "It is 5, as we have seen."),
        row("e", "C", response("C"), "choice"),
        row("f", {"kind": "assert", "code": "assert True"}, render_response("t", "```python\npass\n```"), "code"),
        row("g", "x+1", response("1+x")),
        row("h", "5", "The answer is \\boxed{5}."),
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


def test_tokens_that_ended_a_response_are_no_part_of_its_answer(tmp_path: Path, pool: VerifierPool) -> None:
    rows = [
        row("a", "blue whale", "blue whale<|im_end|>", "exact"),
        row("b", "blue whale", "<think>Large.</think>blue whale</s>\n<|endoftext|>", "exact"),
        row("c", "blue whale", render_response("t", "blue whale<|eot_id|>") + "<|eot_id|>", "exact"),
        row("d", "blue whale", "blue whale<|im_start|>", "exact"),
    ]
    assert [fields["verdict"] for fields in verify(tmp_path, pool, *rows)] == ["correct"] * 3 + ["incorrect"]


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
        ({"id": "x", "domain": "math", "response": "r"}, 'missing key "answer"'),
        (row("x", "1", "r", "maths"), 'key "domain" is "maths", expected one of: math, choice, code, exact, or'),
        ({**row("x", "1", "r"), "domain": {}}, 'key "domain" is {}'),
        ({**row("x", "1", "r"), "response": 5}, 'key "response" must be a text'),
        (row(["x"], "1", "r"), 'key "id" must be a text or a number'),
        ({**row("x", "1", "r"), "question": ["q"]}, 'key "question" must be a text'),
        (
            {**row("x", "1", "r"), "format": "xml"},
            'key "format" is "xml", expected one of: markers, think, channels, plain',
        ),
    ],
)
def test_wrong_row_is_named_before_anything_is_written(
    tmp_path: Path, pool: VerifierPool, wrong: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError) as error:
        verify(tmp_path, pool, row("a", "1", response("1")), wrong)
    assert f"in.jsonl, row 2: {complaint}" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (row("x", NAN, response("5")), "NaN and Infinity are none"),
        (row("x", INFINITY, response("5")), "NaN and Infinity are none"),
        (row("x", -INFINITY, response("5")), "NaN and Infinity are none"),
        (row("x", None, response("5")), "NaN and Infinity are none"),
        (row("x", "None", response("None")), 'is "None", which is no answer'),
        (row("x", " nan ", response("nan")), 'is "nan", which is no answer'),
        (row("x", NAN, response("C"), "choice"), "NaN and Infinity are none"),
        (row("x", None, response("yes"), "exact"), "NaN and Infinity are none"),
        (row("x", " ", response("5")), "is blank"),
        (row("x", ["5", "6"], response("5")), "must be text or a number"),
        (row("x", True, response("5")), "must be text or a number"),
        (row("x", "5\udc00", response("5")), 'key "answer" holds half of a surrogate pair'),
        (row("x", "5", response("5") + "\ud800"), 'key "response" holds half of a surrogate pair'),
        (row("\ud83d", "5", response("5")), 'key "id" holds half of a surrogate pair'),
        ({**row("x", "5", response("5")), "notes": {"a": ["\ud800"]}}, 'key "notes" holds half of a surrogate pair'),
        ('{"id": "x", "domain": "math", "answer": "5", "answer": "6", "response": "5"}', '"answer" stands twice'),
    ],
)
def test_a_row_whose_values_are_at_fault_is_an_error_in_its_place(
    tmp_path: Path, pool: VerifierPool, wrong: Any, why: str
) -> None:
    found = verify(tmp_path, pool, row("a", "1", response("1")), wrong, row("b", "1", response("1")))
    assert [fields["verdict"] for fields in found] == ["correct", "error", "correct"]
    assert why in found[1]["detail"]
    assert found[1]["id"] == (json.loads(wrong) if isinstance(wrong, str) else wrong)["id"]
    assert found[1]["extracted"] is None


def test_a_word_is_a_word_where_words_are_answers(tmp_path: Path, pool: VerifierPool) -> None:
    found = verify(tmp_path, pool, row("a", "None", response("None"), "exact"))
    assert [fields["verdict"] for fields in found] == ["correct"]


@pytest.mark.parametrize("literal", ["1e-05", "0.00001", "1E-5", "1.0e-5"])
def test_a_json_number_keeps_its_value_however_it_is_written(tmp_path: Path, pool: VerifierPool, literal: str) -> None:
    line = json.dumps(row("a", "X", response(r"\frac{1}{100000}"))).replace('"X"', literal)
    wrong = json.dumps(row("b", "X", response("1"))).replace('"X"', literal)
    assert [fields["verdict"] for fields in verify(tmp_path, pool, line, wrong)] == ["correct", "incorrect"]


@pytest.mark.parametrize("tag", ["think", "thinking", "thought", "reason", "reasoning", "Think"])
def test_a_response_is_judged_under_the_format_that_its_text_has(tmp_path: Path, pool: VerifierPool, tag: str) -> None:
    thought = "Perhaps \\boxed{4}."
    rows = [
        row("closed", "5", f"<{tag}>\n{thought}\n</{tag}>\n\nIt is \\boxed{{5}}."),
        row("only closed", "5", f"{thought}\n</{tag}>\n\nIt is \\boxed{{5}}."),
        row("no thought", "5", f"<{tag}>\n\n</{tag}>\n\nIt is \\boxed{{5}}."),
        row("wrong", "4", f"<{tag}>{thought}</{tag}>It is \\boxed{{5}}."),
        row("not closed", "4", f"<{tag}>\n{thought}"),
        row("thinks again", "4", f"<{tag}>a</{tag}>It is \\boxed{{4}}. <{tag}>Wait, \\boxed{{4}}"),
        row("nothing behind", "4", f"<{tag}>{thought}</{tag}>\n"),
    ]
    found = {fields["id"]: fields["verdict"] for fields in verify(tmp_path, pool, *rows)}
    assert [name for name, verdict in found.items() if verdict == "correct"] == ["closed", "only closed", "no thought"]
    assert [name for name, verdict in found.items() if verdict == "unparsable"] == [
        "not closed",
        "thinks again",
        "nothing behind",
    ]


def test_a_row_may_say_its_format(tmp_path: Path, pool: VerifierPool) -> None:
    text = "In <think> I wrote \\boxed{5}"
    rows = [{**row(name, "5", text), "format": name} for name in ("markers", "think", "plain")]
    assert [fields["verdict"] for fields in verify(tmp_path, pool, *rows)] == ["unparsable", "unparsable", "correct"]


def test_question_of_a_row_tells_which_option_an_answer_names(tmp_path: Path, pool: VerifierPool) -> None:
    asked = {**row("a", "B", response("Paris"), "choice"), "question": "Which is it?\n(A) Rome\n(B) Paris\n(C) Oslo"}
    found = verify(tmp_path, pool, asked, {**asked, "question": ""}, {**asked, "question": None})
    assert [fields["verdict"] for fields in found] == ["correct", "unparsable", "unparsable"]


def test_target_that_cannot_be_written_is_named(tmp_path: Path, pool: VerifierPool) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row("a", "1", response("1"))), encoding="utf-8")
    with pytest.raises(InputError, match=r"out\.jsonl: cannot be written: No such file or directory"):
        verify_file(source, tmp_path / "missing" / "out.jsonl", parse=read_response, formats=FORMATS, pool=pool)
