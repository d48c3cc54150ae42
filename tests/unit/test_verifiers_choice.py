"""Letters and options of multiple-choice answers, and which reference is compared how."""

import time

import pytest

from still_ray.formats.problems import problem_from_row
from still_ray.types import Domain, Verdict
from still_ray.verifiers.choice import judge_choice
from still_ray.verifiers.extract import extract_answer, letters_of
from still_ray.verifiers.options import MAX_QUESTION_CHARS, options_of

QUESTION = "Which is prime? (A) 12 (B) 15 (C) 17"


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        (r"\textbf{(C) }12", ("C",)),
        (r"\text{Option } C", ("C",)),
        ("C. because A is wrong", ("C",)),
        ("**c**", ("C",)),
        ("\uff08C\uff09", ("C",)),
        ("A, C", ("A", "C")),
        ("A and C", ("A", "C")),
        ("C, not A", ("C",)),
        ("C. Both A and B", ("C",)),
        ("<C>", ("C",)),
        ("Option C: the third", ("C",)),
        ("选项C", ("C",)),
        ("答案\uff1a\uff23\u3002", ("C",)),
        ("Option A or B", ("A", "B")),
        ("C: or maybe D", ("C", "D")),
        ("Option A is wrong", ()),
        ("(A) is not correct, so B", ()),
        ("a>c>b", ()),
        ("A > B > C", ()),
        ("c < 5", ()),
        ("A:B = 1:2", ()),
        ("(A, 5)", ()),
        ("(A, B)", ("A", "B")),
        ("BD", ("B", "D")),
        ("cat", ()),
        ("A cat", ()),
        ("I think so", ()),
        ("12", ()),
        ("C" * 1000, ()),
    ],
)
def test_letters_named(text: str, letters: tuple[str, ...]) -> None:
    assert letters_of(text) == letters


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (QUESTION, {"A": "12", "B": "15", "C": "17"}),
        ("Which?\nA. red\nB. dark blue\n", {"A": "red", "B": "dark blue"}),
        ("Which?\n**A.** red\n**B.** blue", {"A": "red", "B": "blue"}),
        ("Which? A) red B) blue", {"A": "red", "B": "blue"}),
        (r"$\textbf{(A)}\ 3\qquad\textbf{(B)}\ 4$", {"A": r"\ 3", "B": r"\ 4"}),
        ("Of f(A) and (B), which? (A) one\n(B) two\n\nGive the letter.", {"A": "one", "B": "two"}),
        ("Find A. Then B. No options.", {}),
        ("What is (B)?", {}),
        (QUESTION + " " * MAX_QUESTION_CHARS, {}),
    ],
)
def test_options_of_a_question(question: str, options: dict[str, str]) -> None:
    assert options_of(question) == options


@pytest.mark.parametrize(
    ("answer", "question", "verdict"),
    [
        ("17", QUESTION, Verdict.CORRECT),
        ("$17$", QUESTION, Verdict.CORRECT),
        ("15", QUESTION, Verdict.INCORRECT),
        ("19", QUESTION, Verdict.INCORRECT),
        ("17", "", Verdict.UNPARSABLE),
        ("C, not A", QUESTION, Verdict.CORRECT),
        ("B, C", QUESTION, Verdict.INCORRECT),
    ],
)
def test_verdicts_by_letter_or_option(answer: str, question: str, verdict: Verdict) -> None:
    assert judge_choice(answer, "C", question).verdict is verdict


def test_a_reference_that_is_no_letter_is_an_error() -> None:
    assert judge_choice("C", "17", QUESTION).verdict is Verdict.ERROR


def test_two_options_with_the_same_text_decide_nothing() -> None:
    assert judge_choice("12", "A", "Which? (A) 12 (B) 12").verdict is Verdict.INCORRECT


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("So it is\nThe answer is (C).", "C"),
        (r"The answer is $\textbf{(C)}$.", "C"),
        ("The correct answer is option C: seventeen.", "C"),
        ("The answer is 17.", "17"),
        (r"So \boxed{17}.", "17"),
        (r"As $\boxed{42}$ shows nothing, the answer is C.", "C"),
        (r"\boxed{A} ... no, \boxed{C}", "C"),
        ("The answer is a number.", None),
        ("The answer is (A) or (C).", None),
        ("Option A is wrong", None),
        ("The answer is a>c>b", None),
        ("所以答案是C。", "C"),
        ("Die Antwort ist C", "C"),
    ],
)
def test_choice_made_in_a_solution(solution: str, answer: str | None) -> None:
    assert extract_answer(solution, Domain.CHOICE, QUESTION) == answer


@pytest.mark.parametrize("unit", ["(A) ", "A. ", "answer is ", "A, ", "A) B) ", r"\textbf{("])
def test_long_questions_and_answers_take_little_time(unit: str) -> None:
    start = time.perf_counter()
    question = unit * (MAX_QUESTION_CHARS // len(unit))
    judge_choice(question[:300], "C", question)
    extract_answer(unit * (1_000_000 // len(unit)), Domain.CHOICE, question)
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize(
    ("reference", "domain"),
    [
        ("C", Domain.CHOICE),
        ("(d)", Domain.EXACT),
        ("(D)", Domain.CHOICE),
        ("Paris", Domain.EXACT),
        ("a candle", Domain.EXACT),
        ("H2O", Domain.EXACT),
        ("no", Domain.EXACT),
        ("3.2 m/s", Domain.MATH),
        ("\u22125", Domain.MATH),
        ("\u221a2", Domain.MATH),
        ("\u03c0/2", Domain.MATH),
        ("\u00bd", Domain.MATH),
        ("n(n+1)/2", Domain.MATH),
        ("x + 1", Domain.MATH),
        ("x = 5", Domain.MATH),
        (r"\frac{1}{2}", Domain.MATH),
        ("(1, 2)", Domain.MATH),
        ("$18", Domain.MATH),
    ],
)
def test_science_and_puzzles_are_routed_by_their_reference(reference: str, domain: Domain) -> None:
    row = {"question": "?", "answer": reference, "domain": "puzzle"}
    assert problem_from_row(row, where="here").domain is domain
