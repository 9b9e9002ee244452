"""The vectors of an Immich library are indexed from its own database by the query of the guide, and only read."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_images import FakeImages, serving

from media_files import picture
from refusals import refused
from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.encoding.encoder import Encoder
from saysee.errors import ConfigError
from saysee.media.web import KEY_VARIABLE, ImageServer
from saysee.search.index.imported_vectors import index_vectors

psycopg = pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
from saysee.search.index.readers.database import read_database  # noqa: E402

GUIDE = Path(__file__).parents[3] / "docs/immich.md"
_NUMBERS = itertools.count(1)
# As Immich's migrations make them, as far as a query of the vectors needs them.
SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TYPE asset_visibility_enum AS ENUM ('archive', 'timeline', 'hidden', 'locked');
CREATE TABLE asset (
    id uuid PRIMARY KEY, "ownerId" uuid NOT NULL, type character varying NOT NULL,
    "originalPath" character varying NOT NULL, "originalFileName" character varying NOT NULL,
    "fileCreatedAt" timestamptz NOT NULL, "localDateTime" timestamptz NOT NULL, checksum bytea NOT NULL,
    "deletedAt" timestamptz, visibility asset_visibility_enum NOT NULL DEFAULT 'timeline'
);
CREATE TABLE asset_exif (
    "assetId" uuid PRIMARY KEY REFERENCES asset ON DELETE CASCADE, latitude double precision,
    longitude double precision, city character varying, country character varying
);
CREATE TABLE smart_search (
    "assetId" uuid PRIMARY KEY REFERENCES asset ON DELETE CASCADE, embedding vector({dimension}) NOT NULL
);
CREATE TABLE system_metadata (key character varying PRIMARY KEY, value jsonb NOT NULL);
"""


def index_database(encoder, url, sql, to, **options):
    return index_vectors(encoder, read_database(url, sql, encoder), to, **options)


@dataclass
class Immich:
    """A database of Immich's schema with the images of a folder, and what it is read with."""

    url: str
    images: list[Path]
    admin: Any

    def add(self, number: int, vector: np.ndarray, name: str) -> None:
        asset = self.asset(number)
        values = (asset, self.asset(0), name, name, f"2024-06-{number:02}T14:05:09Z", f"2024-06-{number:02}T14:05:09Z")
        self.run("INSERT INTO asset VALUES (%s, %s, 'IMAGE', %s, %s, %s, %s, '\\x00')", *values)
        self.run("INSERT INTO asset_exif VALUES (%s, 47.5, 8.5, 'Zürich', 'Switzerland')", asset)
        self.run("INSERT INTO smart_search VALUES (%s, %s)", asset, str(vector.tolist()))

    def set_clip(self, name: str) -> None:
        settings = json.dumps({"machineLearning": {"clip": {"modelName": name}}})
        self.run("INSERT INTO system_metadata VALUES ('system-config', %s)", settings)

    def run(self, sql: str, *values: Any) -> Any:
        return self.admin.execute(sql, values)

    @staticmethod
    def asset(number: int) -> str:
        return f"00000000-0000-4000-8000-{number:012}"


@pytest.fixture
def make_immich(postgres: str, encoder: Encoder, photos: Path) -> Iterator[Callable[..., Immich]]:
    """Makes a library of the six images, whose vectors have a length of 1, read by a user who may only read."""
    opened = []

    def make(dimension: int = 24) -> Immich:
        name, images = f"immich_{next(_NUMBERS)}", sorted(photos.rglob("*.png"))
        with psycopg.connect(postgres, autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name}")
            server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        url = postgres.replace("/postgres?", f"/{name}?")
        opened.append(psycopg.connect(url, autocommit=True))
        opened[-1].execute(SCHEMA.replace("{dimension}", str(dimension)))
        library = Immich(url.replace("://postgres:@", f"://{name}:secret@"), images, opened[-1])
        vectors = np.zeros((6, dimension), np.float32) + 0.1
        vectors[:, :24] = encoder.encode_images(images)[:, :dimension]
        for number, (image, vector) in enumerate(zip(images, vectors, strict=True), 1):
            library.add(number, vector, image.name)
        library.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
        return library

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture
def immich(make_immich: Callable[..., Immich]) -> Immich:
    return make_immich()


@pytest.fixture
def server(photos: Path) -> Iterator[FakeImages]:
    with serving({Immich.asset(n): image for n, image in enumerate(sorted(photos.rglob("*.png")), 1)}) as fake:
        yield fake


def query(base: str = "http://photos.local:2283") -> str:
    """The query of the guide."""
    (found, *_) = re.findall(r"^```sql\n(SELECT.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert "http://photos.local:2283/" in found
    return str(found).replace("http://photos.local:2283", base)


def test_the_query_of_the_guide_finds_the_right_asset(encoder, immich, photos, place):
    report = index_database(encoder, immich.url, query(), place)
    assert (report.images, report.imported, report.refused) == (6, 6, [])
    assert "dimension" in report.notes[0]  # no image could be compared
    index = Index.open(place, model=encoder.model)
    expected = encoder.encode_text(["two green stars"]) @ encoder.encode_images(immich.images).T
    (hits,) = index.search(texts=["two green stars"], k=6)
    assert [hit.path.split("/")[5] for hit in hits] == [Immich.asset(n + 1) for n in np.argsort(-expected[0])]
    ((hit,),) = index.search(images=[immich.images[3]], k=1, filters=["taken:2024-06-04..", "city:Z*"])
    assert hit.path == f"http://photos.local:2283/api/assets/{Immich.asset(4)}/thumbnail?size=preview"
    assert hit.metadata == {
        "title": "3.png",
        "taken": "2024-06-04T14:05:09",
        "lat": 47.5,
        "lon": 8.5,
        "city": "Zürich",
        "country": "Switzerland",
    }


def test_a_second_run_writes_only_what_differs(encoder, immich, place):
    index_database(encoder, immich.url, query(), place)
    before = Index.open(place).rows(range(1, 20))
    report = index_database(encoder, immich.url, query(), place)
    assert (report.images, report.imported, report.kept, report.removed) == (6, 0, 6, 0)
    assert Index.open(place).rows(range(1, 20)) == before
    new = encoder.encode_images([picture(immich.images[0].parent / "new.png", 77)])[0]
    immich.add(7, new, "new.png")
    immich.run('UPDATE smart_search SET embedding = %s WHERE "assetId" = %s', str(new.tolist()), Immich.asset(1))
    immich.run("""UPDATE asset_exif SET city = 'Bern' WHERE "assetId" = %s""", Immich.asset(2))
    immich.run("""UPDATE asset SET "deletedAt" = now() WHERE id = %s""", Immich.asset(3))
    immich.run("UPDATE asset SET visibility = 'locked' WHERE id = %s", Immich.asset(4))
    report = index_database(encoder, immich.url, query(), place)
    assert (report.images, report.imported, report.kept, report.removed) == (5, 3, 2, 2)
    index = Index.open(place, model=encoder.model)
    assert {hit.path.split("/")[5][-1] for hit in index.search(vectors=[new], k=2)[0]} == {"1", "7"}
    ((hit,),) = index.search(vectors=[new], filters=["city:Bern"])
    assert Immich.asset(2) in hit.path
    immich.run("""UPDATE asset SET "deletedAt" = now() WHERE id <> %s""", Immich.asset(7))
    report = index_database(encoder, immich.url, query(), place)
    assert (report.images, report.removed, report.missing["."]) == (5, 0, 4)
    assert any("--allow-removals" in note for note in report.notes)
    report = index_database(encoder, immich.url, query(), place, allow_removals=True)
    assert (report.images, report.removed) == (1, 4)
    immich.run("DELETE FROM smart_search")
    refused(SaySeeError, lambda: index_database(encoder, immich.url, query(), place, allow_removals=True), "no row")


WRITES = [
    "DELETE FROM smart_search",
    "WITH gone AS (DELETE FROM smart_search RETURNING *) SELECT * FROM gone",
    """SELECT embedding, "assetId" AS id FROM smart_search; COMMIT; DELETE FROM smart_search""",
    """SELECT embedding, "assetId" AS id FROM smart_search WHERE forget()""",
    """SELECT embedding, "assetId" AS id FROM smart_search, LATERAL
       (SELECT set_config('transaction_read_only', 'off', true)) AS trick WHERE forget()""",
]


@pytest.mark.parametrize("sql", WRITES)
def test_nothing_is_written_even_by_a_user_who_may(encoder, immich, tmp_path, postgres, sql):
    immich.run(
        "CREATE FUNCTION forget() RETURNS boolean LANGUAGE plpgsql VOLATILE AS "
        "$$ BEGIN DELETE FROM smart_search; RETURN true; END $$"
    )
    owner = postgres.replace("/postgres?", f"/{immich.admin.info.dbname}?")
    refused(SaySeeError, lambda: index_database(encoder, owner, sql, tmp_path / "index"), "--query")
    assert immich.run("SELECT count(*) FROM smart_search").fetchone() == (6,)
    assert not (tmp_path / "index").exists()


def test_the_user_of_the_guide_cannot_write_and_the_time_of_a_query_is_limited(encoder, immich, tmp_path, monkeypatch):
    with psycopg.connect(immich.url) as reader, pytest.raises(psycopg.errors.InsufficientPrivilege):
        reader.execute("DELETE FROM smart_search")
    from saysee.search.index.readers import database

    monkeypatch.setattr(database, "_STATEMENT_SECONDS", 1)
    slow = """SELECT embedding, "assetId" AS id, pg_sleep(9)::text FROM smart_search"""
    refused(SaySeeError, lambda: index_database(encoder, immich.url, slow, tmp_path / "index"), "query")


BAD = {
    """SELECT "assetId" AS id FROM smart_search""": ["0 columns"],
    """SELECT embedding, embedding AS again, "assetId" AS id FROM smart_search""": ["2 columns", "again"],
    "SELECT embedding FROM smart_search": ["'path'"],
    """SELECT embedding, 'a.jpg' AS path FROM smart_search""": ["row 2", "a.jpg"],
    """SELECT embedding, NULL AS path FROM smart_search""": ["row 1"],
    """SELECT embedding, a.id, checksum FROM smart_search JOIN asset a ON a.id = "assetId" """: ["'checksum'"],
    "SELECT embedding, id FROM smart_search JOIN assets ON true": ["assets"],
    "SELECT * FROM pg_authid": ["pg_authid"],
    "VACUUM": ["--query"],
}


@pytest.mark.parametrize("sql", BAD)
def test_a_query_that_cannot_be_used_is_an_error_that_says_why(encoder, immich, tmp_path, sql):
    refused(SaySeeError, lambda: index_database(encoder, immich.url, sql, tmp_path / "index"), *BAD[sql])
    assert not (tmp_path / "index").exists()


def test_arrays_and_vectors_that_are_missing_or_of_another_width_are_named(encoder, immich, tmp_path):
    sql = """SELECT CASE row_number() OVER (ORDER BY "assetId") WHEN 2 THEN NULL WHEN 3 THEN '{1,2}'::real[]
        WHEN 4 THEN array_fill(1::real, ARRAY[24, 2]) ELSE embedding::real[] END AS v,
        "assetId" AS id FROM smart_search ORDER BY "assetId" """
    report = index_database(encoder, immich.url, sql, tmp_path / "index")
    assert [path for path, _ in report.refused] == [Immich.asset(2), Immich.asset(3), Immich.asset(4)]
    assert "row 2" in report.refused[0][1]
    assert "2 dim" in report.refused[1][1]
    assert "48 dim" in report.refused[2][1]
    assert (report.images, report.imported) == (3, 3)
    report = index_database(encoder, immich.url, sql.replace("WHEN 2", "WHEN 1"), tmp_path / "index")
    assert (report.images, report.imported, report.removed) == (3, 1, 1)  # its vector is of no use any more


def test_another_dimension_is_refused(encoder, make_immich, tmp_path):
    library = make_immich(dimension=32)
    refused(SaySeeError, lambda: index_database(encoder, library.url, query(), tmp_path / "index"), "32", "24")


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP__webli", "ViT-L-14__openai", "XLM-Roberta-Large-Vit-B-32"])
def test_a_library_whose_settings_name_another_clip_is_refused(encoder, immich, tmp_path, name):
    immich.set_clip(name)
    refused(SaySeeError, lambda: index_database(encoder, immich.url, query(), tmp_path / "index"), name, "openai")


def test_openais_clips_are_known_by_their_names(encoder, immich, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "name", "openai/clip-vit-base-patch16")
    fix = "openai/clip-vit-base-patch32"  # the default, as the settings name none
    refused(SaySeeError, lambda: index_database(encoder, immich.url, query(), tmp_path / "index"), encoder.name, fix)
    immich.set_clip("ViT-B-32__openai")
    refused(SaySeeError, lambda: index_database(encoder, immich.url, query(), tmp_path / "index"), encoder.name, fix)
    monkeypatch.setattr(encoder, "name", fix)
    assert index_database(encoder, immich.url, query(), tmp_path / "index").images == 6


def test_settings_that_may_not_be_read_are_reported(encoder, immich, tmp_path):
    immich.run(f"REVOKE SELECT ON system_metadata FROM {immich.admin.info.dbname}")
    report = index_database(encoder, immich.url, query(), tmp_path / "index")
    assert any("system_metadata" in note for note in report.notes)


def test_some_of_its_own_images_are_compared(encoder, immich, server, tmp_path, monkeypatch):
    def run(base: str = server.base, key: str | None = server.key) -> Any:
        images = ImageServer(base, key)
        return index_database(encoder, immich.url, query(server.base), tmp_path / "index", images=images)

    assert run().notes == []
    assert 0 < len(server.asked) <= 8
    refused(SaySeeError, lambda: run(key="wrong"), "401", KEY_VARIABLE)
    refused(SaySeeError, lambda: run(base="http://127.0.0.1:9"), "http://127.0.0.1:9", "--images-from")
    monkeypatch.setattr(encoder, "name", "openai/clip-vit-base-patch16")
    run()  # the images decide where the settings name no CLIP
    immich.run("UPDATE smart_search SET embedding = (SELECT embedding FROM smart_search ORDER BY random() LIMIT 1)")
    for number in range(1, 7):
        noise = np.random.default_rng(number).standard_normal(24)
        immich.run(
            'UPDATE smart_search SET embedding = %s WHERE "assetId" = %s', str(noise.tolist()), Immich.asset(number)
        )
    refused(SaySeeError, run, "cosine", "openai/clip-vit-base-patch32")


def test_another_source_is_refused_and_the_same_by_another_user_is_not(
    encoder, immich, make_immich, photos, tmp_path, postgres
):
    index_database(encoder, immich.url, query(), tmp_path / "index")
    other = make_immich()
    name = immich.admin.info.dbname
    refused(SaySeeError, lambda: index_database(encoder, other.url, query(), tmp_path / "index"), name)
    assert main(["index", str(encoder.name), str(photos), "--to", str(tmp_path / "index")]) == 2
    owner = postgres.replace("/postgres?", f"/{name}?")
    assert index_database(encoder, owner, query(), tmp_path / "index").kept == 6


def test_the_command(model_folder, immich, server, tmp_path, capsys, monkeypatch):
    def run(*words: object) -> tuple[int, str, str]:
        code = main(["index", *map(str, words)])
        return code, *capsys.readouterr()

    monkeypatch.setenv(KEY_VARIABLE, server.key)
    words = ["--from-postgres", immich.url, "--query", query(server.base), "--to", tmp_path / "index"]
    code, output, errors = run(model_folder, *words, "--images-from", server.base, "--json")
    assert (code, json.loads(output)["imported"], json.loads(output)["notes"]) == (0, 6, [])
    assert "secret" not in output + errors + (tmp_path / "index/items.sqlite").read_bytes().decode("latin-1")
    code, output, _ = run(model_folder, *words)
    assert (code, "6 unchanged" in output) == (0, True)
    for wrong in (
        words,  # no model
        [model_folder, *words[:2], *words[4:]],
        [model_folder, *words[2:]],
        [model_folder, *words, "--watch"],
        [model_folder, *words, "--exclude", "a"],
        [model_folder, *words, "--images-from", "photos.local"],
        [model_folder, *words, "--from-vectors", "v.npy", "--ids", "ids.csv"],
        [model_folder, "--from-postgres", "postgresql://nobody:secret@127.0.0.1:9/immich", *words[2:]],
    ):
        code, output, errors = run(*wrong)
        assert (code, output, errors.count("\n"), "secret" in errors) == (2, "", 1, False), wrong


def test_addresses_of_servers_and_keys_are_checked(monkeypatch):
    for base in ("photos", "ftp://photos", "http://", "http://a@b", "http://photos:99999", "http://photos/?a=1"):
        refused(ConfigError, lambda base=base: ImageServer(base), base)
    monkeypatch.setenv(KEY_VARIABLE, "a\nb")
    refused(ConfigError, lambda: ImageServer("http://photos"), KEY_VARIABLE)
