"""Readers of problems and demonstrations: every format that is promised, and an error that names file and row."""

import csv
import gzip
import io
import json
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from still_ray.config.prepare import FieldsConfig
from still_ray.distill.questions import Question, question_from_row, read_questions
from still_ray.formats.adapters import AdaptedDemonstration, adapt_row, question_of
from still_ray.formats.benchmarks import BenchmarkSource, benchmark_problems, holds_problems
from still_ray.formats.choices import has_options_apart
from still_ray.formats.control import KNOWN
from still_ray.formats.demonstrations import (
    demonstration_from_row,
    demonstration_row,
    read_demonstrations,
    validate_demonstrations,
    write_demonstrations,
)
from still_ray.formats.file_splits import cut_files
from still_ray.formats.problems import (
    problem_from_row,
    problem_row,
    read_problems,
    validate_problems,
    write_problems,
)
from still_ray.formats.responses.markers import MARKERS, render_response
from still_ray.formats.responses.reading import Defect
from still_ray.rows import read_piece, read_rows
from still_ray.tiny_world.arithmetic import make_demonstrations, make_problems, write_world
from still_ray.types import Demonstration, Domain, InputError, Problem
from still_ray.values import Flaw, Number, cleaned, is_answer, visible

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
STDIO = {"kind": "stdio", "cases": [{"input": "1\n", "output": "2\n"}]}
words = (
    st.text(min_size=1)
    .map(visible)
    .filter(lambda text: text and not any(mark in text for mark in MARKERS) and not KNOWN.held(text))
)
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


RATIONALE = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether she sold 48+24 = <<48+24=72>>72."
CHAT = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": r"It is \boxed{6}."}]
MMLU = {"question": "Q", "choices": ["red", "green", "blue"], "subject": "colours"}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": f"{RATIONALE}\n#### 72"}, "72"),
        ({"answer": "#### 1,080"}, "1,080"),
        ({"answer": "It costs so much.\n#### $18.50."}, "$18.50"),
        ({"answer": "x\n#### 18 eggs\n"}, r"18 \text{ eggs}"),
        ({"solution": f"{RATIONALE}\n#### 72"}, "72"),
        ({"solution": "Half of it.\nThe answer is: \\frac{1}{2}"}, r"\frac{1}{2}"),
        ({"answer": "9 + 9 = 18, so \\boxed{18} is it. The answer is: 18."}, "18"),
        ({"answer": "9 + 9 = 18. The final answer is **18**."}, "18"),
        ({"answer": "**Answer:** 18"}, "18"),
        ({"answer": "Answer:\n$18$"}, "$18$"),
        ({"answer": "The answer is clear from what stands in the question.\n\\boxed{18}"}, "18"),
        ({"query": "ignored", "response": "9 + 9 = 18. The answer is: 18"}, "18"),
        ({"solution": "so \\boxed{x = \\boxed{5}}"}, "5"),
        ({"answer": r"\boxed{n=1} \text{ and } \boxed{n=2}"}, r"\boxed{n=1} \text{ and } \boxed{n=2}"),
        ({"answer": r"\text{The answer is } 2024"}, r"\text{The answer is } 2024"),
        ({"solution": r"so \boxed{44}. We may check our answer: $17 \cdot 44 = 9 \cdot 83 + 1$."}, "44"),
        ({"answer": r"We add \frac{1}{2}+\frac{1}{3}=\frac{5}{6}. The answer is: \frac{5}{6}"}, r"\frac{5}{6}"),
        ({"answer": r"Half: $\frac{1}{2}\cdot 4=2$, so $\boxed{2}$"}, "2"),
        ({"answer": r"so $\boxed{\frac{5}{6}}$"}, r"\frac{5}{6}"),
        ({"answer": RATIONALE, "final_answer": "72"}, "72"),
        ({"answer": RATIONALE, "solution": "so \\boxed{72}"}, "72"),
        ({"final_answer": ["2"]}, "2"),
        ({"expected_answer": 1e-05}, "0.00001"),
        ({"ground_truth": "7"}, "7"),
        ({"reward_model": {"ground_truth": "7", "style": "rule"}}, "7"),
        ({"Answer": 7}, "7"),
        ({"answer": "The answer is: None", "domain": "exact"}, "The answer is: None"),
        ({**MMLU, "answer": 2}, "C"),
        ({**MMLU, "answer": "green"}, "B"),
        ({**MMLU, "answer": "The answer is (C)."}, "C"),
        ({"choices": {"text": ["red", "green"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
        ({"options": {"A": "red", "B": "green"}, "answer_idx": "A", "answer": "red"}, "A"),
        ({"options": ["A)21", "B)21.5"], "correct": "B", "rationale": "r"}, "B"),
        ({"opa": "red", "opb": "green", "opc": "blue", "opd": "grey", "cop": 3}, "D"),
        ({**MMLU, "answer": "1"}, "B"),
        ({**MMLU, "choices": json.dumps(MMLU["choices"]), "answer": 1}, "B"),
        ({"choices": '{"text": ["red", "green"], "label": ["A", "B"]}', "answerKey": "B"}, "B"),
        ({"choices": ["2", "3", "1"], "answer": "1"}, "C"),
        ({"choices": ["$2$", "$3$", "$1$"], "answer": "1"}, "C"),
        ({"choices": {"text": ["red", "green"], "label": ["1", "2"]}, "answerKey": 1}, "A"),
        ({"choices": {"text": ["red", "green"], "label": ["1", "2"]}, "answerKey": 2.0}, "B"),
        ({"A": 0, "B": 1, "C": 2, "D": 3, "answer": "B"}, "B"),
        ({"A": "", "B": "", "C": "", "D": "", "choices": [], "answer": "7"}, "7"),
        ({"choices": "[]", "answer": "7"}, "7"),
        ({"solution": "<think>so \\boxed{3}? no</think>it is \\boxed{2}"}, "2"),
        ({**MMLU, "answer": "5", "domain": "math"}, "5"),
        ({**MMLU, "choices": "red, green", "answer": "5", "domain": "math"}, "5"),
    ],
)
def test_what_a_row_states_is_its_reference_to_every_reader(tmp_path: Path, row: dict[str, Any], answer: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"question": "Q", **row})
    (problem,) = read_problems(path)
    assert problem.answer == answer
    assert problem.question.startswith("Q") and (problem.domain is Domain.CHOICE) == answer.isupper()
    (asked,) = read_questions(path).questions
    assert (asked.text, asked.answer, asked.domain) == (problem.question, answer, problem.domain) or "response" in row
    assert list(benchmark_problems(source_of(path), seed=0)) == [problem]
    assert adapt_row({"question": "Q", **row}, kind="problems", fields=FieldsConfig(), where="f") == problem


def test_options_stand_behind_the_question_unless_it_lists_them() -> None:
    problem = problem_from_row({**MMLU, "answer": 2}, where="f, row 1")
    assert (problem.question, problem.subject) == ("Q\n\n(A) red\n(B) green\n(C) blue", "colours")
    listed = {**MMLU, "question": "Q\nA. red\nB. green\nC. blue", "answer": 2}
    assert problem_from_row(listed, where="f, row 1").question == listed["question"]
    apart = {"question": "Q", "correct_answer": "red", "distractor1": "green", "distractor2": "blue"}
    problem = problem_from_row(apart, where="f, row 1")
    assert f"({problem.answer}) red" in problem.question and "green" in problem.question


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answer": RATIONALE}, 'key "answer" is a worked solution that does not end in its answer: "#### X", '),
        ({"solution": RATIONALE}, 'key "solution" is a worked solution that does not end in its answer'),
        (
            {"final_answer": ["2", "3"]},
            'key "final_answer" must be text, a number or, for code, an object, and one: it',
        ),
        ({"ground_truth": "None"}, 'key "ground_truth" is "None", which is no answer'),
        ({**MMLU, "answer": "mauve", "domain": "choice"}, 'key "answer" must be a letter'),
        ({**MMLU, "choices": ["", "b", "c"], "answer": 2}, 'key "choices" must list 2 to 26 options, none of them'),
        ({"options": "['a', 'b']", "answer": 1, "domain": "history"}, 'key "options" must list 2 to 26 options'),
        ({"A": "x", "B": "y", "C": "z", "D": "", "answer": "B"}, 'key "A" to "D" must list 2 to 26 options'),
        (
            {"choices": {"text": ["red", "green"], "label": ["1", "2"]}, "answerKey": 0},
            'missing key "answer"',
        ),
        ({"solution": "<think>so \\boxed{3}? no</think>it is 2"}, 'missing key "answer"'),
        ({"response": "<think>so \\boxed{3}? no</think>it is \\boxed{2}"}, 'missing key "answer"'),
        (
            {"messages": [CHAT[0], {**CHAT[1], "content": "<think>so \\boxed{3}? no</think>it is 2"}]},
            'missing key "answer"',
        ),
    ],
)
def test_a_reference_that_cannot_be_read_names_file_row_and_key(
    tmp_path: Path, row: dict[str, Any], complaint: str
) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"question": "P", "answer": "1"}, {"question": "Q", **row})
    for read in (validate_problems, lambda path: list(benchmark_problems(source_of(path), seed=0))):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}, row 2: {complaint}")


CELLS = st.one_of(
    st.sampled_from(
        ["7", f"{RATIONALE}\n#### 72", RATIONALE, "so \\boxed{8}", "The answer is: 9", "red", "B", "None", ""]
    ),
    st.sampled_from(
        [None, 3, 0.5, ["4"], ["4", "5"], {"text": ["red", "green"], "label": ["A", "B"]}, ["red", "green"]]
    ),
    st.text(max_size=5),
)
COLUMNS = (
    *("question", "Problem", "query", "answer", "Answer", "final_answer", "ground_truth", "solution", "response"),
    *("messages", "choices", "options", "answerKey", "domain", "subject", "level", "id", "unique_id"),
    *("Correct Answer", "Incorrect Answer 1"),
)
LABELS = st.sampled_from(["math", "choice", "exact", "history", "Physics", "maths", "mathe", ["algebra", "sums"], None])


@unhurried
@given(st.dictionaries(st.sampled_from(COLUMNS), CELLS, min_size=2, max_size=6), LABELS, st.booleans())
def test_a_row_is_the_same_problem_to_prepare_run_evaluate_and_distill(
    tmp_path_factory: pytest.TempPathFactory, cells: dict[str, Any], label: Any, chat: bool
) -> None:
    row = {"question": "Q?", **cells, "domain": label} if label else {"question": "Q?", **cells}
    if chat:
        row = {**row, "question": None, "messages": CHAT}
    path = write_lines(tmp_path_factory.getbasetemp() / "same.jsonl", row)
    (where, fields), source = next(iter(read_rows(path))), source_of(path)
    read = outcome_of(lambda: next(read_problems(path)))
    assert outcome_of(lambda: next(benchmark_problems(source, seed=0))) == read  # evaluate writes these out ...
    assert holds_problems(source) or has_options_apart(row)  # ... and reads the file itself if it may
    prepared = outcome_of(lambda: adapt_row(fields, kind="auto", fields=FieldsConfig(), where=where))
    assert prepared == read or not isinstance(prepared, Problem)
    asked = outcome_of(lambda: question_from_row(fields, where=where))
    if not isinstance(read, Problem):
        assert asked == read or isinstance(asked, str) or (isinstance(asked, Question) and asked.answer is None)
        return
    assert problem_from_row(json.loads(json.dumps(problem_row(read))), where="f, row 1") == read
    assert isinstance(asked, Question)
    with_reference = (asked.id, asked.text, asked.answer, asked.domain)
    assert with_reference == (read.id, read.question, read.answer, read.domain) or asked.answer is None
    assert asked.text == read.question


EXCHANGE = [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": r"\boxed{2}"}]
TWICE = {"role": "user", "content": "And twice that?"}


@pytest.mark.parametrize("turns", [[*EXCHANGE, TWICE], [*EXCHANGE, TWICE, EXCHANGE[1]]])
def test_a_chat_of_several_questions_asks_none_and_hides_none_that_stands_beside_it(turns: list[Any]) -> None:
    for read in (problem_from_row, question_from_row):
        with pytest.raises(InputError, match=r"^f, row 1: a chat of several questions; a problem is one question$"):
            read({"messages": turns}, where="f, row 1")
    own = {"problem": "Own?", "messages": turns}
    problem = problem_from_row({**own, "answer": "4"}, where="f, row 1")
    assert (problem.question, problem.answer) == ("Own?", "4")
    asked = question_from_row(own, where="f, row 1")
    assert (asked.text, asked.answer) == ("Own?", None)
    with pytest.raises(InputError, match='missing key "answer"'):  # the chat's box answers another question
        problem_from_row(own, where="f, row 1")


def test_the_last_of_several_answers_of_a_chat_has_no_reference_of_another_question() -> None:
    thoughtful = {"role": "assistant", "content": "<think>t</think>s"}
    row = {"problem": "Own?", "answer": "4", "messages": [*EXCHANGE, TWICE, thoughtful]}
    found = adapt_row(row, kind="auto", fields=FieldsConfig(), where="f, row 1")
    assert isinstance(found, AdaptedDemonstration)
    assert (found.shown.question, found.reference) == ("And twice that?", None)


def test_options_that_do_not_count_are_no_reference_and_those_that_cannot_be_read_cost_a_demonstration_its_own() -> (
    None
):
    row = {"question": "Q", "choices": ["a", "b"], "answerKey": "B"}
    asked = question_from_row({**row, "domain": "math"}, where="f, row 1")
    assert (asked.text, asked.answer) == ("Q", None)
    assert question_from_row(row, where="f, row 1").answer == "B"
    shown = {**row, "choices": "a or b", "response": "<think>t</think>s"}
    found = adapt_row(shown, kind="auto", fields=FieldsConfig(), where="f, row 1")
    assert isinstance(found, AdaptedDemonstration) and found.reference is None


def outcome_of(read: Callable[[], Any]) -> object:
    """What a reader makes of a row, or says of it."""
    try:
        return read()
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("domain", ["towns", "physics", "exact"])
def test_a_domain_with_a_verifier_of_the_users_own_stays_as_it_is(tmp_path: Path, domain: str) -> None:
    path = write_lines(tmp_path / "problems.jsonl", {"problem": "P", "answer": "None", "domain": domain})
    (problem,) = read_problems(path, own={domain})
    assert (problem.domain, problem.answer) == (domain, "None")
    assert problem_from_row(problem_row(problem), where="f, row 1", own={domain}) == problem
    assert validate_problems(path, own={domain: "my.judge:f"}).domains == (domain,)


def test_a_domain_that_nobody_verifies_is_told_with_the_nearest_and_what_to_do(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "problems.jsonl", {"problem": "P", "answer": "7", "domain": "phisics"})
    with pytest.raises(InputError) as error:
        validate_problems(path, own={"towns"})
    assert str(error.value).endswith(
        ", or your own with its verifier (verifier.custom: {phisics: package.module:function}); did you mean physics?"
    )


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answer": "7"}, 'missing key "question" (or "problem", "prompt", '),
        ({"problem": " ", "answer": "7"}, 'key "problem" must be a text that is not blank'),
        ({"problem": ["P"], "answer": "7"}, 'key "problem" must be a text'),
        ({"problem": "P"}, 'missing key "answer" (or "solution" with a \\boxed{})'),
        ({"problem": "P", "solution": r"so \boxed{5"}, 'missing key "answer" (or "solution" with a \\boxed{})'),
        ({"problem": "P", "answer": True}, 'key "answer" must be text, a number or, for code, an object'),
        ({"problem": "P", "answer": STDIO}, 'key "answer" may be an object only where "domain" is "code"'),
        ({"problem": "P", "answer": "7", "domain": "mathe"}, 'key "domain" is "mathe", expected one of: math, choice'),
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
        ("p.tsv", b"x", 'unknown suffix ".tsv", one of .jsonl, .jsonl.gz, .json, .json.gz, .csv'),
        ("p.jsonl", b"\xef\xbb\xbf\n", "the file is empty"),
        ("p.jsonl", '{"problem": "P", "answer": "1"}'.encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        ("p.json", '[{"problem": "P", "answer": "1"}]'.encode("utf-16-le"), "is text in UTF-16; save it as UTF-8"),
        ("p.csv", "problem,answer\nP,1\n".encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        ("p.csv", b"problem,answer\n", "the file is empty"),
        ("p.csv", b"problem,answer,problem\nP,1,Q\n", 'the heading names the column "problem" twice'),
        ("p.csv", b"question,thought,solution\nQ,t,1,234\n", "row 1: 4 cells under 3 headings"),
        ("p.csv", b"question,thought,solution\nQ,t,\xff\n", "row 1: not UTF-8"),
        ("p.csv", b'question,thought,solution\nQ,t,"s\nQ,t,s\n', "row 1: the file is damaged from here on"),
        ("p.json", b'[{"problem": "P"}', "not valid JSON"),
        ("p.jsonl.gz", gzip.compress(b'{"problem": "P"}', mtime=0)[:-9], "the file is damaged from here on"),
        (
            "p.jsonl",
            b'{"problem": "P", "answer": "1"}\n{"problem": \n',
            "row 2: not valid JSON: Expecting value at column",
        ),
        ("p.json", b'[["P"]]', "row 1: a JSON object is expected, found a list"),
        ("p.jsonl", b'[{"problem": "P"}]', "row 1: a JSON object is expected, found a list"),
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


DUMPED = render_response("T", r"\boxed{5}.<|im_end|>")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q?", "combined_text": DUMPED},
        {"question": "Q? <|im_end|>\n", "combined_text": render_response("T\n<|endoftext|>", r"\boxed{5}.")},
        {"question": "Q?</s>", "combined_text": DUMPED.replace("<|im_end|>", " </s> <|eot_id|>\n") + "<|im_end|>"},
        {"question": "Q?", "thought": "T<|end_of_text|>", "solution": "\\boxed{5}.\n<end_of_turn>\n<eos>"},
        {"question": "Q?", "thought": "T", "solution": "\\boxed{5}.<\uff5cend\u2581of\u2581sentence\uff5c>"},
    ],
)
def test_control_tokens_that_end_a_dump_are_no_part_of_it(tmp_path: Path, row: dict[str, str]) -> None:
    path = write_lines(tmp_path / "d.jsonl", row)
    (shown,) = read_demonstrations(path)
    assert (shown.question, shown.thought, shown.solution) == ("Q?", "T", r"\boxed{5}.")
    adapted = adapt_row(row, kind="auto", fields=FieldsConfig(), where="f")
    assert isinstance(adapted, AdaptedDemonstration)
    assert adapted.defect is None
    assert adapted.shown == shown


@pytest.mark.parametrize(
    "token",
    [
        *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "<s>", "<|eot_id|>", "<|start_header_id|>", "<bos>"),
        *(
            "<start_of_turn>",
            "[INST]",
            "<|user|>",
            "<\uff5cUser\uff5c>",
            "<|fim_middle|>",
            "<|reserved_special_token_7|>",
        ),
        *("<|START_OF_TURN_TOKEN|>", "<|begin_of_thoughts|>"),
    ],
)
def test_a_control_token_elsewhere_costs_a_demonstration_and_is_counted(tmp_path: Path, token: str) -> None:
    rows = [
        {"question": "Q?", "thought": f"T {token} t", "solution": "S"},
        {"question": "Q?", "thought": "T", "solution": f"{token}S"},
        {"question": f"Q {token} q?", "thought": "T", "solution": "S"},
        {"question": "Q?", "thought": "2 <|x|> 3 <|A_0|> < |z| <think", "solution": "S<i>[0]</i>", "id": "kept"},
    ]
    path = write_lines(tmp_path / "d.jsonl", *rows)
    left_out: Counter[str] = Counter()
    assert [shown.id for shown in read_demonstrations(path, left_out)] == ["kept"]
    assert left_out == {"a control token as text": 3}
    index = validate_demonstrations(path)
    assert (index.count, index.num_control) == (1, 3)
    defects = [adapt_row(row, kind="demonstrations", fields=FieldsConfig(), where="f") for row in rows]
    assert [each.defect for each in defects if isinstance(each, AdaptedDemonstration)] == [Defect.CONTROL] * 3 + [None]


def test_a_file_of_nothing_but_control_tokens_names_a_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"question": "Q?", "thought": "T<|im_end|>t", "solution": "S"})
    with pytest.raises(InputError, match=r"d\.jsonl, row 1: .* control token <\|im_end\|> as text"):
        list(read_demonstrations(path))


@pytest.mark.parametrize("read", [read_problems, read_questions])
def test_a_question_that_holds_a_control_token_is_refused_and_one_that_ends_in_it_is_cleaned(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    row = {"problem": "Q?<|im_end|>\n", "answer": "5"}
    found = read(write_lines(tmp_path / "p.jsonl", row))
    assert [getattr(each, "question", None) or each.text for each in getattr(found, "questions", found)] == ["Q?"]
    path = write_lines(tmp_path / "p.jsonl", row, {"problem": "Q<|im_start|>?", "answer": "5"})
    with pytest.raises(
        InputError, match=r"p\.jsonl, row 2: the question holds the control token <\|im_start\|>"
    ) as error:
        list(read(path))
    assert error.value.reason == Flaw.CONTROL


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
@given(words, words.filter(is_answer), words, st.sampled_from([None, 3]))
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
        ({"combined_text": "x"}, 'missing key "question" (or "problem", '),
        ({"question": "Q"}, 'missing key "combined_text" (or "thought" and "solution", a response, or a chat)'),
        ({"question": "Q", "thought": "t"}, 'key "solution" (missing beside "thought") has an empty solution'),
        ({"question": "Q", "reasoning": "t", "output": " "}, 'key "output" has an empty solution'),
        ({"question": "Q", "thought": " ", "solution": " "}, 'key "thought" has an empty thought'),
        (
            {"question": "Q", "combined_text": "just text"},
            'key "combined_text" is not a thought followed by a solution',
        ),
        ({"question": "Q", "combined_text": render_response(" ", "s")}, 'key "combined_text" has an empty thought'),
        ({"question": "Q", "combined_text": render_response("t", "")}, 'key "combined_text" has an empty solution'),
        ({"question": "Q", "thought": MARKERS[1], "solution": "s"}, 'key "thought" is not a thought followed'),
    ],
)
def test_wrong_demonstration_names_row_and_key(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as error:
        demonstration_from_row(row, where="d.jsonl, row 7")
    assert str(error.value).startswith("d.jsonl, row 7: " + complaint)
    assert "\n" not in str(error.value)


GOOD = {"id": "g", "problem": "P?", "question": "P?", "answer": "1", "thought": "t", "solution": "s"}


def read_by_all(path: Path) -> list[str]:
    """What each command's reader of such a file says of it; "" for nothing."""
    pieces = cut_files([path], 10**9)
    shown = FieldsConfig()

    def prepare() -> None:
        rows = [row for piece in pieces for row in read_piece(piece)]
        if why := next((row.broken for row in rows if row.broken), ""):
            raise InputError(why)

    readers: list[Callable[[], object]] = [
        lambda: validate_problems(path),
        lambda: validate_demonstrations(path),
        lambda: read_questions(path),
        lambda: list(benchmark_problems(BenchmarkSource(name="b", source=str(path)), seed=1)),
        lambda: [question_of(row.fields, fields=shown, where=row.where) for row in read_rows(path)],
        prepare,
    ]
    said = []
    for reader in readers:
        try:
            reader()
            said.append("")
        except InputError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        *(({key: "half \ud83d"}, f'key "{key}" holds half of a surrogate pair') for key in GOOD),
        ({"other": [{"deep": "\udc00"}]}, 'key "other" holds half of a surrogate pair'),
        ({"\ud800": 1}, "is itself half of a surrogate pair"),
        ({"other": json.loads("[" * 101 + "]" * 101)}, 'key "other" is nested more than 100 levels deep'),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz"])
def test_what_no_row_may_hold_is_refused_by_every_reader_in_the_same_words(
    tmp_path: Path, suffix: str, changes: dict[str, Any], why: str
) -> None:
    rows = [json.dumps(row) for row in (GOOD, {**GOOD, "id": "bad", **changes})]
    text = f"[{','.join(rows)}]" if suffix == "json" else "\n".join(rows)
    path = tmp_path / f"p.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    for said in read_by_all(path):
        assert said.startswith(f"{path}, row 2: ") and why in said
        said.encode()  # it can be printed


def test_a_key_that_stands_twice_is_refused_by_every_reader(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-1] + ', "answer": "2"}\n')
    assert set(read_by_all(path)) == {f'{path}, row 2: key "answer" stands twice'}


def test_bytes_of_a_table_that_are_no_text_name_their_row_and_no_other(tmp_path: Path) -> None:
    columns: dict[str, Any] = {key: [value.encode()] * 5 for key, value in GOOD.items()}
    columns["id"] = [b"a", b"b", b"c", b"d", b"e"]
    columns["answer"][3] = b"\xed\xa0\x80"  # half of a surrogate pair, as careless writers encode it
    table = pyarrow.table({key: pyarrow.array(values, pyarrow.binary()) for key, values in columns.items()})
    table = pyarrow.table({key: table[key].combine_chunks().view(pyarrow.string()) for key in columns})
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(table, path)
    assert all(said.startswith(f"{path}, row 4: not UTF-8") for said in read_by_all(path))
    (piece,) = cut_files([path], 10**9)
    assert [row.number for row in read_piece(piece) if not row.broken] == [1, 2, 3, 5]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_reader_reads_every_form_with_a_byte_order_mark_and_long_values(
    tmp_path: Path, suffix: str, mark: bytes
) -> None:
    rows = [GOOD, {**GOOD, "id": "h", "problem": "Q" * 300_000, "question": "Q" * 300_000, "answer": '1,"2'}]
    path = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        kind = suffix.partition(".")[0]
        lines = [json.dumps(row) for row in rows]
        text = "\n".join(lines) if kind == "jsonl" else json.dumps(rows, indent=1) if kind == "json" else as_csv(rows)
        content = mark + text.encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert read_by_all(path) == [""] * 6
    assert [problem.answer for problem in read_problems(path)] == ["1", '1,"2']
    assert [len(shown.question) for shown in read_demonstrations(path)] == [2, 300_000]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    with io.StringIO(newline="") as text:
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("answer", [NAN, INFINITY, -INFINITY, None, "None", "nan", "null", " None ", "", " ", "\u200b"])
def test_what_says_nothing_is_no_answer_to_any_reader(tmp_path: Path, answer: object) -> None:
    row = {"id": "x", "problem": "What is 1+1?", "answer": answer}
    path = write_lines(tmp_path / "p.jsonl", {**row, "id": "y", "answer": "2"}, row)
    for read in (lambda: validate_problems(path), lambda: list(benchmark_problems(source_of(path), seed=1))):
        with pytest.raises(InputError, match=r"p\.jsonl, row 2: .*answer") as error:
            read()
        assert error.value.reason == Flaw.NO_ANSWER
    with pytest.raises(InputError, match=r"row 2: .*answer") as error:
        adapt_row(cleaned(row), kind="auto", fields=FieldsConfig(), where=f"{path}, row 2")
    assert error.value.reason == Flaw.NO_ANSWER
    assert [question.answer for question in read_questions(path).questions] == ["2", None]
    with_box = {**row, "solution": r"So \boxed{2}."}
    assert problem_from_row(cleaned(with_box), where="f, row 1").answer == "2"
    shown = adapt_row(
        cleaned({**row, "response": "<think>t</think>s"}), kind="auto", fields=FieldsConfig(), where="f, row 1"
    )
    assert isinstance(shown, AdaptedDemonstration) and shown.reference is None


def test_the_word_none_is_an_answer_where_words_are(tmp_path: Path) -> None:
    row = {"problem": "Which of them lies?", "answer": "None"}
    assert problem_from_row({**row, "domain": "exact"}, where="f, row 1").answer == "None"
    for domain in ("math", "choice", "puzzle", None):
        with pytest.raises(InputError, match='key "answer" is "None", which is no answer'):
            problem_from_row({**row, "domain": domain}, where="f, row 1")


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ("1e-05", "0.00001"),
        ("0.00001", "0.00001"),
        ("1e16", "10000000000000000"),
        ("1e22", "10000000000000000000000"),
        ("1.10", "1.10"),
        ("0.1000000000000000055", "0.1000000000000000055"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("-2.5E+3", "-2500"),
        ("6.02e400", r"6.02 \times 10^{400}"),
        ("1e-99", r"10^{-99}"),
        ("-1e99", r"-1 \times 10^{99}"),
    ],
)
def test_a_json_number_keeps_the_value_that_the_file_gives_it(tmp_path: Path, literal: str, text: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"problem": "P", "answer": {literal}}}\n')
    assert [problem.answer for problem in read_problems(path)] == [text]
    assert [question.answer for question in read_questions(path).questions] == [text]


@pytest.mark.parametrize(
    ("kind", "values", "texts"),
    [
        (pyarrow.float64(), [1e-05, 1e22, 0.1], ["0.00001", "10000000000000000000000", "0.1"]),
        (pyarrow.float32(), [0.1, 2.5, 1e-05], ["0.1", "2.5", "0.00001"]),
        (pyarrow.decimal128(10, 3), [Decimal("0.100"), Decimal(2), Decimal("-1.5")], ["0.100", "2.000", "-1.500"]),
        (pyarrow.int64(), [1, 2, 3], ["1", "2", "3"]),
    ],
)
def test_a_number_of_a_table_keeps_its_value(tmp_path: Path, kind: Any, values: list[Any], texts: list[str]) -> None:
    table = pyarrow.table({"id": ["a", "b", "c"], "problem": ["P"] * 3, "answer": pyarrow.array(values, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    assert [problem.answer for problem in read_problems(tmp_path / "p.parquet")] == texts


def test_what_a_table_has_for_a_missing_number_is_no_answer(tmp_path: Path) -> None:
    for name, missing in (("a", NAN), ("b", None), ("c", -INFINITY)):
        column = pyarrow.array([1.0, missing], pyarrow.float64())
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"problem": ["P", "Q"], "answer": column}), path)
        with pytest.raises(InputError, match=rf'{name}\.parquet, row 2: missing key "answer".* are no answers'):
            validate_problems(path)


@pytest.mark.parametrize("level", [10**20, 1e20, -(10**20), "Level 100000000000000000000", 1e400, 10**9])
def test_a_level_that_is_none_is_unknown(tmp_path: Path, level: object) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"problem": "P", "answer": "1", "level": level})
    assert validate_problems(path).levels == (None,)


def test_a_number_travels_with_its_text() -> None:
    assert pickle.loads(pickle.dumps(Number("1e-05"))).text == "1e-05"


def source_of(path: Path) -> BenchmarkSource:
    return BenchmarkSource(name="b", source=str(path))
