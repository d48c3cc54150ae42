"""Comparing the letter of a multiple-choice answer."""

from still_ray.types import Judgement, Verdict
from still_ray.verifiers.extract import letter_of


def judge_choice(answer: str, reference: str) -> Judgement:
    """Compares two letters; an answer without one is unparsable, a reference without one an error."""
    right, letter = letter_of(reference), letter_of(answer)
    if right is None:
        return Judgement(
            verdict=Verdict.ERROR, extracted=answer, detail=f"the reference {reference[:40]!r} is no letter"
        )
    if letter is None:
        return Judgement(verdict=Verdict.UNPARSABLE, extracted=answer, detail="the answer is no letter")
    verdict = Verdict.CORRECT if letter == right else Verdict.INCORRECT
    return Judgement(verdict=verdict, extracted=letter, detail=f"{letter} against {right}")
