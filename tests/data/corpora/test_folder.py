"""A folder of one's own: paired in three ways, each picture in one split, the same whenever it is done."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from saysee.data.corpora.folder import FolderSettings, prepare_folder
from saysee.data.manifest import Manifest
from saysee.data.verify import verify
from saysee.errors import ConfigError, ManifestError, SaySeeError


def pairs(manifest: Path) -> set[tuple[str, str]]:
    read = Manifest.read(manifest)
    assert verify(read, workers=1) == []
    return {(row.clip, row.image) for row in read}


def nfc(names: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(unicodedata.normalize("NFC", clip), unicodedata.normalize("NFC", image)) for clip, image in names}


# --- by stem ----------------------------------------------------------------------------------------------------------

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
        files.sound(tmp_path / clip)
        files.picture(tmp_path / unicodedata.normalize(form, image))
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl")
    assert nfc(pairs(prepared.manifest)) == set(STEM_LAYOUTS[layout])
    count = len(STEM_LAYOUTS[layout])
    assert prepared.notes[0] == f"paired by equal stems: {count} of {count} clips"
    assert set(Manifest.read(prepared.manifest).column("language")) == {None}


def test_a_clip_that_fits_two_pictures_is_refused(tmp_path: Path, files: Any) -> None:
    for name in ("a/1.jpg", "b/1.jpg"):
        files.picture(tmp_path / name)
    files.sound(tmp_path / "c" / "1.wav")
    with pytest.raises(ManifestError, match=r"'c/1\.wav' fits two pictures, 'a/1\.jpg' and 'b/1\.jpg'"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")


def test_defects_are_counted_left_out_and_told(tmp_path: Path, files: Any) -> None:
    for name in ("one", "two", "three"):
        files.picture(tmp_path / f"{name}.jpg")
    files.sound(tmp_path / "one.wav", rate=8_000)
    files.sound(tmp_path / "alone.wav")
    (tmp_path / "two.wav").write_bytes(b"")
    with pytest.raises(SaySeeError, match=r"\(the picture of alone\.wav\), 1 empty clip \(two\.wav\).*-missing 2"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl", allow_missing=2)
    assert pairs(prepared.manifest) == {("one.wav", "one.jpg")}
    # Nobody spoke of it: nothing is lost, so it is told and not counted.
    assert prepared.problems.extra == {"clips": [], "images": ["three.jpg"]}


# --- by sub-folder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffixes", [(".wav", ".jpg"), (".WAV", ".JPG"), (".flac", ".jpeg")])
def test_sub_folders_with_one_picture_pair(tmp_path: Path, files: Any, suffixes: tuple[str, str]) -> None:
    sound, picture = suffixes
    expected = set()
    for folder in ("été 1", "deep/er/two"):
        files.picture(tmp_path / folder / f"photo{picture}")
        for name in ("anna", "ben"):
            files.sound(tmp_path / folder / f"{name}{sound}")
            expected.add((f"{folder}/{name}{sound}", f"{folder}/photo{picture}"))
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl")
    assert pairs(prepared.manifest) == expected
    assert prepared.notes[0] == "paired by sub-folder: 4 of 4 clips"


def test_the_way_can_be_chosen(tmp_path: Path, files: Any) -> None:
    files.picture(tmp_path / "a" / "dog.jpg")
    files.sound(tmp_path / "a" / "dog.wav")
    files.sound(tmp_path / "a" / "anna.wav")
    auto = prepare_folder(tmp_path, tmp_path / "m.jsonl")
    assert "sub-folder: 2 of 2" in auto.notes[0]
    by_stem = prepare_folder(tmp_path, tmp_path / "m.jsonl", FolderSettings(pair_by="stem"), allow_missing=1)
    assert pairs(by_stem.manifest) == {("a/dog.wav", "a/dog.jpg")}


# --- by table ---------------------------------------------------------------------------------------------------------

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
        "{aw}\t{x}\tone dog\ts1\ttrain\tde\n{b}\t{x}\t\ts2\ttrain\n{c}\t{y}\té\t\ttest\tfr\n"
    ),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("windows", [False, True])
def test_a_table_pairs_whatever_its_form(tmp_path: Path, files: Any, name: str, windows: bool) -> None:
    a, b, c, x, y = "sounds/a 1.wav", "b.wav", "sounds/c é.wav", "pictures/x.jpg", "y.jpg"
    for path in (tmp_path / a, tmp_path / "sounds" / b, tmp_path / c):
        files.sound(path)
    for path in (tmp_path / x, tmp_path / "pictures" / y):
        files.picture(path)
    files.text(tmp_path / "sounds" / "b.txt", "from a\nfile\n", windows=windows)
    table = TABLES[name].format(a=a, aw=a.replace("/", "\\"), b=b, c=c, x=x, y=y)
    files.text(tmp_path / "pairs.csv", table, windows=windows)
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl", FolderSettings(language="en"))
    rows = Manifest.read(prepared.manifest).rows
    assert [(row.clip, row.image, row.split, row.text, row.speaker, row.language) for row in rows] == [
        (a, x, "train", "one dog", "s1", "de"),
        ("sounds/b.wav", x, "train", "from a file", "s2", "en"),
        (c, "pictures/y.jpg", "test", "é", None, "fr"),
    ]
    assert prepared.notes[0] == f"paired by the table {tmp_path / 'pairs.csv'}"


def test_a_row_whose_files_are_gone_counts_as_missing(tmp_path: Path, files: Any) -> None:
    files.sound(tmp_path / "a.wav")
    files.picture(tmp_path / "a.jpg")
    files.sound(tmp_path / "extra.wav")
    files.text(tmp_path / "table.tsv", "clip\timage\na.wav\ta.jpg\nb.wav\ta.jpg\n")
    with pytest.raises(SaySeeError, match=r"1 missing clip \(b\.wav\)"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    prepared = prepare_folder(tmp_path, tmp_path / "m.jsonl", allow_missing=1)
    assert prepared.problems.extra["clips"] == ["extra.wav"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("sound file,who\na.wav,b\n", "needs one 'clip' and one 'image'"),
        ("clip,image\n", "no rows"),
        ("clip,image\na.wav,a.jpg\na.wav,\n", "line 3 has no clip or no image"),
        ("clip,image,split\na.wav,a.jpg,train\nb.wav,b.jpg,\n", "line 3: some rows have a split"),
        ("clip,image,split\na.wav,a.jpg,train\nb.wav,a.jpg,test\n", "in the splits 'train' and 'test'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, files: Any, table: str, told: str) -> None:
    for name in "ab":
        files.sound(tmp_path / f"{name}.wav")
        files.picture(tmp_path / f"{name}.jpg")
    path = files.text(tmp_path / "lists" / "table.csv", table)
    with pytest.raises(ManifestError, match=told):
        prepare_folder(tmp_path, tmp_path / "m.jsonl", FolderSettings(table=path))


def test_two_tables_are_refused(tmp_path: Path, files: Any) -> None:
    files.sound(tmp_path / "a.wav")
    files.picture(tmp_path / "a.jpg")
    for name in ("one.csv", "two.csv"):
        files.text(tmp_path / name, "clip,image\na.wav,a.jpg\n")
    files.text(tmp_path / "notes.csv", "this,is\nno,table\n")
    with pytest.raises(ManifestError, match=r"one\.csv and two\.csv; name one by --csv"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "two.csv").unlink()
    assert "one.csv" in prepare_folder(tmp_path, tmp_path / "m.jsonl").notes[0]


# --- texts and splits -------------------------------------------------------------------------------------------------


def test_a_text_file_is_never_taken_for_another_clip(tmp_path: Path, files: Any) -> None:
    for folder in ("a", "b"):
        files.picture(tmp_path / folder / "1.jpg")
        files.sound(tmp_path / folder / "1.wav")
    files.picture(tmp_path / "c.jpg")
    files.sound(tmp_path / "c.wav")
    files.text(tmp_path / "a" / "1.txt", "of a")
    files.text(tmp_path / "texts" / "C.TXT", "of c")
    manifest = Manifest.read(prepare_folder(tmp_path, tmp_path / "m.jsonl").manifest)
    assert {row.clip: row.text for row in manifest} == {"a/1.wav": "of a", "b/1.wav": None, "c.wav": "of c"}


def many(files: Any, folder: Path, count: int) -> None:
    for number in range(count):
        files.picture(folder / f"{number:03}.jpg")
        for clip in range(2):
            (folder / f"{number:03}_{clip}.wav").write_bytes(b"a sound")


def test_each_picture_lies_in_one_split_of_about_the_share(tmp_path: Path, files: Any) -> None:
    many(files, tmp_path, 200)
    settings = FolderSettings(val_share=0.2, test_share=0.3)
    rows = Manifest.read(prepare_folder(tmp_path, tmp_path / "m.jsonl", settings).manifest).rows
    splits = {row.image_id: row.split for row in rows}
    assert all(row.split == splits[row.image_id] for row in rows)
    shares = Counter(splits.values())
    assert 25 <= shares["val"] <= 55
    assert 42 <= shares["test"] <= 78
    assert shares["train"] == 200 - shares["val"] - shares["test"]


def test_new_pictures_move_none_to_another_split_and_another_seed_does(tmp_path: Path, files: Any) -> None:
    def splits(seed: int = 0) -> dict[str, str]:
        prepared = prepare_folder(tmp_path / "f", tmp_path / "m.jsonl", FolderSettings(seed=seed))
        return {row.image_id: row.split for row in Manifest.read(prepared.manifest)}

    many(files, tmp_path / "f", 40)
    before = splits()
    assert splits(seed=1) != before
    many(files, tmp_path / "f", 60)
    after = splits()
    assert len(after) == 60
    assert {image_id: after[image_id] for image_id in before} == before


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)])
def test_shares_that_leave_no_training_are_refused(tmp_path: Path, shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="--val-share"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl", FolderSettings(val_share=shares[0], test_share=shares[1]))


def test_what_cannot_be_paired_is_refused(tmp_path: Path, files: Any) -> None:
    with pytest.raises(SaySeeError, match="no sound in it"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    files.sound(tmp_path / "one.wav")
    with pytest.raises(SaySeeError, match="no picture in it"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    files.picture(tmp_path / "two.jpg")
    with pytest.raises(SaySeeError, match="by equal stems or sub-folder"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(SaySeeError, match="--csv"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl", FolderSettings(pair_by="csv"))
    with pytest.raises(ConfigError, match="--csv does not go with --pair-by stem"):
        prepare_folder(tmp_path, tmp_path / "m.jsonl", FolderSettings(pair_by="stem", table="t.csv"))


# --- where the manifest lies ------------------------------------------------------------------------------------------


def test_paths_start_from_the_manifests_folder_even_through_a_link(tmp_path: Path, files: Any) -> None:
    files.sound(tmp_path / "data" / "one.wav")
    files.picture(tmp_path / "data" / "one.jpg")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    beside = Manifest.read(prepare_folder(tmp_path / "data", tmp_path / "lists" / "m.jsonl").manifest)
    assert beside.rows[0].clip == "../data/one.wav"
    linked = Manifest.read(prepare_folder(tmp_path / "data", tmp_path / "link" / "m.jsonl").manifest)
    assert linked.rows[0].clip == "../../data/one.wav"
    assert linked.clip_path(linked.rows[0]).is_file()
