"""Problems with reference answers, as MATH-OAI, AIME, OlymMATH and others write them."""

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from still_ray.boxed import last_boxed
from still_ray.formats.unique import QUESTION_KEYS, IdIndex, question_text, row_id
from still_ray.location import Location, location
from still_ray.rows import Piece, read_piece, read_rows
from still_ray.types import Domain, InputError, Problem
from still_ray.values import Flaw, answer_text, check_fields, is_answer, json_value, no_answer, unknown_domain

RELEASED_LABELS: Final = ("physics", "chemistry", "biology", "puzzle")
"""Problem types of the released demonstrations that say nothing of how an answer is compared."""

_LETTER: Final = re.compile(r"\(?([A-Za-z])\)?\.?")
_MATHEMATICAL: Final = re.compile(
    r"[\s$(\[{|<]*[-+\u2212\u00b1~]?\s*[.\d\\$\u221a\u03c0\u00bd-\u00be\u221e]"  # begins like a number or a command
    r"|.*[\\^=\u221a\u03c0\u2264\u2265\u2260\u2208\u221e\u00b2\u00b3]"
    r"|[A-Za-z]{1,2}\([A-Za-z0-9+\-*/^ ]+\)[A-Za-z0-9+\-*/^() ]*$"  # n(n+1)/2
    r"|[A-Za-z]{1,2}\d?\s*[+*/<>-]\s*[A-Za-z0-9(]{1,3}(?![A-Za-z])"  # x + 1
    r"|(?:sqrt|sin|cos|tan|log|ln|exp|pi)\b",
    re.DOTALL,
)
_CHOICES: Final = "ABCDE"
_LEVEL_LIMIT: Final = 10**9


@dataclass(frozen=True, kw_only=True)
class ProblemIndex:
    """What a run needs to know of a file of problems before it starts.

    Attributes:
        ids: One for each problem, in the file's order.
        levels: Their levels.
        subjects: Their subjects; "" where a row has none.
        domains: Their domains.
        num_duplicates: Rows left out because an equal row came before.
    """

    ids: tuple[str, ...]
    levels: tuple[int | None, ...]
    subjects: tuple[str, ...]
    domains: tuple[str, ...]
    num_duplicates: int

    @property
    def count(self) -> int:
        """How many problems there are."""
        return len(self.ids)


def validate_problems(
    path: str | Location, *, own: Container[str] = (), each: Callable[[Problem], None] = lambda _: None
) -> ProblemIndex:
    """Reads a file of problems to its end, keeping none of the text.

    Args:
        path: The file.
        each: Is shown every problem on the way.
        own: The domains that have a verifier of the user's own.

    Raises:
        InputError: A row is wrong, or two different problems have the same id.
    """
    index = IdIndex()
    kept = []
    for problem in _unique_problems(location(path), index, own):
        each(problem)
        kept.append((problem.id, problem.level, problem.subject, problem.domain))
    ids, levels, subjects, domains = zip(*kept, strict=True)
    return ProblemIndex(ids=ids, levels=levels, subjects=subjects, domains=domains, num_duplicates=index.num_duplicates)


def read_problems(path: str | Location, *, own: Container[str] = ()) -> Iterator[Problem]:
    """Streams the problems of a file, equal rows once.

    Args:
        path: The file.
        own: See `validate_problems`.

    Raises:
        InputError: See `validate_problems`.
    """
    return _unique_problems(location(path), IdIndex(), own)


def read_problem_piece(piece: Piece, *, own: Container[str] = ()) -> Iterator[Problem]:
    """Streams the problems of a piece of a file that was validated before; equal rows come again.

    Args:
        piece: The piece.
        own: See `validate_problems`.

    Raises:
        InputError: A row is wrong by now.
    """
    for row in read_piece(piece):
        where = f"{piece.path}, row {row.number}" if piece.first_row else f"{piece.path}, after byte {piece.start}"
        if row.fields is None or row.broken:
            raise InputError(row.broken if piece.first_row else f"{where}: a broken row", reason=row.reason)
        yield problem_from_row(row.fields, where=where, own=own)


def _unique_problems(path: Location, index: IdIndex, own: Container[str]) -> Iterator[Problem]:
    for where, fields in read_rows(path):
        problem = problem_from_row(fields, where=where, own=own)
        if index.is_new(problem.id, (problem.question, problem.answer), where):
            yield problem


def problem_from_row(row: Mapping[str, Any], *, where: str, own: Container[str] = ()) -> Problem:
    r"""Makes a problem of a row.

    The question is `problem` or `question`; the reference is `answer`, or else the last box of `solution`. `domain`
    says how the answer is compared (math without it); of the released problem types, the reference decides.

    Args:
        row: A row of a file.
        where: The file and the row, for errors.
        own: The domains that have a verifier of the user's own; theirs comes before what a label means here.

    Raises:
        InputError: A key is missing or holds something else than it should.
    """
    question = question_text(row, QUESTION_KEYS, where)
    reference = _reference(row, where, own)
    domain = _domain(row, reference, where, own)
    answer = _checked_answer(reference, domain, where)
    return Problem(
        id=row_id(row, (question, answer)),
        domain=domain,
        question=question,
        answer=answer,
        subject=str(row.get("subject") or ""),
        level=_level(row.get("level")),
    )


def _reference(row: Mapping[str, Any], where: str, own: Container[str]) -> Any:
    answer, domain = row.get("answer"), row.get("domain")
    if not is_answer(answer, domain, own=own):
        boxed = last_boxed(row["solution"]) if isinstance(row.get("solution"), str) else None
        if boxed is None and answer is None:
            said = 'missing key "answer" (or "solution" with a \\boxed{}); null, NaN and Infinity are no answers'
            raise InputError(f"{where}: {said}", reason=Flaw.NO_ANSWER)
        if not is_answer(boxed, domain, own=own):
            raise InputError(f"{where}: {no_answer(answer if boxed is None else boxed)}", reason=Flaw.NO_ANSWER)
        return boxed
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | dict):
        raise InputError(f'{where}: key "answer" must be text, a number or, for code, an object')
    return answer


def _domain(row: Mapping[str, Any], reference: Any, where: str, own: Container[str]) -> str:
    label = row.get("domain")
    if label is None or label == "":
        return Domain.MATH
    if isinstance(label, str) and label in own:
        return label
    if label in RELEASED_LABELS:
        return _domain_of(str(reference))
    if label not in list(Domain):
        raise unknown_domain(label, where, labels=RELEASED_LABELS)
    return Domain(label)


def _domain_of(reference: str) -> Domain:
    letter = _LETTER.fullmatch(reference.strip())
    if letter and letter[1] in _CHOICES:
        return Domain.CHOICE
    return Domain.MATH if _MATHEMATICAL.match(reference) else Domain.EXACT


def _checked_answer(reference: Any, domain: str, where: str) -> str:
    if domain == Domain.CODE:
        return _code_answer(reference, where)
    if isinstance(reference, dict):
        raise InputError(f'{where}: key "answer" may be an object only where "domain" is "code"')
    answer = answer_text(reference)
    if domain == Domain.CHOICE and not _LETTER.fullmatch(answer):
        raise InputError(
            f'{where}: key "answer" must be a letter where "domain" is "choice", found {json.dumps(answer)}'
        )
    return answer


def _code_answer(reference: Any, where: str) -> str:
    """The JSON text of a code reference."""
    expected = '{"kind": "stdio", "cases": [{"input", "output"}, ...]} or {"kind": "assert", "code": ...}'
    try:
        code = json_value(reference) if isinstance(reference, str) else reference
    except (ValueError, RecursionError):
        code = None
    if not isinstance(code, dict) or not (_is_stdio(code) or _is_assert(code)):
        raise InputError(f'{where}: key "answer" must be {expected} where "domain" is "code"')
    check_fields({"answer": code}, where)  # text within text: it was not looked into before
    return json.dumps(code)


def _is_stdio(code: Mapping[str, Any]) -> bool:
    cases = code.get("cases")
    return (
        code.get("kind") == "stdio"
        and isinstance(cases, list)
        and bool(cases)
        and all(isinstance(case, dict) and {"input", "output"} <= case.keys() for case in cases)
    )


def _is_assert(code: Mapping[str, Any]) -> bool:
    return code.get("kind") == "assert" and isinstance(code.get("code"), str)


def _level(value: Any) -> int | None:
    """A number of at most nine digits, or that number in a text like "Level 5"; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value) if abs(value) < _LEVEL_LIMIT else None  # NaN and infinity are not below it
    match = re.fullmatch(r"(?:level)?\s*(\d{1,9})", value.strip(), re.IGNORECASE) if isinstance(value, str) else None
    return int(match[1]) if match else None


def problem_row(problem: Problem) -> dict[str, Any]:
    """The row that `problem_from_row` reads back as the same problem."""
    row = {
        "id": problem.id,
        "domain": str(problem.domain),
        "question": problem.question,
        "answer": json.loads(problem.answer) if problem.domain == Domain.CODE else problem.answer,
        "subject": problem.subject,
        "level": problem.level,
    }
    return {key: value for key, value in row.items() if value not in ("", None)}


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Writes JSON Lines that `read_problems` reads back."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(problem_row(problem)) + "\n" for problem in problems)
