"""Rows as others publish them: what they become, and what is said of those that become nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.config.prepare import FieldsConfig, Kind
from still_ray.formats.adapters import AdaptedDemonstration, adapt_row, question_of
from still_ray.formats.demonstrations import demonstration_from_row, demonstration_row
from still_ray.formats.responses.markers import render_response
from still_ray.formats.responses.reading import Defect, cut_response, looks_thought
from still_ray.formats.responses.think import THINK_TAGS
from still_ray.types import Demonstration, Domain, InputError, Problem, Turn

WHERE = "f.jsonl, row 3"
QUESTION = {"question": "Q?"}
THINK = "<think>\nT\n</think>\n\nS"
OURS = render_response("T", "S")
SHOWN = ("Q?", "T", "S")


def adapted(row: dict[str, Any], kind: Kind = "auto", **fields: str) -> AdaptedDemonstration | Problem:
    return adapt_row(row, kind=kind, fields=FieldsConfig(**fields), where=WHERE)


def demonstration(row: dict[str, Any], **fields: str) -> Demonstration:
    found = adapted(row, "auto", **fields)
    assert isinstance(found, AdaptedDemonstration)
    assert found.defect is None
    return found.shown


def parts(shown: Demonstration) -> tuple[str, str, str]:
    return shown.question, shown.thought, shown.solution


def error(row: dict[str, Any], kind: Kind = "auto", **fields: str) -> str:
    with pytest.raises(InputError) as caught:
        adapted(row, kind, **fields)
    assert str(caught.value).startswith(WHERE)
    return str(caught.value)


# -- shapes -----------------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "Q?"}
SYSTEM = {"role": "system", "content": "Think step by step."}
SHAPES: dict[str, dict[str, Any]] = {
    "released": {**QUESTION, "combined_text": OURS, "domain": "physics"},
    "apart": {**QUESTION, "thought": "T", "solution": "S"},
    "api": {"prompt": "Q?", "reasoning_content": "T", "content": "S"},
    "r1 response": {"problem": "Q?", "response": THINK},
    "r1 output": {"instruction": "Q?", "input": "", "output": THINK},
    "r1 generation": {**QUESTION, "generation": THINK},
    "r1 completion": {"prompt": "Q?", "completion": "T</think>S"},
    "r1 text": {**QUESTION, "text": "<think>T</think><answer>S</answer>"},
    "openr1": {"problem": "Q?", "solution": "worked", "messages": [USER, {"role": "assistant", "content": THINK}]},
    "chat with reasoning": {
        "messages": [SYSTEM, USER, {"role": "assistant", "reasoning_content": "T", "content": "S"}]
    },
    "chat in parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Q?"}]},
            {"role": "assistant", "content": OURS},
        ]
    },
    "chat as text": {"messages": json.dumps([USER, {"role": "assistant", "content": THINK}])},
    "sharegpt": {"system": "s", "conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": OURS}]},
    "sky-t1": {"conversations": [{"from": "user", "value": "Q?"}, {"from": "assistant", "value": OURS}]},
    "chat in parts with a thought": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "T"}, {"type": "text", "text": "S"}],
            },
        ]
    },
    "empty chat beside": {**QUESTION, "output": THINK, "messages": []},
    "other column of that name": {**QUESTION, "combined_text": OURS, "conversation": "conv-123"},
    "broken chat beside": {**QUESTION, "combined_text": OURS, "messages": [{"role": "assistant", "content": "S"}]},
    "trl": {"prompt": [USER], "completion": [{"role": "assistant", "content": THINK}]},
}


@pytest.mark.parametrize("name", SHAPES)
def test_known_shapes_of_demonstrations(name: str) -> None:
    assert parts(demonstration(SHAPES[name])) == SHOWN


def test_the_label_and_the_id_of_a_row_are_kept_and_an_id_is_made_of_the_content_otherwise() -> None:
    assert demonstration(SHAPES["released"]).domain == "physics"
    assert demonstration(SHAPES["apart"]).domain == "math"
    assert demonstration({**SHAPES["apart"], "id": 7}).id == "7"
    assert demonstration(SHAPES["apart"]).id == demonstration(SHAPES["sky-t1"]).id


def test_columns_named_by_the_user_win() -> None:
    row = {
        "question": "wrong",
        "response": "<think>x</think>y",
        "meta": {"q": "Q?"},
        "r": THINK,
        "a.b": "chem",
        "key": "k",
    }
    shown = demonstration(row, question="meta.q", response="r", domain="a.b", id="key")
    assert (*parts(shown), shown.domain, shown.id) == (*SHOWN, "chem", "k")
    deep = {"problem": "Q?", "deepseek_reasoning": "T", "deepseek_solution": "S", "answer": "long text"}
    shown = demonstration(deep, thought="deepseek_reasoning", solution="deepseek_solution")
    assert parts(shown) == SHOWN


def test_a_named_column_that_is_missing_is_an_error_that_names_both() -> None:
    assert 'missing key "nope", which is named as fields.response' in error(SHAPES["released"], response="nope")
    assert 'missing key "meta.x"' in error({**SHAPES["released"], "meta": {"y": 1}}, question="meta.x")


@pytest.mark.parametrize(
    ("row", "answer", "domain"),
    [
        ({"problem": "Q?", "answer": "7"}, "7", Domain.MATH),
        ({"problem": "Q?", "solution": r"so \boxed{8}"}, "8", Domain.MATH),
        (
            {
                "problem": "Q?",
                "solution": r"so \boxed{8}",
                "messages": [USER, {"role": "assistant", "content": r"so \boxed{8}"}],
            },
            "8",
            Domain.MATH,
        ),
        ({"prompt": [USER], "ground_truth": "9"}, "9", Domain.MATH),
        ({"ID": "x", "Problem": "Q?", "Answer": 204}, "204", Domain.MATH),
        ({"problem": "Q?", "answer": 5, "domain": "history"}, "5", Domain.MATH),
        ({"problem": "Q?", "answer": "Napoleon", "domain": "history"}, "Napoleon", Domain.EXACT),
        ({"problem": "Q?", "answer": "C", "domain": "choice"}, "C", Domain.CHOICE),
        ({"question": "Q?", "answer": "48/2 = <<48/2=24>>24 clips.\n48+24 = 72.\n#### 72"}, "72", Domain.MATH),
        ({"question": "Q?", "answer": "72", "messages": []}, "72", Domain.MATH),
    ],
)
def test_known_shapes_of_problems(row: dict[str, Any], answer: str, domain: Domain) -> None:
    problem = adapted(row)
    assert isinstance(problem, Problem)
    assert (problem.question, problem.answer, problem.domain) == ("Q?", answer, domain)


def test_the_kind_decides_where_a_row_could_be_both() -> None:
    row = {**SHAPES["released"], "answer": "4"}
    assert isinstance(adapted(row), AdaptedDemonstration)
    assert isinstance(adapted(row, "problems"), Problem)
    worked = {"problem": "Q?", "solution": "no thought", "answer": "4"}
    assert isinstance(adapted(worked), Problem)
    assert 'missing key "combined_text"' in error(worked, "demonstrations")


def test_a_response_that_lost_its_thought_is_not_taken_for_a_problem() -> None:
    found = adapted({**QUESTION, "response": "just 4", "answer": "4"})
    assert isinstance(found, AdaptedDemonstration)
    assert found.defect is Defect.NO_THOUGHT


@pytest.mark.parametrize("reference", [{}, {"answer": "7"}])
def test_what_a_model_answered_in_a_chat_is_no_reference(reference: dict[str, str]) -> None:
    found = adapted({"messages": [USER, {"role": "assistant", "content": r"It is \boxed{7}."}], **reference})
    assert isinstance(found, AdaptedDemonstration)
    assert found.defect is Defect.NO_THOUGHT


def test_an_answer_that_the_api_left_empty_is_a_defect_and_not_a_broken_row() -> None:
    found = adapted({"messages": [USER, {"role": "assistant", "reasoning_content": "T", "content": None}]})
    assert isinstance(found, AdaptedDemonstration)
    assert (found.defect, found.shown.thought) == (Defect.EMPTY_SOLUTION, "T")


@pytest.mark.parametrize("tag", THINK_TAGS)
def test_every_tag_parts_a_response(tag: str) -> None:
    for text in (f"<{tag}>T</{tag}>S", f"T</{tag.upper()}>\n\nS"):
        assert cut_response(text) == ("T", "S", None)


def test_two_answers_are_not_unwrapped() -> None:
    two = "<answer>1</answer> <answer>2</answer>"
    assert cut_response(f"<think>T</think>{two}").solution == two
    assert cut_response("<think>T</think><answer>1</answer>").solution == "1"


def test_the_reference_of_a_demonstration() -> None:
    def reference(**columns: Any) -> Problem | None:
        found = adapted({**SHAPES["released"], **columns})
        assert isinstance(found, AdaptedDemonstration)
        return found.reference

    assert reference() is None
    known = reference(answer="42")
    assert known is not None and (known.answer, known.domain) == ("42", Domain.MATH)
    assert reference(answer=["4", "2"]) is None
    assert reference(answer="not code", domain="code") is None
    solved = adapted({**QUESTION, "reasoning": "T", "answer": "S"}, solution="answer")
    assert isinstance(solved, AdaptedDemonstration) and solved.reference is None  # it is the solution itself


# -- rows that are nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "no known shape: neither a response nor an answer; columns: none"),
        ({"foo": 1, "bar": 2}, "columns: foo, bar"),
        ({"response": THINK}, 'missing key "question" (or "problem", '),
        ({"question": 5, "response": THINK}, 'key "question" must be a text that is not blank'),
        ({"question": "  ", "response": THINK}, 'key "question" must be a text that is not blank'),
        ({"messages": [{"role": "assistant", "content": THINK}]}, "holds no turn of a user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": THINK}]},
            "not text",
        ),
        ({"problem": "Q?", "answer": True}, 'key "answer" must be text'),
        ({"messages": [{"role": "assistant", "content": "S"}], "response": THINK}, "holds no turn of a user"),
    ],
)
def test_rows_without_a_known_shape_say_why(row: dict[str, Any], why: str) -> None:
    assert why in error(row)


# -- responses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ("S", Defect.NO_THOUGHT),
        ("<think>T", Defect.THOUGHT_NOT_CLOSED),
        ("<think>T</think>", Defect.EMPTY_SOLUTION),
        ("<think></think>S", Defect.EMPTY_THOUGHT),
        ("<think>T <think>U</think></think>S", Defect.TWO_THOUGHTS),
        ("<think>T</think>S<think>U</think>V", Defect.TWO_THOUGHTS),
        ("T</think>S</think>V", Defect.TWO_THOUGHTS),
        ("Well. <think>T</think>S", Defect.TEXT_OUTSIDE),
        ("<think>T <|end_of_thought|></think>S", Defect.MARKERS_INSIDE),
        ("<think>T <reason>U</reason></think>S", Defect.MARKERS_INSIDE),
        ("<thought>T</thought>S<reason>", Defect.MARKERS_INSIDE),
        (OURS.replace("T", "<think>T</think>"), Defect.MARKERS_INSIDE),
        (OURS.replace("<|end_of_thought|>", ""), Defect.THOUGHT_NOT_CLOSED),
        (OURS.replace("<|end_of_solution|>", ""), Defect.SOLUTION_NOT_CLOSED),
        (OURS + "more", Defect.TEXT_OUTSIDE),
        (OURS + OURS, Defect.TWO_SOLUTIONS),
        (render_response(" ", "S"), Defect.EMPTY_THOUGHT),
        (render_response("T", " "), Defect.EMPTY_SOLUTION),
    ],
)
def test_defects_of_a_response_are_named(text: str, defect: Defect) -> None:
    assert cut_response(text).defect is defect


ANSWER = {"role": "assistant", "content": THINK}
AGAIN = {"role": "user", "content": "And then?"}


def said(*turns: tuple[str, str]) -> tuple[Turn, ...]:
    return tuple(Turn(role=role, content=content) for role, content in turns)


FIRST = (("user", "Q?"), ("assistant", "S"))


@pytest.mark.parametrize(
    ("row", "turns", "question"),
    [
        ({"messages": [USER, ANSWER, AGAIN, ANSWER]}, said(*FIRST), "And then?"),
        ({"messages": [SYSTEM, USER, ANSWER]}, said(("system", "Think step by step.")), "Q?"),
        (
            {"messages": [SYSTEM, USER, {**ANSWER, "content": "S", "reasoning_content": "T"}, AGAIN, ANSWER]},
            said(("system", "Think step by step."), *FIRST),
            "And then?",
        ),
        ({"messages": [USER, ANSWER, AGAIN, ANSWER, USER]}, said(*FIRST), "And then?"),
        ({"messages": [ANSWER, AGAIN, ANSWER]}, (), "And then?"),
        ({"messages": [USER, AGAIN, ANSWER]}, (), "Q?\n\nAnd then?"),
        ({"prompt": "Q?", "messages": [USER, ANSWER, AGAIN, ANSWER]}, said(*FIRST), "And then?"),
        ({"system": "s", "conversations": [USER, ANSWER, AGAIN, ANSWER]}, said(("system", "s"), *FIRST), "And then?"),
        ({"system": "s", **QUESTION, "response": THINK}, said(("system", "s")), "Q?"),
        ({"earlier_turns": [USER, ANSWER], "question": "And then?", "response": THINK}, said(*FIRST), "And then?"),
    ],
)
def test_the_last_answer_of_a_chat_is_learnt_and_all_before_is_read_without_its_thoughts(
    row: dict[str, Any], turns: tuple[Turn, ...], question: str
) -> None:
    shown = demonstration(row)
    assert (shown.turns, parts(shown)) == (turns, (question, "T", "S"))
    assert demonstration_from_row(demonstration_row(shown), where=WHERE) == shown
    assert shown.id != demonstration({**QUESTION, "response": THINK}).id


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([USER, {"role": "tool", "content": "4"}, ANSWER], 'holds a turn of "tool"; known are system, '),
        ([USER, SYSTEM, ANSWER], "holds a turn of a system behind others"),
        ([USER, ANSWER, ANSWER], "holds two turns of an assistant in a row"),
    ],
)
def test_turns_that_no_chat_template_takes_are_named(turns: list[dict[str, str]], why: str) -> None:
    assert f'key "messages" {why}' in error({"messages": turns})


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q", "input": "?", "output": "S"},
        {**QUESTION, "answer": "S"},
        {"messages": [USER, {"role": "assistant", "content": "S"}]},
        {**QUESTION, "response": "<think>\n\n</think>\n\nS"},
    ],
)
def test_a_row_without_a_thought_is_a_demonstration_only_where_its_file_is_general(row: dict[str, Any]) -> None:
    shown = demonstration_from_row(row, where=WHERE, general=True)
    assert (shown.thought, shown.solution, shown.general, shown.domain) == ("", "S", True, "general")
    assert demonstration_from_row(demonstration_row(shown), where=WHERE, general=True) == shown
    with pytest.raises(InputError, match=r"the last answer of the chat|key "):
        demonstration_from_row(row, where=WHERE)


def test_a_general_row_may_have_a_thought_and_must_have_an_answer() -> None:
    assert demonstration_from_row(SHAPES["r1 response"], where=WHERE, general=True).thought == "T"
    for row in ({**QUESTION, "response": "<think>T"}, {**QUESTION, "response": "<think>T</think>"}):
        with pytest.raises(InputError, match='key "response"'):
            demonstration_from_row(row, where=WHERE, general=True)


def test_a_chat_of_several_questions_is_no_problem() -> None:
    assert "a chat of several questions" in error({"messages": [USER, ANSWER, AGAIN], "answer": "4"}, "problems")
    found = adapted({"messages": [USER, ANSWER, AGAIN, ANSWER], "answer": "4"})
    assert isinstance(found, AdaptedDemonstration) and found.reference is None


PIECES = [
    "<think>",
    "</think>",
    "<|begin_of_thought|>",
    "<|end_of_thought|>",
    "x",
    " ",
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_whatever_has_no_defect_can_be_written_and_read_back(text: str) -> None:
    cut = cut_response(text)
    if cut.defect is None:
        assert looks_thought(text)
        assert cut_response(render_response(cut.thought, cut.solution)) == cut


def test_the_question_of_an_evaluation_row() -> None:
    assert question_of({"problem": " P ", "solution": "s"}, fields=FieldsConfig(), where=WHERE) == "P"
    assert question_of({"instruction": "Add.", "input": "1 2"}, fields=FieldsConfig(), where=WHERE) == "Add.\n\n1 2"
    with pytest.raises(InputError, match='missing key "question"'):
        question_of({"id": 1}, fields=FieldsConfig(), where=WHERE)
