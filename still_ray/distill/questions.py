"""What the teacher is asked: problems with a reference, and questions without one."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from still_ray.formats.columns import RECOGNISED, Columns, IdIndex, checked_question
from still_ray.formats.problems import ProblemRow
from still_ray.rows import read_rows
from still_ray.types import Domain


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, with or without a reference answer.

    Attributes:
        id: Unique within its file.
        text: What is asked, without the prompt template.
        label: The source's problem type, which a demonstration keeps: "math", "physics", ...
        answer: The reference; None: an answer to this question cannot be verified.
        domain: How an answer is compared with the reference.
    """

    id: str
    text: str
    label: str
    answer: str | None
    domain: str


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """The questions of a file.

    Attributes:
        questions: In the file's order, equal rows once.
        num_duplicates: Rows left out because an equal row came before.
        digest: SHA-256 of everything that was read: the same for the same questions in any file format.
    """

    questions: tuple[Question, ...]
    num_duplicates: int
    digest: str


def read_questions(path: Path, *, own: Container[str] = ()) -> QuestionFile:
    """Reads a file of questions, with references where there are some, as `still_ray.formats.problems` reads it.

    Args:
        path: The file.
        own: The domains that have a verifier of the user's own.

    Raises:
        InputError: A row is wrong, or two different questions have the same id.
    """
    index = IdIndex()
    kept = []
    for where, fields in read_rows(path):
        question = question_from_row(fields, where=where, own=own)
        if index.is_new(question.id, (question.text, question.answer or ""), where):
            kept.append(question)
    return QuestionFile(questions=tuple(kept), num_duplicates=index.num_duplicates, digest=_digest(kept))


def question_from_row(row: Mapping[str, Any], *, where: str, own: Container[str] = ()) -> Question:
    """Makes a question of a row; the problem's where it has a reference.

    Raises:
        InputError: A key is missing or holds something else than it should.
    """
    asked = ProblemRow(Columns(row, RECOGNISED, where), own=own)
    label = asked.label() or Domain.MATH.value
    if asked.has_reference():
        problem = asked.problem()
        return Question(id=problem.id, text=problem.question, label=label, answer=problem.answer, domain=problem.domain)
    text = checked_question(asked.question(), where)
    return Question(id=asked.columns.id_of(text), text=text, label=label, answer=None, domain=Domain.MATH)


def _digest(questions: Sequence[Question]) -> str:
    digest = hashlib.sha256()
    for each in questions:
        parts = (each.id, each.text, each.label, each.answer or "", each.domain)
        digest.update("\0".join(parts).encode() + b"\1")
    return digest.hexdigest()
