"""A manifest is read as it was written, and one that breaks the schema is rejected with its row."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.data.manifest import OPTIONAL, REQUIRED, Manifest, Row
from saysee.errors import ManifestError

SUFFIXES = (".parquet", ".jsonl")


def row(number: int = 0, **changes: Any) -> Row:
    image = number // 2
    return replace(Row(f"{number}.wav", f"{image}.jpg", f"i{image}", "train" if image < 2 else "test"), **changes)


def rows(count: int = 6) -> list[Row]:
    return [row(number) for number in range(count)]


def rejection(given: Path | list[Row]) -> str:
    with pytest.raises(ManifestError) as caught:
        _ = Manifest.read(given) if isinstance(given, Path) else Manifest(given, "corpus")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in records))
    return path


def record(number: int = 0, **changes: Any) -> dict[str, Any]:
    given = row(number)
    return {name: getattr(given, name) for name in REQUIRED} | changes


text = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.integers(-(2**70), 2**70) | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | text
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
words = st.lists(st.fixed_dictionaries({"word": text, "start": st.floats(0, 9)}), max_size=3)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    names = draw(st.lists(text.filter(lambda name: name and name not in REQUIRED + OPTIONAL), max_size=3, unique=True))
    kinds = {name: draw(st.sampled_from([values, words, scalars, st.floats(0, 9) | st.none()])) for name in names}
    return [
        row(
            number,
            text=draw(st.none() | text),
            speaker=draw(st.none() | text),
            extra={name: draw(kind) for name, kind in kinds.items()},
        )
        for number in range(draw(st.integers(1, 4)))
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=50, deadline=None)
@given(table=tables())
def test_rows_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, suffix: str, table: list[Row]) -> None:
    folder = tmp_path_factory.getbasetemp()
    Manifest(table, folder).write(folder / f"m{suffix}")
    back = Manifest.read(folder / f"m{suffix}")
    assert back.rows == tuple(table)
    extras = [[dict(each.extra) for each in some] for some in (table, back.rows)]
    assert json.dumps(extras[0], sort_keys=True) == json.dumps(extras[1], sort_keys=True)  # 1, 1.0 and True differ here
    assert back.extra_columns == tuple(table[0].extra)


@pytest.mark.parametrize(
    "column",
    [
        [1, 2.5],
        [1, True],
        [{"a": 1}, {"b": 2}],
        [{"a": 1}, {"a": 1.5}],
        [{}, None],
        [[], []],
        [[None], []],
        [None, None],
        ["1", 1],
        [2**63, -1],
        [2**53 + 1, 0.5],
        ["2024-01-01T00:00:00", None],
        [[{"w": "a", "t": [0.5, 1.0]}], [{"w": None, "t": []}]],
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_that_types_would_change_are_read_unchanged(tmp_path: Path, column: list[Any], suffix: str) -> None:
    Manifest([row(number, extra={"x": value}) for number, value in enumerate(column)], tmp_path).write(
        tmp_path / f"m{suffix}"
    )
    assert json.dumps(Manifest.read(tmp_path / f"m{suffix}").column("x")) == json.dumps(column)


def test_word_times_are_native_lists_of_structs_in_parquet(tmp_path: Path) -> None:
    words = [{"word": "dog", "start": 0.5}]
    Manifest([row(0, extra={"words": words}), row(1, extra={"words": None})], tmp_path).write(tmp_path / "m.parquet")
    kind = pq.read_schema(tmp_path / "m.parquet").field("words").type
    assert pa.types.is_list(kind)
    assert pa.types.is_struct(kind.value_type)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_paths_are_relative_to_the_folder_of_the_written_manifest(tmp_path: Path, suffix: str) -> None:
    manifest = Manifest([row(0, clip="wavs/a.wav"), row(1, image="/far/b.jpg", image_id="b")], tmp_path / "corpus")
    manifest.write(tmp_path / "deep" / "er" / f"m{suffix}")
    back = Manifest.read(tmp_path / "deep" / "er" / f"m{suffix}")
    assert back.rows[0].clip == "../../corpus/wavs/a.wav"
    assert back.clip_path(back.rows[0]).resolve() == tmp_path / "corpus" / "wavs" / "a.wav"
    assert back.rows[1].image == "/far/b.jpg"
    assert back.image_path(back.rows[1]) == Path("/far/b.jpg")


def test_paths_lead_to_the_files_where_either_folder_is_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "wavs").mkdir(parents=True)
    (tmp_path / "corpus" / "wavs" / "0.wav").touch()
    (tmp_path / "deep" / "a" / "b").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "out").symlink_to(tmp_path / "deep" / "a" / "b")
    (tmp_path / "links" / "in").symlink_to(tmp_path / "corpus")
    for root in (tmp_path / "corpus", tmp_path / "links" / "in"):
        Manifest([row(0, clip="wavs/0.wav")], root).write(tmp_path / "links" / "out" / "m.jsonl")
        back = Manifest.read(tmp_path / "links" / "out" / "m.jsonl")
        assert back.clip_path(back.rows[0]).exists()
        back.write(tmp_path / "links" / "m.jsonl")
        again = Manifest.read(tmp_path / "links" / "m.jsonl")
        assert again.clip_path(again.rows[0]).exists()


def test_a_name_that_no_system_takes_is_only_a_file_that_is_missing(tmp_path: Path) -> None:
    assert Manifest([row(0, clip="é" * 300)], tmp_path).rows[0].clip == "é" * 300


@pytest.mark.parametrize(("value", "kind"), [(2**60, pa.timestamp("us")), (10**8, pa.date32())])
def test_a_time_beyond_those_of_python_is_an_error_with_its_column(tmp_path: Path, value: int, kind: Any) -> None:
    table = pa.table({name: ["a"] for name in REQUIRED} | {"when": pa.array([value], kind)})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="when"):
        Manifest.read(tmp_path / "m.parquet")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    Manifest(rows(), tmp_path).write(path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ManifestError, match="No space left"):
        Manifest(rows(2), tmp_path).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_splits_images_and_columns() -> None:
    manifest = Manifest([row(n, extra={"seconds": n / 2}) for n in range(6)], "corpus")
    assert manifest.splits() == {"train": 4, "test": 2}
    assert [image.clip for image in manifest.images()] == ["0.wav", "2.wav", "4.wav"]
    assert len(manifest.select("test")) == 2
    assert [each.clip for each in manifest.select("test")] == ["4.wav", "5.wav"]
    assert manifest.select("test").root == manifest.root
    assert manifest.column("seconds") == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert manifest.select("test").column("text") == [None, None]
    with pytest.raises(ManifestError, match=r"'tset'.*'test'.*train \(4\)"):
        manifest.select("tset")
    with pytest.raises(ManifestError, match=r"'second'.*'seconds'.*clip, image"):
        manifest.column("second")


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize(("value", "says"), [(None, "empty"), ("", "empty"), (3, "int"), ("\ud800", "Unicode")])
def test_a_bad_required_value_is_named_with_its_row(name: str, value: Any, says: str) -> None:
    message = rejection([row(0), row(1, **{name: value})])
    assert message.startswith("row 2: ")
    assert name in message
    assert says in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", {1: 2}, [object()], {"a": [float("nan")]}])
def test_an_extra_value_that_is_not_json_is_named_with_its_row(value: Any) -> None:
    assert "row 2: x" in rejection([row(0, extra={"x": 1}), row(1, extra={"x": value})])


def test_a_bad_optional_value_is_named_with_its_row() -> None:
    assert "row 1: speaker is int" in rejection([row(0, speaker=7)])


def test_a_clip_twice_is_named_with_both_rows() -> None:
    assert "rows 1 and 3: the same clip 'a/../0.wav'" in rejection([row(0), row(1), row(2, clip="a/../0.wav")])


def test_an_image_in_two_splits_is_a_leak_by_id_and_by_path() -> None:
    assert "rows 1 and 2: image '0.jpg' is in the splits 'train' and 'test'" in rejection(
        [row(0), row(1, split="test")]
    )
    other_id = row(1, split="test", image="./0.jpg", image_id="other")
    assert "rows 1 and 2: image './0.jpg' is in the splits" in rejection([row(0), other_id])
    other_path = row(1, split="test", image="copy.jpg")
    assert "rows 1 and 2: image id 'i0' is in the splits 'train' and 'test'" in rejection([row(0), other_path])


def test_one_image_id_with_two_images_is_named_with_both_rows() -> None:
    assert "rows 1 and 2: image id 'i0' has two images, '0.jpg' and 'x.jpg'" in rejection(
        [row(0), row(1, image="x.jpg")]
    )


def test_a_manifest_without_rows_is_rejected(tmp_path: Path) -> None:
    assert "no rows" in rejection([])
    assert "no rows" in rejection(jsonl(tmp_path / "m.jsonl"))
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in REQUIRED}), tmp_path / "m.parquet")
    assert "no rows" in rejection(tmp_path / "m.parquet")


def test_a_missing_column_names_the_near_one(tmp_path: Path) -> None:
    bad = record()
    bad["imageid"] = bad.pop("image_id")
    for path in (jsonl(tmp_path / "m.jsonl", bad), tmp_path / "m.parquet"):
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([bad]), path)
        assert "no column 'image_id'; rename 'imageid'" in rejection(path)
    del bad["imageid"]
    assert "no column 'image_id'; add it" in rejection(jsonl(tmp_path / "m.jsonl", bad))


def test_a_json_line_with_other_keys_than_the_first_is_named(tmp_path: Path) -> None:
    message = rejection(jsonl(tmp_path / "m.jsonl", record(0, speaker="a"), record(1, speeker="b")))
    assert re.search("row 2 .*'speaker'.*'speeker' .*'speaker'", message)


@pytest.mark.parametrize("line", ["{oops\n", "[1]\n", '"x"\n', "\n", "[" * 100_000 + "\n", "\xff\n"])
def test_a_bad_json_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(f"{json.dumps(record(0))}\n".encode() + line.encode("latin-1") + b"{}\n")
    assert "row 2: " in rejection(path)


def test_byte_order_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    line = json.dumps(record(0, text="a\u2028b"), ensure_ascii=False)
    path.write_bytes(f"\ufeff{line}\r\n".encode())
    assert Manifest.read(path).rows[0].text == "a\u2028b"


def test_files_that_are_not_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense PAR1")
    Manifest(rows(), tmp_path).write(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:200])
    (tmp_path / "dir.jsonl").mkdir()
    assert "cannot be read" in rejection(tmp_path / "bad.parquet")
    assert "cannot be read" in rejection(tmp_path / "cut.parquet")
    assert "is a folder" in rejection(tmp_path / "dir.jsonl")
    assert "no such file" in rejection(tmp_path / "none.jsonl")
    assert "use .parquet or .jsonl" in rejection(tmp_path / "m.csv")
    with pytest.raises(ManifestError, match=r"use \.parquet or \.jsonl"):
        Manifest(rows(), tmp_path).write(tmp_path / "m.csv")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_paths_of_windows_become_paths_of_any_system(tmp_path: Path, suffix: str) -> None:
    columns = {"clip": ["clips\\a.wav", "odd\\name.wav"], "image": ["images\\deep/a.jpg", "C:\\b.jpg"]}
    columns |= {"image_id": ["a\\1", "b"], "split": ["train", "train"]}
    (tmp_path / "odd\\name.wav").touch()  # here the backslash is part of a name
    path = tmp_path / f"windows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text(
            "".join(
                json.dumps(dict(zip(columns, row, strict=False))) + "\n" for row in zip(*columns.values(), strict=True)
            )
        )
    rows = Manifest.read(path).rows
    assert [(row.clip, row.image, row.image_id) for row in rows] == [
        ("clips/a.wav", "images/deep/a.jpg", "a\\1"),
        ("odd\\name.wav", "C:/b.jpg", "b"),
    ]
    Manifest([Row("x\\a.wav", "x\\a.jpg", "a", "train")], tmp_path).write(tmp_path / "new.jsonl")
    assert "\\" not in (tmp_path / "new.jsonl").read_text()


def test_columns_of_other_programs_types_are_decoded(tmp_path: Path) -> None:
    table = pa.table({
        "clip": ["a.wav", "b.wav"],
        "image": pa.array(["a.jpg", "b.jpg"]).cast(pa.string_view()),
        "image_id": pa.array(["a", "b"], pa.large_string()),
        "split": pa.array(["train", "test"]).dictionary_encode(),
        "taken": pa.array([datetime(2024, 6, 1, 12), None], pa.timestamp("ns")),
        "age": pa.array([1.5, float("nan")]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = Manifest.read(tmp_path / "m.parquet")
    assert manifest.splits() == {"train": 1, "test": 1}
    assert [row.extra for row in manifest] == [
        {"taken": "2024-06-01T12:00:00", "age": 1.5},
        {"taken": None, "age": None},
    ]
    pq.write_table(table.append_column("thumbnail", [[b"a", b"b"]]), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"m\.parquet: column 'thumbnail' .*binary"):
        Manifest.read(tmp_path / "m.parquet")


def test_a_missing_split_is_an_error_with_the_option_and_the_splits_there_are() -> None:
    manifest = Manifest([Row("a.wav", "a.jpg", "a", "train"), Row("b.wav", "b.jpg", "b", "val_seen")], ".")
    with pytest.raises(ManifestError, match=r"'val'.*--data\.val_split.*train.*val_seen"):
        manifest.select("val", "--data.val_split")


def test_names_are_found_whether_their_accents_are_composed_or_not(tmp_path: Path) -> None:
    names = {"Übung": "U\u0308bung", "re\u0301sume\u0301": "résumé", "été": "été"}
    for there in names.values():
        (tmp_path / there).mkdir()
        (tmp_path / there / "a.wav").touch()
    rows = [Row(f"{name}/a.wav", f"{name}/none.jpg", name, "train") for name in names]
    manifest = Manifest(rows, tmp_path)
    assert [row.clip for row in manifest] == [f"{there}/a.wav" for there in names.values()]
    assert all(manifest.clip_path(row).is_file() for row in manifest)
    assert [row.image for row in manifest] == [f"{name}/none.jpg" for name in names]


def test_a_column_of_json_that_is_none_is_an_error(tmp_path: Path) -> None:
    table = pa.table({name: [name] for name in ("clip", "image", "image_id", "split")})
    field = pa.field("objects", pa.string(), metadata={b"saysee": b"json"})
    pq.write_table(table.append_column(field, [["{'a': 1}"]]), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"m\.parquet: cannot be read"):
        Manifest.read(tmp_path / "m.parquet")
