"""What only an index in LanceDB has: versions of tables, clusters, addresses, the ways in which files refuse."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from many_rows import ABOUT, DIMENSION, clustered, fill, recall, refusal
from media_files import rows
from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.search.index.index import open_store
from saysee.search.index.ranking import nearest
from saysee.search.index.store import About, Item
from saysee.search.index.updating import update_index

lancedb = pytest.importorskip("lancedb", reason="the extra 'lance' is not installed")
from saysee.search.index.lance import searching, tables  # noqa: E402


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def place(folder) -> str:
    """An index that is not yet there."""
    return f"lance://{folder}"


@pytest.fixture
def few(monkeypatch):
    """Clusters from 300 rows on."""
    monkeypatch.setattr(searching, "EXACT_ROWS", 300)


def add(place: str, vectors: np.ndarray, first: int) -> None:
    with open_store(place).writing() as writer:
        writer.put([Item("image", f"{first + n}.jpg", first + n) for n in range(len(vectors))], vectors)


def test_clusters_find_what_exact_search_finds(place, few):
    vectors = clustered(1_200)
    methods = fill(place, vectors)
    assert re.match("approximate, [0-9]+ of 32 clusters", methods["image"])
    store = open_store(place)
    assert recall(store, vectors) >= 0.99
    assert recall(store, vectors, "metadata ->> 'week' = '3'", slice(3, None, 7)) == 1.0  # compared one by one
    assert recall(store, vectors, "id > 0 AND size % 2 = 1", slice(1, None, 2)) >= 0.99
    (many,) = store.nearest(vectors[:1], "image", 700)  # more than the clusters that are searched hold
    assert len({item.path for item, _ in many}) == 700
    scores = [score for _, score in many]
    assert scores == sorted(scores, reverse=True)
    item, score = many[3]
    assert score == pytest.approx(float(vectors[0] @ vectors[int(item.path.removesuffix(".jpg"))]), abs=1e-6)


def test_no_query_finds_nothing(place, few):
    fill(place, clustered(400))
    assert nearest(open_store(place), np.empty((1, 0, DIMENSION), np.float32), "image", 5) == []


def test_rows_beside_the_clusters_are_found_at_once_and_by_who_has_it_open(place, few):
    vectors = clustered(1_600)
    fill(place, vectors[:1_200])
    store = open_store(place)
    assert recall(store, vectors[:1_200]) >= 0.99
    for first in range(1_200, 1_600, 50):
        add(place, vectors[first : first + 50], first)
    assert store.nearest(vectors[1_599:], "image", 1)[0][0][0].path == "1599.jpg"
    assert recall(store, vectors) >= 0.99
    with store.writing() as writer:
        writer.remove([item for item in writer.items() if item.path == "1599.jpg"])
        writer.make_ready()
        (unindexed,) = (
            writer.table("image").index_stats(index.name).num_unindexed_rows
            for index in writer.table("image").list_indices()
            if index.columns == ["vector"]
        )
    assert unindexed == 0
    assert store.nearest(vectors[1_599:], "image", 1)[0][0][0].path != "1599.jpg"
    assert recall(store, vectors[:1_599]) >= 0.99


def test_missing_clusters_are_reported_and_built_again(place, few):
    vectors = clustered(400)
    fill(place, vectors)
    index = Index.open(place)
    assert index.check() == []
    with index.store.writing() as writer:
        writer.table("image").drop_index("vector_idx")
    (problem,) = index.check()
    assert re.search(f"index of its images.*index-compact {re.escape(place)}", problem)
    assert index.store.nearest(vectors[:1], "image", 1)[0][0][0].path == "0.jpg"
    index.compact()
    assert index.check() == []


def test_a_reader_keeps_what_it_opened(place):
    vectors = clustered(3)
    fill(place, vectors[:2])
    store = open_store(place)
    with store.reading() as reader:
        assert reader.counts()["image"] == 2
        add(place, vectors[2:], 2)
        assert reader.counts()["image"] == 2
        assert len(list(reader.items())) == 2
    with store.reading() as reader:
        assert reader.counts()["image"] == 3


def test_many_small_commits_leave_few_files(place, folder, monkeypatch):
    monkeypatch.setattr(tables, "TIDY_COMMITS", 8)
    vectors = clustered(60)
    fill(place, vectors[:1])
    for n in range(1, 60):
        add(place, vectors[n : n + 1], n)
    with open_store(place).reading() as reader:
        assert len(list(reader.items())) == 60
        assert reader.table("image").stats()["fragment_stats"]["num_fragments"] < 12
    assert Index.open(place).check() == []


def test_compact_reclaims_disk_space_and_damage_is_found(place, folder):
    fill(place, clustered(3_000))
    index = Index.open(place)
    with index.store.writing() as writer:
        writer.remove([item for item in writer.items() if item.id > 10])
    before, after = index.compact()
    assert after < before / 3
    with index.store.writing() as writer:
        writer.put([Item("image", "0.jpg", 0)], np.zeros((1, DIMENSION), np.float32))
        (number,) = (item.id for item in writer.items() if item.path == "0.jpg")
        table = writer.table("image")
        table.add(table.search().where("path = '1.jpg'").to_arrow())
    assert index.check() == [
        f"{place}: the vector of row {number} is damaged; create the index again",
        f"{place}: the image 1.jpg is there twice; create the index again",
    ]
    for file in (folder / "image.lance/data").iterdir():
        file.write_bytes(b"rubbish")
    with pytest.raises(SaySeeError, match="damaged"):
        Index.open(place).check()


def test_ids_stay_while_a_file_is_in_the_index_and_are_not_given_again(place):
    vectors = clustered(4)
    fill(place, vectors)
    before = {key: number for key, (number, _) in rows(place).items()}
    with open_store(place).writing() as writer:
        writer.put([Item("image", "2.jpg", 7), Item("clip", "2.jpg", 8)], vectors[:2])
        writer.remove([item for item in writer.items() if item.path == "3.jpg"])
    fill(place, vectors)
    after = {key: number for key, (number, _) in rows(place).items()}
    assert {key: after[key] for key in before if key[1] != "3.jpg"} == {
        key: number for key, number in before.items() if key[1] != "3.jpg"
    }
    assert after["image", "3.jpg"] > max(before.values())
    assert len(set(after.values())) == len(after) == 5


INSERT = """
import sys
import numpy as np
from saysee.search.index.index import open_store
from saysee.search.index.store import Item
print("ready", flush=True)
sys.stdin.readline()  # so that both begin at once
with open_store(sys.argv[1]).writing() as writer:
    for start in range(0, 30, 5):
        items = [Item("image", f"shared/{n}.jpg", n) for n in range(start, start + 5)]
        writer.put(items, np.eye(24, dtype=np.float32)[:5])
"""


def test_the_same_new_rows_of_several_writers_are_there_once_beside_an_index_of_the_paths(place, few):
    """With such an index Lance itself lets two writers insert the same key."""
    fill(place, clustered(400))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", INSERT, place], **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=240)
    assert [process.returncode for process in processes] == [0, 0]
    with open_store(place).reading() as reader:
        items = list(reader.items())
    assert len(items) == len({item.path for item in items}) == len({item.id for item in items}) == 430


def test_refusals_are_one_line(place, folder, tmp_path, monkeypatch):
    assert f"no index there; create one with 'saysee index MODEL FOLDER --to {place}'" in refusal(place)
    assert not folder.exists()
    assert "names no place" in refusal("lance://")
    (tmp_path / "file").touch()
    assert "file/index" in refusal(f"lance://{tmp_path}/file/index", write=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").touch()
    assert "holds other files (mine.txt)" in refusal(f"lance://{tmp_path}/other", write=True)
    (tmp_path / "empty/about.lance").mkdir(parents=True)
    assert "no index there" in refusal(f"lance://{tmp_path}/empty")
    fill(place, clustered(3))
    shutil.copytree(folder, tmp_path / "damaged")
    for file in (tmp_path / "damaged/about.lance/_versions").iterdir():
        file.write_bytes(b"rubbish" * 10)
    assert "damaged" in refusal(f"lance://{tmp_path}/damaged")
    for message, words in (
        ("LanceError(IO): No space left on device (os error 28)", "disk is full"),
        ("LanceError(IO): Permission denied (os error 13)", "no permission"),
        ("Generic S3 error: error sending request for url (http://127.0.0.1:1/)", "no connection"),
        ("Commit conflict for version 3", "busy"),
    ):
        with pytest.raises(SaySeeError, match=words), open_store(place).errors_in_one_line():
            raise RuntimeError(f"lance error: {message}, /root/.cargo/registry/lance/src/io.rs:1:2")


def test_a_newer_format_is_refused(place):
    fill(place, clustered(3))
    with open_store(place).writing() as writer:
        writer.set_about(About(**{**{n: getattr(ABOUT, n) for n in About.__dataclass_fields__}, "format": 9}))
    assert "has format 9, and this release reads format 2; upgrade SaySee" in refusal(place)


def test_an_object_store_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "1")
    text = refusal("s3://bucket/prefix")
    assert text.startswith("s3://bucket/prefix: no connection")
    assert "s3cret" not in text


def test_a_relative_address_starts_from_the_working_directory(encoder, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = update_index(encoder, photos, "lance://sub/index")
    assert report.index == f"lance://{tmp_path}/sub/index"
    assert Index.open(f"lance://{tmp_path}/sub/index").counts() == {"image": 6, "clip": 3}


def test_nothing_of_lance_is_imported_without_such_a_place(tmp_path):
    code = "import sys, saysee.search.index.index, saysee.cli; print('lancedb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_the_extra_it_is_named(place):
    code = "import sys; sys.modules['lancedb'] = None; from saysee.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "index-check", place], capture_output=True, text=True)
    assert done.returncode == 2
    assert "saysee[lance]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_source_that_is_an_address_is_refused(model_folder, place, capsys):
    assert main(["index", str(model_folder), place, "--to", place, "--json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
