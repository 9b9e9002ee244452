"""Real processes, really killed while they index: what is finished stays, is not repeated, and the end is the same."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from media_files import clip, picture
from saysee import Encoder, Index, SaySeeError
from saysee.search.index.sql.sqlite import SqliteStore
from saysee.search.index.updating import update_index
from saysee_process import Started, start_saysee, wait_for

PATIENCE = 300
CLIPS = 10
LONGEST_WAIT = 0.05
"""Seconds from when so many rows are seen to the kill: several files long, so that it falls anywhere in the work on
one."""


def content(index: Path) -> dict[tuple[str, str], tuple[str, bytes]]:
    with SqliteStore(index).reading() as connection:
        rows = connection.execute("SELECT kind, path, hash, vector FROM items JOIN vectors ON item = id")
        return {(kind, path): (hash_, vector) for kind, path, hash_, vector in rows}


def finished(index: Path) -> int:
    try:
        return len(Index.open(index))
    except SaySeeError:  # not yet begun
        return 0


def start(*words: object) -> Started:
    return start_saysee("index", *words, "--batch-size", "1", "--json")


def kill_when(rows: int, wait: float, process: Started, index: Path) -> None:
    """Kills a process ``wait`` seconds after the index is seen to have so many rows; one that ends before fails."""
    wait_for(lambda: (index / "writer.lock").exists() and finished(index) >= rows, process, PATIENCE)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("kills", "pictures"), [(3, 100), pytest.param(100, 5_000, marks=pytest.mark.nightly)], ids=["few", "hundred"]
)
def test_killed_at_any_moment_it_resumes(model_folder, tmp_path, kills, pictures):
    for number in range(pictures):
        picture(tmp_path / f"photos/{number % 7}/{number}.png", number)
    for number in range(CLIPS):
        clip(tmp_path / f"photos/clips/{number}.wav", number)
    # Loaded as the processes load it: the last bits of a product follow from where in memory the weights are.
    update_index(Encoder(model_folder), tmp_path / "photos", tmp_path / "never killed", batch_size=1)
    index = tmp_path / "index"
    rng = np.random.default_rng()  # other moments each time; a failure tells them
    moments = np.sort(rng.integers(0, 0.6 * pictures, kills)).tolist()
    moments[0] = 0  # as it begins
    done = 0
    for rows in moments:
        wait = float(rng.uniform(0, LONGEST_WAIT))
        kill_when(rows, wait, start(model_folder, tmp_path / "photos", "--to", index), index)
        now = finished(index)
        assert max(done, rows) <= now < pictures, f"killed at {rows} rows and {wait} s"
        done = now
    output, errors = start(model_folder, tmp_path / "photos", "--to", index).communicate(timeout=PATIENCE)
    report = json.loads(output)
    assert (report["kept"], report["encoded"]) == (done, pictures + CLIPS - done), errors
    assert content(index) == content(tmp_path / "never killed")
    assert Index.open(index).check() == []
