"""Comparing the letter of a multiple-choice answer, or the option that its text names."""

from still_ray.types import Judgement, Verdict
from still_ray.verifiers.extract import letter_of, letters_of, option_named
from still_ray.verifiers.options import options_of


def judge_choice(answer: str, reference: str, question: str = "") -> Judgement:
    """Compares two letters; a reference without one is an error.

    An answer without a letter is the option of the question that it repeats. It is wrong if it repeats none of them or
    names several, and unparsable if the question's options are not known.

    Args:
        answer: The letter in any usual dress, or an option's text.
        reference: The right letter.
        question: The question with its options; "" if unknown.
    """
    right = letter_of(reference)
    if right is None:
        return Judgement(
            verdict=Verdict.ERROR, extracted=answer, detail=f"the reference {reference[:40]!r} is no letter"
        )
    letters = letters_of(answer)
    if len(letters) > 1:
        return Judgement(verdict=Verdict.INCORRECT, extracted=answer, detail=f"{', '.join(letters)} against {right}")
    letter = letters[0] if letters else option_named(answer, question)
    if letter is None:
        if options_of(question):
            return Judgement(verdict=Verdict.INCORRECT, extracted=answer, detail="neither a letter nor an option")
        return Judgement(verdict=Verdict.UNPARSABLE, extracted=answer, detail="the answer is no letter")
    verdict = Verdict.CORRECT if letter == right else Verdict.INCORRECT
    return Judgement(verdict=verdict, extracted=letter, detail=f"{letter} against {right}")
