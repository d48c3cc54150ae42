"""Answers compared as texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.types import Domain, Verdict
from still_ray.verifiers.exact import judge_exact, same_text
from still_ray.verifiers.extract import extract_answer


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("The Shadow!", "the shadow", True),
        (r"\textbf{a shadow}", "A shadow.", True),
        ("\u201cshadow\u201d", '"shadow"', True),
        ("\uff11\uff12", "12", True),
        ("mother\u2013in\u2013law", "mother-in-law", True),
        ("1,000", "1000", True),
        ("0.50", "1/2", True),
        ("shadows", "shadow", False),
        ("a shadow or an echo", "a shadow", False),
        ("", "a shadow", False),
        ("12", "21", False),
    ],
)
def test_case_dress_and_punctuation_do_not_matter_and_words_do(answer: str, reference: str, same: bool) -> None:
    assert (judge_exact(answer, reference).verdict is Verdict.CORRECT) == same


@given(st.text())
def test_every_text_is_the_same_as_itself_in_bold(text: str) -> None:
    assert same_text(text, f"**{text}**")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("It rains.\n\nThe answer is: an umbrella.", "an umbrella."),
        ("Final answer: an umbrella", "an umbrella"),
        ("An umbrella", "An umbrella"),
        (r"It is \boxed{an umbrella}, of course.", "an umbrella"),
    ],
)
def test_last_line_without_its_introduction(solution: str, answer: str) -> None:
    assert extract_answer(solution, Domain.EXACT) == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("2 + 6 = 8 books.\n#### 8\nThe answer is: 8", "8"),
        ("So 18 are left.\n#### 1,018", "1,018"),
        ("Therefore, the answer is **18**.", "18"),
        ("Final Answer: The final answer is $18$. I hope it is correct.", "$18$"),
        ("The answer is \\boxed{3}, and not: the answer is 4", "3"),  # a box is what was asked for
        ("The answer is 18 of which we spoke.\n\nNow to something else.", None),
        ("the answer is clear from the above", None),
        ("It is 18.", None),
        ("**Final Answer**: 42", "42"),
        ("**Final Answer**\n42", "42"),
        ("**Answer:**\n\n$42$", "$42$"),
        ("The answer is:\n\\[\n42\n\\]", r"\[ 42 \]"),
        ("The answer is: 5" + "\n" * 401, "5"),
        ("The answer is: Evelyn.", "Evelyn"),
        (r"The answer is \sqrt{xy} + ab.", r"\sqrt{xy} + ab"),
        ("The answer is 5 or 6.", "5 or 6"),
        ("The answer is 18 eggs.", r"18 \text{ eggs}"),
        ("x + 1", "x + 1"),
        ("x = 5", "x = 5"),
        ("(a) 5", None),
        (r"\text{I get } 5", None),
        ("#### 18 is it", None),
        ("1. 42", None),
        ("x = 1\ny = 2", None),
    ],
)
def test_mathematics_that_nobody_asked_for_a_box_states_its_answer_at_the_end(
    solution: str, answer: str | None
) -> None:
    assert extract_answer(solution, Domain.MATH) == answer
