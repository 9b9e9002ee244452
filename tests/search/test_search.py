"""Every kind of query finds what comparing with every vector finds; what does not fit is refused in one line."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from media_files import clip, picture
from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.data.manifest import Manifest, Row
from saysee.encoding.encoder import Encoder
from saysee.model.retriever import SpeechImageModel
from saysee.search.index.imported_vectors import index_vectors
from saysee.search.index.index import open_store
from saysee.search.index.readers.files import read_files
from saysee.search.index.sql import fast_copy, sqlite
from saysee.search.index.sql.sqlite import SqliteStore
from saysee.search.index.store import Item
from saysee.search.index.updating import update_index

DIMENSION = 24


def index_files(encoder, vectors, ids, to):
    return index_vectors(encoder, read_files(vectors, ids, encoder.dimension), to)


@pytest.fixture
def index(encoder, photos, tmp_path) -> Index:
    """One in a folder."""
    update_index(encoder, photos, tmp_path / "index")
    return Index.open(tmp_path / "index", model=encoder.model)


@pytest.fixture
def any_index(encoder, photos, place) -> Index:
    """One in a folder, and one in a database."""
    update_index(encoder, photos, place)
    return Index.open(place, model=encoder.model)


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around centres around centres, as those of images lie."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((20, DIMENSION))
    scenes = topics[rng.integers(0, 20, 400)] + 0.6 * rng.standard_normal((400, DIMENSION))
    vectors = scenes[rng.integers(0, 400, count)] + 0.4 * rng.standard_normal((count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def given(folder: Path, encoder: Encoder, vectors: np.ndarray, place: str | None = None) -> Index:
    """An index of given vectors; the files need not be there."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "vectors.npy", vectors)
    lines = "".join(f"{number % 10}/{number}.jpg,{number % 7}\n" for number in range(len(vectors)))
    (folder / "ids.csv").write_text("path,week\n" + lines)
    index_files(encoder, folder / "vectors.npy", folder / "ids.csv", place or folder / "index")
    return Index.open(place or folder / "index", model=encoder.model)


def exact(queries: np.ndarray, vectors: np.ndarray, k: int) -> list[list[int]]:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k].tolist()


def numbers(results) -> list[list[int]]:
    return [[int(Path(hit.path).stem) for hit in hits] for hits in results]


def recall(found: list[list[int]], truth: list[list[int]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def test_speech_text_and_images_find_images(any_index, photos):
    index = any_index
    model = index.encoder.model
    pictures = sorted(photos.rglob("*.png"))
    images = model.encode_images(pictures)
    for ask, queries in (
        (
            {"speech": [photos / "clips/0.wav", photos / "clips/1.wav"]},
            model.encode_speech([photos / "clips/0.wav", photos / "clips/1.wav"]),
        ),
        ({"texts": ["two green stars"]}, model.encode_text(["two green stars"])),
    ):
        results = index.search(**ask, k=4)
        assert [[pictures.index(Path(hit.path)) for hit in hits] for hits in results] == exact(queries, images, 4)
        np.testing.assert_allclose([hits[0].score for hits in results], (queries @ images.T).max(axis=1), atol=1e-5)
    assert {hit.kind for hit in index.search(images=[pictures[0]], kind="clip")[0]} == {"clip"}
    best = index.search(images=[pictures[3]], k=1)[0][0]
    assert (best.path, round(best.score, 4)) == (str(pictures[3]), 1.0)


def test_an_image_finds_clips_where_the_index_has_clips_alone(encoder, photos, place):
    shutil.rmtree(photos / "holiday")
    for path in (photos / "work").iterdir():
        path.rename(photos.parent / path.name)
    update_index(encoder, photos, place)
    index = Index.open(place, model=encoder.model)
    assert [hit.kind for hit in index.search(images=[photos.parent / "4.png"])[0]] == ["clip"] * 3
    assert index.search(images=[photos.parent / "4.png"], kind="image") == [[]]
    assert index.search(speech=[photos / "clips/0.wav"]) == [[]]


def test_hits_of_equal_content_are_one_with_the_number_of_copies(encoder, photos, place):
    for number in range(60):
        shutil.copy(photos / "work/4.png", photos / f"holiday/copy {number}.png")
    shutil.copy(photos / "clips/1.wav", photos / "clips/copy.wav")
    update_index(encoder, photos, place)
    index = Index.open(place, model=encoder.model)
    vectors = encoder.encode_images([photos / "work/4.png"])
    for conditions in ({}, {"where": "size > 0"}, {"filters": ["name:*.png"]}):
        (hits,) = index.search(vectors=vectors, k=6, **conditions)
        assert len({Path(hit.path).read_bytes() for hit in hits}) == 6
        assert [hit.copies for hit in hits] == [61, 1, 1, 1, 1, 1]
    (hits,) = index.search(vectors=vectors, k=3, kind="clip")
    assert sorted(hit.copies for hit in hits) == [1, 1, 2]


def test_pages_of_hits_are_the_parts_of_one_list(any_index):
    vectors = np.random.default_rng(0).standard_normal((2, DIMENSION))
    whole = any_index.search(vectors=vectors, k=6)
    pages = [any_index.search(vectors=vectors, k=2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [[hit for page in pages for hit in page[query]] for query in range(2)] == whole
    with pytest.raises(SaySeeError, match="-1"):
        any_index.search(vectors=vectors, offset=-1)


def test_pages_reach_the_last_row_of_a_large_index(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_copy, "MEMORY_ROWS", 100)
    monkeypatch.setattr(fast_copy, "EXACT_ROWS", 1_000)
    index = given(tmp_path, encoder, clustered(5_000))
    assert index.store.searcher("image").method.startswith("approximate")
    found = [page[0][0].id for page in (index.search(vectors=clustered(1), k=1, offset=n) for n in (0, 3_000, 4_999))]
    assert len(set(found)) == 3
    assert index.search(vectors=clustered(1), k=1, offset=5_000) == [[]]


def test_refusals(index):
    for ask, words in (
        ({}, "exactly one of"),
        ({"texts": ["a"], "vectors": np.ones((1, DIMENSION))}, "exactly one of"),
        ({"texts": ["a"], "k": 0}, "at least 1"),
        ({"vectors": np.ones((1, 5))}, "have 24 dimensions"),
        ({"vectors": np.zeros((1, DIMENSION))}, "zero or not finite"),
        ({"vectors": [[1, 2], [3]]}, rf"\[Q, {DIMENSION}\]"),
        ({"texts": ["a"], "kind": "video"}, "one of image, clip"),
    ):
        with pytest.raises(SaySeeError, match=words):
            index.search(**ask)


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_vectors_may_be_of_any_length(index, length):
    query = np.random.default_rng(0).standard_normal((1, DIMENSION))
    assert index.search(vectors=query * length) == index.search(vectors=query / np.linalg.norm(query))


def test_another_model_is_refused(index, hubert_folder, clip_folder, clip_config, photos, tmp_path):
    from transformers import CLIPModel

    torch.manual_seed(5)
    shutil.copytree(clip_folder, tmp_path / "other")
    CLIPModel(clip_config).save_pretrained(tmp_path / "other")
    other = SpeechImageModel.from_encoders(hubert_folder, tmp_path / "other")
    with pytest.raises(SaySeeError, match="model"):
        Index.open(index.folder, model=other).search(speech=[photos / "clips/0.wav"])
    with pytest.raises(SaySeeError, match="model"):
        update_index(Encoder(other), photos, index.folder)
    with sqlite3.connect(index.folder / "items.sqlite") as connection:
        connection.execute("UPDATE about SET value = '32' WHERE name = 'dimension'")
    connection.close()
    with pytest.raises(SaySeeError, match="32 dimensions"):
        Index.open(index.folder, model=index.encoder.model).search(texts=["a"])
    shutil.rmtree(index.folder)
    update_index(Encoder(other), photos, index.folder)
    with pytest.raises(SaySeeError, match="model"):
        index.search(texts=["a"])  # it was open before


def test_index_finds_its_model_or_asks_for_it(encoder, model_folder, photos, tmp_path):
    update_index(encoder, photos, tmp_path / "index")
    assert Index.open(tmp_path / "index").search(texts=["a red square"], k=1)[0]
    model_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SaySeeError, match=r"model.*--model"):
        Index.open(tmp_path / "index").search(texts=["a"])
    assert Index.open(tmp_path / "index", model=str(tmp_path / "elsewhere")).search(texts=["a"], k=1)[0]


CONDITIONS = {
    "folder LIKE 'holiday%'": 4,
    "folder = 'work' OR name IN ('0.png', '1.png')": 4,
    "size > 0 AND (length(name) = 5) -- a comment": 6,
    "name = 'it''s' or not name like '%;%'": 6,
    "coalesce(metadata ->> 'speaker', '') = ''": 6,
}
_SQL = {"id IN (SELECT max(id) FROM items)": 0}
OWN_CONDITIONS = {
    "folder": {**_SQL, "path GLOB 'work/*'": 2},
    "postgres": {**_SQL, "path ~ '^work/'": 2},
    "lance": {"json_get_string(metadata, 'speaker') IS NULL": 6, "regexp_like(path, '^work/')": 2},
}
BAD_CONDITIONS = [
    "",
    "nothing = 1",
    "name = 'open",
    "name = 'a' \x00",
    "name = '\ud800'",
    "1 = 1); DROP TABLE items; --",
    "load_extension('evil')",
    "nextval('items_id_seq') > 0",
    "id IN (DELETE FROM items RETURNING id)",
    "ATTACH DATABASE '/tmp/x' AS y",
    "no_such_column_" + "x" * 20_000 + " = 1",
]
ENDLESS = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n) > 0"


def sort_of(place: str) -> str:
    return place.partition("://")[0].replace("postgresql", "postgres") if "://" in place else "folder"


def test_condition_of_the_own_database_chooses_rows(any_index):
    for condition, expected in {**CONDITIONS, **OWN_CONDITIONS[sort_of(any_index.place)]}.items():
        assert len(any_index.search(vectors=np.ones((1, DIMENSION)), where=condition)[0]) == expected, condition


def test_names_in_conditions_and_filters_compare_in_nfc(encoder, place, tmp_path):
    composed, decomposed = "Übung", "U\u0308bung"
    rows = []
    for number, folder in enumerate((composed, decomposed, "other")):
        picture(tmp_path / "photos" / folder / "a.png", number)
        clip(tmp_path / "photos" / folder / "a.wav", number)
        person = (decomposed, composed, "é")[number]
        rows.append(Row(f"{folder}/a.wav", f"{folder}/a.png", str(number), "test", speaker=person))
    Manifest(rows, tmp_path / "photos").write(tmp_path / "photos/m.jsonl")
    update_index(encoder, tmp_path / "photos/m.jsonl", place)
    index = Index.open(place, model=encoder.model)
    one = np.ones((1, DIMENSION))
    is_lance = sort_of(place) == "lance"
    for word in (composed, decomposed):
        for where in (
            f"folder = '{word}'",
            f"path LIKE '{word}/%' AND size > 0",
            f"metadata ->> 'speaker' = '{word}' -- {word}",
            f"id {'> 0' if is_lance else 'IN (SELECT id FROM items)'} AND folder IN ('{word}') AND kind = 'image'",
        ):
            assert len(index.search(vectors=one, where=where)[0]) == 2, where
        for text in (f"folder:{word}", f"speaker:{word}", f"path:{word[:-1]}*"):
            assert len(index.search(vectors=one, filters=[text])[0]) == 2, text
    with pytest.raises(SaySeeError, match="cannot be used"):
        index.search(vectors=one, where="größe = 1")


def test_condition_that_the_database_refuses_is_one_line(any_index):
    for condition in BAD_CONDITIONS:
        with pytest.raises(SaySeeError, match="cannot be used") as refused:
            any_index.search(vectors=np.ones((1, DIMENSION)), where=condition)
        assert repr(condition)[:100] in str(refused.value)
        assert len(str(refused.value)) < 1_000
        assert "\n" not in str(refused.value)
    assert sum(any_index.counts().values()) == 9


def test_condition_that_takes_long_is_stopped(any_index, monkeypatch):
    sort, seconds, condition = sort_of(any_index.place), 0.2, ENDLESS
    if sort == "lance":  # whose SQL has no recursion
        seconds, condition = 0.02, "length(replace(repeat(path, 1000000), 'o', 'xx')) > 0"
    module = {"folder": "sql.sqlite", "postgres": "sql.postgres_search", "lance": "lance.searching"}[sort]
    monkeypatch.setattr(f"saysee.search.index.{module}.WHERE_SECONDS", seconds)
    with pytest.raises(SaySeeError, match=re.escape(f"it takes over {seconds:g} s")):
        any_index.search(vectors=np.ones((1, DIMENSION)), where=condition)
    assert len(any_index.search(vectors=np.ones((1, DIMENSION)))[0]) == 6


def test_every_size_finds_what_exact_search_finds(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_copy, "MEMORY_ROWS", 1_000)
    monkeypatch.setattr(fast_copy, "EXACT_ROWS", 5_000)
    rng = np.random.default_rng(1)
    for count, method in ((800, "exact, from memory"), (3_000, "exact, fp16"), (12_000, "approximate, ")):
        vectors = clustered(count)
        index = given(tmp_path / str(count), encoder, vectors)
        queries = vectors[rng.integers(0, count, 100)] + 0.1 * rng.standard_normal((100, DIMENSION)).astype(np.float32)
        assert recall(numbers(index.search(vectors=queries)), exact(queries, vectors, 10)) >= 0.99
        assert index.store.searcher("image").method.startswith(method)
        every = [number for number in range(count) if number % 7 in (1, 3)]
        found = numbers(index.search(vectors=queries, where="metadata ->> 'week' IN ('1', '3')"))
        truth = [[every[place] for place in places] for places in exact(queries, vectors[every], 10)]
        assert recall(found, truth) >= 0.99


def test_changes_are_searched_beside_the_fast_copy(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_copy, "MEMORY_ROWS", 100)
    vectors = clustered(400)
    index = given(tmp_path / "given", encoder, vectors[:300])
    (file,) = index.folder.glob("*.faiss")
    index.search(vectors=vectors[:1])
    with SqliteStore(index.folder).writing() as writer:
        known = {int(Path(item.path).stem): item for item in writer.items()}
        now = {number: vectors[number] for number in range(300)}
        for added in (range(300, 340), range(340, 341)):
            now |= {number: vectors[number] for number in added}
            with writer.transaction():
                writer.put([Item("image", f"{n}.jpg") for n in added], vectors[added.start : added.stop])
        writer.remove([known[number] for number in range(40)])
        changed = [known[number] for number in range(40, 80)]
        with writer.transaction():
            writer.put(changed, vectors[341:381])
        now |= {number: vectors[301 + number] for number in range(40, 80)}
    now = {number: vector for number, vector in now.items() if number >= 40}
    names, matrix = np.array(list(now)), np.stack(list(now.values()))
    for opened in (index, Index.open(index.folder)):  # one that knew the rows before, and one that did not
        for conditions in ({}, {"where": "id > 0"}):
            found = numbers(opened.search(vectors=vectors, k=10, **conditions))
            assert found == [[int(names[place]) for place in places] for places in exact(vectors, matrix, 10)]
    assert index.check() == []
    assert [*index.folder.glob("*.faiss")] == [file]


def test_worn_fast_copy_is_renewed_while_others_search_and_write(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_copy, "MEMORY_ROWS", 100)
    monkeypatch.setattr(fast_copy, "RENEW_ROWS", 10)
    vectors = clustered(400)
    index = given(tmp_path / "given", encoder, vectors[:300])
    (file,) = index.folder.glob("*.faiss")
    building, go = threading.Event(), threading.Event()
    build = fast_copy.build

    def slow(tables, kind):
        copy = build(tables, kind)
        building.set()
        assert go.wait(60)
        return copy

    monkeypatch.setattr(fast_copy, "build", slow)
    store = SqliteStore(index.folder)
    with store.writing() as writer, writer.transaction():
        writer.put([Item("image", f"{n}.jpg") for n in range(300, 320)], vectors[300:320])
    assert numbers(index.search(vectors=vectors[300:320], k=1)) == [[n] for n in range(300, 320)]
    assert building.wait(60)
    with store.writing() as writer, writer.transaction():
        writer.put([Item("image", "320.jpg")], vectors[320:321])
    assert numbers(index.search(vectors=vectors[320:321], k=1)) == [[320]]
    go.set()
    deadline = time.monotonic() + 60
    while len(index.store.searcher("image").outdated) != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(index.store.searcher("image").outdated) == 1  # the copy has the others
    assert numbers(index.search(vectors=vectors[300:321], k=1)) == [[n] for n in range(300, 321)]
    monkeypatch.undo()
    assert index.check() == []
    with store.writing() as writer:
        writer.make_ready()
    assert not file.exists()


def test_rows_written_by_an_earlier_release_make_the_fast_copy_stale(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_copy, "MEMORY_ROWS", 100)
    vectors = clustered(300)
    index = given(tmp_path / "given", encoder, vectors)
    store = SqliteStore(index.folder)
    with store.writing() as writer, writer.transaction():
        writer.put([Item("image", "9000.jpg")], -vectors[:1])
        writer.execute("DROP TABLE outdated")
        writer.note("stamp_image", "0123456789abcdef")
    (file,) = index.folder.glob("*.faiss")
    assert index.check() == [
        f"{index.place}: the fast copy of its images is missing or stale; run 'saysee index-compact {index.place}'"
    ]
    assert numbers(index.search(vectors=-vectors[:1], k=1)) == [[9000]]
    assert not file.exists()


def test_damaged_or_missing_fast_copy_is_made_again(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_copy, "MEMORY_ROWS", 100)
    vectors = clustered(300)
    index = given(tmp_path / "given", encoder, vectors)
    (file,) = index.folder.glob("*.faiss")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert "is damaged" in index.check()[0]
    index.compact()
    assert index.check() == []
    (index.folder / "images-0000.faiss").touch()  # left by a kill between file and row
    file.unlink(missing_ok=True)
    with SqliteStore(index.folder).writing() as writer:  # while another writes, the stored vectors are searched
        for path in index.folder.glob("*.faiss"):
            path.unlink()
        assert numbers(Index.open(index.folder).search(vectors=vectors[:1], k=1)) == [[0]]
        writer.make_ready()
    assert len([*index.folder.glob("*.faiss")]) == 1


def test_a_fast_copy_that_another_process_writes_is_left_alone(index, monkeypatch):
    unfinished = index.folder / ".writing-images-0000.faiss"
    unfinished.touch()
    monkeypatch.setattr(sqlite, "_PATIENCE_SECONDS", 0.1)
    with closing(sqlite3.connect(index.folder / "items.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # as it does while it writes one
        with pytest.raises(SaySeeError, match="busy"), index.store.writing() as writer:
            writer.make_ready()
    assert unfinished.exists()
    with index.store.writing() as writer:  # a kill left it
        writer.make_ready()
    assert not unfinished.exists()


def test_check_finds_a_damaged_vector(index):
    assert index.check() == []
    with sqlite3.connect(index.folder / "items.sqlite") as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(96) WHERE item = 1")
    connection.close()
    assert index.check() == [f"{index.place}: the vector of row 1 is damaged; create the index again"]


def test_compact_reclaims_disk_space(encoder, tmp_path):
    vectors = clustered(3_000)
    index = given(tmp_path / "given", encoder, vectors)
    with SqliteStore(index.folder).writing() as writer:
        writer.remove([item for item in writer.items() if item.id > 10])
    before, after = index.compact()
    assert after < before / 3
    assert numbers(index.search(vectors=vectors[:1], k=1)) == [[0]]


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_imported_vectors_answer_as_encoded_ones(encoder, photos, place, tmp_path, kind):
    pictures = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    vectors = (3.0 * encoder.model.encode_images([photos / path for path in pictures])).astype(np.float16)
    if kind == "npy":
        np.save(photos / "vectors.npy", vectors)
    else:
        pq.write_table(
            pa.table({"name": pictures, "v": pa.array(list(vectors.astype(np.float32)))}), photos / "vectors.parquet"
        )
    with (photos / "ids.csv").open("w", encoding="utf-8") as file:
        csv.writer(file).writerows([["image_path", "caption"], *([path, f"of {path}"] for path in pictures)])
    report = index_files(encoder, photos / f"vectors.{kind}", photos / "ids.csv", place)
    assert report.notes == ["6 vectors were not of length 1; all are kept as unit vectors"]
    update_index(encoder, photos, tmp_path / "encoded")
    results = []
    for each in (place, tmp_path / "encoded"):
        hits = Index.open(each, model=encoder.model).search(speech=[photos / "clips/1.wav"])[0]
        results.append([(hit.path, round(hit.score, 2)) for hit in hits])
    assert results[0] == results[1]
    assert open_store(place).about().precision == ("float16" if kind == "npy" else "float32")
    assert Index.open(place).counts() == {"image": 6, "clip": 0}


def test_imported_vectors_that_do_not_fit_are_refused(encoder, photos, tmp_path):
    def refused(vectors: np.ndarray, lines: str, words: str) -> None:
        np.save(tmp_path / "v.npy", vectors, allow_pickle=True)
        (photos / "ids.csv").write_text(lines)
        with pytest.raises(SaySeeError, match=words):
            index_files(encoder, tmp_path / "v.npy", photos / "ids.csv", tmp_path / "given")

    two = "path\nholiday/0.png\nholiday/1.png\n"
    rng = np.random.default_rng(0)
    refused(rng.standard_normal((2, 7)), two, "7 dimensions.*24")
    refused(rng.standard_normal((3, DIMENSION)), two, "2 lines.*3 vectors")
    refused(rng.standard_normal((2, DIMENSION)), "path\na.png\na.png\n", "line 3.*a.png")
    refused(rng.standard_normal((2, DIMENSION)), "colour\nred\nblue\n", "ids.csv.*path")
    refused(np.array([{"a": 1}], object), two, "v.npy")
    refused(rng.standard_normal((2, DIMENSION)), two, "cosine")
    assert not (tmp_path / "given").exists()


def test_what_cannot_be_checked_is_reported(encoder, tmp_path):
    vectors = clustered(5)
    vectors[2] = np.nan
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.csv").write_text("path\n" + "".join(f"https://example.org/{n}.jpg\n" for n in range(5)))
    report = index_files(encoder, tmp_path / "v.npy", tmp_path / "ids.csv", tmp_path / "given")
    assert "dimension" in report.notes[0]
    ((path, reason),) = report.refused
    assert path == "https://example.org/2.jpg"
    assert "v.npy: row 3 (https://example.org/2.jpg): " in reason
    hits = Index.open(tmp_path / "given").search(vectors=vectors[:1], k=1)[0]
    assert hits[0].path == "https://example.org/0.jpg"


def test_commands(model_folder, photos, place, tmp_path, capsys):
    index = place
    shown = open_store(place).place

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    (photos / "bad.png").write_text("no picture")
    code, output, errors = run("index", model_folder, photos, "--to", index, "--json")
    assert (code, json.loads(output)["encoded"]) == (0, 9)
    assert "bad.png: is not an image" in errors
    code, output, _ = run("search", index, photos / "clips/0.wav", "--text", "two green stars", "-k", 3, "--json")
    assert [len(result["hits"]) for result in json.loads(output)["results"]] == [3, 3]
    code, output, errors = run("search", index, photos, "--for", "images", "-k", "1", "--json")
    results = {result["query"]: result["hits"][0]["path"] for result in json.loads(output)["results"]}
    assert len(results) == 9
    assert results[str(photos / "work/4.png")] == str(photos / "work/4.png")
    assert "bad.png" in errors
    code, output, _ = run("search", index, photos / "clips/0.wav", "--where", "folder LIKE 'work%'")
    assert code == 0
    assert "work/4.png" in output
    assert "holiday" not in output
    code, output, _ = run("search", index, photos / "clips/0.wav", "--filter", "folder:holi*", "--filter", "name:0*")
    assert code == 0
    assert "holiday/0.png" in output
    assert "holiday/1.png" not in output
    assert "work" not in output
    code, output, _ = run("index-check", index, "--json")
    assert (code, json.loads(output)) == (0, {"index": str(shown), "image": 6, "clip": 3, "problems": []})
    assert run("index-compact", index)[0] == 0
    for words in (
        ("search", index),
        ("search", index, photos / "bad.png"),
        ("search", index, "a.txt"),
        ("search", tmp_path / "nowhere", "--text", "a"),
        ("search", index, "--text", "a", "--where", "1); --"),
        ("search", index, "--text", "a", "--filter", "holiday"),
        ("index", model_folder, "--to", index),
        ("index-check", index, "--to", index),
        ("index", model_folder, tmp_path / "nowhere", "--to", index),
        ("index", "--from-vectors", "v.npy", "--to", index),
    ):
        code, output, errors = run(*words)
        assert (code, output, errors.count("\n")) == (2, "", 1), words


def test_names_with_brackets_are_printed_as_they_are(encoder, tmp_path, model_folder, capsys):
    picture(tmp_path / "photos/[bold]a.png", 1)
    clip(tmp_path / "photos/[red].wav", 1)
    update_index(encoder, tmp_path / "photos", tmp_path / "index")
    assert main(["search", str(tmp_path / "index"), str(tmp_path / "photos/[red].wav")]) == 0
    output = capsys.readouterr().out
    assert "[bold]a.png" in output
    assert "[red].wav" in output
