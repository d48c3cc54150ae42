"""Units of measurement and the nouns that people write after numbers."""

from collections.abc import Sequence
from typing import Final

from still_ray.verifiers.math.tokens import Token
from still_ray.wordlists import words

_NAMES: Final = {
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres cms",
    "mm": "mm millimeter millimeters", "km": "km kilometer kilometers kilometre kilometres kms",
    "dm": "dm decimeter decimeters",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "s": "s sec secs second seconds", "min": "minute minutes mins", "h": "h hr hrs hour hours", "day": "day days",
    "week": "week weeks", "month": "month months", "year": "year years yr yrs", "g": "g gram grams gm", "mg": "mg",
    "kg": "kg kilogram kilograms kgs", "lb": "lb lbs pound pounds", "oz": "oz ounce ounces",
    "t": "ton tons tonne tonnes",
    "l": "l liter liters litre litres", "ml": "ml milliliter milliliters", "gal": "gal gallon gallons",
    "dollar": "dollar dollars usd", "cent": "cent cents", "euro": "euro euros eur", "yuan": "yuan rmb",
    "mph": "mph", "n": "newton newtons", "j": "joule joules", "kj": "kj", "w": "watt watts", "v": "volt volts",
    "pa": "pascal pascals", "mol": "mol moles mole", "k": "kelvin", "hz": "hz hertz", "rad": "rad radian radians",
    "am": "am a.m", "pm": "pm p.m", "unit": "unit units", "acre": "acre acres", "celsius": "celsius", "ev": "ev",
    "fahrenheit": "fahrenheit", "c": "c coulomb coulombs", "a": "ampere amperes amp amps",
}  # fmt: skip
_UNITS: Final = {word: unit for unit, words in _NAMES.items() for word in words.split()}
MULTIPLIERS: Final = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}
"""Words that multiply the number before them."""

_NO_NOUNS: Final = words(
    "not no nor or and than least most more less fewer except but if for when where with such base mod modulo half "
    "quarter third all any is are exactly only times pi plus minus over to infinity otherwise either neither else "
    "through between from up down because since"
) | frozenset(MULTIPLIERS)
_FILLERS: Final = words("of the per a an each total")
_DIMENSIONS: Final = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_AFTER: Final = {"squared": 2, "cubed": 3}


def unit_of(tokens: Sequence[Token]) -> str | None:
    r"""The unit, or the noun, that tokens after a number are; None if they are something else.

    ``\text{ cm}^2``, "square centimeters" and "sq cm" are "cm^2"; "m/s" is "m s^-1"; "ways" is "noun:ways".
    """
    if any(token.kind not in ("word", "name", "number", "sign", "command") for token in tokens):
        return None
    pieces = [token.text for token in tokens if token.text not in ("{", "}", "{text", "}text")]
    if not pieces or not all(map(_may_be_part, pieces)):
        return None
    nouns = [piece for piece in pieces if _is_noun(piece)]
    return "noun:" + " ".join(nouns) if nouns else _measure(pieces)


def _may_be_part(piece: str) -> bool:
    return piece in _SIGNS or piece.lstrip("-").isdigit() or _is_noun(piece) or _is_unit(piece)


def _is_unit(piece: str) -> bool:
    return piece.lower() in _UNITS or piece in _DIMENSIONS or piece in _AFTER or piece in _FILLERS


def _is_noun(piece: str) -> bool:
    return piece.isalpha() and len(piece) > 1 and not _is_unit(piece) and piece not in _NO_NOUNS and piece not in _SIGNS


_SIGNS: Final = frozenset(("^", "/", "-", "cdot", "*", "."))


def _measure(pieces: list[str]) -> str | None:
    """Units with their powers, in order of the alphabet."""
    powers: dict[str, int] = {}
    last, power, side, sign = "", 1, 1, 1
    for piece in pieces:
        if piece in _AFTER and last:
            powers[last] *= _AFTER[piece]
        elif piece in _DIMENSIONS:
            power = _DIMENSIONS[piece]
        elif piece.lower() in _UNITS:
            last = _UNITS[piece.lower()]
            powers[last] = powers.get(last, 0) + side * power
            power, side = 1, 1
        elif piece in ("/", "per"):
            side = -1
        elif piece == "-":
            sign = -1
        elif piece.isdigit():
            if not last:
                return None
            powers[last] *= sign * int(piece)
            sign = 1
    return " ".join(f"{unit}^{exponent}" for unit, exponent in sorted(powers.items())) or None


def units_agree(left: str, right: str) -> bool:
    """Whether two units, or a unit and none, can stand for the same: nouns are free, measures must be the same."""
    if not left or not right or left == right:
        return True
    free = ("noun:", "unit^")
    return left.startswith(free) or right.startswith(free)
