"""The verdict on a parsed response: what is plain at a glance, and what is left for a process that can be killed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from still_ray.types import Domain, FormatDefect, Judgement, ParsedResponse, Verdict
from still_ray.verifiers.choice import judge_choice
from still_ray.verifiers.code.verdict import CodeJudge, CodeQuestion, last_python_block
from still_ray.verifiers.exact import judge_exact
from still_ray.verifiers.extract import extract_answer
from still_ray.verifiers.plain import normalized, same_number, spacing_decides

MAX_ANSWER_CHARS: Final = 10_000
"""A longer "answer" is not one; none that long reaches the algebra system."""

_MAX_DETAIL_CHARS: Final = 200
_NO_SOLUTION: Final = frozenset(
    {
        FormatDefect.NO_SOLUTION,
        FormatDefect.SOLUTION_NOT_CLOSED,
        FormatDefect.TRUNCATED,
        FormatDefect.TWO_SOLUTIONS,
    }
)


@dataclass(frozen=True, kw_only=True)
class MathQuestion:
    """Two mathematical texts that only the algebra system can compare."""

    answer: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class CustomQuestion:
    """What a verifier of the user's own is to compare: the solution as it stands, and the reference."""

    domain: str
    solution: str
    reference: str
    question: str


Question = MathQuestion | CodeQuestion | CustomQuestion
"""What no glance decides."""


def judge(parsed: ParsedResponse, domain: str, reference: str, question: str = "") -> Judgement:
    """Judges a response in this process; nothing limits the time or the memory of a mathematical comparison.

    A response is judged by its solution if that is closed and the only one, whatever else is wrong with the form. An
    exception is the verdict ERROR, never a wrong answer.
    """
    glance = judge_at_a_glance(parsed, domain, reference, question)
    if isinstance(glance, Judgement):
        return glance
    assert not isinstance(glance, CustomQuestion), "asked for by name only"
    return judge_question(glance) if isinstance(glance, MathQuestion) else CodeJudge().judge(glance)


def judge_at_a_glance(
    parsed: ParsedResponse, domain: str, reference: str, question: str = "", *, custom: Collection[str] = ()
) -> Judgement | Question:
    """Judges what takes time linear in the texts, and names the question that is left otherwise.

    Args:
        parsed: The response.
        domain: How it is compared.
        reference: The reference; JSON text for code.
        question: What was asked; some answers say which of its choices is meant.
        custom: Domains that have a verifier of the user's own.
    """
    if parsed.defect in _NO_SOLUTION:
        return Judgement(verdict=Verdict.UNPARSABLE, detail=parsed.defect.value)
    if not parsed.solution:
        why = f" ({parsed.defect.value})" if parsed.defect else ""
        return Judgement(verdict=Verdict.UNPARSABLE, detail=f"no closed solution, or an empty one{why}")
    if domain in custom:
        return CustomQuestion(domain=domain, solution=parsed.solution, reference=reference, question=question)
    return _solution_at_a_glance(parsed.solution, domain, reference, question)


def _solution_at_a_glance(solution: str, domain: str, reference: str, question: str) -> Judgement | Question:
    if domain not in list(Domain):
        return error_judgement(f"no verifier was named for the domain {domain}")
    if domain == Domain.CODE:
        return _code_at_a_glance(solution, reference)
    answer = extract_answer(solution, domain, question)
    if answer is None:
        return Judgement(verdict=Verdict.UNPARSABLE, detail=f"the solution gives no answer: {_WANTED[domain]}")
    return _judged_answer(answer, domain, reference, question)


def _code_at_a_glance(solution: str, reference: str) -> Judgement | CodeQuestion:
    source = last_python_block(solution)
    if source is None:
        return Judgement(verdict=Verdict.UNPARSABLE, detail="the solution has no closed block of Python code")
    return CodeQuestion(source=source, reference=reference)


_WANTED: Final[Mapping[str, str]] = {
    Domain.MATH: "neither a \\boxed{...} nor one stated at its end",
    Domain.CHOICE: "neither a \\boxed{...} nor a letter at its end",
    Domain.EXACT: "neither a \\boxed{...} nor a last line",
}


def _judged_answer(answer: str, domain: str, reference: str, question: str) -> Judgement | MathQuestion:
    if domain == Domain.CHOICE:
        return judge_choice(_shortened(answer), reference, question)
    told_apart = domain == Domain.MATH and spacing_decides(answer) != spacing_decides(reference)
    if not told_apart and normalized(answer) == normalized(reference):
        return Judgement(verdict=Verdict.CORRECT, extracted=answer, detail="the same text")
    if len(answer) > MAX_ANSWER_CHARS:
        detail = f"an answer of {len(answer)} characters is none"
        return Judgement(verdict=Verdict.UNPARSABLE, extracted=_shortened(answer), detail=detail)
    if domain == Domain.EXACT:
        return judge_exact(answer, reference)
    return MathQuestion(answer=answer, reference=reference) if told_apart else _math_at_a_glance(answer, reference)


def _math_at_a_glance(answer: str, reference: str) -> Judgement | MathQuestion:
    commas = any("," in text for text in (answer, reference))  # which group digits, or part a list
    same = None if commas else same_number(normalized(answer), normalized(reference))
    if same is None:
        return MathQuestion(answer=answer, reference=reference)
    verdict = Verdict.CORRECT if same else Verdict.INCORRECT
    return Judgement(verdict=verdict, extracted=answer, detail="the same number" if same else "another number")


def judge_question(question: MathQuestion) -> Judgement:
    """Judges with the algebra system, in this process."""
    from still_ray.verifiers.math.verdict import judge_math

    try:
        return judge_math(question.answer, question.reference)
    except Exception as error:  # named policy: whatever the algebra system does, the verdict is ERROR
        reason = ": ".join(filter(None, (type(error).__name__, str(error))))
        return error_judgement(reason, extracted=question.answer)


def error_judgement(detail: str, *, extracted: str | None = None) -> Judgement:
    """The verdict on an answer that could not be judged."""
    return Judgement(verdict=Verdict.ERROR, extracted=extracted, detail=" ".join(detail.split())[:_MAX_DETAIL_CHARS])


def _shortened(answer: str) -> str:
    return answer if len(answer) <= MAX_ANSWER_CHARS else answer[:_MAX_DETAIL_CHARS] + "…"
