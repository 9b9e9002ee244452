from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saysee.data.tables import open_table, plain_column, read_text, role_of, split_name
from saysee.errors import ManifestError


def read(path: Path) -> list[tuple[int, list[Any]]]:
    return [(number, list(values)) for number, values in open_table(path).rows()]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_any_delimiter_and_line_end_is_read_with_the_line_of_each_row(tmp_path: Path, mark: str, end: str) -> None:
    lines = ["clip,image,text", 'a.wav,a.jpg,"in red, near; a\tcar | two', 'lines"', "", "b.wav,b.jpg,", "", ""]
    text = end.join(lines).replace("a.wav,a.jpg,", f"a.wav{mark}a.jpg{mark}").replace("clip,image,", "clip,image,")
    text = text.replace("clip,image,text", mark.join(("clip", "image", "text")))
    text = text.replace("b.wav,b.jpg,", mark.join(("b.wav", "b.jpg", "")))
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert open_table(tmp_path / "t.csv").titles == ("clip", "image", "text")
    words = f"in red, near; a\tcar | two{end}lines"
    assert read(tmp_path / "t.csv") == [(2, ["a.wav", "a.jpg", words]), (5, ["b.wav", "b.jpg", None])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_an_encoding_is_recognized_and_a_guess_is_noted(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes("sep=;\r\nclip;image\r\né.wav;ü.jpg\r\n".encode(encoding))
    table = open_table(tmp_path / "t.csv")
    assert (table.titles, list(table.rows())) == (("clip", "image"), [(3, ["é.wav", "ü.jpg"])])
    assert any("1252" in note for note in table.notes) == (encoding == "cp1252")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"clip,image\n\x81.wav,a.jpg\n", b"\xff\xfea"])
def test_what_is_not_text_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ManifestError, match=r"t\.csv: "):
        read_text(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("clip,image,text\ndog.wav,dog.jpg,a man, in red, near a car\n", 2),
        ('clip;image;text\na.wav;a.jpg;"two\nlines"\nb.wav;b.jpg\n', 4),
        ('clip\timage\na.wav\ta.jpg\nb.wav\t"b.jpg\nc.wav\tc.jpg\n', 3),
        ('clip,image\n"a"b.wav,a.jpg\n', 2),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(ManifestError, match=rf"t\.tsv: line {line}: "):
        read(tmp_path / "t.tsv")


def test_json_lines_may_omit_keys_but_not_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"file_name": "a.wav", "age": 3}\r\n\n{"file_name": "b.wav", "boxes": [{"x": NaN}]}\n'
    )
    assert open_table(path).titles == ("file_name", "age", "boxes")
    assert read(path) == [(1, ["a.wav", 3, None]), (3, ["b.wav", None, [{"x": None}]])]
    path.write_bytes(path.read_bytes() + b'{"file_name": "c')
    with pytest.raises(ManifestError, match=r"metadata\.jsonl: line 4: "):
        read(path)


def test_every_type_of_arrow_that_json_has_is_decoded(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 6, 1, 12)
    columns = {
        "split": pa.array(["train", "test"]).dictionary_encode(),
        "text": pa.array(["é", None]).cast(pa.string_view()),
        "speaker": pa.array([1, 2**63], pa.uint64()),
        "language": pa.array(["en", "de"], pa.large_string()),
        "taken": pa.array([day, None], pa.timestamp("ns")),
        "zone": pa.array([day, day], pa.timestamp("ms", "UTC")),
        "day": pa.array([day.date(), None]),
        "price": pa.array([decimal.Decimal("1.10"), None]),
        "tags": pa.array([["a"], []], pa.large_list(pa.string())),
        "box": pa.array([{"x": 1.5}, None]),
        "good": pa.array([True, None]),
        "nothing": pa.nulls(2),
        "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None])),
    }
    pq.write_table(pa.table(columns | {"thumbnail": [b"x", b"y"]}), tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    assert table.titles == tuple(columns)
    assert [note for note in table.notes if "'thumbnail'" in note and "binary" in note]
    rows = [dict(zip(table.titles, values, strict=True)) for _, values in table.rows()]
    first = {"split": "train", "text": "é", "speaker": 1, "language": "en", "taken": "2024-06-01T12:00:00"}
    assert rows[0] == first | {
        "zone": "2024-06-01T12:00:00+00:00", "day": "2024-06-01", "price": "1.10", "tags": ["a"], "box": {"x": 1.5},
        "good": True, "nothing": None, "json": '{"a": 1}',
    }  # fmt: skip
    assert (rows[1]["split"], rows[1]["speaker"], rows[1]["taken"]) == ("test", 2**63, None)


def test_a_role_of_a_type_that_is_not_read_is_an_error_with_its_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"clip": ["a"], "image": ["b"], "Speaker ID": [b"s"]}), tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    assert table.columns()[0] == {"clip": 0, "image": 1, "speaker": 2}
    with pytest.raises(ManifestError, match=r"t\.parquet: column 'Speaker ID' .*binary"):
        list(table.rows())


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array(["a", "b", "a"]).cast(pa.string_view()),
        pa.array(["a", "b", "a"]).cast(pa.string_view()).cast(pa.large_string()),
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), pa.array(["a", "b", "a"])),
    ],
)
def test_a_column_becomes_plain(array: pa.Array) -> None:
    plain = plain_column(pa.chunked_array([array]))
    assert plain.to_pylist() == ["a", "b", "a"]
    assert pa.types.is_string(plain.type) or pa.types.is_large_string(plain.type)


def test_titles_are_compared_without_case_and_separators() -> None:
    titles = {
        "clip": ("Audio", "audio_path", "WAV", "audio file", "clip-file-name"),
        "image": ("image_file_name", "Image Path", "img", "image"),
        "image_id": ("imageID", "image-id"),
        "speaker": ("Speaker ID", "speaker", "speaker_id"),
        "file": ("file_name", "File Name", "path"),
    }
    assert {role: {role_of(title) for title in some} for role, some in titles.items()} == {r: {r} for r in titles}
    assert {role_of(title) for title in ("age", "text_path", "", "id")} == {None}


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "Training", " TRAIN"), "train"),
        (("dev", "valid", "validation", "Validation", "val"), "val"),
        (("test", "testing"), "test"),
        (("dev_seen", "val_seen", "validation-seen"), "val_seen"),
        (("test_unseen",), "test_unseen"),
        (("restval",), "restval"),
    ],
)
def test_splits_of_corpora_have_one_name(names: tuple[str, ...], split: str) -> None:
    assert {split_name(name) for name in names} == {split}


def test_of_two_columns_for_a_role_the_usual_title_is_taken_and_noted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("caption,text,clip,image\na,b,c,d\n")
    columns, notes = open_table(tmp_path / "t.csv").columns()
    assert columns == {"text": 1, "clip": 2, "image": 3}
    assert len(notes) == 1
    assert "'text'" in notes[0]
    assert "'caption'" in notes[0]
    (tmp_path / "t.csv").write_text("clip,image,age,age\na,b,1,2\n")
    with pytest.raises(ManifestError, match="2 columns 'age'"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize("depth", [700, 5_000])
def test_a_value_that_is_nested_too_deeply_is_an_error_with_its_line(tmp_path: Path, depth: int) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"x": 1}}\n{{"x": {"[" * depth}{"]" * depth}}}\n')
    with pytest.raises(ManifestError, match="line 2"):
        read(tmp_path / "t.jsonl")
