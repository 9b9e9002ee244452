"""One walk over a user's folder: what it lists, skips and rejects."""

from __future__ import annotations

from pathlib import Path

import pytest

from saysee.errors import SaySeeError
from saysee.media.folders import Listing


def create(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names(folder: Path, *suffixes: str) -> list[str]:
    listing = Listing(folder, "--audio")
    return [listing.relative(path) for path in listing.files(suffixes)]


def test_files_are_listed_by_suffix_whatever_its_case_in_sorted_order(tmp_path: Path) -> None:
    create(tmp_path, "b/2.wav", "a.WAV", "c.flac", "d.txt", "e f/é.wav")
    assert names(tmp_path, ".wav", ".flac") == ["a.WAV", "b/2.wav", "c.flac", "e f/é.wav"]


def test_hidden_files_and_what_macos_adds_are_skipped(tmp_path: Path) -> None:
    assert names(create(tmp_path, ".a.wav", ".hidden/b.wav", "__MACOSX/c.wav", "d.wav"), ".wav") == ["d.wav"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    create(tmp_path / "disk", "one.wav")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "wavs").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "corpus")
    assert names(tmp_path / "corpus", ".wav") == ["wavs/one.wav"]


@pytest.mark.parametrize("name", ["nowhere", "corpus.zip"])
def test_a_path_that_is_not_a_folder_is_rejected_with_its_flag(tmp_path: Path, name: str) -> None:
    create(tmp_path, "corpus.zip")
    with pytest.raises(SaySeeError, match=rf"{name}: .*\(--images\)"):
        Listing(tmp_path / name, "--images")
