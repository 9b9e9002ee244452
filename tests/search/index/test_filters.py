"""A structured filter chooses the same rows in SQLite, in PostgreSQL and in plain Python."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saysee import SaySeeError
from saysee.search.index import store as store_module
from saysee.search.index.filters import parse_filters
from saysee.search.index.index import open_store
from saysee.search.index.ranking import newest
from saysee.search.index.store import About, Item

ROWS = [
    ("a.png", 0, {"taken": "2024-05-31", "n": 3, "s": "Three"}),
    ("holiday/A.png", 1, {"taken": "2024-06-01", "n": -1.5, "s": "3"}),
    ("holiday/sea/it's.png", 2, {"taken": "2024-08-31", "n": "3", "s": "three"}),
    ("عطلة/cafe\u0301.png", 1_000, {"taken": "2024-09", "n": None, "s": ""}),
    ("holiday/100%.png", 1_001, {"taken": "2024", "n": True, "s": "caf\u00e9", "cafe\u0301": "10"}),
    ("holiday_1/x[1].png", None, {"n": 0, "s": ["three"], "deep": {"n": 3}}),
    ("work/ten\nlines.png", 9_007_199_254_740_993, {"n": 1000.25, "s": "back\\slash", "dc.title:x": "3"}),
]
CHOSEN = {
    "folder:holiday": [1, 4],
    "folder:holiday*": [1, 2, 4, 5],
    "folder:": [0],
    "folder:HOLIDAY": [],
    "name:100%*": [4],
    "name:*_*": [],
    "folder:*y_*": [5],
    "name:caf\u00e9.png": [3],
    "name:*.png": [0, 1, 2, 3, 4, 5, 6],
    "name:*n*s*": [6],
    "name:ten\nlines.png": [6],
    "path:../index/*": [],
    "path:../a.png": [],
    "taken:2024-06..2024-08": [1, 2],
    "taken:2024-06-02..": [2, 3],
    "taken:..2024-05": [0, 4],
    "taken:2024..2024": [0, 1, 2, 3, 4],
    "size:1000..": [3, 4, 6],
    "size:1..1000": [1, 2, 3],
    "size:2": [2],
    "size:9007199254740992..9007199254740992": [],
    "n:3": [0, 2],
    "n:3.0": [0],
    "n:..0": [1, 5],
    "n:2..1000.5": [0, 2, 6],
    "n:true": [4],
    "n:1*": [6],
    "s:three": [2],
    "s:3": [1],
    "s:caf*": [4],
    "s:back\\slash": [6],
    "s:": [3],
    "caf\u00e9:2..10": [4],
    "deep:*": [],
    "nothing:*": [],
    "kind:image": [0, 1, 2, 3, 4, 5, 6],
    "hash:h2": [2],
}

names = st.sampled_from(["path", "folder", "name", "hash", "taken", "n", "s", "caf\u00e9", "nothing"])
parts = st.sampled_from(["", "a", "2024", "2024-06", "3", "-1.5", "1000", "h", ".png", "%", "_", "\\", "é", "e\u0301"])
values = st.one_of(
    parts,
    st.builds("{}*{}".format, parts, parts),
    st.builds("*{}*".format, parts),
    st.builds("{}..{}".format, parts, parts),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
)
numbers = st.sampled_from(["size:1000..", "id:2..4", "size:..2", "mtime_ns:1000000000000000001..", "id:3"])
texts = st.one_of(st.builds("{}:{}".format, names, values), numbers)


@pytest.fixture(scope="module")
def in_folder(tmp_path_factory):
    return _filled(str(tmp_path_factory.mktemp("filters") / "index"))


@pytest.fixture(scope="module")
def in_postgres(postgres):
    return _filled(f"{postgres}&schema=filters")


@pytest.fixture(scope="module")
def in_lance(tmp_path_factory):
    pytest.importorskip("lancedb", reason="the extra 'lance' is not installed")
    return _filled(f"lance://{tmp_path_factory.mktemp('filters') / 'index'}")


@pytest.fixture(params=["in_folder", "in_postgres", "in_lance"])
def store(request):
    return request.getfixturevalue(request.param)


def _filled(place: str):
    store = open_store(place)
    about = About("model", None, {"image": "1", "clip": "2"}, 4, "float32", "/root", None, ".")
    with store.writing() as writer:
        assert writer.about is None
        writer.set_about(about)
        items = [
            Item("image", path, size, size and 10**18 + size, f"h{size}", metadata) for path, size, metadata in ROWS
        ]
        with writer.transaction():
            writer.put(items, np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2]])
    return store


def chosen(store, *filters: str) -> list[int]:
    query = np.ones((1, 4), np.float32) / 2
    places = {path: place for place, (path, *_) in enumerate(ROWS)}
    found = store.nearest(query, "image", 10, filters=parse_filters(filters))[0]
    return sorted(places[item.path] for item, _ in found)


def test_filter_chooses_rows(store):
    assert {text: chosen(store, text) for text in CHOSEN} == CHOSEN


def test_a_filter_lists_the_rows_that_it_chooses(store):
    places = {path: place for place, (path, *_) in enumerate(ROWS)}
    with store.reading() as tables:
        listed = {text: newest(tables, "image", 10, filters=parse_filters([text])) for text in CHOSEN}
        assert {text: sorted(places[item.path] for item in items) for text, items in listed.items()} == CHOSEN
        assert newest(tables, "image", 10, 2**63 - 1, parse_filters(["name:*"])) == []
        assert newest(tables, "clip", 10) == []


def test_all_filters_and_the_condition_must_hold(store):
    assert chosen(store, "folder:holiday*", "size:1..", "taken:2024-08..") == [2]
    query = np.ones((1, 4), np.float32) / 2
    (found,) = store.nearest(query, "image", 10, "size > 1", parse_filters(["folder:holiday"]))
    assert [item.path for item, _ in found] == ["holiday/100%.png"]


def test_of_equal_scores_the_earlier_rows_come_first(place):
    store = open_store(place)
    with store.writing() as writer:
        assert writer.about is None
        writer.set_about(About("model", None, {"image": "1", "clip": "2"}, 4, "float32", "/root", None, "."))
        with writer.transaction():
            writer.put([Item("image", f"{n}.png") for n in range(100)], np.eye(4, dtype=np.float32)[np.arange(100) % 2])
    for filters in ([], parse_filters(["name:*.png"])):
        (found,) = store.nearest(np.eye(4, dtype=np.float32)[1:2], "image", 3, filters=filters)
        assert [(item.path, score) for item, score in found] == [("1.png", 1.0), ("3.png", 1.0), ("5.png", 1.0)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_all_stores_choose_the_same_rows(in_folder, in_postgres, in_lance, text):
    try:
        parse_filters([text])
    except SaySeeError:
        return
    assert chosen(in_folder, text) == chosen(in_postgres, text) == chosen(in_lance, text)


@given(text=st.text())
def test_any_text_is_a_filter_or_refused(text):
    try:
        parse_filters([text])
    except SaySeeError as error:
        refused = str(error)
    else:
        refused = "filter"
    assert "filter" in refused
    assert "\n" not in refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("holiday", "'holiday' has no colon"),
        (":holiday", "':holiday' has no name"),
        ("taken:..", "'taken:..' has no bound"),
        ("taken:2024-08..2024-06", r"write 'taken:2024-06\.\.2024-08'"),
        ("size:3..2", r"write 'size:2\.\.3'"),
        ("size:large", "'size:large' needs numbers"),
        ("size:1*", "needs numbers"),
        ("size:", "needs numbers"),
        ("id:1..x", "needs numbers"),
        ("s:\0", "is not valid text"),
        ("s:\ud800", "is not valid text"),
        ("s:" + "x" * 2_000, "has 2,002 characters"),
    ],
)
def test_what_is_not_a_filter_is_refused_with_the_text(text, words):
    with pytest.raises(SaySeeError, match=words):
        parse_filters([text])
    with pytest.raises(SaySeeError, match="21 filters"):
        parse_filters(["a:b"] * 21)


def test_a_filter_of_many_wildcards_takes_no_time():
    (one,) = parse_filters(["s:" + "a*" * 400 + "b"])
    began = time.process_time()
    assert not one.matches("a" * 20_000)
    assert time.process_time() - began < 1


def test_listing_by_a_filter_holds_a_page_of_rows_in_memory(store, monkeypatch):
    monkeypatch.setattr(store_module, "PAGE", 2)
    with store.reading() as tables:
        asked, rows = [], tables.rows
        monkeypatch.setattr(tables, "rows", lambda ids: asked.append(len(ids)) or rows(ids))
        assert len(newest(tables, "image", 3, filters=parse_filters(["name:*"]))) == 3
    assert asked == [2, 2]
