r"""Reading tokens into a tree: expressions, relations, tuples, sets, matrices. Linear time, limited depth.

Words are left to `still_ray.verifiers.math.answers`, which takes them away before it asks for an expression.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final

from still_ray.verifiers.math.terms import INFINITY, Node, call, neg, number, symbol
from still_ray.verifiers.math.tokens import FUNCTIONS, NotUnderstood, Token
from still_ray.wordlists import words

MAX_DEPTH: Final = 60
"""Deeper nesting is not read."""

RELATIONS: Final = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in", "notin": "notin", "equiv": "===",
    "approx": "~", "simeq": "~", "cong": "===", "sim": "~", "subset": "subset", "subseteq": "subset", "to": "to",
    "mapsto": "to", "divides": "|", "nmid": "!|", "propto": "propto", "doteq": "~", "triangleq": "=", "coloneqq": "=",
}  # fmt: skip
_NEGATED: Final = {"=": "!=", "in": "notin", "===": "!==", "<": ">=", ">": "<="}
_APPLIED: Final = frozenset("fghFGHPQT")
_ENDINGS: Final = frozenset([")", "]", "}", "}text", "\\}", "&", "\\\\", ",", ";", ":"])
_SET_SIGNS: Final = {"cup": "union", "cap": "intersection", "setminus": "difference"}
_MATRICES: Final = words("pmatrix bmatrix matrix Bmatrix smallmatrix array vmatrix psmallmatrix bsmallmatrix")
_BASES: Final = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "sixteen": 16, "binary": 2, "octal": 8, "decimal": 10, "hex": 16,
}  # fmt: skip
_DIGIT_GROUP: Final = re.compile(r"\d+")


def read_expression(tokens: Sequence[Token]) -> Node:
    """Reads one item: an expression, a relation, a tuple, a set, ...

    Raises:
        NotUnderstood: The tokens are not one.
    """
    reader = _Reader(tokens)
    node = reader.relation()
    node = reader.ratio(node)
    if reader.peek() is not None:
        raise NotUnderstood(f"unexpected {reader.peek()}")
    return node


class _Reader:
    """A recursive-descent reader over a list of tokens."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = _divisions(tokens)
        self._at = 0
        self._depth = 0
        self._bars = 0
        self._indices: list[str] = []

    # Looking and stepping

    def peek(self, ahead: int = 0) -> Token | None:
        index = self._at + ahead
        return self._tokens[index] if index < len(self._tokens) else None

    def _is(self, kind: str, text: str, ahead: int = 0) -> bool:
        token = self.peek(ahead)
        return token is not None and token.kind == kind and token.text == text

    def _next(self) -> Token:
        token = self.peek()
        if token is None:
            raise NotUnderstood("the text ends too early")
        self._at += 1
        return token

    def _take(self, kind: str, text: str) -> bool:
        if self._is(kind, text):
            self._at += 1
            return True
        return False

    def _expect(self, kind: str, text: str) -> None:
        if not self._take(kind, text):
            raise NotUnderstood(f"{text} is missing before {self.peek()}")

    def _deeper(self, read: Callable[[], Node]) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotUnderstood("nested too deep")
        bars, self._bars = self._bars, 0
        node = read()
        self._bars = bars
        self._depth -= 1
        return node

    def ratio(self, first: Node) -> Node:
        """``3 : 4 : 5`` after its first part."""
        parts = [first]
        clock = ""
        while self._take("sign", ":"):
            token = self.peek()
            clock = "clock" if token is not None and re.fullmatch(r"[0-5]\d", token.text) else ""
            parts.append(self._sum())
        return Node("ratio", tuple(parts), clock) if len(parts) > 1 else first

    # Relations and sets

    def relation(self) -> Node:
        """Expressions joined by relation signs, or one expression."""
        parts, signs = [self._stacked(self._union())], []
        while (sign := self._relation_sign()) is not None:
            signs.append(sign)
            parts.append(self._union())
        modulus = self._modulus()
        if modulus is not None:
            if set(signs) == {"==="} or set(signs) == {"="}:
                return Node("congruence", (*parts, modulus))
            if set(signs) == {"!=="} or set(signs) == {"!="}:
                return Node("not", (Node("congruence", (*parts, modulus)),))
            raise NotUnderstood("a modulus without a congruence")
        if set(signs) == {"==="}:  # "identically", of functions
            signs = ["="] * len(signs)
        return Node("relation", tuple(parts), " ".join(signs)) if signs else parts[0]

    def _stacked(self, upper: Node) -> Node:
        r"""``n \choose 2`` and ``a \over b`` after the upper part."""
        if self._take("command", "choose"):
            return call("binom", upper, self._union())
        if self._take("command", "over"):
            return Node("mul", (upper, Node("power", (self._union(), number(-1)))))
        return upper

    def _relation_sign(self) -> str | None:
        token = self.peek()
        if token is None:
            return None
        if token.kind == "command" and token.text == "not":
            self._at += 1
            inner = self._relation_sign()
            if inner not in _NEGATED:
                raise NotUnderstood("a negated sign is missing")
            return _NEGATED[inner]
        if token.kind == "sign" and token.text in "!<>=:" and self._is("sign", "=", 1):
            self._at += 2
            if token.text == "=" and self._is("sign", ">"):
                raise NotUnderstood("an arrow")
            return {"!": "!=", "<": "<=", ">": ">=", "=": "=", ":": "="}[token.text]
        if token.kind in ("command", "sign") and token.text in RELATIONS:
            if token.kind == "sign" and token.text not in "=<>":
                return None
            self._at += 1
            return RELATIONS[token.text]
        return None

    def _modulus(self) -> Node | None:
        if self._take("command", "pmod") or self._take("command", "mod"):
            return self._argument(whole_number=True)
        if self._is("sign", "(") and self.peek(1) is not None and self._tokens[self._at + 1][1] in ("mod", "bmod"):
            self._at += 2
            node = self._union()
            self._expect("sign", ")")
            return node
        if self._take("command", "bmod") or self._take("word", "mod") or self._take("word", "modulo"):
            return self._union()
        return None

    def _union(self) -> Node:
        node = self._sum()
        while (token := self.peek()) is not None and token.kind == "command" and token.text in _SET_SIGNS:
            self._at += 1
            node = Node(_SET_SIGNS[token.text], (node, self._sum()))
        return node

    # Sums, products, powers

    def _sum(self) -> Node:
        terms = [self._signed_product()]
        while True:
            if self._take("sign", "+"):
                terms.append(self._signed_product())
            elif self._take("sign", "-"):
                terms.append(neg(self._signed_product()))
            elif self._take("command", "pm"):
                terms.append(Node("pm", (self._product(),)))
            elif self._take("command", "mp"):
                terms.append(Node("pm", (neg(self._product()),)))
            else:
                return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def _signed_product(self) -> Node:
        negative = False
        while True:
            if self._take("sign", "-"):
                negative = not negative
            elif self._take("command", "pm") or (
                self._is("sign", "+") and self._is("sign", "/", 1) and self._plus_minus()
            ):
                node = Node("pm", (self._signed_product(),))
                return neg(node) if negative else node
            elif self._take("command", "mp"):
                return Node("pm", (neg(self._signed_product()),))
            elif not self._take("sign", "+"):
                break
        node = self._product()
        return (
            _product_of([number(-1), node]) if negative and node.head == "matrix" else neg(node) if negative else node
        )

    def _plus_minus(self) -> bool:
        if self._is("sign", "-", 2):
            self._at += 3
            return True
        return False

    def _product(self) -> Node:
        factors = [self._factor()]
        while True:
            if self._take("sign", "*") or self._take("command", "cdot") or self._take("command", "times"):
                factors.append(self._signed_factor())
            elif self._take("sign", "/") or self._take("command", "div"):
                factors.append(Node("power", (self._signed_factor(), number(-1))))
            elif self._is("command", "bmod"):
                self._at += 1
                factors = [call("mod", _product_of(factors), self._factor())]
            elif self._begins_atom():
                factors.append(self._factor())
            else:
                return _product_of(factors)

    def _signed_factor(self) -> Node:
        negative = False
        while self._is("sign", "-") or self._is("sign", "+"):
            negative ^= self._next().text == "-"
        return neg(self._factor()) if negative else self._factor()

    def _begins_atom(self) -> bool:
        token = self.peek()
        if token is None:
            return False
        if token.kind == "command":
            return token.text in FUNCTIONS or token.text in _ATOMS
        if token.kind == "sign":
            return token.text in ("(", "[", "{", "{text") or (token.text == "|" and self._bars == 0)
        return token.kind in ("number", "recurring", "name", "begin", "domain")

    def _factor(self) -> Node:
        node = self._atom()
        while True:
            if self._is("sign", "!") and not self._is("sign", "=", 1):
                self._at += 1
                name = "factorial2" if self._take("sign", "!") else "factorial"
                node = call(name, node)
            elif self._take("sign", "^"):
                node = self._raised(node)
            elif self._take("sign", "%"):
                node = Node("percent", (node,))
            elif self._take("sign", "'"):
                node = symbol(node.value + "'") if node.head == "symbol" else Node("prime", (node,))
                if node.head == "symbol" and self._is("sign", "(") and node.value[0] in _APPLIED:
                    node = self._application(node.value)
            elif self._is("sign", "_") and node.head == "number" and node.number.denominator == 1 and node.number >= 0:
                node = self._based(str(node.number))
            elif self._is("sign", "_") and node.head in ("symbol", "group"):
                self._at += 1
                raise NotUnderstood("an index of something else than a symbol")
            else:
                return node

    def _raised(self, base: Node) -> Node:
        circle = self._circle()
        if circle:
            return Node("degree", (base,))
        if self._take("command", "prime"):
            return symbol(base.value + "'") if base.head == "symbol" else Node("prime", (base,))
        exponent = neg(self._exponent()) if self._take("sign", "-") else self._exponent()
        if exponent.head == "symbol" and exponent.value in ("T", "top"):
            return Node("transpose", (base,))
        return Node("power", (base, exponent))

    def _circle(self) -> bool:
        for before, after in ((("sign", "{"), ("sign", "}")), (("sign", "{text"), ("sign", "}text")), (None, None)):
            width = 1 if before else 0
            if before is not None and not self._is(*before):
                continue
            if self._is("command", "circ", width) or (self._is("name", "o", width) and before is not None):
                if after is not None and not self._is(*after, width + 1):
                    continue
                self._at += 2 * width + 1
                return True
        return False

    def _exponent(self) -> Node:
        node = self._argument(whole_number=True)
        return Node("power", (node, self._exponent())) if self._take("sign", "^") else node

    def _argument(self, *, whole_number: bool = False) -> Node:
        """What a command takes: a braced group, or one token; of a number one digit, unless all of it is meant."""
        token = self.peek()
        if token is None:
            raise NotUnderstood("an argument is missing")
        if token.kind == "sign" and token.text in ("{", "{text"):
            return self._braced()
        if token.kind == "number" and not whole_number and len(token.text) > 1 and token.text.isdigit():
            self._tokens[self._at] = Token("number", token.text[1:])
            return number(int(token.text[0]))
        return self._atom(bare=True)

    # Atoms

    def _atom(self, *, bare: bool = False) -> Node:
        token = self._next()
        if token.kind in ("number", "name"):
            return self._number(token.text, bare) if token.kind == "number" else self._name(token.text, bare)
        if token.kind == "begin":
            return self._deeper(lambda: self._environment(token.text))
        read = _BY_KIND.get(token.kind)
        if read is None:
            raise NotUnderstood(f"the word {token.text[:20]!r}")
        return read(self, token.text)

    def _recurring(self, text: str) -> Node:
        return number(_recurring(text))

    def _number(self, text: str, bare: bool) -> Node:
        if self._is("sign", "_") and not bare:
            return self._based(text)
        plain = number(Fraction(text), text=text if "." in text else "")
        if bare or not text.isdigit():
            return plain
        mixed = self._mixed()
        return plain if mixed is None else Node("add", (plain, mixed))

    def _mixed(self) -> Node | None:
        r"""The fraction of a mixed number, as in ``3\frac12`` or ``3 1/2``."""
        token = self.peek()
        if token is not None and token.kind == "number" and token.loose:
            return self._mixed_slash(token.text)
        start, saved = self._at, list(self._tokens[self._at : self._at + 8])
        if self._take("command", "frac"):
            top, bottom = self._argument(), self._argument()
            if top.head == bottom.head == "number" and 0 < top.number < bottom.number and not self._is("sign", "^"):
                return number(top.number / bottom.number)
        self._at = start
        self._tokens[start : start + 8] = saved
        return None

    def _mixed_slash(self, top: str) -> Node:
        lower = self.peek(2)
        bottom = lower.text if lower is not None and self._is("sign", "/", 1) else ""
        if not (top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom)):
            raise NotUnderstood("two numbers side by side")
        self._at += 3
        return number(Fraction(int(top), int(bottom)))

    def _based(self, digits: str) -> Node:
        self._at += 1
        base = self._base()
        if "." in digits or base not in range(2, 37) or any(int(digit, 36) >= base for digit in digits):
            raise NotUnderstood("a number in no base")
        return Node("based", (), f"{digits.lstrip('0') or '0'}_{base}", Fraction(int(digits, base)))

    def _base(self) -> int:
        braced = self._take("sign", "{") or self._take("sign", "{text")
        if braced:
            self._take("sign", "{text")
        self._take("word", "base")
        token = self._next()
        base = int(token.text) if token.kind == "number" and token.text.isdigit() else _BASES.get(token.text, 0)
        if braced and not (self._take("sign", "}") or self._take("sign", "}text")):
            return 0
        self._take("sign", "}")
        return base

    def _name(self, text: str, bare: bool) -> Node:
        if text in ("pi", "e", "i") and text not in self._indices and not self._is("sign", "_"):
            return Node("constant", (), text)
        return symbol(text) if bare else self._symbol(text)

    def _symbol(self, name: str) -> Node:
        while self._take("sign", "_"):
            if self._index_is_expression():
                return Node("apply", (self._argument(),), name + "_")
            name += "_" + self._index()
        while self._take("sign", "'"):
            name += "'"
        applied = name[0] in _APPLIED and len(name.rstrip("'")) == 1 and self._is("sign", "(")
        if applied or (self._at == 1 and self._defines()):
            return self._application(name)
        if name == "C" and self._is("sign", "("):
            group = self._atom()
            if group.head == "group" and len(group.args) == 2:  # noqa: PLR2004 - C(n,k)
                return call("binom", *group.args)
            return Node("mul", (symbol(name), group))
        return symbol(name)

    def _defines(self) -> bool:
        """Whether a bracket follows and an equals sign after that, as in ``p(x) = ...``."""
        if not self._is("sign", "("):
            return False
        inside = [token.text for token in self._tokens[self._at : self._at + 8]]
        closing = inside.index(")") if ")" in inside else -1
        return 1 < closing < len(inside) - 1 and inside[closing + 1] in ("=", "equiv") and inside[1].isalnum()

    def _application(self, name: str) -> Node:
        group = self._atom()
        args = group.args if group.head == "group" and group.value == "()" else (group,)
        return Node("apply", args, name)

    def _index_is_expression(self) -> bool:
        """Whether an index is a sum or a product, as in ``a_{n+1}``."""
        if not self._is("sign", "{"):
            return False
        for token in self._tokens[self._at + 1 : self._at + 20]:
            if token.text == "}":
                return False
            if token.kind == "sign" and token.text in "+-":
                return True
        return False

    def _index(self) -> str:
        if not (self._is("sign", "{") or self._is("sign", "{text")):
            return self._next().text
        depth = 0
        pieces: list[str] = []
        while True:
            token = self._next()
            depth += token.text in ("{", "{text")
            depth -= token.text in ("}", "}text")
            if depth == 0:
                return "".join(pieces)
            if token.text not in ("{", "{text", "}", "}text"):
                pieces.append(token.text)

    def _domain(self, letter: str) -> Node:
        kind = letter
        while self._is("sign", "^") or self._is("sign", "_"):
            self._at += 1
            kind += self._domain_mark()
        return Node("domain", (), _DOMAINS.get(kind, kind))

    def _domain_mark(self) -> str:
        if not self._is("sign", "{"):
            token = self._next()
            return {"ast": "*", "le": "<=", "ge": ">="}.get(token.text, token.text)
        return "".join({"le": "<=", "ge": ">=", "ast": "*"}.get(piece, piece) for piece in self._mark_pieces())

    def _mark_pieces(self) -> list[str]:
        self._at += 1
        pieces: list[str] = []
        while not self._take("sign", "}"):
            pieces.append(self._next().text)
        return pieces

    def _braced(self) -> Node:
        closing = "}" if self._next().text == "{" else "}text"
        if self._take("sign", closing):
            raise NotUnderstood("an empty group")
        node = self._deeper(lambda: self._items("{}"))
        self._expect("sign", closing)
        return node

    def _items(self, brackets: str) -> Node:
        """Comma-separated items up to a closing sign: one alone is itself."""
        items = [self.relation()]
        while self._take("sign", ",") or self._take("sign", ";"):
            items.append(self.relation())
        if len(items) == 1:
            return items[0]
        return Node("set", tuple(items)) if brackets == "{}" else Node("group", tuple(items), brackets)

    def _bracket(self, sign: str) -> Node:
        if sign in ("{", "{text"):
            self._at -= 1
            return self._braced()
        if sign == "|":
            return self._absolute()
        if sign == "\\{":
            return self._deeper(self._set)
        if sign in "([":
            return self._deeper(lambda: self._group(sign))
        raise NotUnderstood(f"unexpected {sign}")

    def _absolute(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotUnderstood("nested too deep")
        self._bars += 1
        node = self._sum()
        self._bars -= 1
        self._depth -= 1
        self._expect("sign", "|")
        return call("abs", node)

    def _group(self, opening: str) -> Node:
        items = [self.relation()]
        separator = ","
        while self._is("sign", ",") or self._is("sign", ";") or self._is("sign", ":"):
            separator = self._next().text
            items.append(self.relation())
        closing = self._next()
        shut = closing.text
        if closing.kind != "sign" or shut not in ("]", ")"):
            raise NotUnderstood("a bracket is not closed")
        if len(items) == 1 and items[0].head == "matrix":
            return items[0]
        if len(items) == 1 and opening + shut in ("()", "[]"):
            return items[0] if opening == "(" else Node("bracket", (items[0],))
        if separator == ":":
            return Node("ratio", tuple(items))
        return Node("group", tuple(items), opening + shut)

    def _set(self) -> Node:
        if self._is("begin", "array") or self._is("begin", "aligned"):
            return self._environment(self._next().text)
        if self._take("sign", "\\}"):
            return Node("set")
        self._mark_builder()
        items = [self.relation()]
        while self._take("sign", ",") or self._take("sign", ";"):
            items.append(self.relation())
        if self._is("sign", "mid") or self._is("word", "such"):
            return self._builder(items[0] if len(items) == 1 else Node("group", tuple(items), "()"))
        self._expect("sign", "\\}")
        return Node("set", tuple(items))

    def _mark_builder(self) -> None:
        r"""Tells the bar or colon of ``\{x | x > 2\}`` from the bars of absolute values."""
        depth, bars = 0, []
        for index in range(self._at, len(self._tokens)):
            token = self._tokens[index]
            if token.kind != "sign" and token.kind not in ("begin", "end"):
                continue
            if depth == 0 and token.text == "\\}":
                break
            depth += token.kind == "begin" or token.text in ("(", "[", "{", "{text", "\\{")
            depth -= token.kind == "end" or token.text in (")", "]", "}", "}text", "\\}")
            if depth == 0 and token.text == ":":
                bars = [index]
                break
            if depth == 0 and token.text == "|":
                bars.append(index)
        if len(bars) % 2:
            self._tokens[bars[0]] = Token("sign", "mid")

    def _builder(self, element: Node) -> Node:
        if self._next().text == "such":
            self._expect("word", "that")
        self._take("sign", "{text")
        conditions = [self.relation()]
        while self._separator("and"):
            conditions.append(self.relation())
        if len(conditions) == 1:
            while self._separator("or"):
                conditions.append(self.relation())
            conditions = conditions if len(conditions) == 1 else [Node("list", tuple(conditions), "or")]
        self._expect("sign", "\\}")
        return Node("builder", (element, *conditions))

    def _separator(self, word: str) -> bool:
        """Steps over a comma or an "and", or over an "or", and over the braces of its text."""
        signs = (("sign", ","), ("sign", ";"), ("command", "wedge")) if word == "and" else (("command", "vee"),)
        start = self._at
        while self._is("sign", "{text") or self._is("sign", "}text"):
            self._at += 1
        found = self._take("word", word) or any(self._take(*sign) for sign in signs)
        while found and (self._is("sign", "{text") or self._is("sign", "}text") or self._is("word", "and")):
            self._at += 1
        if not found:
            self._at = start
        return found

    # Commands

    def _command(self, name: str) -> Node:
        if name in FUNCTIONS and name not in ("sqrt", "binom"):
            return self._function(name)
        read = _ATOMS.get(name)
        if read is None:
            raise NotUnderstood(f"unknown command \\{name[:20]}")
        return read(self)

    def fraction(self) -> Node:
        r"""``\\frac``."""
        top, bottom = self._argument(), self._argument()
        return Node("mul", (top, Node("power", (bottom, number(-1)))))

    def root(self) -> Node:
        r"""``\\sqrt``, with an index or without."""
        index = number(2)
        if self._take("sign", "["):
            index = self._deeper(self._sum)
            self._expect("sign", "]")
        inside = self._atom() if self._is("sign", "(") else self._argument(whole_number=True)
        return call("root", inside, index)

    def binomial(self) -> Node:
        r"""``\\binom``."""
        if self._is("sign", "("):
            group = self._atom()
            return call("binom", *group.args)
        return call("binom", self._argument(), self._argument())

    def infinity(self) -> Node:
        r"""``\\infty``."""
        return INFINITY

    def empty(self) -> Node:
        r"""``\\emptyset``."""
        return Node("set")

    def dots(self) -> Node:
        r"""``\\ldots``."""
        return Node("dots")

    def floor(self) -> Node:
        r"""``\\lfloor ... \\rfloor``."""
        return self._fenced("rfloor", "floor")

    def ceiling(self) -> Node:
        r"""``\\lceil ... \\rceil``."""
        return self._fenced("rceil", "ceil")

    def _fenced(self, closing: str, name: str) -> Node:
        node = self._deeper(self._sum)
        self._expect("command", closing)
        return call(name, node)

    def vector(self) -> Node:
        r"""``\\langle a, b \\rangle``."""

        def items() -> Node:
            found = [self.relation()]
            while self._take("sign", ","):
                found.append(self.relation())
            return Node("group", tuple(found), "()")

        node = self._deeper(items)
        self._expect("command", "rangle")
        return node

    def marked(self) -> Node:
        r"""``\\overline{AB}``, ``\\angle ABC``: a name, whatever the mark."""
        letters = [self._argument(whole_number=True)]
        while letters[0].head == "symbol" and (token := self.peek()) and token.kind == "name" and token.text.isupper():
            letters.append(self._argument())
        return Node("marked", (_product_of(letters),))

    def accented(self) -> Node:
        r"""``\vec{v}``: its letter."""
        return self._argument()

    def total(self) -> Node:
        r"""``\\sum``."""
        return self._series("sum")

    def product(self) -> Node:
        r"""``\\prod``."""
        return self._series("prod")

    def _series(self, name: str) -> Node:
        bounds: dict[str, Node] = {}
        for _ in range(2):
            token = self.peek()
            if token is not None and token.kind == "sign" and token.text in "_^":
                self._at += 1
                bounds[token.text] = self._argument(whole_number=True)
        lower, upper = bounds.get("_"), bounds.get("^")
        if lower is None or upper is None or lower.head != "relation" or not lower.args[0].value:
            raise NotUnderstood("a series without bounds")
        index = symbol(lower.args[0].value)  # also of i, which is no imaginary unit then
        self._indices.append(index.value)
        body = self._product()
        self._indices.pop()
        return Node(name, (index, lower.args[1], upper, body))

    def _function(self, name: str) -> Node:
        base = None
        if self._take("sign", "_"):
            base = self._argument(whole_number=True)
        inverse, exponent = False, None
        if self._take("sign", "^"):
            raised = self._argument(whole_number=True)
            if raised == neg(number(1)) and name in _INVERSES:
                inverse = True
            else:
                exponent = raised
        arguments = self._function_arguments()
        node = call(_INVERSES[name] if inverse else name, *arguments, *([base] if base is not None else []))
        return node if exponent is None else Node("power", (node, exponent))

    def _function_arguments(self) -> tuple[Node, ...]:
        if self._is("sign", "(") or self._is("sign", "["):
            group = self._atom()
            while self._is("sign", "!"):
                self._at += 1
                group = call("factorial", group)
            if self._is("sign", "^"):  # sin(x)^2 is a power of the function
                return (group,)
            return group.args if group.head == "group" else (group,)
        if self._is("sign", "\\{"):
            return self._atom().args
        factors = [self._factor()]
        while self._begins_atom() and not self._is_function() and not self._is("sign", "("):
            factors.append(self._factor())
        node = _product_of(factors)
        while (
            self._is("sign", "/") and node.head in ("constant", "number", "symbol", "mul") and self._slash_is_inside()
        ):
            self._at += 1
            node = Node("mul", (node, Node("power", (self._factor(), number(-1)))))
        return (node,)

    def _slash_is_inside(self) -> bool:
        r"""Whether a slash belongs to the argument, as in ``\\sin \\pi/7``."""
        token = self.peek(1)
        return token is not None and token.kind == "number"

    def _is_function(self) -> bool:
        token = self.peek()
        return (
            token is not None
            and token.kind == "command"
            and token.text in FUNCTIONS
            and token.text not in ("sqrt", "binom")
        )

    # Environments

    def _environment(self, name: str) -> Node:
        rows: list[list[list[Token]]] = [[[]]]
        depth = 1
        while True:
            token = self._next()
            depth += token.kind == "begin"
            depth -= token.kind == "end"
            if depth == 0:
                break
            if depth == 1 and token.kind == "sign" and token.text == "&":
                rows[-1].append([])
            elif depth == 1 and token.kind == "sign" and token.text == "\\\\":
                rows.append([[]])
            elif not (token.kind == "command" and token.text == "hline"):
                rows[-1][-1].append(token)
        rows = [row for row in rows if any(row)]
        if name == "cases":
            return Node("system", tuple(Node("row", tuple(map(_loose_item, row))) for row in rows))
        if name not in _MATRICES or not rows or len({len(row) for row in rows}) != 1:
            raise NotUnderstood(f"the environment {name[:20]}")
        cells = tuple(read_expression(cell) for row in rows for cell in row)
        node = Node("matrix", cells, f"{len(rows)}x{len(rows[0])}")
        return _determinant(cells, len(rows)) if name == "vmatrix" else node


def _divisions(tokens: Sequence[Token]) -> list[Token]:
    """The tokens, a lone bar outside of sets read as "divides"."""
    bars = [index for index, token in enumerate(tokens) if token.kind == "sign" and token.text == "|"]
    found = list(tokens)
    if len(bars) == 1 and not any(token.text == "\\{" for token in tokens):
        found[bars[0]] = Token("command", "divides")
    return found


def _product_of(factors: Sequence[Node]) -> Node:
    """A product; a matrix among numbers is multiplied part by part."""
    matrices = [factor for factor in factors if factor.head == "matrix"]
    if len(factors) == 1 or len(matrices) != 1:
        return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
    scale = [factor for factor in factors if factor.head != "matrix"]
    return Node("matrix", tuple(Node("mul", (*scale, cell)) for cell in matrices[0].args), matrices[0].value)


def _determinant(cells: Sequence[Node], size: int) -> Node:
    """By the first row; as it stands, if it is no small square."""
    if len(cells) != size * size or size > 4:  # noqa: PLR2004
        return call("det", Node("matrix", tuple(cells), f"{size}x{len(cells) // size}"))
    if size == 1:
        return cells[0]
    terms = []
    for column, cell in enumerate(cells[:size]):
        minor = [other for index, other in enumerate(cells) if index >= size and index % size != column]
        term = Node("mul", (cell, _determinant(minor, size - 1)))
        terms.append(neg(term) if column % 2 else term)
    return Node("add", tuple(terms))


def _loose_item(tokens: list[Token]) -> Node:
    while tokens and tokens[-1].kind == "sign" and tokens[-1].text in (",", ";", "."):
        tokens = tokens[:-1]
    return Node("tokens", (), " ".join(token.text for token in tokens)) if not tokens else read_loose(tokens)


def read_loose(tokens: list[Token]) -> Node:
    """A cell of a case distinction, its words ("if", "otherwise") taken away."""
    kept = [
        token
        for token in tokens
        if not (token.kind == "word" and token.text in _CASE_WORDS) and token.text not in ("{text", "}text")
    ]
    while kept and kept[-1].kind == "sign" and kept[-1].text in (",", ";", "."):
        kept = kept[:-1]
    while kept and kept[0].kind == "sign" and kept[0].text in (",", ";"):
        kept = kept[1:]
    if not kept:
        return Node("otherwise")
    if all(token.kind == "word" for token in kept):
        return Node("phrase", (), " ".join(token.text for token in kept))
    if kept[-1].kind == "word" and kept[-1].text in ("even", "odd"):
        return Node("phrase", (read_expression(kept[:-1]),), kept[-1].text)
    return read_expression(kept)


_CASE_WORDS: Final = words("if for when otherwise else where is and in as case cases")
_INVERSES: Final = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
_DOMAINS: Final = {
    "Z+": "N", "Z^+": "N", "Z>0": "N", "Z>=1": "N", "N+": "N", "N*": "N", "N>0": "N", "N>=1": "N", "Z>=0": "N0",
    "N0": "N0",
    "Z*": "Z*", "R+": "R>0", "R>0": "R>0", "R>=0": "R>=0", "R-": "R<0", "R*": "R!=0", "Q+": "Q>0", "Q>0": "Q>0",
    "R^+": "R>0", "R<0": "R<0", "Z-": "Z<0", "N>=0": "N0", "R+*": "R>0", "R+0": "R>=0", "R0+": "R>=0",
}  # fmt: skip
_BY_KIND: Final[dict[str, Callable[[_Reader, str], Node]]] = {
    "recurring": _Reader._recurring,
    "domain": _Reader._domain,
    "sign": _Reader._bracket,
    "command": _Reader._command,
}
_ATOMS: Final[dict[str, Callable[[_Reader], Node]]] = {
    "frac": _Reader.fraction, "sqrt": _Reader.root, "binom": _Reader.binomial, "infty": _Reader.infinity,
    "emptyset": _Reader.empty, "ldots": _Reader.dots, "lfloor": _Reader.floor, "lceil": _Reader.ceiling,
    "langle": _Reader.vector, "overline": _Reader.marked, "angle": _Reader.marked, "triangle": _Reader.marked,
    "overrightarrow": _Reader.marked, "widehat": _Reader.marked, "overset": _Reader.marked, "sum": _Reader.total,
    "prod": _Reader.product, "vec": _Reader.accented, "hat": _Reader.accented, "tilde": _Reader.accented,
    "mathcal": _Reader.accented, "mathfrak": _Reader.accented, "mathscr": _Reader.accented,
}  # fmt: skip


def _recurring(text: str) -> Fraction:
    r"""The value of ``0.1\overline{6}``."""
    whole, _, rest = text.partition(".")
    fixed, _, tail = rest.partition("\\")
    period = _DIGIT_GROUP.findall(tail)[0]
    shift: int = 10 ** len(fixed)
    return Fraction(int((whole or "0") + fixed), shift) + Fraction(int(period), (10 ** len(period) - 1) * shift)
