"""The form of a response: what is cut where, which defect is named, and that nothing takes more than linear time."""

import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from still_ray.formats.responses.markers import (
    BEGIN_SOLUTION,
    BEGIN_THOUGHT,
    END_SOLUTION,
    END_THOUGHT,
    MARKED,
    MARKERS,
    parse_response,
    render_response,
)
from still_ray.types import FormatDefect, ParsedResponse

THOUGHT = f"{BEGIN_THOUGHT}\n\nstep\n\n{END_THOUGHT}"
SOLUTION = f"{BEGIN_SOLUTION}\n\nanswer\n\n{END_SOLUTION}"
PARTS = [*MARKERS, "a", " ", "\n\n", "\\boxed{5}", "<|begin_of", "<|end_of_"]
free_text = st.text().map(str.strip).filter(lambda text: not any(marker in text for marker in MARKERS))
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


def test_rendered_text_is_exact() -> None:
    expected = "<|begin_of_thought|>\n\nT\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nS\n\n<|end_of_solution|>"
    assert render_response("T", "S") == expected
    assert expected.startswith(MARKED.render_thought("T"))
    assert MARKED.render_thought("T").endswith(END_THOUGHT)


@unhurried
@given(free_text.filter(bool), free_text)
def test_rendered_response_parses_back(thought: str, solution: str) -> None:
    parsed = parse_response(render_response(thought, solution))
    assert parsed == ParsedResponse(thought=thought, solution=solution, defect=None)


@pytest.mark.parametrize(
    ("text", "defect", "thought", "solution"),
    [
        ("", FormatDefect.NO_THOUGHT, "", ""),
        ("The answer is 5.", FormatDefect.NO_THOUGHT, "", ""),
        (SOLUTION, FormatDefect.NO_THOUGHT, "", "answer"),
        (END_THOUGHT + SOLUTION, FormatDefect.NO_THOUGHT, "", "answer"),
        (f"{BEGIN_THOUGHT} step", FormatDefect.THOUGHT_NOT_CLOSED, "step", ""),
        (f"{BEGIN_THOUGHT} step {SOLUTION}", FormatDefect.THOUGHT_NOT_CLOSED, "step", "answer"),
        (END_THOUGHT + BEGIN_THOUGHT + SOLUTION, FormatDefect.THOUGHT_NOT_CLOSED, "", "answer"),
        (THOUGHT, FormatDefect.NO_SOLUTION, "step", ""),
        (THOUGHT + "answer" + END_SOLUTION, FormatDefect.NO_SOLUTION, "step", ""),
        (THOUGHT + BEGIN_SOLUTION + "ans", FormatDefect.SOLUTION_NOT_CLOSED, "step", "ans"),
        (THOUGHT + END_SOLUTION + BEGIN_SOLUTION + "ans", FormatDefect.SOLUTION_NOT_CLOSED, "step", "ans"),
        (THOUGHT + THOUGHT + SOLUTION, FormatDefect.TWO_THOUGHTS, "step", "answer"),
        (THOUGHT + SOLUTION + SOLUTION, FormatDefect.TWO_SOLUTIONS, "step", "answer"),
        (THOUGHT + SOLUTION + END_SOLUTION, FormatDefect.TWO_SOLUTIONS, "step", "answer"),
        (SOLUTION + THOUGHT, FormatDefect.OUT_OF_ORDER, "step", "answer"),
        (f"{BEGIN_THOUGHT}a{SOLUTION}b{END_THOUGHT}", FormatDefect.OUT_OF_ORDER, None, "answer"),
        ("Sure! " + THOUGHT + SOLUTION, FormatDefect.TEXT_OUTSIDE, "step", "answer"),
        (THOUGHT + "so" + SOLUTION, FormatDefect.TEXT_OUTSIDE, "step", "answer"),
        (THOUGHT + SOLUTION + "Bye", FormatDefect.TEXT_OUTSIDE, "step", "answer"),
        (" \n" + THOUGHT + SOLUTION + "\n", None, "step", "answer"),
    ],
)
def test_each_defect_is_named(text: str, defect: FormatDefect | None, thought: str | None, solution: str) -> None:
    parsed = parse_response(text)
    assert parsed.defect == defect
    assert thought in (None, parsed.thought)
    if defect is not FormatDefect.SOLUTION_NOT_CLOSED or solution:
        assert parsed.solution == solution


@pytest.mark.parametrize("text", ["", BEGIN_THOUGHT + "st", THOUGHT, THOUGHT + BEGIN_SOLUTION + "ans"])
def test_truncated_response_without_closed_solution_is_truncated(text: str) -> None:
    assert parse_response(text, truncated=True).defect is FormatDefect.TRUNCATED


def test_response_that_ends_at_the_limit_with_a_closed_solution_is_well_formed() -> None:
    assert parse_response(THOUGHT + SOLUTION, truncated=True).defect is None
    assert parse_response(THOUGHT + SOLUTION + BEGIN_SOLUTION, truncated=True).defect is FormatDefect.TRUNCATED


@unhurried
@given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join), st.booleans())
def test_solution_beside_a_defect_of_the_thought_is_closed_and_the_only_one(text: str, truncated: bool) -> None:
    parsed = parse_response(text, truncated=truncated)
    of_the_solution = {
        FormatDefect.NO_SOLUTION,
        FormatDefect.SOLUTION_NOT_CLOSED,
        FormatDefect.TRUNCATED,
        FormatDefect.TWO_SOLUTIONS,
    }
    if parsed.defect not in of_the_solution and parsed.solution:
        assert text.count(BEGIN_SOLUTION) == text.count(END_SOLUTION) == 1
        solution = "".join(parsed.solution.split())  # the parser strips, the text may be spaced anyhow
        assert f"{BEGIN_SOLUTION}{solution}{END_SOLUTION}" in "".join(text.split())
    if parsed.defect is None:
        assert [text.count(marker) for marker in MARKERS] == [1, 1, 1, 1]


@pytest.mark.parametrize("unit", [BEGIN_THOUGHT, END_SOLUTION, BEGIN_SOLUTION + END_THOUGHT, "<|begin_of_", " ", "a b"])
def test_five_megabytes_take_linear_time(unit: str) -> None:
    text = unit * (5_000_000 // len(unit))
    start = time.perf_counter()
    parse_response(text)
    parse_response(render_response(text, text), truncated=True)
    assert time.perf_counter() - start < 2.0


def test_random_markers_never_raise() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        parse_response("".join(rng.choices(PARTS, k=rng.randrange(20))))
