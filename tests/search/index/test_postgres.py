"""What only an index in PostgreSQL has: HNSW, the ways in which a server refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from many_rows import DIMENSION, clustered, fill, recall, refusal
from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.search.index.index import open_store

psycopg = pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
from saysee.search.index.sql import postgres as postgres_store  # noqa: E402
from saysee.search.index.sql import postgres_search  # noqa: E402


def admin(place: str, *statements: str) -> None:
    """Runs statements in the index's schema."""
    connection = open_store(place).connect()
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.fixture
def few(monkeypatch):
    """HNSW from 300 rows on."""
    monkeypatch.setattr(postgres_search, "EXACT_ROWS", 300)


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


def test_indexes_of_one_database_keep_their_hnsw(postgres, few):
    admin(postgres, "CREATE DATABASE several")
    large, small = (postgres.replace("/postgres?", "/several?") + f"&schema={name}" for name in ("public", "small"))
    fill(large, clustered(400))
    fill(small, clustered(3))
    assert Index.open(large).check() == []


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


def test_a_plus_in_an_option_is_no_space(postgres):
    connection = open_store(f"{postgres}&application_name=a+b").connect()
    assert connection.execute("SHOW application_name").fetchone() == ("a+b",)
    connection.close()


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
