"""An update holds few rows in memory at once, however many there are."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from media_files import picture, rows
from saysee import SaySeeError
from saysee.search.index.readers import item_list
from saysee.search.index.sources import find_source
from saysee.search.index.sql.sqlite import SqliteStore
from saysee.search.index.store import Item
from saysee.search.index.updating import begin, update_index

AT_MOST = 200_000
"""Bytes that 4,000 further rows may add to the peak; the rows themselves take 4 million."""


def library(folder: Path, index: Path, encoder, number: int) -> None:
    """Empty files, and an index that says that they are unchanged."""
    items = []
    for at in range(number):
        path = folder / f"{at // 1000}/{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        items.append(Item("image", f"{at // 1000}/{at}.png", 0, path.stat().st_mtime_ns, f"{at:032x}"))
    with SqliteStore(index).writing() as writer:
        dimension = begin(writer, encoder, folder, ".").dimension
        writer.note("examined", 1)
        with writer.transaction():
            writer.put(items, np.full((number, dimension), dimension**-0.5, np.float32))


def test_the_peak_does_not_grow_with_the_rows(encoder, tmp_path):
    encoder.fingerprint("clip")  # which reads the model
    peaks = []
    for number in (2_000, 6_000):
        library(tmp_path / f"{number}", tmp_path / f"{number}.index", encoder, number)
        tracemalloc.start()
        report = update_index(encoder, tmp_path / f"{number}", tmp_path / f"{number}.index")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (report.kept, report.images) == (number, number)
    assert peaks[1] - peaks[0] < AT_MOST, peaks


def test_moved_copies_each_keep_a_row(encoder, photos, place, counted):
    for number in range(3):
        picture(photos / f"copies/{number}.png", 50)
    update_index(encoder, photos, place)
    counted()
    before = {row for (_, path), (row, _) in rows(place).items() if path.startswith("copies")}
    (photos / "copies").rename(photos / "renamed")
    report = update_index(encoder, photos, place)
    assert (report.moved, report.removed, report.encoded, counted()) == (3, 0, 0, 0)
    assert {row for (_, path), (row, _) in rows(place).items() if path.startswith("renamed")} == before


def test_a_source_may_be_indexed_twice(encoder, photos, tmp_path):
    source = find_source(photos)
    update_index(encoder, source, tmp_path / "one")
    (photos / "work/5.png").unlink()
    os.utime(photos / "work/4.png", (1, 1))
    for place, kept in (("one", 8), ("two", 0)):
        report = update_index(encoder, source, tmp_path / place)
        assert (report.kept, [Path(path).name for path, _ in report.refused]) == (kept, ["5.png"])
        assert len(rows(tmp_path / place)) == 8


def test_full_temporary_disk_is_one_line(photos, monkeypatch):
    monkeypatch.setattr(item_list, "_SCHEMA", item_list._SCHEMA.replace("BEGIN", "PRAGMA max_page_count = 5; BEGIN"))
    for number in range(500):
        (photos / f"{number} {'a' * 100}.png").touch()
    with pytest.raises(SaySeeError, match="TMPDIR"):
        find_source(photos)
