r"""Units of measurement, what they are in base units, and the nouns that people write after numbers."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Final

from still_ray.verifiers.math.tokens import Token
from still_ray.wordlists import words

_DEFINITIONS: Final = {
    "Hz": "1 s^-1", "Bq": "1 s^-1", "N": "1000 g m s^-2", "J": "1 N m", "W": "1 J s^-1", "Pa": "1 N m^-2", "C": "1 A s",
    "V": "1 W A^-1", "ohm": "1 V A^-1", "F": "1 C V^-1", "Wb": "1 V s", "T": "1 Wb m^-2", "H": "1 Wb A^-1",
    "L": "0.001 m^3", "eV": "1.602176634e-19 J", "cal": "4.184 J", "bar": "100000 Pa", "atm": "101325 Pa",
    "psi": "6894.757 Pa",
    "Gy": "1 J g^-1", "Sv": "1 J g^-1", "t": "1000000 g", "lb": "453.59237 g", "oz": "28.349523125 g", "in": "0.0254 m",
    "ft": "0.3048 m", "yd": "0.9144 m", "mi": "1609.344 m", "acre": "4046.8564224 m^2", "ha": "10000 m^2",
    "gal": "3.785411784 L", "min": "60 s", "h": "3600 s", "day": "86400 s", "week": "604800 s", "year": "12 month",
    "mph": "1 mi h^-1", "kph": "1000 m h^-1", "cent": "0.01 dollar", "B": "8 bit", "Wh": "3600 J",
}  # fmt: skip
"""Units in terms of others; the rest, such as m, g, s, A, K, mol, dollar, is defined by nothing."""

_PREFIXES: Final = {
    "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "d": -1, "c": -2, "m": -3, "mu": -6, "n": -9, "p": -12, "f": -15,
}  # fmt: skip
_PREFIXED: Final = words("m g s A K mol Hz Bq N J W Pa C V ohm F Wb T H L eV cal bar Gy Sv B bit Wh dB cd lm lx")
_PREFIX_NAMES: Final = {
    "tera": "T", "giga": "G", "mega": "M", "kilo": "k", "hecto": "h", "deci": "d", "centi": "c", "milli": "m",
    "micro": "mu", "nano": "n", "pico": "p", "femto": "f",
}  # fmt: skip
_NAMES: Final = {
    "m": "meter metre", "g": "gram gramme gm gms", "s": "second sec", "A": "ampere amp", "K": "kelvin", "mol": "mole",
    "Hz": "hertz", "Bq": "becquerel", "N": "newton", "J": "joule", "W": "watt", "Pa": "pascal", "C": "coulomb",
    "V": "volt", "ohm": "ohm Omega", "F": "farad", "Wb": "weber", "T": "tesla", "H": "henry henries",
    "L": "liter litre l", "eV": "electronvolt", "cal": "calorie", "atm": "atmosphere", "t": "ton tonne",
    "lb": "pound lbs", "oz": "ounce",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "ha": "hectare", "gal": "gallon",
    "min": "minute min mins", "h": "hour hr hrs", "day": "day", "week": "week", "month": "month", "year": "year yr",
    "cm": "cms", "km": "kms", "kg": "kgs kilo kilos", "mL": "ml", "mph": "mph", "kph": "kph kmh kmph",
    "dollar": "dollar usd", "cent": "cent", "euro": "euro eur", "pound": "gbp sterling", "yuan": "yuan rmb",
    "yen": "yen", "won": "won", "rupee": "rupee", "ruble": "ruble rouble rubles", "rad": "radian", "am": "am a.m",
    "pm": "pm p.m",
    "unit": "unit", "acre": "acre", "celsius": "celsius", "fahrenheit": "fahrenheit", "B": "byte",
    "bit": "bit", "dB": "decibel", "kHz": "khz", "MHz": "mhz", "GHz": "ghz", "keV": "kev", "MeV": "mev",
    "GeV": "gev", "kPa": "kpa", "kJ": "kj",
    "kW": "kw", "kWh": "kwh",
}  # fmt: skip
_BY_NAME: Final = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_BASE: Final = _PREFIXED | frozenset(_DEFINITIONS) | frozenset(_NAMES)
MULTIPLIERS: Final = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}
"""Words that multiply the number before them."""

_NO_NOUNS: Final = words(
    "not no nor or and than least most more less fewer except but if for when where with such base mod modulo half "
    "quarter third all any is are exactly only times pi plus minus over to infinity otherwise either neither else "
    "through between from up down because since"
) | frozenset(MULTIPLIERS)
_FILLERS: Final = words("of the per a an each total degree degrees")
_DIMENSIONS: Final = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_AFTER: Final = {"squared": 2, "cubed": 3}
_SIGNS: Final = frozenset(("^", "/", "-", "cdot", "*", "."))
_COUNTED: Final = words(
    "way arrangement possibility possibilitie choice method outcome combination permutation solution number integer "
    "value pair triple element people person student point item object thing case option"
)
"""Nouns that only say that things were counted."""


def unit_of(tokens: Sequence[Token]) -> str | None:
    r"""The unit, or the noun, that tokens after a number are; None if they are something else.

    ``\text{ cm}^2``, "square centimeters" and "sq cm" are "cm^2"; "m/s" is "m^1 s^-1"; "ways" is "noun:ways". Words
    behind a unit ("5 cm long") say nothing.
    """
    if any(token.kind not in ("word", "name", "number", "sign", "command") for token in tokens):
        return None
    pieces = list(_joined_prefix([token for token in tokens if token.text not in ("{", "}", "{text", "}text")]))
    if not pieces or not all(map(_may_be_part, pieces)):
        return None
    nouns = [index for index, piece in enumerate(pieces) if _is_noun(piece)]
    measured = pieces[: nouns[0]] if nouns else pieces
    return _measure(measured) or ("noun:" + " ".join(pieces[index].casefold() for index in nouns) if nouns else None)


def _joined_prefix(tokens: Sequence[Token]) -> Iterator[str]:
    r"""What the tokens say, ``\mu`` joined with the unit behind it, and a prefix word as well."""
    before = ""
    for token in tokens:
        piece = before + (token.written or token.text)
        before = piece if piece == "mu" or piece.lower() in _PREFIX_NAMES else ""
        if not before:
            yield piece
    if before:
        yield before


def _may_be_part(piece: str) -> bool:
    return piece in _SIGNS or piece.lstrip("-").isdigit() or _is_noun(piece) or _is_unit(piece)


def _is_unit(piece: str) -> bool:
    return bool(_known(piece)) or piece.lower() in _DIMENSIONS or piece.lower() in _AFTER or piece.lower() in _FILLERS


def _is_noun(piece: str) -> bool:
    lower = piece.lower()
    return piece.isalpha() and len(piece) > 1 and not _is_unit(piece) and lower not in _NO_NOUNS and piece not in _SIGNS


@lru_cache(maxsize=1024)
def _known(piece: str) -> str:
    """The unit that a word is, with its prefix; "" of any other word. Capital letters tell mW from MW."""
    if piece in _BASE or _split_prefix(piece)[0]:
        return piece
    lower = piece.lower()
    for name in (piece, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in _BY_NAME:
            return _BY_NAME[name]
    for word, prefix in _PREFIX_NAMES.items():
        rest = _known(lower.removeprefix(word)) if lower.startswith(word) and lower != word else ""
        if rest in _PREFIXED:
            return prefix + rest
    return lower if lower in _BASE or _split_prefix(lower)[0] else ""


def _split_prefix(unit: str) -> tuple[str, str]:
    """The prefix of a unit and the unit without it; "" and the unit if it has none."""
    for prefix in _PREFIXES:
        if unit.startswith(prefix) and unit[len(prefix) :] in _PREFIXED:
            return prefix, unit[len(prefix) :]
    return "", unit


def _measure(pieces: list[str]) -> str | None:
    """Units with their powers, in order of the alphabet."""
    powers: dict[str, int] = {}
    last, power, side, sign, raised = "", 1, 1, 1, False
    for piece in pieces:
        unit, lower = _known(piece), piece.lower()
        if lower in _AFTER and last:
            powers[last] *= _AFTER[lower]
        elif lower in _DIMENSIONS:
            power = _DIMENSIONS[lower]
        elif piece in ("/", "per"):
            side = -1
        elif piece in ("-", "^"):
            sign, raised = (-1, raised) if piece == "-" else (1, True)
        elif piece.isdigit():
            if not last or not (raised or int(piece) in (2, 3)):
                return None
            powers[last] *= sign * int(piece)
            sign, raised = 1, False
        elif unit:
            last = unit
            powers[last] = powers.get(last, 0) + side * power
            power = 1
    return " ".join(f"{unit}^{exponent}" for unit, exponent in sorted(powers.items())) or None


def conversion(left: str, right: str) -> Fraction | None:
    """What an amount in one unit is multiplied with to have it in another; None where nothing converts them.

    A unit that only one side states goes without saying, and so does what "units" are. Nouns are compared as words; one
    that is not English may be no noun ("or more").
    """
    if left == right or not left or not right:
        return Fraction(1) if left == right or (left + right).isascii() else None
    if "noun:" in (left[:5], right[:5]):
        return Fraction(1) if "unit^1" in (left, right) or _same_nouns(left, right) else None
    (one, dimensions), (other, others) = _in_base(left), _in_base(right)
    if ("unit" in dimensions) != ("unit" in others):
        fits = "unit^1" in (left, right) or sorted(dimensions.values()) == sorted(others.values())
        return Fraction(1) if fits else None
    return one / other if dimensions == others else None


def _same_nouns(left: str, right: str) -> bool:
    sides = [{word.removesuffix("s") for word in text.removeprefix("noun:").split()} for text in (left, right)]
    if left[:5] != right[:5]:
        return False
    return sides[0] <= sides[1] or sides[1] <= sides[0] or all(side & _COUNTED for side in sides)


@lru_cache(maxsize=1024)
def _in_base(unit: str) -> tuple[Fraction, dict[str, int]]:
    """What ``km^1 h^-1`` is in units that are defined by no others."""
    factor, dimensions = Fraction(1), dict[str, int]()
    for part in unit.split():
        name, _, exponent = part.partition("^")
        power = int(exponent or 1)
        prefix, plain = ("", name) if name in _DEFINITIONS else _split_prefix(name)
        number, _, definition = _DEFINITIONS.get(plain, "1").partition(" ")
        value, inside = _in_base(definition) if definition else (Fraction(1), {plain: 1})
        factor *= (Fraction(number) * Fraction(10) ** _PREFIXES.get(prefix, 0) * value) ** power
        for base, times in inside.items():
            dimensions[base] = dimensions.get(base, 0) + times * power
    return factor, {base: times for base, times in dimensions.items() if times}
