"""Your own folder: paired in three ways, each image in one split, with the same result every time."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saysee.data.corpora.folder import prepare_folder
from saysee.data.manifest import Manifest
from saysee.data.verify import verify
from saysee.errors import ConfigError, ManifestError, SaySeeError


def pairs(manifest: Path) -> set[tuple[str, str]]:
    read = Manifest.read(manifest)
    assert verify(read, workers=1) == []
    return {(row.clip, row.image) for row in read}


def nfc(names: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(unicodedata.normalize("NFC", clip), unicodedata.normalize("NFC", image)) for clip, image in names}


STEM_LAYOUTS = {
    "one folder": [("dog.wav", "dog.jpg"), ("dog_2.wav", "dog.jpg"), ("a lake, été-1.flac", "a lake, été.JPEG")],
    "two folders": [("audio/dog.WAV", "images/dog.png"), ("audio/sub/cat 3.mp3.wav", "images/cat 3.mp3.jpg")],
    "folders alike": [
        ("audio/a/1.wav", "images/a/1.jpg"),
        ("audio/b/1.wav", "images/b/1.jpg"),
        ("audio/b/1_2.wav", "images/b/1.jpg"),
    ],
    "numbers that belong to the stem": [("scene_1.wav", "scene_1.jpg"), ("scene.wav", "scene.jpg")],
}


@pytest.mark.parametrize("layout", STEM_LAYOUTS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_equal_stems_pair_in_every_layout(tmp_path: Path, files: Any, layout: str, form: Any) -> None:
    for clip, image in STEM_LAYOUTS[layout]:
        files.clip(tmp_path / clip)
        files.image(tmp_path / unicodedata.normalize(form, image))
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl")
    assert nfc(pairs(prepared.manifest)) == set(STEM_LAYOUTS[layout])
    count = len(STEM_LAYOUTS[layout])
    assert prepared.notes[0] == f"paired by equal stems: {count} of {count} clips"
    assert set(Manifest.read(prepared.manifest).column("language")) == {None}


def test_a_clip_that_fits_two_images_is_rejected(tmp_path: Path, files: Any) -> None:
    for name in ("a/1.jpg", "b/1.jpg"):
        files.image(tmp_path / name)
    files.clip(tmp_path / "c" / "1.wav")
    with pytest.raises(ManifestError, match=r"'c/1\.wav' fits two images, 'a/1\.jpg' and 'b/1\.jpg'"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")


def test_defects_are_counted_skipped_and_reported(tmp_path: Path, files: Any) -> None:
    for name in ("one", "two", "three"):
        files.image(tmp_path / f"{name}.jpg")
    files.clip(tmp_path / "one.wav", rate=8_000)
    files.clip(tmp_path / "alone.wav")
    (tmp_path / "two.wav").write_bytes(b"")
    with pytest.raises(SaySeeError, match=r"\(the image of alone\.wav\), 1 empty clip \(two\.wav\).*-missing 2"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl", allow_missing=2)
    assert pairs(prepared.manifest) == {("one.wav", "one.jpg")}
    # No clip describes it: nothing is missing, so it is reported and not counted.
    assert prepared.problems.extra == {"clips": [], "images": ["three.jpg"]}


@pytest.mark.parametrize("suffixes", [(".wav", ".jpg"), (".WAV", ".JPG"), (".flac", ".jpeg")])
def test_sub_folders_with_one_image_pair(tmp_path: Path, files: Any, suffixes: tuple[str, str]) -> None:
    clip_suffix, image_suffix = suffixes
    expected = set()
    for folder in ("été 1", "deep/er/two"):
        files.image(tmp_path / folder / f"photo{image_suffix}")
        for name in ("anna", "ben"):
            files.clip(tmp_path / folder / f"{name}{clip_suffix}")
            expected.add((f"{folder}/{name}{clip_suffix}", f"{folder}/photo{image_suffix}"))
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl")
    assert pairs(prepared.manifest) == expected
    assert prepared.notes[0] == "paired by sub-folder: 4 of 4 clips"


def test_the_pairing_can_be_chosen(tmp_path: Path, files: Any) -> None:
    files.image(tmp_path / "a" / "dog.jpg")
    files.clip(tmp_path / "a" / "dog.wav")
    files.clip(tmp_path / "a" / "anna.wav")
    auto = prepare_folder(tmp_path, tmp_path / "m.jsonl")
    assert "sub-folder: 2 of 2" in auto.notes[0]
    by_stem = prepare_folder(tmp_path, tmp_path / "m.jsonl", pair_by="stem", allow_missing=1)
    assert pairs(by_stem.manifest) == {("a/dog.wav", "a/dog.jpg")}


TABLES = {
    "commas": (
        "clip,image,text,speaker,split,language\n{a},{x},one dog,s1,train,de\n{b},{x},,s2,train,\n{c},{y},é,,test,fr\n"
    ),
    "semicolons": (
        "Speaker;Audio Path;Image_File;Caption;SPLIT;Lang\n"
        "s1;{a};{x};one dog;train;de\n\ns2;{b};{x};;train;\n;{c};{y};é;test;fr\n"
    ),
    "tabs and backslashes": (
        "wav\tpicture\ttranscript\tspeaker\tsplit\tlanguage\n"
        "{aw}\t{x}\tone dog\ts1\ttrain\tde\n{b}\t{x}\t\ts2\ttrain\t\n{c}\t{y}\té\t\ttest\tfr\n"
    ),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("windows", [False, True])
def test_a_table_pairs_in_any_format(tmp_path: Path, files: Any, name: str, windows: bool) -> None:
    a, b, c, x, y = "clips/a 1.wav", "b.wav", "clips/c é.wav", "photos/x.jpg", "y.jpg"
    for path in (tmp_path / a, tmp_path / "clips" / b, tmp_path / c):
        files.clip(path)
    for path in (tmp_path / x, tmp_path / "photos" / y):
        files.image(path)
    files.text(tmp_path / "clips" / "b.txt", "from a\nfile\n", windows=windows)
    table = TABLES[name].format(a=a, aw=a.replace("/", "\\"), b=b, c=c, x=x, y=y)
    files.text(tmp_path / "pairs.csv", table, windows=windows)
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl", language="en")
    rows = Manifest.read(prepared.manifest).rows
    assert [(row.clip, row.image, row.split, row.text, row.speaker, row.language) for row in rows] == [
        (a, x, "train", "one dog", "s1", "de"),
        ("clips/b.wav", x, "train", "from a file", "s2", "en"),
        (c, "photos/y.jpg", "test", "é", None, "fr"),
    ]
    assert prepared.notes[0] == f"paired by the table {tmp_path / 'pairs.csv'}"


def test_a_row_whose_files_do_not_exist_counts_as_missing(tmp_path: Path, files: Any) -> None:
    files.clip(tmp_path / "a.wav")
    files.image(tmp_path / "a.jpg")
    files.clip(tmp_path / "extra.wav")
    files.text(tmp_path / "table.tsv", "clip\timage\na.wav\ta.jpg\nb.wav\ta.jpg\n")
    with pytest.raises(SaySeeError, match=r"1 missing clip \(b\.wav\)"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl", allow_missing=1)
    assert prepared.problems.extra["clips"] == ["extra.wav"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("audio file,who\na.wav,b\n", r"table\.csv: .*'clip'.*'image'"),
        ("clip,image\n", "no rows"),
        ("clip,image\na.wav,a.jpg\na.wav,\n", "line 3 "),
        ("clip,image,split\na.wav,a.jpg,train\nb.wav,b.jpg,\n", "line 3: "),
        ("clip,image,split\na.wav,a.jpg,train\nb.wav,a.jpg,test\n", "'train' and 'test'"),
    ],
)
def test_a_table_that_cannot_be_used_is_rejected(tmp_path: Path, files: Any, table: str, message: str) -> None:
    for name in "ab":
        files.clip(tmp_path / f"{name}.wav")
        files.image(tmp_path / f"{name}.jpg")
    path = files.text(tmp_path / "lists" / "table.csv", table)
    with pytest.raises(ManifestError, match=message):
        prepare_folder(tmp_path, tmp_path / "m.jsonl", table=path)


@pytest.fixture
def pets(tmp_path: Path, files: Any) -> Path:
    """Three clips and three images whose stems pair dog with dog; tables pair dog with cat."""
    for name in ("dog", "cat", "bird"):
        files.clip(tmp_path / "pets" / f"{name}.wav")
        files.image(tmp_path / "pets" / f"{name}.jpg")
    return tmp_path / "pets"


def rows_of(folder: Path, **settings: Any) -> tuple[list[Any], tuple[str, ...]]:
    prepared = prepare_folder(folder, folder.parent / "m.jsonl", **settings)
    return list(Manifest.read(prepared.manifest)), prepared.notes


AUDIO_FOLDER = [
    ("metadata.csv", "file_name,image,Speaker ID,age\ndog.wav,cat.jpg,7,34\nbird.wav,bird.jpg,,\n", "34"),
    (
        "metadata.csv",
        "sep=;\r\nage;image_file_name;file_name;SPEAKER\r\n34;cat.jpg;./dog.wav;7\r\n;bird.jpg;bird.wav;\r\n",
        "34",
    ),
    (
        "metadata.jsonl",
        '{"file_name": "cat.jpg", "audio": "dog.wav", "speaker-id": 7, "age": [34]}\n'
        '{"file_name": "bird.jpg", "audio": "bird.wav"}\n',
        [34],
    ),
]


@pytest.mark.parametrize(("name", "table", "age"), AUDIO_FOLDER)
def test_the_form_of_audio_folder_and_image_folder_is_read(pets: Path, name: str, table: str, age: Any) -> None:
    (pets / name).write_text(table, newline="")
    rows, notes = rows_of(pets)
    assert [(row.clip, row.image) for row in rows] == [
        ("pets/dog.wav", "pets/cat.jpg"),
        ("pets/bird.wav", "pets/bird.jpg"),
    ]
    assert [row.speaker for row in rows] == ["7", None]
    assert [row.extra for row in rows] == [{"age": age}, {"age": None}]
    assert any("age" in note for note in notes)


def test_a_parquet_table_with_categories_is_read(pets: Path) -> None:
    columns = {"file_name": ["dog.wav", "cat.wav"], "image": pa.array(["cat.jpg", "bird.jpg"]).cast(pa.string_view())}
    columns |= {name: pa.array(["train", "dev"]).dictionary_encode() for name in ("split", "speaker", "language")}
    pq.write_table(pa.table(columns | {"seconds": [0.1, None], "raw": [b"x", b"y"]}), pets / "metadata.parquet")
    rows, notes = rows_of(pets)
    assert [(row.split, row.speaker, row.language) for row in rows] == [("train",) * 3, ("val", "dev", "dev")]
    assert [row.extra for row in rows] == [{"seconds": 0.1}, {"seconds": None}]
    assert any("'raw'" in note for note in notes)
    assert any("dev → val" in note for note in notes)


def test_metadata_of_several_folders_is_one_table_whose_folders_are_splits(pets: Path, files: Any) -> None:
    for split, name in (("train", "a"), ("validation", "b")):
        files.clip(pets / split / f"{name}.wav")
        files.text(
            pets / split / "metadata.csv",
            f"file_name,image,{name}\n{name}.wav,../dog.jpg,1\n".replace("dog", {"a": "dog", "b": "cat"}[name]),
        )
    rows, _ = rows_of(pets)
    assert [(row.clip, row.image, row.split) for row in rows] == [
        ("pets/train/a.wav", "pets/dog.jpg", "train"),
        ("pets/validation/b.wav", "pets/cat.jpg", "val"),
    ]
    assert [row.extra for row in rows] == [{"a": "1", "b": None}, {"a": None, "b": "1"}]


def test_of_several_tables_all_or_none_have_splits(pets: Path, files: Any) -> None:
    for folder, columns, end in (("x", "file_name,image", ""), ("y", "file_name,image,split", ",test")):
        files.clip(pets / folder / f"{folder}.wav")
        files.text(pets / folder / "metadata.csv", f"{columns}\n{folder}.wav,../dog.jpg{end}\n")
    with pytest.raises(ManifestError, match="split"):
        rows_of(pets)


@pytest.mark.parametrize("data", ["prix;é\n1;2\n".encode("cp1252"), b"PK\x03\x04\0\0\x81", b"", b"clip\ndog.wav\n"])
def test_a_table_of_something_else_is_reported_unless_it_was_named(pets: Path, data: bytes) -> None:
    (pets / "other.csv").write_bytes(data)
    rows, notes = rows_of(pets)
    assert len(rows) == 3
    assert [note for note in notes if "other.csv: " in note]
    with pytest.raises(ManifestError, match=r"other\.csv: "):
        rows_of(pets, table=pets / "other.csv")
    (pets / "pairs.csv").write_bytes("image,clip,text\ncat.jpg,dog.wav,é\n".encode("cp1252"))
    rows, notes = rows_of(pets)
    assert [(row.clip, row.text) for row in rows] == [("pets/dog.wav", "é")]
    assert [note for note in notes if "pairs.csv: " in note]
    assert [note for note in notes if "other.csv: " in note]


@pytest.mark.parametrize(
    "form", ["{pets}/{name}", "file://{pets}/{name}", "../pets/{name}", "./{name}", "x/../{name}", "{far}"]
)
def test_paths_of_a_table_start_from_its_folder_or_are_absolute(pets: Path, files: Any, form: str) -> None:
    far = files.clip(pets.parent / "elsewhere" / "dog.wav")
    clip = form.format(pets=pets, name="dog.wav", far=far)
    (pets / "pairs.csv").write_text(f"clip,image\n{clip},cat.jpg\n")
    rows, _ = rows_of(pets)
    assert [row.clip for row in rows] == ["elsewhere/dog.wav" if form == "{far}" else "pets/dog.wav"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("clip,image,text\ndog.wav,dog.jpg,a man, in red, near a car\n", "line 2: 5 cells"),
        ('clip;image;text\ndog.wav;dog.jpg;"two\nlines"\ncat.wav;cat.jpg\n', "line 4: 2 cells"),
        ("clip,image,seconds\ndog.wav,dog.jpg,short\n", "line 2: seconds is 'short'"),
        ("clip,image,seconds\ndog.wav,dog.jpg,0.5\ncat.wav,cat.jpg,-1\n", "line 3: seconds is '-1'"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error_with_its_line(pets: Path, table: str, message: str) -> None:
    (pets / "pairs.csv").write_text(table)
    with pytest.raises(ManifestError, match=message):
        rows_of(pets)


def test_a_damaged_table_of_pairs_is_an_error_and_not_ignored(pets: Path) -> None:
    (pets / "metadata.jsonl").write_text('{"clip": "dog.wav", "image": "cat.jpg"}\n{"clip": "ca')
    with pytest.raises(ManifestError, match=r"metadata\.jsonl: line 2: "):
        rows_of(pets)


def test_a_role_that_cannot_be_read_is_an_error_with_its_column(pets: Path) -> None:
    media = pa.array([{"bytes": b"x", "path": "dog.wav"}])
    pq.write_table(pa.table({"audio": media, "image": ["cat.jpg"]}), pets / "metadata.parquet")
    with pytest.raises(ManifestError, match=r"metadata\.parquet: column 'audio' .*struct"):
        rows_of(pets)
    (pets / "metadata.parquet").unlink()
    (pets / "metadata.jsonl").write_text('{"file_name": "dog.wav", "image": "cat.jpg", "Split": ["train"]}\n')
    with pytest.raises(ManifestError, match=r"metadata\.jsonl: line 1: column 'Split'"):
        rows_of(pets)


def test_a_text_file_in_another_encoding_is_read_or_reported(pets: Path) -> None:
    (pets / "dog.txt").write_bytes("é".encode("cp1252"))
    (pets / "cat.txt").write_bytes(b"\x81\x8d")
    rows, notes = rows_of(pets)
    assert {row.clip: row.text for row in rows} == {"pets/dog.wav": "é", "pets/cat.wav": None, "pets/bird.wav": None}
    assert [[name for name in ("dog.txt", "cat.txt") if any(name in note for note in notes)]] == [
        ["dog.txt", "cat.txt"]
    ]


def test_two_tables_are_rejected(tmp_path: Path, files: Any) -> None:
    files.clip(tmp_path / "a.wav")
    files.image(tmp_path / "a.jpg")
    for name in ("one.csv", "two.csv"):
        files.text(tmp_path / name, "clip,image\na.wav,a.jpg\n")
    files.text(tmp_path / "notes.csv", "this,is\nno,table\n")
    with pytest.raises(ManifestError, match=r"one\.csv and two\.csv; .*--csv"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "two.csv").unlink()
    assert "one.csv" in prepare_folder(tmp_path, tmp_path / "m.jsonl").notes[0]


def test_a_text_file_is_never_used_for_another_clip(tmp_path: Path, files: Any) -> None:
    for folder in ("a", "b"):
        files.image(tmp_path / folder / "1.jpg")
        files.clip(tmp_path / folder / "1.wav")
    files.image(tmp_path / "c.jpg")
    files.clip(tmp_path / "c.wav")
    files.text(tmp_path / "a" / "1.txt", "of a")
    files.text(tmp_path / "texts" / "C.TXT", "of c")
    manifest = Manifest.read(prepare_folder(tmp_path, tmp_path / "m.jsonl").manifest)
    assert {row.clip: row.text for row in manifest} == {"a/1.wav": "of a", "b/1.wav": None, "c.wav": "of c"}


def many(files: Any, folder: Path, count: int) -> None:
    for number in range(count):
        files.image(folder / f"{number:03}.jpg")
        for clip in range(2):
            (folder / f"{number:03}_{clip}.wav").write_bytes(b"audio")


def test_each_image_is_in_one_split_of_about_the_share(tmp_path: Path, files: Any) -> None:
    many(files, tmp_path, 200)
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl", val_share=0.2, test_share=0.3)
    rows = Manifest.read(prepared.manifest).rows
    splits = {row.image_id: row.split for row in rows}
    assert all(row.split == splits[row.image_id] for row in rows)
    shares = Counter(splits.values())
    assert 25 <= shares["val"] <= 55
    assert 42 <= shares["test"] <= 78
    assert shares["train"] == 200 - shares["val"] - shares["test"]


def test_new_images_move_none_to_another_split_but_another_seed_does(tmp_path: Path, files: Any) -> None:
    def splits(seed: int = 0) -> dict[str, str]:
        prepared = prepare_folder(tmp_path / "f", tmp_path / "m.jsonl", seed=seed)
        return {row.image_id: row.split for row in Manifest.read(prepared.manifest)}

    many(files, tmp_path / "f", 40)
    before = splits()
    assert splits(seed=1) != before
    many(files, tmp_path / "f", 60)
    after = splits()
    assert len(after) == 60
    assert {image_id: after[image_id] for image_id in before} == before


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)])
def test_shares_that_leave_no_training_are_rejected(tmp_path: Path, shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="--val-share"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl", val_share=shares[0], test_share=shares[1])


def test_files_that_cannot_be_paired_are_rejected(tmp_path: Path, files: Any) -> None:
    with pytest.raises(SaySeeError, match="no audio file"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    files.clip(tmp_path / "one.wav")
    with pytest.raises(SaySeeError, match="no image"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    files.image(tmp_path / "two.jpg")
    with pytest.raises(SaySeeError, match="by equal stems or sub-folder"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(SaySeeError, match="--csv"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl", pair_by="csv")
    with pytest.raises(ConfigError, match=r"--csv .*--pair-by stem"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl", pair_by="stem", table="t.csv")


def test_paths_are_relative_to_the_manifests_folder_even_through_a_link(tmp_path: Path, files: Any) -> None:
    files.clip(tmp_path / "data" / "one.wav")
    files.image(tmp_path / "data" / "one.jpg")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    beside = Manifest.read(prepare_folder(tmp_path / "data", tmp_path / "lists" / "m.jsonl").manifest)
    assert beside.rows[0].clip == "../data/one.wav"
    linked = Manifest.read(prepare_folder(tmp_path / "data", tmp_path / "link" / "m.jsonl").manifest)
    assert linked.rows[0].clip == "../../data/one.wav"
    assert linked.clip_path(linked.rows[0]).is_file()


def test_names_of_a_table_and_a_folder_compare_in_nfc(tmp_path: Path, files: Any) -> None:
    composed, decomposed = "Übung", "U\u0308bung"
    files.clip(tmp_path / "pets" / decomposed / "a.wav")
    files.clip(tmp_path / "pets" / "b.wav")
    files.image(tmp_path / "pets" / decomposed / "dog.jpg")
    files.text(
        tmp_path / "pets" / "pairs.csv",
        f"clip,image\n{composed}/a.wav,{composed}/dog.jpg\nb.wav,{decomposed}/dog.jpg\n",
    )
    rows, _ = rows_of(tmp_path / "pets")
    assert [row.image for row in rows] == [f"pets/{decomposed}/dog.jpg"] * 2
    assert {row.image_id for row in rows} == {f"{composed}/dog.jpg"}


def test_a_parquet_table_that_is_not_named_is_reported(tmp_path: Path, files: Any) -> None:
    files.clip(tmp_path / "data" / "a.wav")
    files.image(tmp_path / "data" / "a.png")
    pq.write_table(pa.table({"clip": ["a.wav"], "image": ["a.png"]}), tmp_path / "data" / "pairs.parquet")
    prepared = prepare_folder(tmp_path / "data", tmp_path / "m.jsonl")
    assert any("pairs.parquet" in note and "--csv" in note for note in prepared.notes)
