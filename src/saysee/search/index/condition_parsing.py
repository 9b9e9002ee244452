"""The condition of ``--where`` as a tree, for stores whose database cannot ask back what a statement would do.

The grammar is that of SQLite's expressions, as far as they read columns and compute. Precedence is SQLite's own
(https://www.sqlite.org/lang_expr.html).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 10_000
"""Characters of a condition."""
_DEEPEST = 100
"""Brackets and the like within each other."""

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?(?![\w.]))
    |(?P<text>'(?:[^']|'')*')
    |(?P<name>"(?:[^"]|"")*"|[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>->>|->|\|\||<=|>=|<>|!=|==|[-+*/%<>=(),])
    )""",
    re.VERBOSE,
)
_BINDING = {
    "OR": 1,
    "AND": 2,
    **dict.fromkeys(("=", "==", "<>", "!=", "IS", "IN", "LIKE", "GLOB", "BETWEEN", "ISNULL", "NOTNULL", "NOT"), 4),
    **dict.fromkeys(("<", "<=", ">", ">="), 5),
    **dict.fromkeys(("+", "-"), 6),
    **dict.fromkeys(("*", "/", "%"), 7),
    **dict.fromkeys(("||", "->", "->>"), 8),
}
_NOT_BINDS, _EQUALITY_BINDS, _SIGN_BINDS = 3, 4, 9
_SAME = {"==": "=", "!=": "<>"}


class NotAnExpressionError(ValueError):
    """The text is not one expression; the message says why in a few words."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number, as it was written."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A string."""

    text: str


@dataclass(frozen=True, slots=True)
class Null:
    """NULL."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, in lower case."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator with what it works on: of two (``=``, ``IS``, ``LIKE``, ``->>`` …), of one (``NOT``, ``-``), of
    three (``BETWEEN``) or of many (``IN``: the first among the others)."""

    operator: str
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A function, in lower case, with its arguments."""

    name: str
    arguments: tuple[Node, ...]


Node = Number | Text | Null | Column | Operation | Call


def parse(condition: str) -> Node:
    """The tree of a condition.

    Raises:
        NotAnExpressionError: it is not one expression.
    """
    if len(condition) > LONGEST:
        raise NotAnExpressionError("too long")
    parser = _Parser(_tokens(condition))
    tree = parser.expression(0)
    if parser.kind is not None:
        raise NotAnExpressionError("not one expression")
    return tree


def _tokens(condition: str) -> list[tuple[str, str]]:
    """Kind and text of each; words that are not quoted in capitals when they are keywords."""
    tokens = []
    place, end = 0, len(condition.rstrip())
    while place < end:
        found = _TOKEN.match(condition, place)
        if found is None or found.lastgroup is None:
            raise NotAnExpressionError("not one expression")
        kind, text = found.lastgroup, found.group(found.lastgroup)
        if kind == "name" and text.startswith('"'):
            text = text[1:-1].replace('""', '"')
        elif kind == "name" and text.upper() in _KEYWORDS:
            kind, text = "sign", text.upper()
        elif kind == "text":
            text = text[1:-1].replace("''", "'")
        tokens.append((kind, text))
        place = found.end()
    return tokens


_KEYWORDS = frozenset(word for word in _BINDING if word.isalpha()) | {"NULL", "TRUE", "FALSE"}


class _Parser:
    """Operators by how strongly they bind (Pratt's way)."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens, self.place, self.depth = tokens, 0, 0

    @property
    def kind(self) -> str | None:
        """Of the next token; None at the end."""
        return self.tokens[self.place][0] if self.place < len(self.tokens) else None

    def expression(self, least: int) -> Node:
        """Up to the first operator that binds less than ``least``."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotAnExpressionError("too deep")
        left = self._first()
        while self.kind == "sign" and (binds := _BINDING.get(self.tokens[self.place][1], -1)) > least:
            left = self._further(left, self._take(), binds)
        self.depth -= 1
        return left

    def _first(self) -> Node:
        if self.kind is None:
            raise NotAnExpressionError("not one expression")
        kind, text = self.tokens[self.place]
        self.place += 1
        if kind == "number":
            return Number(text)
        if kind == "text":
            return Text(text)
        if kind == "name":
            return Call(text.lower(), self._list()) if self._is("(") else Column(text.lower())
        if text == "(":
            inner = self.expression(0)
            self._expect(")")
            return inner
        if text == "NULL":
            return Null()
        if text in ("TRUE", "FALSE"):
            return Number("1" if text == "TRUE" else "0")
        if text == "NOT":
            return Operation("NOT", (self.expression(_NOT_BINDS - 1),))
        if text == "-":
            return Operation("-", (self.expression(_SIGN_BINDS),))
        raise NotAnExpressionError("not one expression")

    def _further(self, left: Node, operator: str, binds: int) -> Node:
        if operator == "NOT":  # NOT LIKE, NOT IN, …
            if self._is("NULL"):
                self._take()
                return Operation("IS NOT", (left, Null()))
            operator = self._take()
            if operator not in ("IN", "LIKE", "GLOB", "BETWEEN"):
                raise NotAnExpressionError("not one expression")
            return Operation("NOT", (self._further(left, operator, binds),))
        if operator in ("ISNULL", "NOTNULL"):
            return Operation("IS" if operator == "ISNULL" else "IS NOT", (left, Null()))
        if operator == "IN":
            return Operation("IN", (left, *self._list()))
        if operator == "BETWEEN":
            low = self.expression(_EQUALITY_BINDS)
            self._expect("AND")
            return Operation("BETWEEN", (left, low, self.expression(_EQUALITY_BINDS)))
        if operator == "IS" and self._is("NOT"):
            self._take()
            operator = "IS NOT"
        return Operation(_SAME.get(operator, operator), (left, self.expression(binds)))

    def _list(self) -> tuple[Node, ...]:
        """Expressions in brackets."""
        self._expect("(")
        parts: list[Node] = []
        while not self._is(")"):
            parts.append(self.expression(0))
            if not self._is(")"):
                self._expect(",")
        self._expect(")")
        return tuple(parts)

    def _is(self, sign: str) -> bool:
        return self.place < len(self.tokens) and self.tokens[self.place] == ("sign", sign)

    def _take(self) -> str:
        if self.kind != "sign":
            raise NotAnExpressionError("not one expression")
        self.place += 1
        return self.tokens[self.place - 1][1]

    def _expect(self, sign: str) -> None:
        if not self._is(sign):
            raise NotAnExpressionError("not one expression")
        self.place += 1
