"""One condition means the same over SQLite and over PostgreSQL."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saysee import SaySeeError
from saysee.search.index.condition_parsing import LONGEST, NotAnExpressionError, parse
from saysee.search.index.postgres_conditions import translate
from saysee.search.index.store import About, Item, open_store

PATHS = ["a.png", "b/A.png", "b/c/it's.png", "عطلة/é.png", "b/100%.png", "b_1/x[1].png", "work/ten\nlines.png"]
METADATA = [
    {},
    {"n": 3, "s": "three"},
    {"n": -1.5, "s": "3"},
    {"n": "3", "s": "THREE"},
    {"n": None, "s": "", "deep": {"a b": [1, "two", {"c": "C"}]}},
    {"n": True, "s": "thrée"},
    {"n": 0, "s": "x" * 20},
]

texts = st.sampled_from(
    [
        "path",
        "folder",
        "name",
        "kind",
        "hash",
        "metadata ->> 's'",
        "lower(name)",
        "upper(path)",
        "substr(name, 2)",
        "substr(path, -4)",
        "trim(name, 'ab')",
        "name || folder",
        "coalesce(metadata ->> 's', 'none')",
        "metadata -> 'deep' -> 'a b' ->> 1",
        "json_extract(metadata, '$.deep.\"a b\"[2].c')",
        "nullif(folder, '')",
        "'A.PNG'",
    ]
)
plain_texts = texts.filter(lambda text: "->>" not in text and "json" not in text)
numbers = st.sampled_from(
    [
        "id",
        "size",
        "mtime_ns",
        "length(path)",
        "3",
        "-1",
        "2.5",
        "size / 2",
        "size % 3",
        "size / 0",
        "abs(size - 3)",
        "instr(path, '/')",
        "max(id, size)",
        "min(size, 3, id)",
        "unicode(name)",
        "-size + 1 * 2",
        "round(size / 2.0)",
    ]
)
values = st.sampled_from(["metadata ->> 'n'", "json_extract(metadata, '$.n')"])
patterns = st.sampled_from(["'%a%'", "'B%'", "'_.png'", "'%100\\%%'", "'%É%'", "''", "'%'"])
globs = st.sampled_from(["'*.png'", "'b/*'", "'?.png'", "'[ab]*'", "'*[^g]'", "'*[[]1]*'", "'[a'", "'*%*'", "'A*'"])
comparisons = st.sampled_from(["=", "==", "<>", "!=", "<", "<=", ">", ">=", "IS", "IS NOT"])
simple = st.one_of(
    st.builds("{} {} {}".format, texts, comparisons, plain_texts),
    st.builds("{} {} {}".format, numbers, comparisons, numbers),
    st.builds("{} {} {}".format, values, comparisons, st.sampled_from(["3", "-1.5", "'3'", "NULL", "size", "name"])),
    st.builds("{} {} {}".format, st.sampled_from(["3", "'3'", "size"]), comparisons, values),
    st.builds("{} IN (3, '3', NULL)".format, values),
    st.builds("{}{} LIKE {}".format, texts, st.sampled_from(["", " NOT"]), patterns),
    st.builds("{}{} GLOB {}".format, texts, st.sampled_from(["", " not"]), globs),
    st.builds("{} BETWEEN {} AND {}".format, numbers, numbers, numbers),
    st.builds("{} NOT BETWEEN 'A' AND {}".format, texts, plain_texts),
    st.builds("{} IN ({}, {}, NULL)".format, texts, plain_texts, plain_texts),
    st.builds("{} NOT IN ({}, 4)".format, numbers, numbers),
    st.builds("{} {}".format, texts, st.sampled_from(["ISNULL", "NOTNULL", "IS NULL", "NOT NULL", "IS NOT NULL"])),
    numbers,
    st.sampled_from(["TRUE", "false", "NULL", "1 = 1 = 1", "3 - 2 - 1 = 0", "2 < 3 = 1", "NOT 1 = 0", "size = '3'"]),
)
conditions = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds("{} AND {}".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
        st.builds("NOT {}".format, inner),
        st.builds("({})".format, inner),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def both(postgres, tmp_path_factory):
    """The same rows in either store."""
    stores = [open_store(tmp_path_factory.mktemp("conditions") / "index"), open_store(f"{postgres}&schema=conditions")]
    about = About("model", None, {"image": "1", "clip": "2"}, 4, "float32", "/root", None, ".")
    for store in stores:
        with store.writing() as writer:
            assert writer.about is None
            writer.set_about(about)
            items = [
                Item("image", path, size, size and 10**18 + size, None if size == 2 else f"h{size}", metadata)
                for path, size, metadata in zip(PATHS, [0, 1, 2, 3, 4, None, 6], METADATA, strict=True)
            ]
            with writer.transaction():
                writer.put(items, np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2]])
    return stores


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(condition=conditions)
def test_same_rows_in_both_stores(both, condition):
    query = np.ones((1, 4), np.float32) / 2
    here, there = ([item.path for item, _ in store.nearest(query, "image", 10, condition)[0]] for store in both)
    assert here == there, condition


written = st.text(alphabet="ab'\"()%$;-/*\\ ?:=<>|.,1\n", max_size=30)
OURS = re.compile(r"'(\{\}|number|boolean|string|array|object)?'")


@settings(max_examples=200, deadline=None)
@given(condition=st.one_of(st.text(), written, st.builds("name LIKE '{}'".format, written), conditions))
def test_any_text_is_a_condition_or_refused(condition):
    try:
        sql, parameters = translate(condition)
    except SaySeeError as error:
        sql, parameters = "", ()
        told = str(error)
    else:
        told = "cannot be used"
    assert "cannot be used" in told
    assert "\n" not in told
    assert "'" not in OURS.sub("", sql)  # what was written in quotation marks is a parameter
    assert sql.count("%s") == len(parameters)


@pytest.mark.parametrize(
    "condition",
    [
        "a =",
        "(a",
        "a)",
        "a b",
        "a IN 3",
        "a NOT 3",
        "a BETWEEN 1",
        "f(",
        "1x",
        "a = 'b",
        "a; b",
        "'a' 'b'",
        "-",
        "IS 3",
    ],
)
def test_what_is_no_expression(condition):
    with pytest.raises(NotAnExpressionError):
        parse(condition)


def test_sql_cannot_grow_without_bound():
    condition = "size"
    while len(condition) < LONGEST / 2:
        condition = f"max({condition}, size)"
    for text in (condition, "max(" * 40 + "size, 1)" + ", 1)" * 39, "(" * 200 + "1" + ")" * 200, "NOT " * 500 + "1"):
        with pytest.raises(SaySeeError, match="cannot be used"):
            translate(text)
