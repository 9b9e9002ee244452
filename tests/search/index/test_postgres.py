"""What only an index in PostgreSQL has: several writers, HNSW, the ways in which a server refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from media_files import picture, rows
from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.search.index.index import open_store
from saysee.search.index.store import About, Item
from saysee.search.index.updating import update_index
from saysee_process import start_saysee

psycopg = pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
from saysee.search.index import postgres as postgres_store  # noqa: E402
from saysee.search.index import postgres_search  # noqa: E402

DIMENSION = 24
PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
PATIENCE = 120
ABOUT = About("model", None, {"image": "1", "clip": "2"}, DIMENSION, "float32", "/root", None, ".")


def clustered(count: int) -> np.ndarray:
    """Unit vectors around centres around centres, as those of pictures lie."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((20, DIMENSION))
    scenes = topics[rng.integers(0, 20, 400)] + 0.6 * rng.standard_normal((400, DIMENSION))
    vectors = scenes[rng.integers(0, 400, count)] + 0.4 * rng.standard_normal((count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fill(place: str, vectors: np.ndarray) -> dict[str, str]:
    """Rows "0.jpg" and so on with these vectors."""
    items = [Item("image", f"{n}.jpg", n, metadata={"week": n % 7}) for n in range(len(vectors))]
    with open_store(place).writing() as writer:
        if writer.about is None:
            writer.set_about(ABOUT)
        with writer.transaction():
            writer.put(items, vectors)
        return writer.make_ready()


def admin(place: str, *statements: str) -> None:
    """Runs statements in the index's schema."""
    connection = open_store(place).connect()
    for statement in statements:
        connection.execute(statement)
    connection.close()


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
            for start in range(0, 200, 50):
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


def test_several_processes_write_at_once_and_no_row_is_lost_or_doubled(database):
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, database, str(me)], **PIPES, text=True) for me in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    found = rows(database)
    wanted = {f"{folder}/{n}.jpg" for folder in ("shared", 0, 1, 2) for n in range(200)}
    assert {path for _, path in found} == wanted
    assert Index.open(database).counts()["image"] == len(wanted)
    assert len({number for number, _ in found.values()}) == len(wanted)
    assert Index.open(database).check() == []


def test_two_runs_over_one_folder_give_what_one_gives(encoder, photos, database, tmp_path):
    for number in range(30):
        picture(photos / f"more/{number}.png", 50 + number)
    update_index(encoder, photos, tmp_path / "alone")
    with open_store(database).writing() as writer:  # begun, so that neither finds it begun meanwhile
        about = open_store(tmp_path / "alone").about()
        assert writer.about is None
        writer.set_about(About(**{name: getattr(about, name) for name in About.__dataclass_fields__}))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            update_index(encoder, photos, database, batch_size=2, workers=1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    alone, together = rows(tmp_path / "alone"), rows(database)
    assert together.keys() == alone.keys()
    for key, (_, vector) in alone.items():
        np.testing.assert_allclose(np.frombuffer(together[key][1], "<f4"), np.frombuffer(vector, "<f4"), atol=2e-6)


def test_what_another_writer_takes_out_or_puts_meanwhile_is_made_right(encoder, photos, database, monkeypatch):
    update_index(encoder, photos, database)
    before = rows(database)
    (photos / "holiday/0.png").rename(photos / "holiday/new.png")
    (photos / "holiday/1.png").rename(photos / "holiday/newer.png")
    refresh = postgres_store.PostgresTables.refresh

    def late(self, items):
        """Another run has come first: one row is gone, and one of the new places is taken."""
        items = list(items)
        with open_store(database).writing() as other:
            known = {item.key: item for item in other.items()}
            if ("image", "holiday/0.png") in known:
                other.remove([known["image", "holiday/0.png"]])
                assert other.about is not None
                with other.transaction():
                    other.put([Item("image", "holiday/newer.png", hash="x")], np.ones((1, DIMENSION), np.float32))
        return refresh(self, items)

    monkeypatch.setattr(postgres_store.PostgresTables, "refresh", late)
    report = update_index(encoder, photos, database)
    after = rows(database)
    assert len(after) == 9
    assert report.encoded == 1
    assert after["image", "holiday/newer.png"] == before["image", "holiday/1.png"]
    np.testing.assert_allclose(
        np.frombuffer(after["image", "holiday/new.png"][1], "<f4"),
        np.frombuffer(before["image", "holiday/0.png"][1], "<f4"),
        atol=2e-6,
    )


def test_file_that_came_after_the_listing_keeps_the_row_that_another_gave_it(encoder, photos, database):
    from saysee.search.index.sources import find_source

    listed = find_source(photos)
    picture(photos / "late.png", 77)
    update_index(encoder, photos, database)
    assert update_index(encoder, listed, database).removed == 0
    assert ("image", "late.png") in rows(database)
    (photos / "late.png").unlink()
    assert update_index(encoder, listed, database).removed == 1


def test_index_that_another_changed_since_it_was_read_is_not_written_over(database):
    with open_store(database).writing() as one, open_store(database).writing() as other:
        assert one.about is None
        assert other.about is None
        one.set_about(ABOUT)
        with pytest.raises(SaySeeError, match="another process"):
            other.set_about(About("other", None, {"image": "3", "clip": "2"}, 7, "float32", "/root", None, "."))
        other.set_about(ABOUT)
    assert open_store(database).about() == ABOUT


def test_killed_it_resumes(encoder, model_folder, photos, database):
    for number in range(60):
        picture(photos / f"more/{number}.png", 50 + number)
    process = start_saysee("index", model_folder, photos, "--to", database, "--batch-size", "1")
    deadline = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        try:
            if sum(Index.open(database).counts().values()) >= 5:
                break
        except SaySeeError:  # not yet begun
            time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = sum(Index.open(database).counts().values())
    report = update_index(encoder, photos, database)
    assert 5 <= done < 69
    assert (report.kept, report.encoded) == (done, 69 - done)
    assert Index.open(database).check() == []


@pytest.fixture
def few(monkeypatch):
    """HNSW from 300 rows on."""
    monkeypatch.setattr(postgres_search, "EXACT_ROWS", 300)


def recall(store, vectors: np.ndarray, where: str | None = None, rest: slice | None = None) -> float:
    rng = np.random.default_rng(1)
    queries = vectors[rng.integers(0, len(vectors), 50)] + 0.1 * rng.standard_normal((50, DIMENSION)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    candidates = np.arange(len(vectors))[rest or slice(None)]
    truth = candidates[np.argsort(-(queries @ vectors[candidates].T), axis=1, kind="stable")[:, :10]]
    found = store.nearest(queries, "image", 10, where)
    numbers = [{int(item.path.removesuffix(".jpg")) for item, _ in got} for got in found]
    return float(np.mean([len(got & set(right.tolist())) / 10 for got, right in zip(numbers, truth, strict=True)]))


def test_hnsw_finds_what_exact_search_finds(database, few):
    vectors = clustered(1_200)
    methods = fill(database, vectors)
    assert methods["image"].startswith("approximate, HNSW with ")
    store = open_store(database)
    assert recall(store, vectors) >= 0.99
    assert (
        recall(store, vectors, "metadata ->> 'week' = '3'", slice(3, None, 7)) == 1.0
    )  # so few are compared one by one
    assert recall(store, vectors, "id > 0 AND size % 2 = 1", slice(1, None, 2)) >= 0.99
    (many,) = store.nearest(vectors[:1], "image", 700, None)  # more than HNSW holds
    assert many[0][0].path == "0.jpg"
    assert len(many) == 700


def test_hnsw_is_what_is_searched(database, few):
    fill(database, clustered(400))
    store, plans = open_store(database), []
    with store.reading() as tables:
        connection = tables.connection
        execute = connection.execute

        def explained(sql, parameters=None, **options):
            if "<#>" in sql:
                plans.append("\n".join(row[0] for row in execute(f"EXPLAIN {sql}", parameters)))
            return execute(sql, parameters, **options)

        connection.execute = explained
    for where in (None, "size >= 0", "size < 300"):  # the last leaves so few that they are compared one by one
        store.nearest(clustered(1), "image", 3, where)
    assert ["items_image_hnsw" in plan for plan in plans] == [True, True, False]


def test_missing_or_broken_hnsw_is_reported_and_built_again(database, few):
    vectors = clustered(400)
    fill(database, vectors)
    index = Index.open(database)
    invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'items_image_hnsw'::regclass"
    for harm in ("DROP INDEX items_image_hnsw", invalid):  # the second is what an interrupted build leaves
        assert index.check() == []
        admin(database, harm)
        (problem,) = index.check()
        assert re.search(f"HNSW.*images.*index-compact {re.escape(index.place)}", problem)
        assert index.store.nearest(vectors[:1], "image", 1, None)[0][0][0].path == "0.jpg"
        index.compact()
        assert index.check() == []


def test_compact_reclaims_disk_space_and_damage_is_found(database):
    vectors = clustered(3_000)
    fill(database, vectors)
    index = Index.open(database)
    with index.store.writing() as writer:
        writer.remove([item for item in writer.items() if item.id > 10])
    before, after = index.compact()
    assert after < before / 3
    admin(database, f"UPDATE items SET vector = '[{','.join(['0'] * DIMENSION)}]' WHERE id = 1")
    assert index.check() == [f"{index.place}: the vector of row 1 is damaged; create the index again"]
    admin(
        database,
        "ALTER TABLE items DROP CONSTRAINT items_kind_path_key",
        "UPDATE items SET path = '1.jpg' WHERE id = 3",
    )
    assert f"{index.place}: the image 1.jpg is there twice; create the index again" in index.check()


def test_reader_cannot_write(database):
    fill(database, clustered(3))
    with pytest.raises(SaySeeError, match="read-only"):
        with open_store(database).reading() as connection:
            connection.execute("DELETE FROM items")
    assert Index.open(database).counts()["image"] == 3


def test_search_outlives_a_lost_connection(database):
    fill(database, clustered(3))
    index = Index.open(database)
    (connection,) = index.store._idle
    admin(database, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
    assert index.counts()["image"] == 3


@pytest.fixture(scope="module")
def locked(postgres):
    """Addresses of a user that must give a password ("right"), without the database's name and options."""
    folder = urlsplit(postgres).query.removeprefix("host=")
    connection = psycopg.connect(postgres, autocommit=True)
    (file,) = connection.execute("SHOW hba_file").fetchone()
    connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
    rules = Path(file).read_text(encoding="utf-8")
    Path(file).write_text(f"local all locked scram-sha-256\n{rules}", encoding="utf-8")
    connection.execute("SELECT pg_reload_conf()")
    connection.execute("CREATE DATABASE bare")
    connection.close()
    return lambda password, database="postgres": f"postgresql://locked:{password}@/{database}?host={folder}"


def refusal(place: str, write: bool = False) -> str:
    def begin() -> None:
        with open_store(place).writing() as writer:
            assert writer.about is None
            writer.set_about(ABOUT)

    with pytest.raises(SaySeeError) as refused:
        begin() if write else Index.open(place)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_refusals_are_one_line_without_the_password(postgres, locked, tmp_path, monkeypatch):
    folder = urlsplit(postgres).query
    for place, words in (
        (locked("s3cret-wrong"), "password authentication failed.*check user and password"),
        (locked("right", "nowhere"), '"nowhere" does not exist.*check the address'),
        (f"postgresql://locked:s3cret@/postgres?host={tmp_path}", "no connection.*that the server runs there"),
        ("postgresql://locked:s3cret@127.0.0.1:1/postgres", "no connection.*that the server runs there"),
        (locked("right"), "no index there; create one with 'saysee index MODEL FOLDER --to postgresql://locked@"),
        (f"postgresql://postgres:s3cret@/postgres?{folder}&schema=x'; DROP TABLE items", "schema .* cannot be used"),
        (f"postgresql://postgres:s3cret@/postgres?{folder}&schema=pg_catalog", "schema .* cannot be used"),
        ("postgresql://postgres:s3#cret@/postgres", "cannot be parsed.*%23"),
        ("postgresql://postgres:s3cret@host:port/postgres", "no connection"),
        (f"postgresql://postgres:s3cret@/postgres?{folder}&colour=s3cret", "cannot be parsed; .* options of libpq"),
    ):
        text = refusal(place)
        assert "s3" not in text, text
        assert "right" not in text, text
        assert re.search(words, text), text
    text = refusal(locked("right"), write=True)
    assert "no permission" in text
    assert "right@" not in text
    with monkeypatch.context() as patched:
        patched.setattr(postgres_store, "OLDEST_SERVER", 99)
        assert "the server is PostgreSQL" in refusal(postgres)
    admin(postgres, "CREATE EXTENSION IF NOT EXISTS vector")
    with monkeypatch.context() as patched:
        patched.setattr(postgres_store, "OLDEST_VECTOR", (99,))
        assert "run ALTER EXTENSION vector UPDATE" in refusal(postgres)
    monkeypatch.setattr(postgres_store, "EXTENSION", "vector_of_another_name")
    assert "the server does not have pgvector; install it there" in refusal(
        f"postgresql://postgres@/bare?{folder}", write=True
    )


def test_schema_of_other_tables_is_left_alone(database):
    schema = open_store(database).schema
    admin(database, f"CREATE SCHEMA {schema}", f"CREATE TABLE {schema}.mine (a int)")
    assert "holds other tables (mine) and no index; name another by ?schema=" in refusal(database, write=True)


def test_other_format_is_refused(database):
    fill(database, clustered(3))
    admin(database, "UPDATE about SET value = '9' WHERE name = 'format'")
    assert "has format 9, and this release reads format 2; upgrade SaySee" in refusal(database)


def test_commands_never_show_the_password(model_folder, photos, postgres, locked, capsys):
    admin(postgres, "CREATE SCHEMA IF NOT EXISTS shown AUTHORIZATION locked", "CREATE EXTENSION IF NOT EXISTS vector")
    place = f"{locked('right')}&schema=shown"
    words = (
        ["index", model_folder, photos, "--to", place],
        ["index", model_folder, photos, "--to", place, "--json"],
        ["search", place, "--text", "two green stars", "--json"],
        ["search", place, photos / "clips/0.wav"],
        ["index-check", place],
        ["index-check", place, "--json"],
        ["index-compact", place],
        ["index-compact", place, "--json"],
        ["search", place, "--text", "a", "--where", "no"],
        ["search", place, place],
        ["index", model_folder, place, "--to", place],
        ["index-check", place, "--to", place],
    )
    for line in words:
        code = main([str(word) for word in line])
        output, errors = capsys.readouterr()
        assert code == (0 if line in words[:8] else 2), errors
        assert "right@" not in (output + errors)
        assert ":right" not in (output + errors)
        if "--json" in line:
            assert json.loads(output)["index"].startswith("postgresql://locked@/postgres?host=")
