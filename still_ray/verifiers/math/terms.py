r"""The tree that a mathematical text is read into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a tree: an operation, a leaf or a structure.

    Attributes:
        head: What it is: number, symbol, add, mul, power, call, group, set, list, relation, ...
        args: Its parts.
        value: What a head alone does not say: a symbol's name, a function, brackets, relation signs.
        number: The value of a "number".
    """

    head: str
    args: tuple[Node, ...] = ()
    value: str = ""
    number: Fraction = Fraction(0)

    def walk(self) -> Iterator[Node]:
        """Yields this node and all below it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.args)

    def has(self, *heads: str) -> bool:
        """Whether a node with one of these heads is in it."""
        return any(node.head in heads for node in self.walk())

    @property
    def symbols(self) -> frozenset[str]:
        """The names of the symbols in it, bound ones included."""
        return frozenset(node.value for node in self.walk() if node.head == "symbol")


def number(value: Fraction | int | str, *, text: str = "") -> Node:
    """A number; `text` keeps how a decimal was written."""
    return Node("number", value=text, number=Fraction(value))


def symbol(name: str) -> Node:
    """A variable or an unknown constant."""
    return Node("symbol", value=name)


def call(name: str, *args: Node) -> Node:
    """A known function of arguments."""
    return Node("call", args, name)


def neg(node: Node) -> Node:
    """Minus a node."""
    return Node("neg", (node,))


def substituted(node: Node, values: dict[str, Node]) -> Node:
    """The node with symbols replaced."""
    if node.head == "symbol":
        return values.get(node.value, node)
    if not node.args:
        return node
    args = tuple(substituted(arg, values) for arg in node.args)
    return node if args == node.args else Node(node.head, args, node.value, node.number)


INFINITY: Final = Node("infinity")
EMPTY: Final = Node("set")
