"""Values in a user's files: JSON read strictly, numbers that keep their text, and what counts as no answer."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Container, Iterator, Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from still_ray.boxed import final_answer, several_boxed
from still_ray.extensions import did_you_mean
from still_ray.types import Domain, InputError

UTF8_MARK: Final = codecs.BOM_UTF8
MAX_DEPTH: Final = 100
"""Deepest nesting of a row: what reads it again later has less of Python's stack left."""
MAX_PLAIN_POWER: Final = 40
"""Numbers from 10^-40 to 10^40 are written out; others as a multiple of a power of ten."""

_OTHER_ENCODINGS: Final = ("utf-16", "utf-32")
_NOTHING: Final = frozenset({"None", "nan", "NaN", "NAN", "null", "NULL", "<NA>", "NaT"})
"""How Python, pandas and databases write that there is nothing."""
_INVISIBLE: Final = (
    "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)
"""Characters that show nothing, which copying from a page leaves around an answer."""


class Flaw(StrEnum):
    """Why a row cannot be used, in few words: rows are counted by it."""

    NOT_JSON = "not valid JSON"
    NOT_UTF8 = "not UTF-8"
    HALF_SURROGATE = "half of a surrogate pair"
    REPEATED_KEY = "a key that stands twice"
    TOO_DEEP = "nested too deeply"
    NO_OBJECT = "not an object"
    WRONG_CELLS = "more cells than columns"
    UNREADABLE = "a value that cannot be read"
    DAMAGED = "in a damaged part of the file"
    NO_ANSWER = "no answer"
    CONTROL = "a control token as text"


class Number(float):
    """A number that knows how its file wrote it, which a float may not hold exactly.

    Attributes:
        text: A decimal literal, e.g. "1e-05".
    """

    text: str

    def __new__(cls, text: str) -> Number:
        """The number of a decimal literal."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __reduce__(self) -> tuple[type[Number], tuple[str]]:
        """Pickled by its text."""
        return Number, (self.text,)


class _Repeating(dict[str, Any]):
    """An object that names a key twice."""

    repeated: str = ""


def decoded_json(content: bytes, where: str) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte-order mark; NaN and Infinity are null.

    Raises:
        InputError: It is not JSON in UTF-8.
    """
    try:
        return json_value(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        said = f"not valid JSON: {error.msg} at column {error.colno}"
        raise InputError(f"{where}: {said}", reason=Flaw.NOT_JSON) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: {error.reason} at byte {error.start}", reason=Flaw.NOT_UTF8) from error
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON: nested too deeply", reason=Flaw.TOO_DEEP) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise InputError(f"{where}: not valid JSON: {error}", reason=Flaw.NOT_JSON) from error


def json_value(text: str) -> Any:
    """The value of a JSON text; its numbers with a point or an exponent are `Number`, its NaN and Infinity null.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, parse_float=Number, parse_constant=lambda _: None, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    names = [name for name, _ in pairs]
    repeating = _Repeating(fields)
    repeating.repeated = next(name for name in names if names.count(name) > 1)
    return repeating


def check_encoding(head: bytes, where: str) -> None:
    """Refuses a text file in UTF-16 or UTF-32, given its first bytes.

    Raises:
        InputError: It is one.
    """
    encoding = json.detect_encoding(head[:4])
    if encoding.startswith(_OTHER_ENCODINGS):
        name = encoding[:6].upper()
        raise InputError(f"{where}: is text in {name}; save it as UTF-8", reason=Flaw.NOT_UTF8)


def cleaned(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row in which what is no number is null: NaN and Infinity, as tables of floats write that a value is missing."""
    unclean = {name: _clean(value) for name, value in fields.items() if isinstance(value, float | Decimal)}
    return {**fields, **unclean} if unclean else fields


def _clean(value: float | Decimal) -> float | None:
    if isinstance(value, Decimal):
        return Number(str(value)) if value.is_finite() else None
    return value if isinstance(value, Number) or math.isfinite(value) else None


def check_fields(fields: Mapping[str, Any], where: str) -> None:
    """Refuses a row that holds half of a surrogate pair anywhere, an object with a key twice, or too many levels.

    Raises:
        InputError: It does; names the row's key.
    """
    if isinstance(fields, _Repeating):
        said = f"key {json.dumps(fields.repeated)} stands twice"
        raise InputError(f"{where}: {said}", reason=Flaw.REPEATED_KEY)
    for name, value in fields.items():
        key = f"{where}: key {json.dumps(str(name))}"
        if isinstance(name, str) and not _is_text(name):
            raise InputError(f"{key} is itself half of a surrogate pair", reason=Flaw.HALF_SURROGATE)
        _check_value(value, key)


def _check_value(value: Any, key: str) -> None:
    for part, depth in _parts(value):
        if isinstance(part, str) and not _is_text(part):
            said = "holds half of a surrogate pair, which is no character"
            raise InputError(f"{key} {said}", reason=Flaw.HALF_SURROGATE)
        if isinstance(part, _Repeating):
            said = f"holds an object in which {json.dumps(part.repeated)} stands twice"
            raise InputError(f"{key} {said}", reason=Flaw.REPEATED_KEY)
        if depth > MAX_DEPTH:
            raise InputError(f"{key} is nested more than {MAX_DEPTH} levels deep", reason=Flaw.TOO_DEEP)


def _parts(value: Any) -> Iterator[tuple[Any, int]]:
    """The value and everything in it, keys too, each with its depth; without recursion, and no deeper than needed."""
    waiting = [(value, 1)]
    while waiting:
        part, depth = waiting.pop()
        yield part, depth
        if isinstance(part, Mapping):
            waiting.extend((inner, depth + 1) for pair in part.items() for inner in pair)
        elif isinstance(part, list | tuple):
            waiting.extend((inner, depth + 1) for inner in part)


def _is_text(text: str) -> bool:
    """Whether a text can be written in UTF-8, which half of a surrogate pair cannot."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def unknown_domain(label: Any, where: str, *, labels: tuple[str, ...] = ()) -> InputError:
    """What to say of a domain that nobody verifies.

    Args:
        label: The row's.
        where: The file and the row.
        labels: Further labels that are known.
    """
    known = (*Domain, *labels)
    said = f'{where}: key "domain" is {json.dumps(label)}, expected one of: {", ".join(known)}'
    if not isinstance(label, str):
        return InputError(said)
    own = f"or your own with its verifier (verifier.custom: {{{label}: package.module:function}})"
    return InputError(f"{said}, {own}{did_you_mean(label, known)}")


def is_answer(value: Any, domain: Any = None, *, own: Container[str] = ()) -> bool:
    """Whether a reference says anything: not null, blank or, as text, "None", "nan", "null" and the like.

    Args:
        value: The reference.
        domain: What its row calls its domain: under exact and the user's own a word is a word, also "None".
        own: The domains that have a verifier of the user's own.
    """
    if value is None:
        return False
    if isinstance(value, float) and not isinstance(value, Number) and not math.isfinite(value):
        return False
    if not isinstance(value, str):
        return True
    text = visible(value)
    return bool(text) and (text not in _NOTHING or (isinstance(domain, str) and _holds_words(domain, own)))


def _holds_words(domain: str, own: Container[str]) -> bool:
    return domain == Domain.EXACT or (domain in own and domain not in list(Domain))


def stated_answer(value: Any, domain: Any = None, *, own: Container[str] = ()) -> Any:
    """What a column of references says: the one of a list, and of a worked solution the answer that it states.

    All of a line with several boxes is the answer.

    Args:
        value: What the column holds.
        domain: What its row calls its domain. Under exact, code and the user's own a text is taken as it stands.
        own: The domains that have a verifier of the user's own.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if (
        not isinstance(value, str)
        or domain in (Domain.EXACT, Domain.CODE)
        or (isinstance(domain, str) and domain in own)
    ):
        return value
    return value if several_boxed(value) else final_answer(value) or value


def no_answer(value: Any, key: str = "answer") -> str:
    """What to say of a reference that is none.

    Args:
        value: The reference.
        key: The row's key that holds it.
    """
    if isinstance(value, str) and visible(value):
        said = f"is {json.dumps(visible(value))}, which is no answer"
        return f'key "{key}" {said} (a word is one where "domain" is "exact")'
    if isinstance(value, str):
        return f'key "{key}" is blank'
    return f'key "{key}" holds no answer: null, NaN and Infinity are none'


def visible(text: str) -> str:
    """A text without white space and invisible characters around it."""
    before = ""
    while text != before:
        before, text = text, text.strip().strip(_INVISIBLE)
    return text


def answer_text(value: str | int | float) -> str:
    r"""A reference as text: of a number its exact value as the file wrote it, e.g. 0.00001 for 1e-05."""
    if not isinstance(value, float):
        return visible(str(value))
    number = Decimal(value.text if isinstance(value, Number) else repr(value))
    power = number.adjusted()
    if abs(power) <= MAX_PLAIN_POWER:
        return f"{number:f}"
    mantissa = number.scaleb(-power).normalize()
    factor = "" if mantissa == 1 else rf"{mantissa:f} \times "
    return f"{factor}10^{{{power}}}"
