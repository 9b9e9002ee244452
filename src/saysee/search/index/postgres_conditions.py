"""The condition of ``--where`` for PostgreSQL: read as SQLite reads it, and written anew.

Nothing of the text goes to the server as it is. The tree of ``condition_parsing`` is written as SQL
made of columns, operators and functions that are known here; every string is a parameter. So a condition can read the
rows and compute, and gives what the same one gives over SQLite: LIKE knows no case in ASCII, text compares by its
bytes, a division by zero is NULL, and a value of the metadata compares with numbers as a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from saysee.errors import SaySeeError
from saysee.search.index.condition_parsing import (
    Call,
    Column,
    Node,
    NotAnExpressionError,
    Null,
    Number,
    Operation,
    Text,
    parse,
)
from saysee.search.index.conditions import COLUMNS, not_usable

_NUMBERS = frozenset({"id", "size", "mtime_ns"})
_PATH = re.compile(r'\$(?:\.(?:"[^"]*"|[^."\[\]]+)|\[\d+\])*')
_STEP = re.compile(r'\.(?:"([^"]*)"|([^."\[\]]+))|\[(\d+)\]')

_LONGEST_SQL = 200_000

Type = Literal["text", "number", "boolean", "document", "value", "null"]


@dataclass(frozen=True, slots=True)
class Sql:
    """A piece of SQL with its parameters.

    Attributes:
        text: with %s for each parameter, and %% for a sign of per cent.
        parameters: in order.
        type: of what it gives. A document is JSON as a whole, a value what lies at a place in it.
    """

    text: str
    parameters: tuple[Any, ...]
    type: Type


def translate(condition: str) -> tuple[str, tuple[Any, ...]]:
    """A condition as SQL over the rows, and its parameters.

    Raises:
        SaySeeError: it is not one expression, or asks for something else.
    """
    try:
        condition.encode()
        written = _boolean(_write(parse(condition)))
    except UnicodeEncodeError:
        raise SaySeeError(not_usable(condition, "not valid Unicode")) from None
    except NotAnExpressionError as error:
        raise SaySeeError(not_usable(condition, str(error))) from None
    except RecursionError:  # a chain of operators is a tree as deep as it is long
        raise SaySeeError(not_usable(condition, "too long")) from None
    return written.text, written.parameters


def _join(template: str, parts: Iterable[Sql], type: Type) -> Sql:
    """Puts pieces into the {} of a template, in order."""
    parts = list(parts)
    texts = [part.text for part in parts]
    if sum(map(len, texts)) > _LONGEST_SQL:  # a piece that is written twice at each level doubles at each
        raise NotAnExpressionError("too long")
    return Sql(template.format(*texts), tuple(value for part in parts for value in part.parameters), type)


def _write(node: Node) -> Sql:
    if isinstance(node, Number):
        return Sql(node.text, (), "number")
    if isinstance(node, Text):
        if "\0" in node.text:
            raise NotAnExpressionError("a NUL character")
        return Sql("%s::text", (node.text,), "text")
    if isinstance(node, Null):
        return Sql("NULL", (), "null")
    if isinstance(node, Column):
        if node.name not in COLUMNS:
            raise NotAnExpressionError(f"no such column: {node.name[:40]}")
        if node.name == "metadata":
            return Sql("metadata", (), "document")
        return Sql(node.name, (), "number" if node.name in _NUMBERS else "text")
    if isinstance(node, Call):
        return _call(node)
    return _operation(node)


# ---------------------------------------------------------------------- a piece taken as another type


def _boolean(piece: Sql) -> Sql:
    if piece.type == "boolean":
        return piece
    if piece.type == "null":
        return Sql("NULL::boolean", (), "boolean")
    return _join("({} <> 0)", [_number(piece)], "boolean")


def _number(piece: Sql) -> Sql:
    if piece.type == "number":
        return piece
    if piece.type == "boolean":
        return _join("({})::int", [piece], "number")
    if piece.type == "null":
        return Sql("NULL::numeric", (), "number")
    if piece.type == "value":
        return _join(
            "(CASE jsonb_typeof({}) WHEN 'number' THEN ({} #>> '{{}}')::numeric "
            "WHEN 'boolean' THEN ({} #>> '{{}}')::boolean::int END)",
            [piece] * 3,
            "number",
        )
    raise NotAnExpressionError("text where a number belongs")


def _text(piece: Sql) -> Sql:
    if piece.type == "text":
        return piece
    if piece.type == "value":
        return _join(
            "(CASE jsonb_typeof({}) WHEN 'boolean' THEN ({} #>> '{{}}')::boolean::int::text ELSE {} #>> '{{}}' END "
            'COLLATE "C")',
            [piece] * 3,
            "text",
        )
    if piece.type == "document":
        return _join('(({})::text COLLATE "C")', [piece], "text")
    if piece.type == "null":
        return Sql("NULL::text", (), "text")
    return _join('(({})::text COLLATE "C")', [_number(piece)], "text")


def _alike(left: Sql, right: Sql) -> tuple[Sql, Sql]:
    """Both of one type, as SQLite would compare them."""
    types = {left.type, right.type}
    if types & {"number", "boolean"} and "text" not in types:
        return _number(left), _number(right)
    if types == {"number", "text"}:  # a string that is a number compares as one
        try:
            return _as_written(left), _as_written(right)
        except ValueError:
            pass
    return _text(left), _text(right)


def _as_written(piece: Sql) -> Sql:
    """A number, or the number that a string is.

    Raises:
        ValueError: it is none.
    """
    if piece.type == "number":
        return piece
    if piece.text != "%s::text" or not math.isfinite(float(piece.parameters[0])):
        raise ValueError("no number")
    return Sql("%s::numeric", piece.parameters, "number")


# ---------------------------------------------------------------------- operators


def _operation(node: Operation) -> Sql:
    operator = node.operator
    if operator in ("->", "->>"):
        return _step(node)
    parts = [_write(part) for part in node.parts]
    if operator in ("AND", "OR"):
        return _join(f"({{}} {operator} {{}})", map(_boolean, parts), "boolean")
    if operator == "NOT":
        return _join("(NOT {})", map(_boolean, parts), "boolean")
    if operator == "-" and len(parts) == 1:
        return _join("(- {})", map(_number, parts), "number")
    if operator in ("+", "-", "*"):
        return _join(f"({{}} {operator} {{}})", map(_number, parts), "number")
    if operator in ("/", "%"):
        return _join(f"({{}} {operator.replace('%', '%%')} NULLIF({{}}, 0))", map(_number, parts), "number")
    if operator == "||":
        return _join("({} || {})", map(_text, parts), "text")
    if operator == "LIKE":
        return _join("({} ILIKE {} ESCAPE '')", map(_text, parts), "boolean")
    if operator == "GLOB":
        return _glob(parts[0], node.parts[1])
    if operator == "IN":
        return _any([_compare("=", parts[0], other) for other in parts[1:]])
    if operator == "BETWEEN":
        low, high = _compare(">=", parts[0], parts[1]), _compare("<=", parts[0], parts[2])
        return _join("({} AND {})", [low, high], "boolean")
    return _compare(operator, *parts)


def _compare(operator: str, left: Sql, right: Sql) -> Sql:
    if operator in ("IS", "IS NOT"):
        if right.type == "null":
            return _join(f"({{}} {operator} NULL)", [_text(left) if left.type == "value" else left], "boolean")
        operator = "IS NOT DISTINCT FROM" if operator == "IS" else "IS DISTINCT FROM"
    if left.type == "value" and right.type == "value":
        raise NotAnExpressionError("a value of the metadata compares with a column, a number or a string")
    if left.type == "value":
        return _compare_value(operator, left, right)
    if right.type == "value":
        return _compare_value(_MIRRORED.get(operator, operator), right, left)
    return _join(f"({{}} {operator} {{}})", _alike(left, right), "boolean")


_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_NUMERAL = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?\s*$"


def _compare_value(operator: str, value: Sql, other: Sql) -> Sql:
    """A value is what it is in the JSON: no text equals a number, and every text is greater than every number.

    Compared with a column, it takes the column's type where it can (https://www.sqlite.org/datatype3.html, 4.2).
    """
    take, type = (_number, "number") if other.type in ("number", "boolean") else (_text, "text")
    column, other = other.text in COLUMNS, take(other)
    if column and type == "text":
        return _join(f"({{}} {operator} {{}})", [_text(value), other], "boolean")
    unlike = _join("(jsonb_typeof({}) IN ('number', 'boolean'))", [value], "boolean")
    alike = take(value)
    if type == "number":
        unlike = _join("(jsonb_typeof({}) IN ('string', 'array', 'object'))", [value], "boolean")
    if column:
        text, numeral = _text(value), Sql("%s", (_NUMERAL,), "text")
        unlike = _join("({} AND {} !~ {})", [unlike, text, numeral], "boolean")
        alike = _join("(CASE WHEN {} ~ {} THEN {}::numeric END)", [text, numeral, text], "number")
    template = f"(CASE WHEN {{}} THEN {{}} ELSE {{}} {operator} {{}} END)"
    return _join(
        template, [unlike, _of_other_type(operator, other, text_is_greater=type == "number"), alike, other], "boolean"
    )


def _of_other_type(operator: str, other: Sql, text_is_greater: bool) -> Sql:
    """What comparing a value gives with something of the other type, which may be NULL."""
    if operator.startswith("IS"):
        return Sql("true" if operator == "IS DISTINCT FROM" else "false", (), "boolean")
    if operator == "<>" or operator in ((">", ">=") if text_is_greater else ("<", "<=")):
        return _join("({} IS NOT NULL OR NULL)", [other], "boolean")
    return _join("({} IS NULL AND NULL)", [other], "boolean")


def _any(pieces: list[Sql]) -> Sql:
    if not pieces:
        return Sql("false", (), "boolean")
    return _join(f"({' OR '.join(['{}'] * len(pieces))})", pieces, "boolean")


def _step(node: Operation) -> Sql:
    """A step into the metadata: a name, a place in a list, or a path that begins with $."""
    document = _write(node.parts[0])
    to = node.parts[1]
    if document.type != "document" or not isinstance(to, Text | Number):
        raise NotAnExpressionError(f"{node.operator} goes from metadata to a 'name'")
    if isinstance(to, Number) and not to.text.isdigit():
        raise NotAnExpressionError(f"{node.operator} goes to a whole number")
    steps = _path(to.text) if to.text.startswith("$") else [to.text]
    return _into(document, steps, "value" if node.operator == "->>" else "document")


def _into(document: Sql, steps: list[str], type: Type) -> Sql:
    return Sql(f"({document.text} #> %s::text[])", (*document.parameters, steps), type)


def _path(text: str) -> list[str]:
    if not _PATH.fullmatch(text):
        raise NotAnExpressionError(f"no path in JSON: {text[:40]}")
    return [quoted or bare or place for quoted, bare, place in _STEP.findall(text)]


def _glob(left: Sql, pattern: Node) -> Sql:
    if not isinstance(pattern, Text):
        raise NotAnExpressionError("GLOB takes a pattern in quotation marks")
    return _join("({} ~ {})", [_text(left), Sql("%s", (glob_to_regex(pattern.text),), "text")], "boolean")


def glob_to_regex(pattern: str) -> str:
    """A pattern of GLOB (``*``, ``?``, ``[a-z]``, ``[^a-z]``) as a regular expression of PostgreSQL."""
    expression, place = "", 0
    while place < len(pattern):
        sign = pattern[place]
        end = pattern.find("]", place + (3 if pattern[place + 1 : place + 2] == "^" else 2)) if sign == "[" else -1
        if end > 0:
            inside = pattern[place + 1 : end]
            negated = "^" if inside.startswith("^") else ""
            inside = inside.removeprefix("^")
            expression += f"[{negated}{re.sub(r'([^a-zA-Z0-9-])', lambda found: chr(92) + found.group(), inside)}]"
            place = end
        elif sign == "[":
            return "(?!)"  # never closed: SQLite finds nothing
        else:
            expression += {"*": ".*", "?": "."}.get(sign) or (sign if sign.isalnum() else f"\\{sign}")
        place += 1
    return f"^(?:{expression})$"


# ---------------------------------------------------------------------- functions


def _call(node: Call) -> Sql:
    if node.name not in _FUNCTIONS:
        raise NotAnExpressionError(f"no such function: {node.name[:40]}")
    least, most, write = _FUNCTIONS[node.name]
    if not least <= len(node.arguments) <= most:
        raise NotAnExpressionError(f"{node.name} does not take {len(node.arguments)} arguments")
    return write(node.arguments)


def _function(name: str, take: Callable[[Sql], Sql], type: Type) -> Callable[[tuple[Node, ...]], Sql]:
    def write(arguments: tuple[Node, ...]) -> Sql:
        pieces = [take(_write(argument)) for argument in arguments]
        return _join(f"{name}({', '.join(['{}'] * len(pieces))})", pieces, type)

    return write


def _together(name: str) -> Callable[[tuple[Node, ...]], Sql]:
    """A function whose arguments are all of one type, which is also its own."""

    def write(arguments: tuple[Node, ...]) -> Sql:
        pieces = [_write(argument) for argument in arguments]
        numbers = any(piece.type in ("number", "boolean") for piece in pieces)
        type: Type = "number" if numbers else "text"
        pieces = [_number(piece) if numbers else _text(piece) for piece in pieces]
        written = _join(f"{name}({', '.join(['{}'] * len(pieces))})", pieces, type)
        if name not in ("GREATEST", "LEAST"):
            return written
        empty = _any([_join("({} IS NULL)", [piece], "boolean") for piece in pieces])  # as SQLite, not as PostgreSQL
        return _join("(CASE WHEN {} THEN NULL ELSE {} END)", [empty, written], type)

    return write


def _substring(arguments: tuple[Node, ...]) -> Sql:
    start = arguments[1]
    if isinstance(start, Operation) and start.operator == "-" and isinstance(start.parts[0], Number):
        if len(arguments) == 3:
            raise NotAnExpressionError("substr from the end takes no length")
        return _join("right({}, ({})::int)", [_text(_write(arguments[0])), _write(start.parts[0])], "text")
    pieces = [_text(_write(arguments[0])), *(_number(_write(argument)) for argument in arguments[1:])]
    return _join(f"substr({{}}, {', '.join(['({})::int'] * (len(pieces) - 1))})", pieces, "text")


def _round(arguments: tuple[Node, ...]) -> Sql:
    digits = arguments[1] if len(arguments) == 2 else Number("0")
    if not isinstance(digits, Number):
        raise NotAnExpressionError("round takes a number of digits")
    return _join("round(({})::numeric, ({})::int)", [_number(_write(arguments[0])), _write(digits)], "number")


def _extract(arguments: tuple[Node, ...]) -> Sql:
    document, path = _write(arguments[0]), arguments[1]
    if document.type != "document" or not isinstance(path, Text) or not path.text.startswith("$"):
        raise NotAnExpressionError("json_extract takes metadata and a path such as '$.name'")
    return _into(document, _path(path.text), "value")


_MANY = 20
_FUNCTIONS: dict[str, tuple[int, int, Callable[[tuple[Node, ...]], Sql]]] = {
    "abs": (1, 1, _function("abs", _number, "number")),
    "coalesce": (2, _MANY, _together("COALESCE")),
    "glob": (2, 2, lambda arguments: _operation(Operation("GLOB", arguments[::-1]))),
    "ifnull": (2, 2, _together("COALESCE")),
    "instr": (2, 2, _function("strpos", _text, "number")),
    "json_extract": (2, 2, _extract),
    "length": (1, 1, _function("length", _text, "number")),
    "like": (2, 2, lambda arguments: _operation(Operation("LIKE", arguments[::-1]))),
    "lower": (1, 1, _function("lower", _text, "text")),
    "ltrim": (1, 2, _function("ltrim", _text, "text")),
    "max": (2, _MANY, _together("GREATEST")),
    "min": (2, _MANY, _together("LEAST")),
    "nullif": (2, 2, _together("NULLIF")),
    "round": (1, 2, _round),
    "rtrim": (1, 2, _function("rtrim", _text, "text")),
    "substr": (2, 3, _substring),
    "substring": (2, 3, _substring),
    "trim": (1, 2, _function("btrim", _text, "text")),
    "unicode": (1, 1, _function("ascii", _text, "number")),
    "upper": (1, 1, _function("upper", _text, "text")),
}
