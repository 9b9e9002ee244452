"""Files are found by name in any layout, and never one for another."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from saysee.data.corpora.finding import FileIndex, find_lists, index_folders, read_lines, split_families
from saysee.errors import ManifestError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def match(folder: Path, *names: str) -> dict[str, str | None]:
    listing = Listing(folder, "--audio")
    found = FileIndex(listing, AUDIO_SUFFIXES).match(names)
    return {name: None if path is None else listing.relative(path) for name, path in found.items()}


@pytest.mark.parametrize(
    ("there", "listed"),
    [
        ("wavs/one.wav", "wavs/one.wav"),
        ("deep/er/wavs/one.wav", "wavs/one.wav"),
        ("one.wav", "wavs/val/0/one.wav"),
        ("other name/one.wav", "one.wav"),
        ("ONE.WAV", "one.wav"),
        ("one.flac", "wavs/one.wav"),
        ("one.wav", "wavs\\one.wav"),
        ("a b/ein schöner Tag.wav", "ein schöner Tag.wav"),
        (unicodedata.normalize("NFD", "été.wav"), "été.wav"),
        ("photo.v2_1.wav", "photo.v2_1.wav"),
    ],
)
def test_a_file_is_found_wherever_it_lies(tmp_path: Path, there: str, listed: str) -> None:
    assert match(lay(tmp_path, there, "beside.wav"), listed) == {listed: there}


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert match(lay(tmp_path, "one.wav", ".two.wav", "__MACOSX/two.wav", "three.txt"), "two.wav", "three.wav") == {
        "two.wav": None,
        "three.wav": None,
    }


def test_one_name_in_two_folders_is_identified_by_its_folder(tmp_path: Path) -> None:
    lay(tmp_path, "data/abbey/1.wav", "data/beach/1.wav")
    assert match(tmp_path, "b/beach/1.wav", "a/abbey/1.wav") == {
        "b/beach/1.wav": "data/beach/1.wav",
        "a/abbey/1.wav": "data/abbey/1.wav",
    }


def test_a_missing_file_is_not_replaced_by_that_of_another_folder(tmp_path: Path) -> None:
    lay(tmp_path, "abbey/1.wav", "1.wav")
    found = match(tmp_path, "abbey/1.wav", "beach/1.wav", "1.wav")
    assert found == {"abbey/1.wav": "abbey/1.wav", "beach/1.wav": None, "1.wav": "1.wav"}
    assert match(tmp_path, "beach/1.wav", "cliff/1.wav") == {"beach/1.wav": None, "cliff/1.wav": None}


def test_as_many_folders_must_agree_as_distinguish_the_names(tmp_path: Path) -> None:
    lay(tmp_path, "s2/wav/1.wav", "s3/wav/1.wav", "s4/wav/1.wav", "copy/s5/wav/1.wav")
    assert match(tmp_path, "s1/wav/1.wav", "s2/wav/1.wav", "old/s5/wav/1.wav", "old/s6/wav/1.wav") == {
        "s1/wav/1.wav": None,
        "s2/wav/1.wav": "s2/wav/1.wav",
        "old/s5/wav/1.wav": "copy/s5/wav/1.wav",
        "old/s6/wav/1.wav": None,
    }


def test_names_that_differ_by_suffix_only_keep_to_it(tmp_path: Path) -> None:
    assert match(lay(tmp_path, "x/1.wav"), "1.flac", "1.wav") == {"1.flac": None, "1.wav": "x/1.wav"}


def test_of_several_files_the_listed_suffix_wins_and_a_tie_is_reported(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.flac", "b/1.wav", "a/2.wav", "b/deep/2.wav")
    index = FileIndex(Listing(tmp_path, "--audio"), AUDIO_SUFFIXES)
    found = index.match(["1.wav", "2.wav"])
    assert [Path(str(path)).relative_to(tmp_path).as_posix() for path in found.values()] == ["b/1.wav", "a/2.wav"]
    assert [name for name, _, _ in index.ambiguous] == ["2.wav"]


def test_one_folder_for_both_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    clips, images = index_folders(tmp_path, tmp_path / "b" / "..")
    assert clips.listing is images.listing
    clips, images = index_folders(tmp_path, tmp_path / "b")
    assert clips.listing is not images.listing


def test_lists_are_found_inside_and_beside_the_least_deep_first(tmp_path: Path) -> None:
    lay(tmp_path, "up/corpus/a/b/list.txt", "up/corpus/a/LIST.TXT", "up/list.txt", "list.txt", "up/corpus/no.txt")
    found = find_lists([Listing(tmp_path / "up" / "corpus", "--audio")], re.compile("^list", re.IGNORECASE), (".txt",))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "up/corpus/a/LIST.TXT",
        "up/corpus/a/b/list.txt",
        "up/list.txt",
    ]


def test_files_of_one_set_are_kept_together() -> None:
    names = (
        "S_train.json",
        "S_val.json",
        "S_test_karpathy.json",
        "S_dev_karpathy.json",
        "test_unseen_2020.json",
        "x.json",
    )
    families = split_families(map(Path, names))
    assert {family: sorted(files) for family, files in families.items()} == {
        "s": ["train", "val"],
        "s_karpathy": ["test", "val"],
        "2020": ["test_unseen"],
    }


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_of_any_system_are_the_same(tmp_path: Path, end: str, mark: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(mark + end.join(["été 1.jpg", "", "b\u2028c.jpg ", ""]).encode())
    assert read_lines(path) == ["été 1.jpg", "b\u2028c.jpg"]


def test_a_list_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(ManifestError, match=r"list\.txt"):
        read_lines(tmp_path / "list.txt")
