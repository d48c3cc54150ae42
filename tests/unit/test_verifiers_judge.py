"""Answers found in solutions, and verdicts on them, in this process."""

import json
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from still_ray.boxed import final_answer, is_worked, last_boxed
from still_ray.types import Domain, FormatDefect, Judgement, ParsedResponse, Verdict
from still_ray.verifiers.extract import extract_answer
from still_ray.verifiers.judge import MathQuestion, judge, judge_at_a_glance, judge_question
from still_ray.verifiers.plain import normalized, plain_number, same_number

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


def boxed(answer: str) -> ParsedResponse:
    return ParsedResponse(thought="t", solution=f"So the answer is $\\boxed{{{answer}}}$.")


def verdict(answer: str, reference: str, domain: Domain = Domain.MATH) -> Verdict:
    return judge(boxed(answer), domain, reference).verdict


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{33}, wait \boxed{34}", "34"),
        (r"\boxed{34} or \boxed{35", "34"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\fbox{ 7 }", "7"),
        (r"\boxed {7}", "7"),
        (r"$\boxed 5$", "5"),
        (r"\boxed 12.5.", "12.5"),
        (r"\boxed5", "5"),
        (r"\boxed{5}. In \boxed form.", "5"),
        (r"\boxed{5} \boxed{ }", "5"),
        (r"\boxed{1+\boxed{2}}", r"1+\boxed{2}"),
        (r"{ \boxed{5}", "5"),
        (r"} \boxed{5}", "5"),
        (r"\boxedness{5}", None),
        ("5", None),
        ("", None),
    ],
)
def test_last_balanced_box(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize("unit", [r"\boxed{", r"\boxed{}", "{", "}", r"\boxed", r"\boxed ", "\\", " ", r"\boxed{ 1 {"])
def test_a_megabyte_of_boxes_take_linear_time(unit: str) -> None:
    half = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    last_boxed(half + "}" * 300_000)
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"We have \boxed{8}. Note that the answer is less than 10.", "8"),
        (r"So it is \boxed{8}. Hence the answer is obvious.", "8"),
        ("\\boxed{8}\n#### Done.", "8"),
        (r"First \boxed{8}. The answer is: 9", "9"),
        ("First \\boxed{8}.\n#### 9", "9"),
        (r"The answer is $\boxed{8}$, as \boxed{9} is odd.", "9"),
        ("#### 9 eggs\n\n", r"9 \text{ eggs}"),
        ("#### 9\nas said", None),
        ("so\n####", None),
    ],
)
def test_what_a_worked_solution_states(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")
def test_every_published_solution_states_what_it_boxes() -> None:
    rows = [json.loads(line) for path in DATA.glob("*.jsonl") for line in path.open(encoding="utf-8")]
    solutions = [row["solution"] for row in rows if "solution" in row]
    assert len(solutions) > 500
    assert [text for text in solutions if final_answer(text) != last_boxed(text)] == []


@pytest.mark.parametrize(("before", "unit", "after"), [("#### a", " ", "\nb"), ("", "<<=", ""), ("", "\n#### a", "")])
def test_a_megabyte_is_read_in_linear_time(before: str, unit: str, after: str) -> None:
    seconds = []
    for size in (100_000, 1_000_000):
        text = before + unit * (size // len(unit)) + after
        started = time.process_time()
        extract_answer(text, Domain.MATH)
        final_answer(text)
        is_worked(text)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 40 * seconds[0] + 0.5  # ten times the text; quadratic time is a hundred times


CORRECT, UNPARSABLE = Verdict.CORRECT, Verdict.UNPARSABLE


@pytest.mark.parametrize(
    ("solution", "reference", "verdict"),
    [
        ("#### 18", "18", CORRECT),
        ("#### 19", "18", Verdict.INCORRECT),
        ("The answer is: 18", "18", CORRECT),
        ("The answer is **18** dollars.", "18", CORRECT),
        ("The answer is **18** dollars.", r"18 \text{ dollars}", CORRECT),
        (r"The answer is $\frac{1}{2}$.", "0.5", CORRECT),
        ("The answer is 3*4=12", "12", CORRECT),
        ("42", "42", CORRECT),
        ("The answer is 12, because 3*4=12", "12", UNPARSABLE),
        ("Answer: 12. Let me double check: 3*4=12.", "12", UNPARSABLE),
        ("The answer is 5 (since 2+3=5).", "5", UNPARSABLE),
        ("The answer is: 42 (see above)", "42", UNPARSABLE),
        ("Answer: Janet makes $18 every day.", "18", UNPARSABLE),
        ("Thus the answer is the number 12.", "12", UNPARSABLE),
        ("The answer is about 3", "3", UNPARSABLE),
        ("The answer is 5 times 3.", "15", UNPARSABLE),
        ("text\n#### Conclusion", "3", UNPARSABLE),
        ("#### Conclusion: x = 5", "5", UNPARSABLE),
        ("#### 3. Conclusion", "5", UNPARSABLE),
        ("The answer is clear.", "3", UNPARSABLE),
        ("It is 18.", "18", UNPARSABLE),
        ("18 is what we wanted", "18", UNPARSABLE),
    ],
)
def test_without_a_box_what_goes_on_as_a_sentence_is_never_a_wrong_answer(
    solution: str, reference: str, verdict: Verdict
) -> None:
    assert judge(ParsedResponse(thought="t", solution=solution), Domain.MATH, reference).verdict is verdict


@pytest.mark.parametrize(
    ("solution", "domain", "answer"),
    [
        ("It is\n\nParis.", Domain.EXACT, "Paris."),
        (r"It is \boxed{Paris}. Good.", Domain.EXACT, "Paris"),
        ("It is 5", Domain.MATH, None),
        ("Hence the answer is (C).", Domain.CHOICE, "C"),
        ("Answer: **b**", Domain.CHOICE, "b"),
        ("C", Domain.CHOICE, "C"),
        ("I would say none of them.", Domain.CHOICE, None),
        ("  ", Domain.EXACT, None),
    ],
)
def test_answer_of_a_solution(solution: str, domain: Domain, answer: str | None) -> None:
    assert extract_answer(solution, domain) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", Fraction(1234)),
        ("1{,}234", Fraction(1234)),
        (r"11,\! 111,\! 111", Fraction(11111111)),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("\u22125", Fraction(-5)),
        (r"-\dfrac{1}{2}", Fraction(-1, 2)),
        (r"\frac12", Fraction(1, 2)),
        ("3/4.", Fraction(3, 4)),
        ("$7$", Fraction(7)),
        ("1,2", None),
        ("1/0", None),
        ("1 2", None),
        ("1e5", None),
        ("\u0665", None),
        ("9" * 5000, None),
    ],
)
def test_plain_numbers_are_exact(text: str, value: Fraction | None) -> None:
    assert plain_number(normalized(text)) == value


@unhurried
@given(st.fractions(), st.fractions())
def test_fractions_compare_as_numbers(left: Fraction, right: Fraction) -> None:
    latex = rf"\frac{{{right.numerator}}}{{{right.denominator}}}"
    if max(len(str(left)), len(latex)) < 1000:
        assert same_number(str(left), latex) == (left == right)


@unhurried
@given(st.integers(), st.integers(min_value=0, max_value=6))
def test_decimals_compare_as_numbers(number: int, places: int) -> None:
    exact = Fraction(number, 10**places)
    sign, digits = "-" if number < 0 else "", f"{abs(number):0{places + 1}d}"
    text = sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
    if len(text) < 1000:
        assert plain_number(normalized(text)) == exact


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("0.333", r"\frac{1}{3}", Verdict.INCORRECT),
        ("0.50", "1/2", Verdict.CORRECT),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", Verdict.CORRECT),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", Verdict.INCORRECT),
        (r"\frac{2}{2^{99}}", r"\frac{1}{2^{98}}", Verdict.CORRECT),
        (r"3 \times 10^{-9}", r"2 \times 10^{-9}", Verdict.INCORRECT),
        (r"\sqrt{2}\cdot 10^{-20}", r"\sqrt{3}\cdot 10^{-20}", Verdict.INCORRECT),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", Verdict.CORRECT),
        ("x=5", "5", Verdict.CORRECT),
        ("5, 3", r"\{3, 5\}", Verdict.CORRECT),
        ("[1,2)", "(1,2)", Verdict.INCORRECT),
        (r"50\%", "50", Verdict.CORRECT),
        (r"10\text{ cm}", "10", Verdict.CORRECT),
        ("not 7", "7", Verdict.INCORRECT),
        (r"\text{nonsense}$ $7", "7", Verdict.INCORRECT),
        (
            "\\begin{pmatrix}\n1 \\\\\n\\frac{2}{4}\n\\end{pmatrix}",
            r"\begin{pmatrix}1\\1/2\end{pmatrix}",
            Verdict.CORRECT,
        ),
        (r"\frac{a}{b", "5", Verdict.UNPARSABLE),
        (r"\frac{}{}^", "5", Verdict.UNPARSABLE),
        ("5", r"\frac{}{}^", Verdict.ERROR),
    ],
)
def test_math_verdicts(answer: str, reference: str, expected: Verdict) -> None:
    assert verdict(answer, reference) is expected


def test_reference_and_answer_may_change_places() -> None:
    assert verdict("1 < x < 2", "(1,2)") is verdict("(1,2)", "1 < x < 2") is Verdict.CORRECT


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")
def test_every_published_answer_agrees_with_itself_in_math_verify() -> None:
    answers = {json.loads(line).get("answer") for path in DATA.glob("*.jsonl") for line in path.open(encoding="utf-8")}
    assert len(answers) > 400
    for answer in answers - {None}:
        assert verdict(answer, answer) is Verdict.CORRECT
        found = judge_question(MathQuestion(answer=answer, reference=answer))
        assert found.verdict is Verdict.CORRECT, found


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("C", "C", Verdict.CORRECT),
        (r"\text{(c)}", "C", Verdict.CORRECT),
        (r"\textbf{(C) }12", "(C)", Verdict.CORRECT),
        ("C. twelve", "C", Verdict.CORRECT),
        ("B", "C", Verdict.INCORRECT),
        ("Cat", "C", Verdict.UNPARSABLE),
        ("12", "C", Verdict.UNPARSABLE),
        ("C", "12", Verdict.ERROR),
    ],
)
def test_choice_verdicts(answer: str, reference: str, expected: Verdict) -> None:
    assert verdict(answer, reference, Domain.CHOICE) is expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"\text{A towel.}", "a  towel", Verdict.CORRECT),
        ("1,000", "1000", Verdict.CORRECT),
        ("towel", "a towel", Verdict.INCORRECT),
    ],
)
def test_exact_verdicts(answer: str, reference: str, expected: Verdict) -> None:
    assert verdict(answer, reference, Domain.EXACT) is expected


@pytest.mark.parametrize("defect", list(FormatDefect))
def test_defect_of_the_solution_is_unparsable_and_any_other_is_judged(defect: FormatDefect) -> None:
    found = judge(ParsedResponse(thought="", solution=r"\boxed{5}", defect=defect), Domain.MATH, "5")
    of_the_solution = {
        FormatDefect.NO_SOLUTION,
        FormatDefect.SOLUTION_NOT_CLOSED,
        FormatDefect.TRUNCATED,
        FormatDefect.TWO_SOLUTIONS,
    }
    expected = Verdict.UNPARSABLE if defect in of_the_solution else Verdict.CORRECT
    assert found.verdict is expected
    assert expected is Verdict.CORRECT or found.detail == defect.value


def test_no_answer_is_unparsable_with_a_reason() -> None:
    empty = ParsedResponse(thought="t", solution="", defect=FormatDefect.NO_THOUGHT)
    for parsed, reason in (
        (empty, FormatDefect.NO_THOUGHT.value),
        (ParsedResponse(thought="", solution="It is 5"), "boxed"),
    ):
        found = judge(parsed, Domain.MATH, "5")
        assert found.verdict is Verdict.UNPARSABLE
        assert reason in found.detail


def test_code_without_a_block_is_unparsable_and_a_domain_without_a_verifier_an_error() -> None:
    assert judge(boxed("5"), Domain.CODE, "{}").verdict is Verdict.UNPARSABLE
    found = judge(boxed("5"), "physics_units", "5")
    assert (found.verdict, found.detail) == (Verdict.ERROR, "no verifier was named for the domain physics_units")


def test_exception_is_an_error_with_its_text_never_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(answer: str, reference: str) -> Judgement:
        raise ZeroDivisionError(f"while\ncomparing {answer}")

    monkeypatch.setattr("still_ray.verifiers.math.verdict.judge_math", broken)
    found = judge(boxed("x"), Domain.MATH, "y")
    assert found == Judgement(verdict=Verdict.ERROR, extracted="x", detail="ZeroDivisionError: while comparing x")


def test_plain_cases_and_huge_answers_never_reach_the_algebra_system() -> None:
    for answer in ("5", "6", "1/2", "9" * 20_000, "(" * 5_000_000, "x" * 100_000):
        assert isinstance(judge_at_a_glance(boxed(answer), Domain.MATH, "5"), Judgement)
    assert verdict("9" * 20_000, "5") is Verdict.UNPARSABLE
    assert verdict("x" * 20_000, "x" * 20_000) is Verdict.CORRECT
    assert isinstance(judge_at_a_glance(boxed("x"), Domain.MATH, "5"), MathQuestion)


@unhurried
@given(st.text(), st.sampled_from([Domain.EXACT, Domain.CHOICE, Domain.MATH]), st.text())
def test_glance_never_raises(solution: str, domain: Domain, reference: str) -> None:
    judge_at_a_glance(ParsedResponse(thought="", solution=solution), domain, reference)


def test_importing_formats_and_verifiers_loads_nothing_heavy() -> None:
    code = (
        "import sys, still_ray.verifiers.files, still_ray.formats.demonstrations, still_ray.formats.prompt\n"
        "heavy = {'ray', 'torch', 'vllm', 'transformers', 'sympy', 'math_verify', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("3.2e - 5", "3.2e-5", Verdict.INCORRECT),
        ("3100", "3, 100", Verdict.INCORRECT),
        ("100, 3", "3, 100", Verdict.CORRECT),
        ("3 ,100", "3,100", Verdict.CORRECT),
    ],
)
def test_spaces_that_tell_a_list_from_a_number_are_no_spelling(answer: str, reference: str, verdict: Verdict) -> None:
    solution = ParsedResponse(thought="t", solution=rf"\boxed{{{answer}}}")
    assert judge(solution, Domain.MATH, reference).verdict is verdict
