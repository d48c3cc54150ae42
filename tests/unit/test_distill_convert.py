"""Every shape in which a teacher's thought may come, and every reason why there is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.distill.convert import converted
from still_ray.formats.responses.markers import MARKERS, parse_response, render_response
from still_ray.formats.responses.think import THINK_TAGS
from still_ray.types import FormatDefect

THOUGHT = "Try 2.\n\nWait, 3 is better."
SOLUTION = r"It is \boxed{3}."


@pytest.mark.parametrize(
    ("reasoning", "content"),
    [
        (THOUGHT, SOLUTION),
        (f"\n{THOUGHT}\n\n", f"\n\n{SOLUTION}\n"),
        (f"<think>\n{THOUGHT}", SOLUTION),
        ("", f"<think>\n{THOUGHT}\n</think>\n\n{SOLUTION}"),
        ("", f"{THOUGHT}\n</think>\n\n{SOLUTION}"),
        ("  ", f" <think>{THOUGHT}</think>{SOLUTION}"),
        ("", render_response(THOUGHT, SOLUTION)),
        ("", f"<Think>\n{THOUGHT}\n</THINK>\n{SOLUTION}"),
        (f"<THINK>{THOUGHT}", SOLUTION),
        (THOUGHT, f"<think>\n{THOUGHT} </think>\n\n{SOLUTION}"),
        (f"<think>{THOUGHT}\n", f"{THOUGHT}</think>{SOLUTION}"),
        (THOUGHT, f"<think>\n\n</think>\n\n{SOLUTION}"),
        *(("", f"<{tag}>{THOUGHT}</{tag}>\n{SOLUTION}") for tag in THINK_TAGS),
        *(("", f"{THOUGHT}</{tag}>\n<answer>{SOLUTION}</answer>") for tag in THINK_TAGS),
        *((f"<{tag}>{THOUGHT}", SOLUTION) for tag in THINK_TAGS),
        (f"{THOUGHT}<|im_end|>", f"{SOLUTION}</s>"),
        ("", f"<think>\n{THOUGHT}\n</think>\n\n{SOLUTION}<|im_end|>\n<|endoftext|>"),
        ("", render_response(THOUGHT, f"{SOLUTION}<|eot_id|>") + "<|eot_id|>"),
    ],
)
def test_a_thought_is_found_wherever_it_is(reasoning: str, content: str) -> None:
    result = converted(reasoning, content, "stop")
    assert (result.defect, result.parsed.thought, result.parsed.solution) == ("", THOUGHT, SOLUTION)
    assert result.parsed.defect is None


@pytest.mark.parametrize(
    ("reasoning", "content", "reason"),
    [
        ("", SOLUTION, "no thought: neither a field of reasoning nor </think> nor markers"),
        ("", "", "no thought: neither a field of reasoning nor </think> nor markers"),
        ("", f"<think>\n{THOUGHT}", FormatDefect.THOUGHT_NOT_CLOSED.value),
        ("", f"<think>\n\n</think>\n\n{SOLUTION}", "an empty thought"),
        (THOUGHT, " ", "no solution after the thought"),
        ("", f"<think>{THOUGHT}</think>", "no solution after the thought"),
        ("", f"<think>{THOUGHT}</think>{SOLUTION}</think>again", "a stray <think> or </think>"),
        (THOUGHT, f"<think>more</think>{SOLUTION}", "a stray <think> or </think>"),
        (THOUGHT, f"<think>{THOUGHT}</think>{SOLUTION}</Think>", "a stray <think> or </think>"),
        (THOUGHT, f"<think>{THOUGHT}</think>", "no solution after the thought"),
        ("", f"<Think>\n{THOUGHT}", FormatDefect.THOUGHT_NOT_CLOSED.value),
        (THOUGHT, f"{SOLUTION} \N{REPLACEMENT CHARACTER}", "characters were lost: the text holds U+FFFD"),
        ("", f"{MARKERS[0]}{THOUGHT}{MARKERS[1]} {SOLUTION}", FormatDefect.NO_SOLUTION.value),
        ("", f"{MARKERS[2]}{SOLUTION}{MARKERS[3]}", FormatDefect.NO_THOUGHT.value),
        (THOUGHT, f"{SOLUTION}<|im_end|>\n<|im_start|>user", "a control token as text"),
        (f"{THOUGHT}<|im_start|>{THOUGHT}", SOLUTION, "a control token as text"),
    ],
)
def test_why_there_is_no_demonstration(reasoning: str, content: str, reason: str) -> None:
    assert converted(reasoning, content, "stop").defect == reason


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [
        ("length", "truncated: the token limit was reached"),
        ("SAFETY", "stopped by the endpoint's content filter"),
        ("content_filter", "stopped by the endpoint's content filter"),
        ("refused", "refused by the endpoint"),
        ("tool_calls", "ended neither by the teacher nor by the token limit"),
        ("", "ended neither by the teacher nor by the token limit"),
    ],
)
def test_only_an_answer_that_the_teacher_ended_becomes_a_demonstration(finish_reason: str, reason: str) -> None:
    for reasoning, content in ((THOUGHT, SOLUTION), ("", render_response(THOUGHT, SOLUTION))):
        assert converted(reasoning, content, finish_reason).defect == reason


@pytest.mark.parametrize("finish_reason", ["STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE"])
def test_an_end_by_the_teacher_in_other_words(finish_reason: str) -> None:
    assert converted(THOUGHT, SOLUTION, finish_reason).defect == ""


@pytest.mark.parametrize("finish_reason", ["LENGTH", "MAX_TOKENS", "max_tokens"])
def test_a_truncation_in_other_words(finish_reason: str) -> None:
    result = converted(THOUGHT, SOLUTION, finish_reason)
    assert result.defect == "truncated: the token limit was reached"
    assert result.parsed.defect is FormatDefect.TRUNCATED


def test_the_verifier_hears_of_a_truncation_but_judges_a_solution_without_a_thought() -> None:
    assert converted(THOUGHT, SOLUTION, "length").parsed.defect is FormatDefect.TRUNCATED
    bare = converted("", SOLUTION, "stop").parsed
    assert (bare.defect, bare.solution) == (FormatDefect.NO_THOUGHT, SOLUTION)


PIECES = st.lists(
    st.sampled_from([*MARKERS, "<think>", "</think>", "<Think>", "</THINK>", " ", "\n\n", "a", "\\boxed{1}"]),
    max_size=12,
)


@given(PIECES.map("".join), PIECES.map("".join), st.sampled_from(["stop", "length"]))
def test_what_is_kept_can_be_read_back(reasoning: str, content: str, finish_reason: str) -> None:
    result = converted(reasoning, content, finish_reason)
    if result.defect:
        return
    parsed = parse_response(render_response(result.parsed.thought, result.parsed.solution))
    assert (parsed.thought, parsed.solution, parsed.defect) == (result.parsed.thought, result.parsed.solution, None)
    assert parsed.thought and parsed.solution
    assert "think>" not in (parsed.thought + parsed.solution).lower()
