"""Indexes as a new user may have them: on a full disk, in a read-only folder, moved, of another model, of no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from media_files import clip, picture
from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.search.index.updating import update_index

ODD_NAMES = (
    "قطة نائمة.png",
    "🐈‍⬛ 📷.png",
    "two\nlines.png",
    "tab\there.png",
    " .png",
    "-k.png",
    "a'b\"c;--.png",
    "%2e.png",
)


@contextmanager
def mounted(*words: object, at: Path):
    """Something mounted for the time of a ``with`` block; where this is not allowed, the test is skipped."""
    at.mkdir(exist_ok=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root of Linux may mount what this test needs")
    done = subprocess.run(["mount", *map(str, words), str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@pytest.fixture
def run(capsys):
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, output, errors = result
    assert (code, output, errors.count("\n")) == (2, "", 1), result
    for part in parts:
        assert part in errors


def top(output: str) -> str:
    return json.loads(output)["results"][0]["hits"][0]["path"]


def test_a_small_disk_that_fills_up(encoder, model_folder, tmp_path, run):
    for number in range(600):
        picture(tmp_path / f"photos/{number}.png", number)
    with mounted("-t", "tmpfs", "-o", "size=200k", "tmpfs", at=tmp_path / "disk") as disk:
        words = ("index", model_folder, tmp_path / "photos", "--to", disk / "index", "--batch-size", 8)
        one_line(run(*words), "full", "disk/index")
        done = len(Index.open(disk / "index"))
        assert 0 < done < 600
        assert Index.open(disk / "index", model=encoder.model).search(images=[tmp_path / "photos/1.png"])[0]
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        code, output, _ = run(*words, "--json")
        report = json.loads(output)
        assert (code, report["images"]) == (0, 600)
        assert report["encoded"] == 600 - done
        assert Index.open(disk / "index").check() == []


def test_a_disk_that_is_full_from_the_start(model_folder, photos, tmp_path, run):
    with mounted("-t", "tmpfs", "-o", "size=16k", "tmpfs", at=tmp_path / "disk") as disk:
        (disk / "filler").write_bytes(bytes(8192))
        one_line(run("index", model_folder, photos, "--to", disk / "index"), "full", "disk/index")


def test_a_sheet_on_a_full_disk_is_one_line(encoder, photos, tmp_path, run):
    update_index(encoder, photos, tmp_path / "index")
    with mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", at=tmp_path / "disk") as disk:
        one_line(
            run("search", tmp_path / "index", "--text", "a", "--sheet", disk / "a.html"), "cannot be written", "--sheet"
        )


def test_a_read_only_folder_is_searched_and_not_written(encoder, model_folder, photos, tmp_path, run):
    update_index(encoder, photos, tmp_path / "made/index")
    clip_file = photos / "clips/0.wav"
    _, there, _ = run("search", tmp_path / "made/index", clip_file, "--json")
    place = tmp_path / "sealed"
    with mounted("--bind", tmp_path / "made", at=place):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        code, here, errors = run("search", place / "index", clip_file, "--json")
        assert (code, top(here), errors) == (0, top(there), "")
        assert run("index-check", place / "index")[0] == 0
        one_line(run("index", model_folder, photos, "--to", place / "index"), "cannot be written")
        one_line(run("index-compact", place / "index"), "cannot be written")
        one_line(run("index", model_folder, photos, "--to", place / "new"), "cannot be written")
        one_line(run("search", place / "index", "--text", "a", "--sheet", place / "a.html"), "cannot be written")


def test_images_in_a_read_only_folder_are_indexed(encoder, photos, tmp_path):
    with mounted("--bind", photos, at=tmp_path / "sealed") as sealed:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(sealed)], check=True)
        assert update_index(encoder, sealed, tmp_path / "index").images == 6


def test_no_images_at_all(model_folder, tmp_path, run):
    (tmp_path / "empty").mkdir()
    one_line(run("index", model_folder, tmp_path / "empty", "--to", tmp_path / "index"), "empty")
    assert not (tmp_path / "index").exists()
    one_line(run("search", tmp_path / "index", "--text", "a"), "index")
    (tmp_path / "empty/notes.txt").write_text("no picture")
    one_line(run("index", model_folder, tmp_path / "empty", "--to", tmp_path / "index"), "empty")


def test_clips_alone_give_no_hits_when_images_are_asked_for(encoder, tmp_path, run):
    clip(tmp_path / "sounds/a.wav", 1)
    update_index(encoder, tmp_path / "sounds", tmp_path / "index")
    code, output, _ = run("search", tmp_path / "index", tmp_path / "sounds/a.wav", "--json")
    assert (code, json.loads(output)["results"][0]["hits"]) == (0, [])


def test_odd_names_come_back_as_they_are(encoder, tmp_path, run):
    folder = tmp_path / "صور\n📷"
    for number, name in enumerate(ODD_NAMES):
        picture(folder / name, number)
    update_index(encoder, folder, tmp_path / "فهرس\n🔎")
    code, output, _ = run("search", tmp_path / "فهرس\n🔎", folder, "--for", "images", "-k", 1, "--json")
    results = json.loads(output)["results"]
    assert (code, {Path(result["query"]).name for result in results}) == (0, set(ODD_NAMES))
    assert all(result["hits"][0]["path"] == result["query"] for result in results)
    # In the table each takes one line, whatever is in it.
    code, output, _ = run("search", tmp_path / "فهرس\n🔎", folder / "two\nlines.png", "--for", "images", "-k", 8)
    rows = [line for line in output.splitlines() if line.startswith("│")]
    assert (code, len(rows)) == (0, 8)
    assert "two\\nlines.png" in output
    assert "🐈‍⬛ 📷.png" in output
    one_line(run("search", tmp_path / "فهرس\n🔎", folder / "no\nsuch.png"), "such.png")


@pytest.mark.parametrize("verb", ["index-check", "index-compact"])
def test_no_index_there_is_one_line(tmp_path, run, verb):
    one_line(run(verb, tmp_path / "nowhere"), "index")
    with pytest.raises(SaySeeError, match="index"):
        Index.open(tmp_path)
