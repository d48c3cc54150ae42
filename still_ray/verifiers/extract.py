r"""Finding the answer in a solution: its last box, or what the domain accepts in its place. All in linear time."""

import re
import unicodedata
from typing import Final

from still_ray.boxed import final_answer, is_bare_formula, is_formula, last_boxed, with_unit
from still_ray.types import Domain
from still_ray.verifiers.options import options_of

_LINE_TAIL: Final = 300
_MARKUP: Final = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|textit|textrm|boldsymbol|bf|rm|mathsf|operatorname|boxed|fbox|left|right|textcircled)"
    r"(?![A-Za-z])|\\[,;:! ]|\\q?quad(?![A-Za-z])|[{}$*_`\"']"
)
_NOUN: Final = (
    r"(?:answer|option|choice|antwort|lösung|réponse|respuesta|resposta|risposta|ответ|"
    r"(?:正确|正確)?(?:答案|选项|選項)|答え|正解|정답|답|[应應故]?[选選])"
)
_IS: Final = r"(?:\s*(?:is|must be|would be|ist|est|es|è|é|应该是|应是|是|为|為|は|은|는|—|-))?"
_INTRODUCTION: Final = rf"(?:the )?(?:correct |right |final |best )*{_NOUN}s?{_IS}(?:\s*(?:{_NOUN}))?\s*[:=]?\s*"
_LETTER: Final = re.compile(
    rf"(?:{_INTRODUCTION})?(?:<\s*(?P<tagged>[A-Z])\s*>|[(\[]\s*(?P<enclosed>[A-Z])\s*(?:[)\]]|(?=,\s*[A-Z]\s*[,)\]])|$)"
    rf"|(?P<marked>[A-Z])\s*(?:[)\].,]|:(?!\s*[A-Z](?![A-Z]))|$))(?P<rest>.*)",  # A:B is a ratio
    re.DOTALL | re.IGNORECASE,
)
_LETTER_AND_MORE: Final = re.compile(
    rf"{_NOUN}\s*[(\[]?(?P<marked>[A-Z])[)\]]?(?P<rest>\s.*)?", re.DOTALL | re.IGNORECASE
)
_OTHER: Final = re.compile(r"[\s,&/+]*(?:and|or)?[\s,&/+]*[(\[]?([A-Za-z])[)\]]?[.,]?", re.IGNORECASE)
_HEDGE: Final = re.compile(
    r"(?:(?:and|or|but|maybe|perhaps|possibly|also|else|even)[\s,]+)+(?:(?:option|choice)\s+)?[(\[]?([A-H])(?![A-Za-z])"
)
_TAKEN_BACK: Final = re.compile(
    r"(?:is|was|seems|looks|can|could|would|does|must) ?n[o']t(?![A-Za-z])|不|错|錯|(?:(?:is|was|seems|looks) )?(?:not "
    r"(?:correct|right|true|possible)|wrong|incorrect|false|excluded|impossible|ruled out|eliminated)(?![A-Za-z])",
    re.IGNORECASE,
)
_REST_EDGES: Final = " \t\n)]}.:,;*_$"
_SAID: Final = re.compile(
    rf"{_NOUN}{_IS}(?: therefore| thus)?(?:\s*{_NOUN})?\s*:? ?"
    r"[$*_(\[{ ]*(?:\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{\s*\(?)?(?<![A-Za-z])(?P<letter>[A-Z])(?![A-Za-z])"
    r"[)\]}*_$]*(?P<rest>[.:)] ?[^.\n]{0,80})?[.$]*$",
    re.IGNORECASE,
)
_ANSWER_IS: Final = re.compile(r"answer(?: is)?:?\s+([^\n]{1,200}?)\.?\s*$", re.IGNORECASE)
_INTRODUCED: Final = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct )?answer(?: is)?\s*:?\s+|(?:final )?answer\s*:\s*",
    re.IGNORECASE,
)


_WORDS: Final = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)?")


def extract_answer(solution: str, domain: str, question: str = "") -> str | None:
    """The answer of a solution, stripped; None when it gives none.

    Math wants a box, or an answer that is stated at the end as GSM8K ("#### 18") and MetaMath ("The answer is: 18") do,
    which models that nobody asked for a box have learnt, or a line that is a formula and nothing else. `choice` also
    takes a last line like "The answer is (C).", and `exact` any last line, without its "The answer is". The last box
    wins, but for a choice whose box holds no letter and no option, and a letter follows.

    Args:
        solution: What the response gives as its solution.
        domain: How its answer will be compared.
        question: The question, for the options of a choice; "" if unknown.
    """
    boxed = last_boxed(solution)
    if domain in (Domain.MATH, Domain.CODE):
        return boxed if boxed is not None else _stated_in_mathematics(solution)
    last_line = solution.strip().rsplit("\n", 1)[-1].strip()
    if domain == Domain.EXACT:
        return boxed if boxed is not None else _without_introduction(last_line) or None
    return _choice_made(boxed, last_line, question)


def _stated_in_mathematics(solution: str) -> str | None:
    """The answer of a solution without a box: stated at its end, or all of a line that is a formula and nothing else.

    A word or two count behind a colon. What goes on as a sentence is not read: a right answer in it would be wrong.
    """
    stated = final_answer(solution)
    if stated is None:
        return solution.strip() if is_bare_formula(solution.strip()) else None
    if is_formula(stated):
        return with_unit(stated)
    before, found, _ = solution.rpartition(stated)
    return stated if found and _WORDS.fullmatch(stated) and before.rstrip(" *\n").endswith(":") else None


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
    """The letter with which a line ends, or of which it consists; None for several, or one that is taken back."""
    said = _SAID.search(_ascii(line)[-_LINE_TAIL:])
    if said is None:
        return letter_of(line)
    return said["letter"] if len(_with_others(said["letter"], said["rest"])) == 1 else None


def letter_of(text: str) -> str | None:
    r"""The upper-case letter of a choice such as ``(c)``, ``\text{C}`` or ``\textbf{(C) }12``; None for several."""
    letters = letters_of(text)
    return letters[0] if len(letters) == 1 else None


def letters_of(text: str) -> tuple[str, ...]:
    """The upper-case letters that a text names as chosen: none, one, or several as in "A, C"."""
    if len(text) > _LINE_TAIL:
        return ()
    plain = " ".join(_MARKUP.sub(" ", _ascii(text)).split())
    match = _LETTER.fullmatch(plain)
    if match is not None:
        return _with_others(match["tagged"] or match["enclosed"] or match["marked"], match["rest"])
    match = _LETTER_AND_MORE.fullmatch(plain)
    return _with_others(match["marked"], match["rest"]) if match else _several(plain)


def _ascii(text: str) -> str:
    """Full-width letters, brackets and stops of Chinese, Japanese and Korean texts as the ASCII ones."""
    return unicodedata.normalize("NFKC", text).replace("\u3002", ".").replace("\u3001", ",")


def _with_others(letter: str, rest: str | None) -> tuple[str, ...]:
    """A letter and those that follow it; what else follows explains it, unless it takes the letter back."""
    following = (rest or "").lstrip(_REST_EDGES)
    if _TAKEN_BACK.match(following):
        return ()
    hedge = _HEDGE.match(following)
    return (letter.upper(), *((hedge[1],) if hedge else _others(following)))


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
