"""Files and folders are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from saysee.files import atomic_write, clean_folder, write_folder, write_text


def test_a_file_appears_when_it_is_complete_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as file:
        file.write("läuft".encode())
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "läuft"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_a_file_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    write_folder(folder, lambda path: (path / "a").write_text("old") and None)

    def fail(path: Path) -> None:
        (path / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(folder, fail)
    assert (folder / "a").read_text() == "old"
    clean_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    write_folder(folder, lambda path: (path / "a").write_text("old") and None)
    folder.rename(tmp_path / ".old-best")
    (tmp_path / ".writing-best").mkdir()
    clean_folder(tmp_path)
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_of_a_folder_have_the_mode_of_new_files(tmp_path: Path, mask: int) -> None:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").touch(mode=0o600)

    before = os.umask(mask)
    try:
        write_folder(tmp_path / "made", write)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "made" / "inner" / "a").stat().st_mode & 0o777 == 0o666 & ~mask
