"""What the readers of problems and of demonstrations share: keys of rows, and ids that are unique within a file."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from still_ray.formats.control import without_control
from still_ray.types import InputError, text_digest
from still_ray.values import Flaw

ID_KEYS: Final = ("unique_id", "id", "problem_id")
QUESTION_KEYS: Final = ("problem", "question")


def row_id(row: Mapping[str, Any], content: Sequence[str]) -> str:
    """The id that the row names, or else 16 hexadecimal digits of its content's SHA-256."""
    named = next((row[key] for key in ID_KEYS if row.get(key) not in (None, "")), None)
    return text_digest(*content).hex()[:16] if named is None else str(named)


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


def question_text(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    """As `required_text`, without the control tokens that end it.

    Raises:
        InputError: See `required_text`; or it holds others.
    """
    text = without_control(required_text(row, keys, where), f"{where}: the question")
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
