r"""Finding the answer in a solution: its last box, or what the domain accepts in its place. All in linear time."""

import re
from typing import Final

from still_ray.boxed import last_boxed
from still_ray.types import Domain
from still_ray.verifiers.options import options_of

_LINE_TAIL: Final = 300
_MARKUP: Final = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|textit|textrm|boldsymbol|bf|rm|mathsf|operatorname|boxed|fbox|left|right|textcircled)"
    r"(?![A-Za-z])|\\[,;:! ]|\\q?quad(?![A-Za-z])|[{}$*_`\"']"
)
_LETTER: Final = re.compile(
    r"(?:(?:the )?(?:correct |right |final |best )*(?:answer|option|choice)s?(?: is)?(?: option| choice)?\s*[:=]?\s*)?"
    r"[(\[<]?\s*([A-Za-z])\s*(?:[)\]>.:,]|$)(.*)",
    re.DOTALL | re.IGNORECASE,
)
_LETTER_AND_MORE: Final = re.compile(
    r"(?:option|choice|answer)\s*[(\[]?([A-Za-z])[)\]]?(?:\s+.*)?", re.DOTALL | re.IGNORECASE
)
_OTHER: Final = re.compile(r"[\s,&/+]*(?:and|or)?[\s,&/+]*[(\[]?([A-Za-z])[)\]]?[.,]?", re.IGNORECASE)
_SAID: Final = re.compile(
    r"(?:answer|option|choice)(?: is| must be| would be)?(?: therefore| thus)?(?: option| choice)?:? ?"
    r"[$*_(\[{ ]*(?:\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{\s*\(?)?\b([A-Z])(?:[)\]}*_$]+|\b)"
    r"(?:[.:)] ?[^.\n]{0,80})?[.$]*$",
    re.IGNORECASE,
)
_ANSWER_IS: Final = re.compile(r"answer(?: is)?:?\s+([^\n]{1,200}?)\.?\s*$", re.IGNORECASE)
_INTRODUCED: Final = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct )?answer(?: is)?\s*:?\s+|(?:final )?answer\s*:\s*",
    re.IGNORECASE,
)


def extract_answer(solution: str, domain: Domain, question: str = "") -> str | None:
    """The answer of a solution, stripped; None when it gives none.

    Math wants a box. `choice` also takes a last line like "The answer is (C).", and `exact` any last line, without its
    "The answer is". The last box wins, but for a choice whose box holds no letter and no option, and a letter follows.

    Args:
        solution: What the response gives as its solution.
        domain: How its answer will be compared.
        question: The question, for the options of a choice; "" if unknown.
    """
    boxed = last_boxed(solution)
    if domain in (Domain.MATH, Domain.CODE):
        return boxed
    last_line = solution.strip().rsplit("\n", 1)[-1].strip()
    if domain is Domain.EXACT:
        return boxed if boxed is not None else _without_introduction(last_line) or None
    return _choice_made(boxed, last_line, question)


def _choice_made(boxed: str | None, last_line: str, question: str) -> str | None:
    if boxed is not None and (letters_of(boxed) or option_named(boxed, question)):
        return boxed
    said = _letter_said(last_line)
    if said is not None or boxed is not None:
        return said or boxed
    stated = _ANSWER_IS.search(last_line[-_LINE_TAIL:])
    for text in (stated[1] if stated else "", last_line):
        if text and option_named(text, question):
            return text
    return None


def _without_introduction(line: str) -> str:
    match = _INTRODUCED.match(line)
    return line[match.end() :].strip() if match else line


def _letter_said(line: str) -> str | None:
    """The letter with which a line ends, or of which it consists."""
    said = _SAID.search(line[-_LINE_TAIL:])
    return said[1] if said else letter_of(line)


def letter_of(text: str) -> str | None:
    r"""The upper-case letter of a choice such as ``(c)``, ``\text{C}`` or ``\textbf{(C) }12``; None for several."""
    letters = letters_of(text)
    return letters[0] if len(letters) == 1 else None


def letters_of(text: str) -> tuple[str, ...]:
    """The upper-case letters that a text names as chosen: none, one, or several as in "A, C"."""
    if len(text) > _LINE_TAIL:
        return ()
    plain = " ".join(_MARKUP.sub(" ", text).replace("\uff08", "(").replace("\uff09", ")").split())
    match = _LETTER.fullmatch(plain)
    if match is None:
        match = _LETTER_AND_MORE.fullmatch(plain)
        return (match[1].upper(),) if match else _several(plain)
    return (match[1].upper(), *_others(match[2]))


def _several(text: str) -> tuple[str, ...]:
    """``AC``, ``A and C``."""
    if re.fullmatch(r"[A-H]{2,5}", text) and len(set(text)) == len(text) and list(text) == sorted(text):
        return tuple(text)
    match = re.match(r"[(\[]?([A-H])[)\]]?(?= (?:and|or|&) )", text)
    others = _others(text[match.end() :]) if match else ()
    return (match[1], *others) if match and others else ()


def _others(rest: str) -> tuple[str, ...]:
    """Further letters after a first one; none if words or numbers follow."""
    letters = []
    position = 0
    while position < len(rest.rstrip(" .")):
        match = _OTHER.match(rest, position)
        if match is None or match.end() == position or rest[match.end() : match.end() + 1].isalnum():
            return ()
        letters.append(match[1].upper())
        position = match.end()
    return tuple(letters)


def option_named(text: str, question: str) -> str | None:
    """The letter of the only option of a question that reads like a text."""
    from still_ray.verifiers.exact import same_text

    if not question or len(text) > _LINE_TAIL:
        return None
    named = [letter for letter, option in options_of(question).items() if option and same_text(text, option)]
    return named[0] if len(named) == 1 else None
