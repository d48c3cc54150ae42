r"""Wrong answers that are accepted: references damaged in some forty ways, judged here and by plain math-verify.

A wrong answer that is accepted becomes a training row, so this is the rate that matters most. Every way of `DAMAGES`
takes a reference and gives pairs of a reference and an answer that is wrong for it: most keep the reference and damage
it, some first put it into a frame that such references have (an integral, a condition, a wave, a unit). Damages that
change nothing (another sign of an angle inside a cosine) are no wrong answers: the accepted pairs are printed by
`--pairs`, and `HARMLESS` says why each of those that were looked at is right.

    python -m benchmarks.bench_false_accepts [--pairs]

The references are those of the labelled pairs of the tests and, where the published problems lie beside the project,
theirs.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from math_verify import parse, verify

from benchmarks.bench_verifiers import by_pool, labelled, published
from benchmarks.figures import print_figure
from still_ray.boxed import last_boxed
from still_ray.types import Verdict
from still_ray.verifiers.plain import normalized
from still_ray.verifiers.pool import VerifierPool

MOST_PLACES: Final = 3
"""A way that applies at many places of a reference, or has many frames for it, gives three pairs."""

_COMMAND: Final = r"\\[A-Za-z]+"
_LETTER: Final = r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])"
_OPENED: Final = {"(": ")", "[": "]", "{": "}"}
_SCALAR: Final = re.compile(r"[^,=<>&:]*")
_NOT_SCALAR: Final = re.compile(
    r"\\(?:text|mbox|mathrm|begin|pm|mp|cup|cap|infty|in|le|ge|leq|geq|lt|gt|ne|neq|equiv|mid|to|dots|ldots|cdots|%|\$)"
    r"(?![A-Za-z])|[\[\]]|\\[{}]|_|°|\\circ|%|\bor\b|\band\b"
)

_PAIR: Final = 2
_EXACT: Final = 1e-9

_UNITS: Final = (
    ("eV", "MeV"), ("Pa", "kPa"), ("s", "ms"), ("m", "km"), ("g", "kg"), ("J", "kJ"), ("Hz", "GHz"), ("W", "mW"),
    ("V", "mV"), ("mol", "mmol"), ("L", "mL"), ("N", "kN"),
)  # fmt: skip
_OTHER_UNITS: Final = (
    ("cm", "cm^2"), ("hours", "minutes"), ("meters", "feet"), ("dollars", "cents"), ("kg", "N"), ("m/s", "km/h"),
    ("J", "W"), ("degrees", "radians"),
)  # fmt: skip
_OTHER_FUNCTIONS: Final = {
    "sin": r"\cos", "cos": r"\sin", "tan": r"\cot", "cot": r"\tan", "ln": r"\exp", "log": r"\exp", "sec": r"\csc",
    "csc": r"\sec", "arcsin": r"\arccos", "arccos": r"\arcsin", "arctan": r"\arcsin", "pi": "e ", "sqrt": r"\sin",
    "max": r"\min", "min": r"\max",
}  # fmt: skip

BASELINE_EVERY: Final = 25
"""math-verify is asked of each so manieth pair: of all of them it would take an hour."""

Pairs = Iterator[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class WrongPair:
    """A reference and an answer that is wrong for it."""

    damage: str
    reference: str
    answer: str


def references() -> list[str]:
    """Every reference once: the labelled ones of the tests, and the published ones that are at hand."""
    texts = [row["reference"] for row in labelled()]
    texts += [last_boxed(text) or text for text in published()]
    return list(dict.fromkeys(texts))


def is_scalar(text: str) -> bool:
    """Whether a reference is one number or expression: no list, relation, set, interval, matrix or words."""
    return bool(_SCALAR.fullmatch(text)) and not _NOT_SCALAR.search(text) and bool(re.search(r"[A-Za-z0-9]", text))


def _everywhere(pattern: str, text: str, change: Callable[[re.Match[str]], str]) -> Pairs:
    """The text with one match changed, for each of the first matches."""
    for _, match in zip(range(MOST_PLACES), re.finditer(pattern, text), strict=False):
        yield text, text[: match.start()] + change(match) + text[match.end() :]


def _top_level(text: str, signs: str) -> list[int]:
    """Places of signs outside all brackets."""
    places, depth = [], 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and sign in signs and text[place - 1 : place] != "\\":
            places.append(place)
    return places


def _parts(inside: str) -> list[str]:
    places = [-1, *_top_level(inside, ","), len(inside)]
    return [inside[start + 1 : end].strip() for start, end in itertools.pairwise(places)]


def _listed(text: str) -> tuple[str, list[str], str]:
    """Brackets around a whole reference, its parts between top-level commas."""
    plain = re.sub(r"\\(?:left|right)(?![A-Za-z])\s*", "", text).strip()
    match = re.fullmatch(r"(\\?[\[({])(.*?)(\\?[\])}])", plain)
    if match is None or "{" in plain[:1] or re.search(r"\\cup|[<>=|:]|\\(?:mid|in)(?![A-Za-z])", plain):
        return "", _parts(plain) if not re.search(r"[<>=|:]|\\(?:text|in|begin|mathbb)", plain) else [], ""
    return match[1], _parts(match[2]), match[3]


def sign(text: str) -> Pairs:
    """The whole with the other sign."""
    if is_scalar(text) and not re.fullmatch(r"[0. ]*", text):
        yield text, f"-({text})"
        yield text, text[1:].strip() if text.startswith("-") and not _top_level(text[1:], "+-") else f"-{text}"


def inner_sign(text: str) -> Pairs:
    """A plus as a minus, a minus as a plus, where both have something on their left."""
    return _everywhere(
        r"(?<=[A-Za-z0-9})\]])(\s*)([+-])(?=\s*[A-Za-z0-9\\({])", text, lambda m: m[1] + "+-"[m[2] == "+"]
    )


def digit(text: str) -> Pairs:
    """Another digit."""
    return _everywhere(r"\d", text, lambda match: str((int(match[0]) + 1) % 10))


def digit_lost(text: str) -> Pairs:
    """A digit less, at the end of a number."""
    return _everywhere(r"(?<=[1-9])\d(?![\d.,}]*[.\d])", text, lambda _: "")


def ten_times(text: str) -> Pairs:
    """A zero too many."""
    return _everywhere(r"(?<![\d.,])[1-9]\d*(?![\d.,!]|\{,)", text, lambda match: match[0] + "0")


def point(text: str) -> Pairs:
    """The decimal point one place further."""
    yield from _everywhere(r"(\d*)\.(\d)(\d*)", text, lambda match: f"{match[1]}{match[2]}.{match[3] or 0}")
    if re.fullmatch(r"-?\d{2,}", text):
        yield text, f"{text[:-1]}.{text[-1]}" if text[-1] != "0" else f"{text}.5"


def exponent(text: str) -> Pairs:
    """Another exponent."""
    yield from _everywhere(r"\^(\d)(?!\d)", text, lambda match: f"^{(int(match[1]) + 1) % 10}")
    yield from _everywhere(r"\^\{(-?)(\d+)\}", text, lambda match: f"^{{{match[1]}{int(match[2]) + 1}}}")
    yield from _everywhere(r"\^\{(?!-)([^{}\\]+)\}", text, lambda match: f"^{{-({match[1]})}}")


def exponent_gained(text: str) -> Pairs:
    """A square too many, on a letter or on the whole."""
    if "text" not in text and "mathbb" not in text and "begin" not in text:
        yield from _everywhere(rf"{_LETTER}(?![\^_'({{])", text, lambda match: match[0] + "^2")
    if is_scalar(text) and not re.fullmatch(r"[01]", text):
        yield text, f"({text})^2"


def exponent_lost(text: str) -> Pairs:
    """An exponent left out."""
    return _everywhere(r"\^(?!\{?\\?circ|\{?\\prime|'|1(?!\d)|\{1\})(?:\{[^{}]*\}|\w)", text, lambda _: "")


def index(text: str) -> Pairs:
    """Another index, or another base of a number."""
    yield from _everywhere(r"_(\d)(?!\d)", text, lambda match: f"_{(int(match[1]) + 1) % 10 or 2}")
    yield from _everywhere(r"_\{(\d+)\}", text, lambda match: f"_{{{int(match[1]) + 1}}}")
    if is_scalar(text):
        yield f"y_2 = {text}", f"y_3 = {text}"
        yield f"a_{{n}} = {text}", f"a_{{n+1}} = {text}"
        yield f"x_1 + {text}", f"x_2 + {text}"


def interval_end(text: str) -> Pairs:
    """One end of an interval open for closed, or closed for open."""
    opening, parts, closing = _listed(text)
    if len(parts) == _PAIR and opening in ("(", "[") and closing in (")", "]"):
        inside = ", ".join(parts)
        if "\\infty" not in parts[0]:
            yield text, f"{'(['[opening == '(']}{inside}{closing}"
        if "\\infty" not in parts[1]:
            yield text, f"{opening}{inside}{')]'[closing == ')']}"


def other_brackets(text: str) -> Pairs:
    """An open interval for the closed one, between the same ends."""
    if re.fullmatch(r"\d{1,3}", text) and int(text) > 1:
        yield f"[1,{text}]", f"(1,{text})"
        yield f"[-{text},{text}]", f"(-{text},{text})"
        yield f"[1,{int(text) + 100}]", f"(1,{int(text) + 100})"
        yield f"(0,{text}]", f"[0,{text})"


def infinity(text: str) -> Pairs:
    """The other infinity, or none."""
    yield from _everywhere(r"-\\infty", text, lambda _: "0")
    yield from _everywhere(r"(?<!-)\\infty", text, lambda _: "1000")


def unit_prefix(text: str) -> Pairs:
    """A unit a thousand times as large, or as small."""
    if is_scalar(text) and re.search(r"[1-9]", text):
        for unit, other in _UNITS:
            yield rf"{text} \text{{ {unit}}}", rf"{text} \text{{ {other}}}"
            yield rf"{text} \mathrm{{{other}}}", rf"{text} \mathrm{{{unit}}}"


def unit(text: str) -> Pairs:
    """A unit of another kind."""
    if is_scalar(text) and re.search(r"[1-9]", text):
        for own, other in _OTHER_UNITS:
            yield rf"{text} \text{{ {own}}}", rf"{text} \text{{ {other}}}"


def solution_lost(text: str) -> Pairs:
    """One of several solutions left out."""
    opening, parts, closing = _listed(text)
    if len(parts) > 1 and not (opening in ("(", "[") and len(parts) == _PAIR and "infty" in text):
        for lost in {0, len(parts) - 1}:
            kept = [part for place, part in enumerate(parts) if place != lost]
            yield text, f"{opening}{', '.join(kept)}{closing}"
    yield from _everywhere(r"\\pm", text, lambda _: "+")
    yield from _everywhere(r"\s*\\cup\b.*", text, lambda _: "")


def solution_gained(text: str) -> Pairs:
    """A solution too many."""
    opening, parts, closing = _listed(text)
    if parts and opening in ("", r"\{", "("):
        yield text, f"{opening}{', '.join([*parts, '97'])}{closing}"
        yield text, f"{opening}{', '.join(['-97', *parts])}{closing}"


def order(text: str) -> Pairs:
    """The parts of a tuple in another order."""
    opening, parts, closing = _listed(text)
    if opening == "(" and closing == ")" and len(set(parts)) > 1:
        yield (
            text,
            f"({', '.join(reversed(parts))})" if parts != parts[::-1] else f"({', '.join([*parts[1:], parts[0]])})",
        )


def as_set(text: str) -> Pairs:
    """A tuple as a sum or as its own last part."""
    opening, parts, closing = _listed(text)
    if opening == "(" and closing == ")" and len(parts) > 1:
        yield text, " + ".join(parts)
        yield text, parts[-1]


def commas(text: str) -> Pairs:
    """The comma of a pair or of a list taken for that between thousands, and the other way round."""
    if re.fullmatch(r"\d{3}", text):
        yield f"(5,{text})", f"5{text}"
        yield f"(5,{text})", f"5,{text}"
        yield f"3, {text}", f"3{text}"
        yield f"3{text}", f"3, {text}"
        yield f"3{text}", f"(3,{text})"
        yield rf"\{{2,{text}\}}", f"2{text}"
        yield f"[1,{text}]", f"1{text}"
        yield f"7{text}", rf"\{{7,{text}\}}"
        yield f"1,{text}", f"[1,{text}]"


def one_side(text: str) -> Pairs:
    """The right side of an equation that assigns nothing."""
    if is_scalar(text):
        yield f"x^2+y^2={text}", text
        yield f"2x+3y={text}", text
        yield f"xy={text}", text
        yield f"f(x)+g(x)={text}", text
    match = re.fullmatch(r"[^=<>]*[+^][^=<>]*=([^=<>]+)", text)
    if match and "text" not in text:
        yield text, match[1].strip()


def hedge(text: str) -> Pairs:
    """The right answer and another beside it."""
    yield text, rf"{text} \text{{ or }} 97"
    yield text, rf"97 \text{{ or }} {text}"
    yield text, f"{text} or 97"
    yield text, rf"{text} \text{{ and }} 97"
    if is_scalar(text) and not re.fullmatch(r"[A-Za-z ]*", text):
        yield text, rf"{text}, \text{{ perhaps }} 97"
        yield text, rf"\text{{not }} {text}"
        yield text, rf"\approx 97 \text{{ or }} {text}"


def frequency(text: str) -> Pairs:
    """A wave of another frequency, which agrees where time is whole."""
    if is_scalar(text):
        yield rf"({text})\cos(\pi t)", rf"({text})\cos(3\pi t)"
        yield rf"({text})\cos(2\pi f t)", f"({text})"
        yield rf"({text})\sin(\omega t)", rf"({text})\sin(2\omega t)"
        yield rf"({text}) e^{{i 2\pi x}}", f"({text})"
        yield rf"({text})\cos^2(\pi x)", f"({text})"
        yield rf"({text}) + \sin(\pi x)", f"({text})"
        yield rf"({text})(-1)^{{n}}\cos(\pi x)", f"({text})"


def other_variable(text: str) -> Pairs:
    """Another name for one variable of several, or for a polynomial's only one."""
    found = dict.fromkeys(re.findall(_LETTER, re.sub(_COMMAND, " ", text)))
    letters = [letter for letter in found if letter not in "ideCO"]
    if not letters or re.search(
        r"\\(?:text|mathbb|begin|in|mbox|equiv|sum|int|prod|le|ge|leq|geq|cup)|\bor\b|\band\b|[=<>,]|C", text
    ):
        return
    yield text, re.sub(rf"(?<![A-Za-z\\]){letters[0]}(?![A-Za-z])", "w", text)
    if len(letters) == _PAIR and len(re.findall(letters[0], text)) != len(re.findall(letters[1], text)):
        swap = {letters[0]: letters[1], letters[1]: letters[0]}
        yield text, re.sub(_LETTER, lambda match: swap.get(match[0], match[0]), text)


def function(text: str) -> Pairs:
    """Another function."""
    names = "|".join(sorted(_OTHER_FUNCTIONS, key=len, reverse=True))
    return _everywhere(rf"\\({names})(?![A-Za-z])", text, lambda match: _OTHER_FUNCTIONS[match[1]])


def root(text: str) -> Pairs:
    """A root left out, or of another degree."""
    yield from _everywhere(r"\\sqrt(?=\s*[{\d])", text, lambda _: "")
    yield from _everywhere(r"\\sqrt(?=\s*[{\d])", text, lambda _: r"\sqrt[3]")


def upside_down(text: str) -> Pairs:
    """A fraction with its sides exchanged."""
    yield from _everywhere(
        r"\\([dt]?)frac\{([^{}]+)\}\{([^{}]+)\}", text, lambda m: rf"\{m[1]}frac{{{m[3]}}}{{{m[2]}}}"
    )
    if is_scalar(text) and not re.fullmatch(r"-?1|0", text):
        yield text, rf"\frac{{1}}{{{text}}}"


def constant_lost(text: str) -> Pairs:
    """A factor pi left out."""
    return _everywhere(r"\\pi(?![A-Za-z])", text, lambda _: " 1 " if text.strip() != r"\pi" else "1")


def factor(text: str) -> Pairs:
    """Twice, half, and one more."""
    if is_scalar(text) and not re.fullmatch(r"0", text):
        yield text, f"2({text})"
        yield text, rf"\frac{{{text}}}{{2}}"
    if is_scalar(text):
        yield text, f"{text} + 1"
        yield text, rf"{text} - \frac{{1}}{{1000000}}"


def relation(text: str) -> Pairs:
    """A relation turned round, or made strict."""
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\leq": r"\geq", r"\geq": r"\leq", r"\ne": "="}
    strict = {"<": r"\le ", ">": r"\ge ", r"\le": "<", r"\ge": ">", r"\leq": "<", r"\geq": ">", r"\ne": r"\le "}
    signs = r"\\(?:leq|geq|le|ge|ne)(?![A-Za-z])|[<>]"
    yield from _everywhere(signs, text, lambda match: turned[match[0]])
    yield from _everywhere(signs, text, lambda match: strict[match[0]])
    if is_scalar(text):
        yield f"x > {text}", f"x < {text}"
        yield rf"x \le {text}", f"x < {text}"
        yield f"x = {text}", rf"x \ne {text}"
        yield f"x < {text}", text


def e_notation(text: str) -> Pairs:
    """Another power of ten, and Euler's e for the mark of one."""
    if re.fullmatch(r"[1-9]\d?", text):
        yield f"{text}e-7", f"{text}e-8"
        yield f"{text}e-7", "e-7"
        yield f"{text}e5", f"{text} e + 5"
        yield rf"{text} \times 10^{{-7}}", f"{text}e7"
        yield f"{text}E3", f"{text}E4"


def rows(text: str) -> Pairs:
    """The rows of a matrix exchanged, or one left out."""
    match = re.fullmatch(r"(\\begin\{[bp]matrix\})(.*)(\\end\{[bp]matrix\})", text)
    if match:
        lines = [line.strip() for line in match[2].split(r"\\")]
        if lines != lines[::-1]:
            yield text, match[1] + r" \\ ".join(reversed(lines)) + match[3]
        yield text, match[1] + r" \\ ".join(lines[:-1]) + match[3]
        yield text, match[1] + r" \\ ".join([*lines, lines[-1]]) + match[3]
    if is_scalar(text):
        frame = r"\begin{pmatrix} 1 & %s \\ 3 & 4 \end{pmatrix}"
        yield frame % text, frame % f"{text} + 1"
        yield frame % text, text


def operator(text: str) -> Pairs:
    """Another value of an integral, a sum or a limit; another bound of it."""
    if is_scalar(text):
        yield rf"\int_0^1 f(x)\,dx = {text}", rf"\int_0^1 f(x)\,dx = {text} + 1"
        yield rf"\int_0^1 f = {text}", rf"\int_0^2 f = {text}"
        yield rf"\lim_{{x \to 0}} f(x) = {text}", rf"\lim_{{x \to 1}} f(x) = {text}"
        yield rf"\sum_{{k=1}}^{{n}} a_k = {text}", rf"\sum_{{k=0}}^{{n}} a_k = {text}"
        yield rf"{text} + \int_0^1 g(x)\,dx", rf"{text} + \int_0^2 g(x)\,dx"
        yield rf"P(X = 2) = {text}", rf"P(X = 3) = {text}"


def condition(text: str) -> Pairs:
    """The same value of another quantity, or under another condition."""
    if is_scalar(text):
        yield rf"\text{{The maximum is }} {text}", rf"\text{{The minimum is }} {text}"
        yield f"maximum is {text}", f"minimum is {text}"
        yield rf"{text} \text{{ when }} n \text{{ is even}}", rf"{text} \text{{ when }} n \text{{ is odd}}"
        yield rf"{text} \text{{ when }} x = 2", rf"{text} \text{{ when }} x = 3"
        yield rf"{text} \text{{ if }} x > 0", rf"{text} \text{{ if }} x < 0"
        yield f"{text} for a = 1", f"{text} for a = 2"
        yield rf"\text{{at most }} {text}", rf"\text{{at least }} {text}"


def conjugate(text: str) -> Pairs:
    """The imaginary unit with the other sign."""
    if is_scalar(text) and not re.search(r"[a-hj-zA-Z]", re.sub(_COMMAND, "", text)):
        yield from _everywhere(r"(?<![A-Za-z\\])i(?![A-Za-z])", text, lambda _: "(-i)")
        yield rf"{text} + i", rf"{text} - i"


def brackets_lost(text: str) -> Pairs:
    """A product with a sum whose brackets are left out."""
    yield from _everywhere(r"(?<=[\w})])\s*\(([^()]*[+-][^()]*)\)", text, lambda match: match[1])
    if is_scalar(text) and re.search(r"\d", text) and not text.startswith("-"):
        yield f"3(x+{text})", f"3x+{text}"
        yield f"(x-{text})^2", f"x-{text}^2"


def term_lost(text: str) -> Pairs:
    """The last term of a sum left out."""
    places = [
        place for place in _top_level(text, "+-") if text[:place].strip()[-1:] not in ("", "(", "=", "<", ">", ",", "e")
    ]
    if places and is_scalar(text):
        yield text, text[: places[-1]].strip()
        yield text, text[places[-1] + 1 :].strip()


def words(text: str) -> Pairs:
    """Other words, and the right ones among others."""
    match = re.fullmatch(r"\\text\{\s*\(?([A-Za-z]+)\)?\s*\}", text)
    if match:
        yield text, rf"\text{{not {match[1]}}}"
        yield text, rf"\text{{{match[1]} or other}}"
        yield text, rf"\text{{neither {match[1]}}}"
        yield text, rf"\text{{{match[1][1:]}}}" if len(match[1]) > _PAIR else r"\text{(H)}"
    if is_scalar(text):
        yield r"\text{Yes}", rf"\text{{Yes or no, {text}}}"
        yield rf"\text{{Yes, }} {text}", rf"\text{{No, }} {text}"


def mixed(text: str) -> Pairs:
    """A mixed number read as a product, a number beside another."""
    yield from _everywhere(r"^(\d+)\s*(?=\\frac)", text, lambda match: str(int(match[1]) + 1))
    if re.fullmatch(r"[1-9]\d*", text):
        yield rf"{text}\frac{{1}}{{2}}", rf"\frac{{{text}}}{{2}}"
        yield rf"{text}\frac{{1}}{{3}}", rf"{text}\frac{{1}}{{2}}"
        yield text, f"{text} 1"
        yield text, f"{text} {text}"
        yield text, f"{text}!" if int(text) > _PAIR else f"{text}!!!+1"
        yield text, rf"\overline{{{text}}}1"


def percent(text: str) -> Pairs:
    """Another share, another degree of an angle."""
    if re.fullmatch(r"[1-9]\d?", text):
        yield rf"{text}\%", rf"{text}0\%"
        yield rf"{text}\%", f"0.0{int(text):02d}1"
        yield rf"{text}^\circ", rf"{text}'"
        yield rf"{text}^\circ", rf"{text}\pi"
        yield rf"\${text}", rf"{text} \text{{ cents}}"


def rounded(text: str) -> Pairs:
    """A decimal cut short, where the reference is exact."""
    match = re.fullmatch(r"\\d?frac\{?(\d+)\}?\{?(\d+)\}?", text)
    if match and int(match[2]):
        value = int(match[1]) / int(match[2])
        if abs(value - round(value, 3)) > _EXACT:
            yield text, f"{value:.3f}"
            yield text, rf"\approx {value:.2f}"


DAMAGES: Final[Mapping[str, Callable[[str], Pairs]]] = MappingProxyType(
    {
        way.__name__: way
        for way in (
            sign, inner_sign, digit, digit_lost, ten_times, point, exponent, exponent_gained, exponent_lost, index,
            interval_end, other_brackets, infinity, unit_prefix, unit, solution_lost, solution_gained, order, as_set,
            commas, one_side, hedge, frequency, other_variable, function, root, upside_down, constant_lost, factor,
            relation, e_notation, rows, operator, condition, conjugate, brackets_lost, term_lost, words, mixed, percent,
            rounded,
        )
    }
)  # fmt: skip


HARMLESS: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("|3+4i|", "|3-4i|"): "a number and its conjugate have the same modulus",
        (r"n \equiv 1 \pmod 3", r"n \equiv 10 \pmod 3"): "10 leaves 1",
        (r"\prod_{k=1}^n k", r"\prod_{k=2}^n k"): "the first factor is 1",
    }
)
"""Damages that change nothing, each with its reason."""


def wrong_pairs(texts: Iterable[str]) -> list[WrongPair]:
    """All damages of all references, none twice, without those that change nothing, or nothing but spelling."""
    found: dict[tuple[str, str], WrongPair] = {}
    for text in texts:
        for damage, way in DAMAGES.items():
            for reference, answer in _some(list(way(text)), text):
                if normalized(reference) != normalized(answer) and (reference, answer) not in HARMLESS:
                    found.setdefault((reference, answer), WrongPair(damage=damage, reference=reference, answer=answer))
    return list(found.values())


def _some(pairs: list[tuple[str, str]], text: str) -> list[tuple[str, str]]:
    """At most `MOST_PLACES` pairs; others for the next text, the same ones for the same text."""
    start = zlib.crc32(text.encode()) % max(1, len(pairs))
    return (pairs[start:] + pairs[:start])[:MOST_PLACES]


def accepted(pairs: list[WrongPair], pool: VerifierPool) -> list[WrongPair]:
    """The pairs whose answer the verifier calls correct."""
    verdicts = by_pool(pool, [(pair.answer, pair.reference) for pair in pairs])
    return [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is Verdict.CORRECT]


def accepted_by_math_verify(pairs: list[WrongPair]) -> int:
    """How many of the answers plain math-verify accepts, with its own time limits."""
    return sum(verify(parse(f"${pair.reference}$"), parse(rf"$\boxed{{{pair.answer}}}$")) for pair in pairs)


def main() -> None:
    """Prints the rate, or with `--pairs` the accepted pairs, one JSON line each."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    pairs = wrong_pairs(references())
    with VerifierPool(processes=os.cpu_count() or 1) as pool:
        pool.wait_until_ready()
        found = accepted(pairs, pool)
    if "--pairs" in sys.argv[1:]:
        for pair in found:
            sys.stdout.write(json.dumps([pair.damage, pair.reference, pair.answer], ensure_ascii=False) + "\n")
        return
    sample = pairs[::BASELINE_EVERY]
    print_figure(
        "verifier_damaged_answers_accepted",
        value=100 * len(found) / len(pairs),
        unit="%",
        baseline=100 * accepted_by_math_verify(sample) / len(sample),
    )


if __name__ == "__main__":
    main()
