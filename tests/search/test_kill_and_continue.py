"""Real processes, really killed while they index: what is finished stays, is not repeated, and the end is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from search_files import clip, picture

from saysee import Index, SaySeeError
from saysee.search.indexing import update_index
from saysee.search.store import Store

PATIENCE = 120
PICTURES, CLIPS = 200, 10


def content(index: Path) -> dict[tuple[str, str], tuple[str, bytes]]:
    with Store(index).reading() as connection:
        rows = connection.execute("SELECT kind, path, hash, vector FROM items JOIN vectors ON item = id")
        return {(kind, path): (hash_, vector) for kind, path, hash_, vector in rows}


def finished(index: Path) -> int:
    try:
        return len(Index.open(index))
    except SaySeeError:  # not yet begun
        return 0


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "saysee", "index", *map(str, words), "--batch-size", "1", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_killed_at_any_moment_it_goes_on(encoder, model_folder, tmp_path):
    for number in range(PICTURES):
        picture(tmp_path / f"photos/{number % 7}/{number}.png", number)
    for number in range(CLIPS):
        clip(tmp_path / f"photos/clips/{number}.wav", number)
    update_index(encoder, tmp_path / "photos", tmp_path / "never killed", batch_size=1)
    index = tmp_path / "index"
    lock = index / "writer.lock"
    done = 0
    for rows in (0, 7, 60):
        process = start(model_folder, tmp_path / "photos", "--to", index)
        deadline = time.monotonic() + PATIENCE
        while not (lock.exists() and finished(index) >= rows):
            assert process.poll() is None, "it ended before it could be killed: " + process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now = finished(index)
        assert done <= now < PICTURES
        done = now
    assert done >= 60
    output, errors = start(model_folder, tmp_path / "photos", "--to", index).communicate(timeout=PATIENCE)
    report = json.loads(output)
    assert (report["kept"], report["encoded"]) == (done, PICTURES + CLIPS - done), errors
    assert content(index) == content(tmp_path / "never killed")
    assert Index.open(index).check() == []
