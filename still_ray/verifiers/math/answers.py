r"""Reading a whole answer: its words, names, units and conditions around what `reader` reads."""

from collections.abc import Sequence
from typing import Final

from still_ray.latex import canonical
from still_ray.verifiers.math.phrases import explains
from still_ray.verifiers.math.reader import read_expression, read_loose
from still_ray.verifiers.math.terms import Node, number, symbol
from still_ray.verifiers.math.tokens import NotUnderstood, Spelling, Token, tokens_of
from still_ray.verifiers.math.units import MULTIPLIERS, unit_of
from still_ray.wordlists import listed, words

_CONDITIONAL: Final = words("for where with when if such given provided whenever assuming as")
_NUMBER_WORDS: Final = {
    word: value
    for value, word in enumerate(
        listed(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen twenty"
        )
    )
}
_INTRODUCTIONS: Final = words(
    "the answer answers is are final solution solutions value values thus hence therefore so we get have"
)
_EDGES: Final = frozenset([".", ",", ";", ":", "!", "?", "\\\\"])
_OPENERS: Final = frozenset(["(", "[", "{", "{text", "\\{"])
_CLOSERS: Final = frozenset([")", "]", "}", "}text", "\\}"])
_FENCES: Final = {"lfloor": 1, "lceil": 1, "langle": 1, "rfloor": -1, "rceil": -1, "rangle": -1}
_NAMING: Final = frozenset(("symbol", "apply", "marked"))
_MAX_ITEMS: Final = 200


def read_answer(text: str) -> Node:
    """The tree of a whole answer, LaTeX or plain text, as it is most likely meant.

    Raises:
        NotUnderstood: It cannot be read.
    """
    return read_canonical(canonical(text))


def read_canonical(text: str, spelling: Spelling | None = None) -> Node:
    """The tree of what `canonical` returns.

    Args:
        text: A cleaned text.
        spelling: How to take what can be read in two ways; the likely way if not given.

    Raises:
        NotUnderstood: It cannot be read.
    """
    return _read(_trimmed(_flattened(tokens_of(text, spelling))))


def _flattened(tokens: Sequence[Token]) -> list[Token]:
    """Takes away the braces of text, except where they are an index or a power."""
    kept: list[Token] = []
    keeps: list[bool] = []
    for token in tokens:
        if token.text == "{text" and token.kind == "sign":
            keeps.append(
                bool(kept) and (kept[-1].text in ("^", "_") or (kept[-1].kind == "command" and kept[-1].text == "frac"))
            )
            if not keeps[-1]:
                continue
        elif token.text == "}text" and token.kind == "sign" and (not keeps or not keeps.pop()):
            continue
        kept.append(token)
    return _unwrapped(_turned_inward(kept))


def _turned_inward(tokens: list[Token]) -> list[Token]:
    """``]a, b[``, as some write the open interval, in round brackets."""
    found: list[Token] = []
    open_commas: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind != "sign" or token.text not in (*_OPENERS, *_CLOSERS, ","):
            found.append(token)
            continue
        following = tokens[index + 1] if index + 1 < len(tokens) else None
        ends = following is None or following.kind in ("word", "command") or following.text in (",", ")", ".", "\\}")
        text = token.text
        if text == "," and open_commas:
            open_commas[-1] += 1
        elif text == "[" and open_commas and open_commas[-1] == 1 and ends:
            text = ")"
        elif text == "]" and not open_commas:
            text = "("
        if text in _OPENERS:
            open_commas.append(0)
        elif text in _CLOSERS and open_commas:
            open_commas.pop()
        found.append(Token("sign", text, token.loose))
    return found


def _unwrapped(tokens: list[Token]) -> list[Token]:
    """Takes away braces around everything."""
    while len(tokens) > 1 and tokens[0].text == "{" and tokens[-1].text == "}" and _closing(tokens) == len(tokens) - 1:
        tokens = tokens[1:-1]
    return tokens


def _closing(tokens: Sequence[Token]) -> int:
    depth = 0
    for index, token in enumerate(tokens):
        depth += _step(token)
        if depth == 0:
            return index
    return -1


def _step(token: Token) -> int:
    if token.kind == "sign":
        return (token.text in _OPENERS) - (token.text in _CLOSERS)
    if token.kind == "command":
        return _FENCES.get(token.text, 0)
    return (token.kind == "begin") - (token.kind == "end")


def _trimmed(tokens: list[Token]) -> list[Token]:
    """Takes away final punctuation and an introduction such as "the answer is"."""
    while tokens and tokens[-1].kind == "sign" and tokens[-1].text in _EDGES and tokens[-1].text != "!":
        tokens = tokens[:-1]
    start = 0
    while start < len(tokens) and tokens[start].kind == "word" and tokens[start].text in _INTRODUCTIONS:
        start += 1
    introduced = 0 < start < len(tokens) and tokens[start - 1].text in (
        "is",
        "are",
        "get",
        "have",
        "answer",
        "thus",
        "hence",
        "therefore",
        "so",
    )
    if introduced:
        tokens = tokens[start:]
    while tokens and tokens[0].kind == "sign" and tokens[0].text in (":", ",", ".", "*", "="):
        tokens = tokens[1:]
    return tokens


def _split(tokens: Sequence[Token], *separators: tuple[str, str]) -> list[list[Token]]:
    """Cuts at separators outside of all brackets; empty pieces vanish."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += _step(token)
        if depth <= 0 and (token.kind, token.text) in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def _read(tokens: list[Token]) -> Node:
    tokens = _unwrapped(_trimmed(tokens))
    if not tokens:
        raise NotUnderstood("nothing")
    for read in (_words_alone, _case_rows, _with_condition, _congruence, _alternatives):
        node = read(tokens)
        if node is not None:
            return node
    return _enumeration(tokens)


def _words_alone(tokens: list[Token]) -> Node | None:
    """Words without mathematics; of "Yes, because ..." the yes."""
    said, rest = tokens[0].text, [token.text for token in tokens[1:]]
    if said in ("yes", "no", "true", "false") and rest and rest[0] in (",", ".", ";") and explains(rest[1:]):
        return Node("phrase", (), said)
    if tokens[0].text != "-" and all(token.kind == "word" or token.text in ("-", "'", ",", ".") for token in tokens):
        return _words(tokens)
    return None


def _with_condition(tokens: list[Token]) -> Node | None:
    r"""``2k for integers k``, ``2k (k \in \mathbb{Z})``."""
    first = next((index for index in _outside(tokens) if _is_conditional(tokens, index)), 0)
    if first and _is_math(tokens[:first]):
        conditions = _conditions(tokens[first + 1 :])
        if any(part.head == "number" for node in conditions for part in (node, *node.args) if node.head == "list"):
            return None  # "for all x, or 97": another answer
        return Node("given", (_read(tokens[:first]), *conditions))
    bracketed = _bracketed_condition(tokens)
    if bracketed:
        return Node("given", (_read(tokens[:bracketed]), *_conditions(tokens[bracketed + 1 : -1])))
    return None


def _alternatives(tokens: list[Token]) -> Node | None:
    """Items between "or", semicolons or line ends."""
    for separators in _SEPARATORS:
        parts = _split(tokens, *separators)
        if len(parts) > 1:
            return _joined([_read(part) for part in parts], "or" if separators[0][1] == "or" else "")
    return None


_SEPARATORS: Final = (
    (("word", "or"), ("command", "vee")),
    (("sign", ";"), ("sign", "\\\\"), ("command", "Leftrightarrow")),
)


def _bracketed_condition(tokens: Sequence[Token]) -> int:
    r"""Where a condition in brackets begins, as in ``k\pi \ (k \in \mathbb{Z})``; 0 if there is none."""
    if tokens[-1].text != ")":
        return 0
    depth = 0
    for index in range(len(tokens) - 1, -1, -1):
        depth -= _step(tokens[index])
        if depth == 0:
            inside = tokens[index + 1 : -1]
            relations = any(token.kind == "command" and token.text in ("in", "ge", "le", "ne") for token in inside)
            ends = index > 0 and tokens[index - 1].text not in ("=", "in", "cup", ",", "or", "and", "cap", "setminus")
            return index if relations and ends and inside[0].kind in ("name", "word") else 0
    return 0


def _congruence(tokens: list[Token]) -> Node | None:
    r"""``n \equiv 0, 1 \pmod 4``, several remainders to one modulus."""
    equals = [index for index, token in enumerate(tokens) if token.kind == "command" and token.text == "equiv"]
    moduli = [
        index
        for index, token in enumerate(tokens)
        if (token.kind == "command" and token.text in ("pmod", "mod"))
        or (token.text == "(" and index + 1 < len(tokens) and tokens[index + 1].text in ("mod", "bmod"))
    ]
    if len(equals) != 1 or len(moduli) != 1 or not 0 < equals[0] < moduli[0]:
        return None
    remainders = _split(tokens[equals[0] + 1 : moduli[0]], ("sign", ","), ("word", "and"), ("word", "or"))
    if len(remainders) < 2 or not _is_math(tokens[: equals[0]]) or not _is_math(tokens[equals[0] + 1 : moduli[0]]):  # noqa: PLR2004
        return None
    whole = read_expression([*tokens[: equals[0] + 1], *remainders[0], *tokens[moduli[0] :]])
    if whole.head != "congruence":
        return None
    residues = Node("list", tuple(map(read_expression, remainders)))
    return Node("congruence", (whole.args[0], residues, whole.args[-1]))


def _outside(tokens: Sequence[Token]) -> list[int]:
    """The places of words outside of all brackets."""
    depth, found = 0, []
    for index, token in enumerate(tokens):
        depth += _step(token)
        if depth == 0 and (token.kind == "word" or (token.kind == "command" and token.text == "forall")):
            found.append(index)
    return found


def _is_conditional(tokens: Sequence[Token], index: int) -> bool:
    return tokens[index].text in _CONDITIONAL or tokens[index].text == "forall"


def _is_math(tokens: Sequence[Token]) -> bool:
    return bool(tokens) and not any(token.kind == "word" and token.text not in ("and", "or") for token in tokens)


def _case_rows(tokens: list[Token]) -> Node | None:
    """``2^n if n is even, 0 if n is odd``."""
    conditional = [index for index in _outside(tokens) if _is_conditional(tokens, index)]
    if len(conditional) < 2 or tokens[conditional[0]].text not in _CASES or not _is_math(tokens[: conditional[0]]):  # noqa: PLR2004
        return None
    rows = []
    for part in _split(tokens, ("sign", ","), ("sign", ";"), ("word", "and"), ("sign", "\\\\"), ("word", "while")):
        words = [index for index in _outside(part) if part[index].text in ("if", "for", "when", "otherwise", "else")]
        if not words or words[0] == 0:
            return None
        try:
            rows.append(Node("row", (read_loose(part[: words[0]]), read_loose(part[words[0] + 1 :]))))
        except NotUnderstood:
            return None
    return Node("system", tuple(rows)) if len(rows) > 1 else None


_CASES: Final = ("if", "for", "when")


def _conditions(tokens: list[Token]) -> list[Node]:
    """What restricts or explains the symbols of an answer."""
    skipped = (
        "all",
        "any",
        "some",
        "every",
        "each",
        "that",
        "a",
        "an",
        "is",
        "the",
        "forall",
        "for",
        "where",
        "arbitrary",
    )
    start = 0
    while start < len(tokens) and tokens[start].kind in ("word", "command") and tokens[start].text in skipped:
        start += 1
    rest = _trimmed(tokens[start:])
    if not rest:
        return []
    try:
        return [_alternatives(rest) or _enumeration(rest)]
    except NotUnderstood:
        return [_prose(rest)]


def _enumeration(tokens: list[Token]) -> Node:
    parts = _split(tokens, ("sign", ","), ("word", "and"), ("command", "wedge"))
    if len(parts) > _MAX_ITEMS:
        raise NotUnderstood("too many items")
    if len(parts) > 1 and not any(
        token.kind == "word" and token.text in ("except", "not", "between") for token in tokens
    ):
        return _joined([_item(part) for part in parts], "")
    return _item(tokens)


def _joined(nodes: list[Node], kind: str) -> Node:
    """Items of an enumeration as one tree: a list, an assignment, or a statement with its conditions."""
    nodes = _with_conditions(nodes)
    if len(nodes) > 1 and all(node.head == "phrase" for node in nodes) and _goes_on(nodes[1:]):
        parts = tuple(arg for node in nodes for arg in node.args)
        return Node("phrase", parts, f" {kind or 'and'} ".join(node.value for node in nodes))
    if len(nodes) == 1:
        return nodes[0]
    named = [_name_of(node) for node in nodes]
    if all(named):
        names = [name for name in named if name is not None]
        plain = [node.args[1] for node in nodes]
        if len(set(names)) == len(names) and kind != "or" and all(node.args[0].head == "symbol" for node in nodes):
            return Node("assign", tuple(plain), " ".join(names))
    flat: list[Node] = []
    for node in nodes:
        flat.extend(node.args if node.head == "list" and node.value == kind else [node])
    if flat[0].head == "relation" and flat[0].value == "=" and all(node.head != "relation" for node in flat[1:]):
        left, right = flat[0].args
        values = right.args if right.head == "list" else (right,)
        return Node("relation", (left, Node("list", (*values, *flat[1:]), kind)), "=")
    if flat[0].head == "relation" and flat[0].value == "!=" and all(node.head != "relation" for node in flat[1:]):
        left = flat[0].args[0]
        flat = [flat[0], *(Node("relation", (left, node), "!=") for node in flat[1:])]
    return Node("list", tuple(flat), kind)


def _goes_on(nodes: list[Node]) -> bool:
    """Whether phrases speak of what came before, as "less than 6" does."""
    starts = ("less", "greater", "not", "at", "divisible", "smaller", "larger", "is", "are", "no")
    return all(node.args and node.value.split()[0] in starts for node in nodes)


def _name_of(node: Node) -> str | None:
    if node.head == "relation" and node.value == "=" and node.args[0].head in _NAMING:
        left = node.args[0]
        return left.value if left.head == "symbol" else repr(left)
    return None


def _with_conditions(nodes: list[Node]) -> list[Node]:
    r"""Puts conditions on symbols of earlier items to these, as in ``x = 2k, k \\in \\mathbb{Z}``."""
    kept: list[Node] = []
    conditions: list[Node] = []
    for node in nodes:
        if kept and _is_condition(node, kept[-1]):
            conditions.append(node)
        else:
            kept.append(node)
    if not conditions:
        return kept
    return [Node("given", (_joined(kept, ""), *conditions))]


def _is_condition(node: Node, before: Node) -> bool:
    if (
        node.head in ("relation", "congruence")
        and node.value != "="
        and node.args[0].head in ("symbol", "number", "group")
    ):
        subject = node.symbols
        if before.head == "relation" and before.value == "=":
            return bool(subject & before.args[1].symbols) or (
                bool(subject & before.args[0].symbols) and before.args[0].head == "apply"
            )
        return before.head not in ("relation", "congruence") and bool(subject & before.symbols)
    return node.head == "phrase" and bool(node.args) and bool(node.symbols & before.symbols)


def _item(tokens: list[Token]) -> Node:
    tokens = _trimmed(tokens)
    if not tokens:
        raise NotUnderstood("an empty item")
    tokens, currency = _without_currency(tokens)
    if all(token.kind == "word" for token in tokens):
        return _words(tokens)
    if not any(token.kind == "word" for token in tokens):
        node = _spoken(tokens)
        return Node("quantity", (node,), currency) if currency else node
    return _quantity(tokens) or _named_in_words(tokens) or _expression_with_words(tokens)


def _spoken(tokens: list[Token]) -> Node:
    try:
        node = read_expression(tokens)
    except NotUnderstood:
        return _value_of_the_unread(tokens)
    if node.head == "system" and all(len(row.args) == 1 for row in node.args):
        return _joined([row.args[0] for row in node.args], "")
    if node.head == "relation" and len(node.args) > 2 and set(node.value.split()) == {"="}:  # noqa: PLR2004
        *names, last = node.args
        if all(name.head == "symbol" for name in names) and not last.symbols:
            return Node("assign", (last,) * len(names), " ".join(name.value for name in names))
    if node.head == "relation" and "~" in node.value.split():
        return _before_about(node)
    if node.head == "mul" and node.args[-1] in (symbol("C"), symbol("F")):
        return _temperature(node.args[0], node.args[-1].value) if len(node.args) == 2 else node  # noqa: PLR2004
    return node


def _temperature(amount: Node, scale: str) -> Node:
    r"""``100^\circ C``; twice a symbol C is none."""
    if amount.head != "degree":
        return Node("mul", (amount, symbol(scale)))
    return Node("quantity", amount.args, "celsius^1" if scale == "C" else "fahrenheit^1")


def _value_of_the_unread(tokens: list[Token]) -> Node:
    r"""``\int_0^1 f = 2``, the left side as a name.

    Raises:
        NotUnderstood: There is no such equation, or its right side cannot be read either.
    """
    sides = _split(tokens, ("sign", "="))
    if len(sides) != 2:  # noqa: PLR2004
        raise NotUnderstood("no equation with a value")
    name = Node("unread", (), " ".join(token.text for token in sides[0]))
    return Node("relation", (name, read_expression(sides[1])), "=")


def _before_about(node: Node) -> Node:
    r"""What stands before the first ``\approx``, unless that is only a name."""
    signs = node.value.split()
    first = signs.index("~")
    kept = node.args[: first + 1]
    if len(kept) == 1 and kept[0].head in _NAMING:
        return Node("relation", (kept[0], node.args[1]), "=")
    return kept[0] if len(kept) == 1 else Node("relation", kept, " ".join(signs[:first]))


def _without_currency(tokens: list[Token]) -> tuple[list[Token], str]:
    r"""Takes away the ``\\$`` before amounts."""
    signs = [
        index
        for index, token in enumerate(tokens[:-1])
        if token.kind == "word" and token.text in _CURRENCIES and tokens[index + 1].kind in ("number", "command")
    ]
    kept = [token for index, token in enumerate(tokens) if index not in signs]
    return kept, (unit_of([tokens[signs[0]]]) or "") if signs else ""


_CURRENCIES: Final = ("dollar", "euro", "pounds", "yen")


def _quantity(tokens: list[Token]) -> Node | None:
    """A number with a unit, a noun or a multiplier after it."""
    first = next((index for index in _outside(tokens) if tokens[index].kind == "word"), 0)
    if first > 1 and tokens[first - 1].text == "mu":  # micro
        first -= 1
    if not first or not _is_math(tokens[:first]):
        return None
    try:
        amount = read_expression(tokens[:first])
    except NotUnderstood:
        return None
    word = tokens[first].text
    if first + 1 == len(tokens) and word in _SUFFIXES:
        return Node(_SUFFIXES[word], (amount,))
    if first + 1 == len(tokens) and word in MULTIPLIERS:
        return Node("mul", (amount, number(MULTIPLIERS[word])))
    if amount.head == "degree" and [token.written for token in tokens[first:]] in (["C"], ["F"]):
        return _temperature(amount, tokens[first].written)
    unit = unit_of(tokens[first:])
    counted = unit is not None and (not unit.startswith("noun:") or not amount.symbols)
    return Node("quantity", (amount,), unit) if unit and counted else None


_SUFFIXES: Final = {
    "percent": "percent", "percentage": "percent", "degree": "degree", "degrees": "degree", "deg": "degree"
}  # fmt: skip


def _named_in_words(tokens: list[Token]) -> Node | None:
    """``Area = 5``, "the area is 5"."""
    for index, token in enumerate(tokens):
        if (token.kind, token.text) in (("sign", "="), ("word", "is"), ("word", "are"), ("sign", ":")):
            name = tokens[:index]
            if not name or any(part.kind not in ("word", "name", "sign") for part in name) or index + 1 == len(tokens):
                return None
            if not any(part.kind == "word" for part in name) or any(part.text in ("not", "all", "if") for part in name):
                return None
            rest = tokens[index + 1 :]
            if any(part.kind == "word" for part in rest) and _quantity(rest) is None:
                return None
            return Node("relation", (Node("phrase", (), " ".join(part.text for part in name)), _item(rest)), "=")
    return None


def _expression_with_words(tokens: list[Token]) -> Node:
    try:
        return read_expression(tokens)
    except NotUnderstood:
        return _prose(tokens)


def _words(tokens: Sequence[Token]) -> Node:
    words = [token.text for token in tokens if token.kind == "word"]
    if len(words) == 1 and words[0] in _NUMBER_WORDS:
        return number(_NUMBER_WORDS[words[0]])
    return Node("phrase", (), " ".join(words))


def _prose(tokens: list[Token]) -> Node:
    """Words with mathematics between them: ``all odd @ such that @``, the mathematics as parts."""
    pieces: list[str] = []
    parts: list[Node] = []
    run: list[Token] = []

    def flush() -> None:
        trimmed = run[:]
        while trimmed and trimmed[-1].text in (",", ".", ";", ":"):
            trimmed.pop()
        while trimmed and trimmed[0].text in (",", ".", ";", ":"):
            del trimmed[0]
        if trimmed:
            for segment in _split(trimmed, ("sign", ",")):
                parts.append(read_expression(segment))
                pieces.append("@")
        run.clear()

    for token in tokens:
        if token.kind == "word" and token.text not in ("mod", "modulo"):
            flush()
            pieces.append(token.text)
        else:
            run.append(token)
    flush()
    return Node("phrase", tuple(parts), " ".join(pieces))
