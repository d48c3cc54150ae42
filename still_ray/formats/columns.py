"""What the readers of rows share: columns found by the names that others give them, and ids unique within a file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from still_ray.config.prepare import FieldsConfig
from still_ray.formats.control import without_control
from still_ray.types import InputError, text_digest
from still_ray.values import Flaw

ID_KEYS: Final = ("unique_id", "id", "problem_id")
QUESTION_COLUMNS: Final = ("question", "problem", "prompt", "instruction", "query", "input")
RESPONSE_COLUMNS: Final = ("combined_text", "response", "output", "generation", "completion", "text")
THOUGHT_COLUMNS: Final = ("thought", "reasoning_content", "reasoning", "thinking")
SOLUTION_COLUMNS: Final = ("solution", "response", "output", "content")
ANSWER_COLUMNS: Final = (
    *("answer", "reference", "reference_answer", "expected_answer", "final_answer", "ground_truth"),
    "reward_model.ground_truth",  # verl's rows
)
CHAT_COLUMNS: Final = ("messages", "conversations", "conversation")
RECOGNISED: Final = FieldsConfig()
"""No column is named by the user."""

_MAX_COLUMNS_NAMED: Final = 8


class Columns:
    """One row, its columns found by name; names are recognised in capitals as well.

    Attributes:
        raw: The row as its file has it.
        row: The same, and each column with capitals by its name in small letters.
        fields: The columns that the user named.
        where: The file and the row, for errors.
    """

    def __init__(self, row: Mapping[str, Any], fields: FieldsConfig, where: str) -> None:
        capitals = {name.lower(): value for name, value in row.items() if not name.islower()}  # e.g. "Problem"
        self.row: Mapping[str, Any] = {**capitals, **row} if capitals else row
        self.raw, self.fields, self.where = row, fields, where

    def value(self, name: str) -> Any:
        """What a column holds; "a.b" is looked up inside objects when there is no column of that name."""
        if name in self.row or "." not in name:
            return self.row.get(name)
        value: Any = self.row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def find(self, field: str, columns: Sequence[str], of: Callable[[Any], Any] | None = None) -> str | None:
        """The column named by the user, or the first of these that is there (and that `of` accepts).

        Raises:
            InputError: The user named one that is not there.
        """
        named = getattr(self.fields, field)
        if named is not None:
            if self.value(named) is None:
                raise InputError(f'{self.where}: missing key "{named}", which is named as fields.{field}')
            return str(named)
        present = (name for name in columns if self.value(name) is not None)
        return next((name for name in present if of is None or of(self.value(name))), None)

    def text(self, field: str, columns: Sequence[str]) -> str | None:
        """The stripped text of the first of these columns that holds one.

        Raises:
            InputError: The user named a column that holds something else.
        """
        found = self.named_text(field, columns)
        return None if found is None else found[1]

    def named_text(self, field: str, columns: Sequence[str]) -> tuple[str, str] | None:
        """The name of that column, and its text.

        Raises:
            InputError: See `text`.
        """
        name = self.find(field, columns, of=lambda value: isinstance(value, str) and value != "")
        return None if name is None else (name, self.stripped(name, field))

    def stripped(self, name: str, field: str) -> str:
        """The stripped text of a column.

        Raises:
            InputError: It holds something else.
        """
        value = self.value(name)
        if not isinstance(value, str):
            raise InputError(f'{self.where}: key "{name}" (fields.{field}) must be a text')
        return value.strip()

    def id_of(self, *content: str) -> str:
        """The id that the row names by a text or a number, or else 16 hexadecimal digits of its content's SHA-256."""
        names = ID_KEYS if self.fields.id is None else (self.fields.id,)
        named = (self.value(name) for name in names)
        found = next((value for value in named if isinstance(value, str | int | float) and _names_a_row(value)), None)
        return text_digest(*content).hex()[:16] if found is None else str(found)

    @property
    def names(self) -> str:
        """The first names of the row's columns, for errors."""
        names = [str(name) for name in self.row]
        return ", ".join(names[:_MAX_COLUMNS_NAMED]) + (", ..." if len(names) > _MAX_COLUMNS_NAMED else "") or "none"


def _names_a_row(value: str | int | float) -> bool:
    return value != "" and not isinstance(value, bool)


def required_text(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    """The text under the first of these keys that the row has, stripped.

    Raises:
        InputError: There is none, or it is not a text, or it is blank.
    """
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        alternatives = "".join(f' (or "{other}")' for other in keys[1:])
        raise InputError(f'{where}: missing key "{keys[0]}"{alternatives}')
    if not isinstance(row[key], str) or not row[key].strip():
        raise InputError(f'{where}: key "{key}" must be a text that is not blank')
    return str(row[key]).strip()


def checked_question(text: str, where: str) -> str:
    """A question without the control tokens that end it.

    Raises:
        InputError: It holds others, or nothing else.
    """
    text = without_control(text, f"{where}: the question")
    if not text:
        raise InputError(f"{where}: the question is a control token and nothing else", reason=Flaw.CONTROL)
    return text


class IdIndex:
    """The ids of the rows read so far, each with a fingerprint of its content.

    Attributes:
        num_duplicates: Rows that repeated an earlier one.
    """

    def __init__(self) -> None:
        self.num_duplicates = 0
        self._seen: dict[str, tuple[bytes, str]] = {}

    def is_new(self, row_id: str, content: Sequence[str], where: str) -> bool:
        """Notes a row; False, and counted, for the repetition of a row with the same id and content.

        Raises:
            InputError: An earlier row has the same id and other content.
        """
        row = where.rpartition(", ")[2]
        fingerprint = text_digest(*content)[:16]
        earlier = self._seen.setdefault(row_id, (fingerprint, row))
        if earlier[0] != fingerprint:
            raise InputError(f'{where}: id "{row_id}" was used for other content in {earlier[1]}')
        if earlier[1] != row:
            self.num_duplicates += 1
        return earlier[1] == row
