"""Several writers of one index at once, in PostgreSQL and in LanceDB."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from many_rows import ABOUT, DIMENSION
from media_files import picture, rows
from saysee import Index, SaySeeError
from saysee.search.index.index import open_store
from saysee.search.index.store import About, Item
from saysee.search.index.updating import update_index
from saysee_process import start_saysee

PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
PATIENCE = 120


@pytest.fixture(params=["postgres", "lance"])
def shared(request, tmp_path) -> str:
    """An index that is not yet there and that several may write at once."""
    if request.param == "postgres":
        return request.getfixturevalue("database")
    pytest.importorskip("lancedb", reason="the extra 'lance' is not installed")
    return f"lance://{tmp_path / 'index'}"


WRITER = """
import sys
import numpy as np
from saysee.search.index.index import open_store
from saysee.search.index.store import About, Item
place, me = sys.argv[1], int(sys.argv[2])
about = About("model", None, {"image": "1", "clip": "2"}, 24, "float32", "/root", None, ".")
print("ready", flush=True)
sys.stdin.readline()  # so that all begin at once
while True:
    try:
        with open_store(place).writing() as writer:
            if writer.about is None:
                writer.set_about(about)
            for start in range(0, 100, 50):
                items = [Item("image", f"shared/{n}.jpg", n) for n in range(start, start + 50)]
                items += [Item("image", f"{me}/{n}.jpg", n) for n in range(start, start + 50)]
                if me % 2:
                    items.reverse()  # each takes the rows in another order
                with writer.transaction():
                    writer.put(items, np.eye(24, dtype=np.float32)[[item.size % 24 for item in items]])
        break
    except Exception as error:
        if "has just changed this index" not in str(error):
            raise
"""


def test_several_processes_write_at_once_and_no_row_is_lost_or_doubled(shared):
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, shared, str(me)], **PIPES, text=True) for me in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    found = rows(shared)
    wanted = {f"{folder}/{n}.jpg" for folder in ("shared", 0, 1, 2) for n in range(100)}
    assert {path for _, path in found} == wanted
    assert Index.open(shared).counts()["image"] == len(wanted)
    assert len({number for number, _ in found.values()}) == len(wanted)
    assert Index.open(shared).check() == []


def test_two_runs_over_one_folder_give_what_one_gives(encoder, photos, shared, tmp_path):
    for number in range(30):
        picture(photos / f"more/{number}.png", 50 + number)
    update_index(encoder, photos, tmp_path / "alone")
    with open_store(shared).writing() as writer:  # begun, so that neither finds it begun meanwhile
        about = open_store(tmp_path / "alone").about()
        assert writer.about is None
        writer.set_about(About(**{name: getattr(about, name) for name in About.__dataclass_fields__}))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            update_index(encoder, photos, shared, batch_size=2, workers=1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    alone, together = rows(tmp_path / "alone"), rows(shared)
    assert together.keys() == alone.keys()
    for key, (_, vector) in alone.items():
        np.testing.assert_allclose(np.frombuffer(together[key][1], "<f4"), np.frombuffer(vector, "<f4"), atol=2e-6)


def test_what_another_writer_takes_out_or_puts_meanwhile_is_made_right(encoder, photos, shared, monkeypatch):
    update_index(encoder, photos, shared)
    before = rows(shared)
    (photos / "holiday/0.png").rename(photos / "holiday/new.png")
    (photos / "holiday/1.png").rename(photos / "holiday/newer.png")
    with open_store(shared).writing() as writer:
        tables = type(writer)
    refresh = tables.refresh

    def late(self, items):
        """Another run has come first: one row is gone, and one of the new places is taken."""
        items = list(items)
        with open_store(shared).writing() as other:
            known = {item.key: item for item in other.items()}
            if ("image", "holiday/0.png") in known:
                other.remove([known["image", "holiday/0.png"]])
                assert other.about is not None
                with other.transaction():
                    other.put([Item("image", "holiday/newer.png", hash="x")], np.ones((1, DIMENSION), np.float32))
        return refresh(self, items)

    monkeypatch.setattr(tables, "refresh", late)
    report = update_index(encoder, photos, shared)
    after = rows(shared)
    assert len(after) == 9
    assert report.encoded == 1
    assert after["image", "holiday/newer.png"] == before["image", "holiday/1.png"]
    np.testing.assert_allclose(
        np.frombuffer(after["image", "holiday/new.png"][1], "<f4"),
        np.frombuffer(before["image", "holiday/0.png"][1], "<f4"),
        atol=2e-6,
    )


def test_file_that_came_after_the_listing_keeps_the_row_that_another_gave_it(encoder, photos, shared):
    from saysee.search.index.sources import find_source

    listed = find_source(photos)
    picture(photos / "late.png", 77)
    update_index(encoder, photos, shared)
    assert update_index(encoder, listed, shared).removed == 0
    assert ("image", "late.png") in rows(shared)
    (photos / "late.png").unlink()
    assert update_index(encoder, listed, shared).removed == 1


def test_index_that_another_changed_since_it_was_read_is_not_written_over(shared):
    with open_store(shared).writing() as one, open_store(shared).writing() as other:
        assert one.about is None
        assert other.about is None
        one.set_about(ABOUT)
        with pytest.raises(SaySeeError, match="another process"):
            other.set_about(About("other", None, {"image": "3", "clip": "2"}, 7, "float32", "/root", None, "."))
        other.set_about(ABOUT)
    assert open_store(shared).about() == ABOUT


def test_killed_it_resumes(encoder, model_folder, photos, shared):
    for number in range(60):
        picture(photos / f"more/{number}.png", 50 + number)
    process = start_saysee("index", model_folder, photos, "--to", shared, "--batch-size", "1")
    deadline = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        try:
            if sum(Index.open(shared).counts().values()) >= 5:
                break
        except SaySeeError:  # not yet begun
            time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = sum(Index.open(shared).counts().values())
    report = update_index(encoder, photos, shared)
    assert 5 <= done < 69
    assert (report.kept, report.encoded) == (done, 69 - done)
    assert Index.open(shared).check() == []
