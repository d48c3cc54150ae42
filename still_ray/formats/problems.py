"""Problems with reference answers, as MATH-OAI, GSM8K, MetaMath, MMLU, verl and others write them.

Whatever reads problems, `run`, `evaluate`, `distill` or `prepare`, reads them here: a row is the same problem to all.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from still_ray.boxed import final_answer, is_worked
from still_ray.config.prepare import FieldsConfig
from still_ray.formats.chats import read_chat
from still_ray.formats.choices import Options, has_options_apart, listed_options, option_columns, problem_of_options
from still_ray.formats.columns import (
    ANSWER_COLUMNS,
    QUESTION_COLUMNS,
    RECOGNISED,
    RESPONSE_COLUMNS,
    Columns,
    IdIndex,
    checked_question,
)
from still_ray.formats.responses.reading import cut_response, looks_thought
from still_ray.location import Location, location
from still_ray.rows import Piece, read_piece, read_rows
from still_ray.types import Domain, InputError, Problem
from still_ray.values import (
    Flaw,
    answer_text,
    check_fields,
    is_answer,
    json_value,
    no_answer,
    stated_answer,
    unknown_domain,
)

RELEASED_LABELS: Final = ("physics", "chemistry", "biology", "puzzle")
"""Problem types of the released demonstrations that say nothing of how an answer is compared."""

_SPELLINGS: Final = dict.fromkeys(("maths", "mathematics"), "math")
_SLIP_OF_THE_PEN: Final = 0.8
"""Similarity of a label to a domain's name from which it is taken for a slip. Source: ours; "phisics" has 0.86."""
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


def problem_from_row(
    row: Mapping[str, Any],
    *,
    where: str,
    own: Container[str] = (),
    fields: FieldsConfig = RECOGNISED,
    seed: int = 0,
) -> Problem:
    r"""Makes a problem of a row.

    The question is that of a column or of a chat. The reference is a column's answer, of a worked
    solution what it states at its end (``#### 24``, ``The answer is: 24``, ``\boxed{24}``), or the right one of the
    row's options, which then stand behind the question. `domain` says how the answer is compared (math without it); of
    a label that is none, the reference decides.

    Args:
        row: A row of a file.
        where: The file and the row, for errors.
        own: The domains that have a verifier of the user's own; theirs comes before what a label means here.
        fields: The user's names of columns.
        seed: Of the order of options that stand in columns of their own.

    Raises:
        InputError: A key is missing or holds something else than it should.
    """
    return ProblemRow(Columns(row, fields, where), own=own, seed=seed).problem()


class ProblemRow:
    """A row that may be a problem.

    Attributes:
        columns: Its columns.
        chat: The chat that it holds, or None.
        chat_error: Why a column of turns is none, for rows that nothing else gives a shape; None if it is one.
    """

    def __init__(self, columns: Columns, *, own: Container[str] = (), seed: int = 0) -> None:
        self.columns, self._own, self._seed = columns, own, seed
        self.chat, self.chat_error = read_chat(columns)

    def question(self) -> str:
        """The one question that is asked: a column of its own, else that of the chat.

        Raises:
            InputError: There is none, or the chat has several.
        """
        if self.chat is not None and self.chat.num_questions > 1 and self._question_column() is None:
            raise InputError(f"{self.columns.where}: a chat of several questions; a problem is one question")
        return self.last_question()

    def last_question(self) -> str:
        """The question: a column of its own, else the last one in the chat that is answered.

        Raises:
            InputError: There is none.
        """
        columns, name = self.columns, self._question_column()
        if name is None:
            if self.chat is not None and self.chat.question.strip():
                return self.chat.question.strip()
            raise self.chat_error or self._no_question()
        text = columns.stripped(name, "question")
        extra = columns.row.get("input") if name == "instruction" else None  # Alpaca's two columns
        return f"{text}\n\n{extra.strip()}" if isinstance(extra, str) and extra.strip() else text

    def asked(self) -> str:
        """Everything that is asked: of a chat the questions before it as well.

        Raises:
            InputError: There is no question.
        """
        before = () if self.chat is None else self.chat.asked_before
        return "\n\n".join((*before, self.last_question()))

    def problem(self) -> Problem:
        """The problem with its reference.

        Raises:
            InputError: See `problem_from_row`.
        """
        columns = self.columns
        if has_options_apart(columns.raw):
            return problem_of_options(columns, seed=self._seed)
        question = checked_question(self.question(), columns.where)
        options = self._options()
        domain, answer = (Domain.CHOICE, options.right) if options else self._judged()
        if options:
            question = options.behind(question)
        known = self._known_label() is not None
        subject = columns.row.get("subject")
        return Problem(
            id=columns.id_of(question, answer),
            domain=domain,
            question=question,
            answer=answer,
            subject=str(subject or "") if known else str(subject or self.label()),
            level=_level(columns.row.get("level")),
        )

    def label(self) -> str:
        """What the row calls its domain; "" if it does not say. Several labels are one text."""
        value = self.columns.value(self.columns.fields.domain or "domain")
        labels = value if isinstance(value, list | tuple) else [value]
        return "; ".join(str(label) for label in labels if label is not None)

    def has_reference(self) -> bool:
        """Whether the row states an answer, or works one out in a column that is nothing else."""
        if has_options_apart(self.columns.raw) or self.states_answer():
            return True
        worked = self.columns.text("solution", ("solution",))
        return final_answer(_behind_thought(worked or "")) is not None

    def states_answer(self) -> bool:
        """Whether a column of answers says anything.

        Raises:
            InputError: The row has options by which it would be judged, and they cannot be read.
        """
        return self._answer()[1] is not None or self._options() is not None

    def require_no_void_answer(self) -> None:
        """Says of a row that is nothing that it would be a problem, did its answer say anything.

        Raises:
            InputError: It holds an answer such as "None".
        """
        key = next((name for name in ANSWER_COLUMNS if name in self.columns.row), "")
        if key and not self.states_answer():
            raise self._void(self._answer()[0] or key)

    def _question_column(self) -> str | None:
        """The column that holds the question, not counting a chat."""
        return self.columns.find(
            "question", QUESTION_COLUMNS, of=lambda value: isinstance(value, str) and value.strip()
        )

    def _no_question(self) -> InputError:
        columns = self.columns
        blank = next((name for name in QUESTION_COLUMNS if columns.row.get(name) is not None), None)
        if blank is not None:
            return InputError(f'{columns.where}: key "{blank}" must be a text that is not blank')
        first, *others = (f'"{name}"' for name in (*QUESTION_COLUMNS, "messages", "conversations"))
        return InputError(f"{columns.where}: missing key {first} (or {', '.join(others)}); columns: {columns.names}")

    def _spelled(self) -> str:
        """The label as it is spelled here, whether it is known or not."""
        label = self.label()
        return label if label in self._own else _SPELLINGS.get(label.lower(), label.lower())

    def _known_label(self) -> str | None:
        """The label if it says how to compare, or of which released type the row is; "" if there is none.

        Raises:
            InputError: It is a slip of the pen for one that is known.
        """
        label, folded = self.label(), self._spelled()
        known = (*Domain, *RELEASED_LABELS)
        if not label or label in self._own or folded in known:
            return folded
        named = [*known, *(self._own if isinstance(self._own, Iterable) else ())]
        if difflib.get_close_matches(folded, named, n=1, cutoff=_SLIP_OF_THE_PEN):
            raise unknown_domain(label, self.columns.where, labels=RELEASED_LABELS)
        return None

    def _options(self) -> Options | None:
        """The options that stand in columns, unless the row says that it is judged in another way.

        Raises:
            InputError: They cannot be read.
        """
        if not option_columns(self.columns):
            return None
        label = self._known_label()
        if label in self._own or label not in ("", None, Domain.CHOICE, *RELEASED_LABELS):
            return None
        return listed_options(self.columns)

    def _judged(self) -> tuple[str, str]:
        """How the answer is compared, and the reference."""
        key, reference = self._reference()
        label = self._known_label()
        if label is None or (label in RELEASED_LABELS and label not in self._own):
            domain: str = _domain_of(str(reference))
        else:
            domain = label if label in self._own else Domain(label or Domain.MATH)
        return domain, _checked_answer(reference, domain, f'{self.columns.where}: key "{key}"')

    def _reference(self) -> tuple[str, Any]:
        """The key that holds the reference, and what it says.

        Raises:
            InputError: There is none, or it cannot be one.
        """
        where = self.columns.where
        key, answer = self._answer()
        if answer is None:
            worked = self._worked()
            found = final_answer(worked[1]) if worked else None
            if worked is None or not is_answer(found, self._spelled(), own=self._own):
                raise self._void(key, worked=worked[0] if worked else "")
            return worked[0], found
        if isinstance(answer, bool) or not isinstance(answer, str | int | float | dict):
            many = f", and one: it holds {len(answer)}" if isinstance(answer, list | tuple) else ""
            raise InputError(f'{where}: key "{key}" must be text, a number or, for code, an object{many}')
        return key, answer

    def _answer(self) -> tuple[str, Any]:
        """The column of answers and what it says; None where it says nothing, "" where there is none.

        A worked solution that states no answer gives way to another column.
        """
        columns, label = self.columns, self._spelled()

        def said(value: Any) -> Any:
            answer = stated_answer(value, label, own=self._own)
            return answer if is_answer(answer, label, own=self._own) else None

        def answers(value: Any) -> bool:
            return said(value) is not None and not self._is_worked(said(value))

        key = columns.find("answer", ANSWER_COLUMNS, of=answers) or columns.find("answer", ANSWER_COLUMNS) or ""
        if not key or key == columns.fields.solution:
            return "", None
        answer = said(columns.value(key))
        return key, None if self._is_worked(answer) else answer

    def _is_worked(self, answer: Any) -> bool:
        """Whether what would be compared as mathematics is a worked solution without its answer."""
        label = self._spelled()
        if not isinstance(answer, str) or label in self._own or label in (Domain.CHOICE, Domain.CODE, Domain.EXACT):
            return False
        return (label in ("", Domain.MATH) or _domain_of(answer) is Domain.MATH) and is_worked(answer)

    def _worked(self) -> tuple[str, str] | None:
        """The column with a worked solution, and the solution without a thought in front of it.

        A response that shows a thought is a model's, and nobody has said that it is right. Of a chat of several
        questions, the last answer is none to a question in a column of its own.
        """
        columns, chat = self.columns, self.chat
        name = columns.find("solution", ("solution",), of=lambda value: isinstance(value, str) and value != "")
        if name is not None:
            return name, _behind_thought(columns.stripped(name, "solution"))
        if chat is not None:
            text = _behind_thought(chat.response) if chat.num_questions == 1 else ""
            return ("messages", text) if text else None
        response = columns.find("response", RESPONSE_COLUMNS, of=lambda value: isinstance(value, str) and value != "")
        text = "" if response is None else columns.stripped(response, "response")
        return (str(response), text) if text and not looks_thought(text) else None

    def _void(self, key: str, *, worked: str = "") -> InputError:
        """Why a row has no reference."""
        value = self.columns.value(key) if key else None
        where, forms = self.columns.where, '"#### X", "The answer is: X" or "\\boxed{X}"'
        for name, text in ((key, value), (worked, worked and self.columns.value(worked))):
            if isinstance(text, str) and is_worked(text):
                said = f'key "{name}" is a worked solution that does not end in its answer: {forms} is expected'
                return InputError(f"{where}: {said}", reason=Flaw.NO_ANSWER)
        if key and key in self.columns.row:
            return InputError(f"{where}: {no_answer(value, key)}", reason=Flaw.NO_ANSWER)
        said = 'missing key "answer" (or "solution" with a \\boxed{}); null, NaN and Infinity are no answers'
        return InputError(f"{where}: {said}", reason=Flaw.NO_ANSWER)


def _behind_thought(text: str) -> str:
    """A worked solution without its thought, in which an answer may have been tried and given up."""
    return cut_response(text).solution


def _domain_of(reference: str) -> Domain:
    letter = _LETTER.fullmatch(reference.strip())
    if letter and letter[1] in _CHOICES:
        return Domain.CHOICE
    return Domain.MATH if _MATHEMATICAL.match(reference) else Domain.EXACT


def _checked_answer(reference: Any, domain: str, where: str) -> str:
    if domain == Domain.CODE:
        return _code_answer(reference, where)
    if isinstance(reference, dict):
        raise InputError(f'{where} may be an object only where "domain" is "code"')
    answer = answer_text(reference)
    if domain == Domain.CHOICE and not _LETTER.fullmatch(answer):
        raise InputError(f'{where} must be a letter where "domain" is "choice", found {json.dumps(answer)}')
    return answer


def _code_answer(reference: Any, where: str) -> str:
    """The JSON text of a code reference."""
    expected = '{"kind": "stdio", "cases": [{"input", "output"}, ...]} or {"kind": "assert", "code": ...}'
    try:
        code = json_value(reference) if isinstance(reference, str) else reference
    except (ValueError, RecursionError):
        code = None
    if not isinstance(code, dict) or not (_is_stdio(code) or _is_assert(code)):
        raise InputError(f'{where} must be {expected} where "domain" is "code"')
    check_fields({"answer": code}, where.rpartition(": ")[0])  # text within text: it was not looked into before
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
