"""Small copies of images: upright, kept on the disk within a limit, and shared by several processes."""

from __future__ import annotations

import io
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from saysee.search.service import thumbnails
from saysee.search.service.thumbnails import FILE, Thumbnails


def photo(path, seed: int = 0, size=(1_200, 900), **options):
    noise = np.random.default_rng(seed).integers(0, 255, (size[1] // 40, size[0] // 40, 3), np.uint8)
    Image.fromarray(noise).resize(size).save(path, **options)
    return path


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_both_sizes_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    path = photo(tmp_path / "photo.jpg", size=(2_400, 1_800), exif=exif)
    small = Thumbnails(tmp_path)
    assert opened(small.get(1, str(path), "thumbnail")).size == (240, 320)
    assert opened(small.get(1, str(path), "preview")).size == (1_200, 1_600)


def test_they_are_kept_for_the_next_process_and_follow_the_file(tmp_path, monkeypatch):
    path = photo(tmp_path / "photo.jpg")
    first = Thumbnails(tmp_path)
    content = first.get(1, str(path), "thumbnail")
    first.close()
    decoded = []
    load = thumbnails.load_thumbnail
    monkeypatch.setattr(thumbnails, "load_thumbnail", lambda *words: decoded.append(words) or load(*words))
    second = Thumbnails(tmp_path)
    assert (second.get(1, str(path), "thumbnail"), decoded) == (content, [])
    photo(path, 1)
    assert second.get(1, str(path), "thumbnail") != content
    assert len(decoded) == 1


def test_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "_DISK_BYTES", 400_000)
    monkeypatch.setattr(thumbnails, "_USED_SECONDS", 0.0)
    paths = [str(photo(tmp_path / f"{number}.jpg", number)) for number in range(12)]
    small = Thumbnails(tmp_path)
    for _ in range(3):
        for row, path in enumerate(paths):
            small.get(row, path, "preview" if row else "thumbnail")
            small.get(0, paths[0], "thumbnail")  # used all the time
    small.close()
    kept = sqlite3.connect(tmp_path / FILE).execute("SELECT id FROM copies").fetchall()
    assert (0,) in kept
    assert 1 < len(kept) < 12
    assert (tmp_path / FILE).stat().st_size < 800_000


def test_several_processes_write_at_once(tmp_path):
    paths = [str(photo(tmp_path / f"{number}.jpg", number, (400, 300))) for number in range(10)]
    services = [Thumbnails(tmp_path) for _ in range(4)]  # each has a connection, as a process does

    def all_of(small: Thumbnails) -> list[bytes]:
        return [small.get(row, path, "thumbnail") for row, path in enumerate(paths)]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(all_of, services))
    assert all(one == found[0] for one in found)
    count = sqlite3.connect(tmp_path / FILE).execute("SELECT count(*) FROM copies").fetchone()
    assert count == (10,)


@pytest.mark.parametrize("folder", ["missing", "damaged"])
def test_where_the_file_cannot_be_used(tmp_path, folder, caplog):
    path = str(photo(tmp_path / "photo.jpg"))
    place = tmp_path / folder
    if folder == "damaged":
        place.mkdir()
        (place / FILE).write_bytes(b"no database" * 1_000)
    small = Thumbnails(place)
    assert opened(small.get(1, path, "thumbnail")).size == (320, 240)
    assert small.get(1, path, "thumbnail") == small.get(1, path, "thumbnail")
    assert (str(place) in caplog.text) == (folder == "missing"), "a damaged one is begun again"
