"""The service finds what the index finds; a client's mistake gets a status, a code and one line."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import soundfile
from PIL import Image
from service_tools import metric, run_apart
from starlette.requests import Request

from media_files import clip
from saysee.search.index.filters import parse_filters
from saysee.search.service.core import Query, to_text
from saysee.search.service.errors import RequestError
from saysee.search.service.requests import LimitedRequest
from saysee.search.service.settings import Limits


def names(answer) -> list[str]:
    return [hit["name"] for hit in answer.json()["hits"]]


def wav(seconds: float, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate))
    soundfile.write(buffer, noise.astype(np.float32), rate, format="WAV")
    return buffer.getvalue()


def test_every_kind_of_query_finds_what_the_index_finds(ask, index, photos):
    client = ask()
    for path, ways in (
        ("clips/1.wav", [("audio", "speech", None), ("audio", "speech", "clip")]),
        ("work/4.png", [("image", "images", None), ("image", "images", "image")]),
    ):
        content = (photos / path).read_bytes()
        for field, ways_of_index, kind in ways:
            answer = client.post(
                "/search", files={field: ("x", content)}, data={"k": "3"} | ({"kind": kind} if kind else {})
            )
            assert answer.status_code == 200, answer.text
            expected = index.search(**{ways_of_index: [content]}, k=3, kind=kind)[0]
            assert [(hit["id"], round(hit["score"], 4)) for hit in answer.json()["hits"]] == [
                (hit.id, round(hit.score, 4)) for hit in expected
            ]
            assert answer.json()["kind"] == expected[0].kind
    answer = client.post("/search", files={"text": (None, "a red square above a blue circle")}).json()
    assert [hit["id"] for hit in answer["hits"]] == [
        hit.id for hit in index.search(texts=["a red square above a blue circle"], k=12)[0]
    ]
    assert answer["query"]["kind"] == "text"
    assert answer["hits"][0] == {
        "id": answer["hits"][0]["id"],
        "kind": "image",
        "name": answer["hits"][0]["name"],
        "folder": answer["hits"][0]["folder"],
        "score": answer["hits"][0]["score"],
        "measure": "cosine",
        "copies": 1,
        "metadata": {},
        "url": f"/images/{answer['hits'][0]['id']}",
        "thumbnail": f"/images/{answer['hits'][0]['id']}/thumbnail",
        "preview": f"/images/{answer['hits'][0]['id']}/preview",
    }
    assert {hit["folder"] for hit in answer["hits"]} == {"holiday", "work"}


def test_the_vector_of_an_answer_repeats_the_query(ask, photos):
    client = ask()
    first = client.post("/search", files={"audio": ("x", (photos / "clips/2.wav").read_bytes())})
    again = client.post("/search", files={"vector": (None, first.json()["query"]["vector"])})
    assert names(again) == names(first)
    np.testing.assert_allclose(
        [hit["score"] for hit in again.json()["hits"]], [hit["score"] for hit in first.json()["hits"]], atol=2e-3
    )
    assert first.json()["query"]["seconds"] == pytest.approx(5_000 / 16_000)
    assert again.json()["query"]["seconds"] is None


def test_queries_in_one_batch_get_what_each_gets_alone(make_service, index, photos):
    service = make_service()
    encoder = index.encoder
    queries = [
        Query([("clip", encoder.prepare("clip", photos / "clips/0.wav"))], 2),
        Query([("text", "two green stars")], 1),
        Query([("clip", encoder.prepare("clip", clip(photos.parent / "long.wav", 9)))], 5, "clip"),
        Query([("clip", encoder.prepare("clip", photos / "clips/1.wav")), ("text", "two green stars")], 5),
        Query([("image", encoder.prepare("image", photos / "work/5.png"))], 3),
        Query([("vector", np.eye(1, encoder.dimension, dtype=np.float32)[0])], 4, "image"),
    ]
    for query, together in zip(queries, service.answer(queries), strict=True):
        (alone,) = service.answer([query])
        assert [item.id for item, _ in together.hits] == [item.id for item, _ in alone.hits]
        assert len(together.hits) == min(query.k, 3 if query.find == "clip" else 6)
        np.testing.assert_allclose(together.vectors, alone.vectors, atol=1e-5)


def test_filters_limit_the_hits(ask):
    client = ask()

    def search(*filters):
        return client.post("/search", files={"text": (None, "a")}, data={"filter": list(filters)})

    assert {hit["folder"] for hit in search("folder:holi*").json()["hits"]} == {"holiday"}
    assert [hit["name"] for hit in search("folder:holiday", "name:2.png").json()["hits"]] == ["2.png"]
    assert len(search("id:2..4").json()["hits"]) == 3
    assert search("folder:nowhere").json()["hits"] == []
    for bad in ("folder", ":", "id:two", "folder:b..a"):
        answer = search(bad)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-filter"), answer.text
        assert bad in answer.json()["detail"]


def test_queries_with_different_filters_share_a_batch(make_service):
    service = make_service()
    filters = [parse_filters([text]) for text in ("folder:work", "folder:holiday", "folder:work")]
    answers = service.answer([Query([("text", "a dog")], 3, "image", one) for one in filters])
    assert [{item.path.split("/")[0] for item, _ in answer.hits} for answer in answers] == [
        {"work"},
        {"holiday"},
        {"work"},
    ]


def test_a_query_that_cannot_be_used_gets_a_code_and_one_line(ask):
    client = ask()
    for files, status, code, word in (
        ({}, 415, "not-a-form", "multipart"),
        ({"k": (None, "3")}, 422, "one-query", "audio, image, text, vector"),
        ({"text": (None, "a"), "image": ("x", b"y")}, 422, "one-query", "2"),
        ({"text": ("file.txt", b"a")}, 422, "invalid-field", "text"),
        ({"audio": (None, "a")}, 422, "invalid-field", "audio"),
        ({"audio": ("x", b"")}, 422, "empty", "0 bytes"),
        ({"audio": ("x", b"RIFF....WAVE")}, 422, "truncated", "12 bytes"),
        ({"image": ("x", b"<svg xmlns='http://www.w3.org/2000/svg'/>")}, 422, "undecodable", "41 bytes"),
        ({"text": (None, "  ")}, 422, "empty-text", ""),
        ({"text": (None, "a" * 1_001)}, 413, "text-too-long", "1000"),
        ({"text": (None, "a" * 100_000)}, 400, "malformed-form", ""),
        ({"text": (None, "a"), "k": (None, "0")}, 422, "invalid-field", "k"),
        ({"text": (None, "a"), "k": (None, "101")}, 422, "invalid-field", "100"),
        ({"text": (None, "a"), "k": (None, "²")}, 422, "invalid-field", "k"),
        ({"text": (None, "a"), "kind": (None, "video")}, 422, "invalid-field", "kind"),
        ({"text": (None, "a"), "where": (None, "1 = 1")}, 422, "invalid-field", "where"),
        ({"vector": (None, "no base64!")}, 422, "invalid-vector", ""),
        ({"vector": (None, "AAAA")}, 422, "invalid-vector", "48"),
        ({"vector": (None, to_text(np.zeros(24, np.float32)))}, 422, "invalid-vector", ""),
        ({"vector": (None, to_text(np.full(24, np.nan, np.float32)))}, 422, "invalid-vector", ""),
    ):
        answer = client.post("/search", files=files)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (files, answer.text)
        assert list(answer.json()) == ["code", "detail", "request_id"]
        assert word in answer.json()["detail"]
        assert "\n" not in answer.json()["detail"]


def test_a_form_is_in_utf8(ask):
    client = ask()
    body = b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n+2AA-\r\n--b--\r\n'
    for charset, status in (("UTF-8", 200), ("undefined", 415), ("utf-7", 415), ('"utf\0"', 415)):
        kind = f"multipart/form-data; boundary=b; charset={charset}"
        assert client.post("/search", content=body, headers={"Content-Type": kind}).status_code == status


def test_an_index_out_of_reach_is_unavailable_until_it_is_back(ask, index, photos):
    client, away = ask(), index.folder.with_name("away")
    index.folder.rename(away)
    answers = [client.post("/search", files={"text": (None, "a")}, data=data) for data in ({}, {"kind": "image"})]
    answers += map(client.get, ("/about", "/items", "/images/1", "/images/1/thumbnail"))
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "index-unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert str(index.folder) not in answer.text
    assert 'saysee_index_rows{kind="image"} NaN' in client.get("/metrics").text
    away.rename(index.folder)
    assert client.post("/search", files={"text": (None, "a")}).status_code == 200


def test_limits(ask, tmp_path):
    client = ask(limits=Limits(bytes=100_000, seconds=2, pixels=50 * 50, k=2, text=10))
    assert client.get("/about").json()["limits"] == {
        "bytes": 100_000,
        "seconds": 2,
        "pixels": 2_500,
        "k": 2,
        "text": 10,
        "rerank": 50,
    }
    assert len(client.post("/search", files={"text": (None, "a" * 10)}).json()["hits"]) == 2
    for files, code, limit in (
        ({"audio": ("x", wav(2.5))}, "too-long", "2 s"),
        ({"image": ("x", _png(60, 50))}, "too-large", "2,500"),
        ({"text": (None, "a" * 11)}, "text-too-long", "10"),
        ({"audio": ("x", bytes(400_000))}, "too-large", "100,000 bytes"),
    ):
        answer = client.post("/search", files=files)
        assert (answer.status_code, answer.json()["code"]) == (413, code), answer.text
        assert limit in answer.json()["detail"]
    assert client.post("/search", files={"text": (None, "a"), "k": (None, "3")}).status_code == 422


def test_a_large_file_is_rejected_while_it_arrives(make_service):
    """The body is never held: of one that claims no length, no more is read than the limit."""
    service = make_service(limits=Limits(bytes=1_000_000))
    asked = 0

    async def receive():
        nonlocal asked
        asked += 1
        start = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="x"\r\n\r\n' if asked == 1 else b""
        return {"type": "http.request", "body": start + bytes(100_000), "more_body": True}

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = Request({"type": "http", "method": "POST", "path": "/search", "headers": headers}, receive)

    async def read():
        with service.places.taking() as place:
            limited = LimitedRequest(request, place, service.settings)
            with pytest.raises(RequestError, match="1,000,000 bytes") as error:
                await limited.form()
        assert (error.value.status_code, error.value.code) == (413, "too-large")

    run_apart(read())
    assert asked <= 14
    assert (service.places.taken, service.places.bytes) == (0, 0)


def test_a_query_without_a_finite_vector_fails_alone(ask, photos, monkeypatch):
    client = ask(wait_ms=0, write=True)
    encode = client.service.encoder.encode_prepared
    monkeypatch.setattr(client.service.encoder, "encode_prepared", lambda *words: math.nan * encode(*words))
    answer = client.post("/search", files={"audio": ("x", (photos / "clips/2.wav").read_bytes())})
    assert (answer.status_code, answer.json()["code"]) == (422, "not-finite")
    answer = client.post("/items", files={"file": ("x", wav(1))})
    assert (answer.status_code, answer.json()["code"], len(client.service.index)) == (422, "not-finite", 9)


def test_clips_of_another_speech_encoder_are_neither_searched_nor_added(ask, index, monkeypatch):
    client = ask(write=True)
    monkeypatch.setattr(client.service.encoder.side("clip"), "fingerprint", "another")
    added = client.post("/items", files={"file": ("a.wav", wav(1))})
    assert (added.status_code, added.json()["code"], len(index)) == (409, "other-model", 9)
    answer = client.post("/search", files={"text": (None, "a"), "kind": (None, "clip")})
    assert (answer.status_code, answer.json()["code"]) == (409, "other-model")
    assert str(index.folder) not in answer.text.partition("model")[0]
    assert client.post("/search", files={"text": (None, "a")}).status_code == 200


def test_about_health_metrics_and_docs(ask, photos):
    client = ask()
    about = client.get("/about").json()
    folder = client.service.index.folder  # whose own name, index, says nothing
    assert (folder.name, about["name"]) == ("index", folder.parent.name)
    assert (about["images"], about["clips"]) == (6, 3)
    assert (about["writable"], about["attention"]) == (False, "interaction")
    assert ".wav" in about["formats"]["clip"]
    assert ".png" in about["formats"]["image"]
    assert client.get("/health").json() == {"status": "ok"}
    client.get("/no/such/place")
    client.post("/search", files={"text": (None, "a")})
    metrics = client.get("/metrics").text
    assert 'saysee_requests_total{method="POST",route="/search",status="200"} 1.0' in metrics
    assert 'saysee_requests_total{method="GET",route="none",status="404"} 1.0' in metrics
    assert 'saysee_index_rows{kind="image"} 6.0' in metrics
    assert "saysee_places_taken 0.0" in metrics
    assert "/no/such" not in metrics
    parts = {part: f'saysee_query_part_seconds_count{{part="{part}"}}' for part in ("decode", "encode", "search")}
    assert {part: name in metrics for part, name in parts.items()} == {"decode": False, "encode": True, "search": True}
    client.post("/search", files={"image": ("x", (photos / "work/4.png").read_bytes())})
    metrics = client.get("/metrics").text
    assert {part: metric(metrics, name) for part, name in parts.items()} == {"decode": 1, "encode": 2, "search": 2}
    docs = client.get("/docs")
    assert docs.status_code == 200
    assert "https://" not in docs.text
    form = client.get("/openapi.json").json()["components"]["schemas"]["SearchForm"]
    assert set(form["properties"]) == {
        "file",
        "audio",
        "image",
        "text",
        "vector",
        "speech",
        "transcript",
        "k",
        "offset",
        "rerank",
        "kind",
        "filter",
    }
    assert form["properties"]["k"]["maximum"] == 100


def test_attention(ask, photos, index):
    client = ask()
    audio = (photos / "clips/0.wav").read_bytes()
    answer = client.post("/attention", files={"audio": ("x", audio), "id": (None, "1")})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["source"], found["rows"], found["columns"]) == ("interaction", 7, 7)
    assert all(len(frame) == 49 for frame in found["frames"])
    assert found["seconds"] == pytest.approx(5_000 / 16_000)
    for files, status, code in (
        ({"audio": ("x", audio)}, 422, "invalid-field"),
        ({"audio": ("x", audio), "id": (None, "99")}, 404, "no-such-item"),
        ({"audio": ("x", audio), "id": (None, "-1")}, 422, "invalid-field"),
        ({"audio": ("x", b"rubbish"), "id": (None, "1")}, 422, "undecodable"),
        ({"audio": ("x", audio), "id": (None, str(_a_clip(index)))}, 404, "no-such-item"),
    ):
        answer = client.post("/attention", files=files)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_an_empty_index_answers_without_hits(ask, index):
    client = ask(write=True)
    for row in range(1, 10):
        assert client.delete(f"/items/{row}").status_code == 204
    assert client.post("/search", files={"text": (None, "a")}).json()["hits"] == []
    assert client.get("/about").json()["images"] == 0


def _a_clip(index) -> int:
    return index.search(texts=["a"], k=1, kind="clip")[0][0].id


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_file_is_a_query_by_its_content(ask, photos):
    client = ask()
    for path, kind in ((photos / "clips/0.wav", "audio"), (photos / "work/4.png", "image")):
        answer = client.post("/search", files={"file": ("IMG_1", path.read_bytes())}).json()
        assert answer["query"]["kind"] == kind
        known = client.post("/search", files={kind: ("x", path.read_bytes())}).json()
        assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in known["hits"]]
    answer = client.post("/search", files={"file": ("a", b"words")})
    assert (answer.status_code, answer.json()["code"]) == (422, "undecodable")


def test_pages_of_hits_follow_each_other(ask):
    client = ask()

    def hits(**fields) -> list[int]:
        answer = client.post("/search", files={"text": (None, "a"), **{n: (None, str(v)) for n, v in fields.items()}})
        return [hit["id"] for hit in answer.json()["hits"]]

    everything = hits(k=100)
    assert len(everything) > 4
    assert hits(k=2) + hits(k=2, offset=2) + hits(k=100, offset=4) == everything
    assert hits(offset=len(everything)) == []


def test_words_that_the_text_encoder_does_not_know_are_named(ask):
    client = ask()
    for text, unknown in (
        ("a red square", []),
        ("coffee", ["coffee"]),
        ("a red coffee, the dogs' ☕ red-blue coffee.", ["coffee", "dogs", "☕"]),
    ):
        answer = client.post("/search", files={"text": (None, text)}).json()
        assert answer["query"]["unknown_words"] == unknown
    assert client.post("/search", files={"file": ("x", _png(60, 50))}).json()["query"]["unknown_words"] == []


def test_the_newest_items_come_first(ask, index, photos):
    client = ask()
    listed = client.get("/items").json()["items"]
    assert {item["kind"] for item in listed} == {"image"}
    with index.store.reading() as tables:
        times = [tables.rows([item["id"]])[item["id"]].mtime_ns for item in listed]
    known = [time for time in times if time is not None]
    assert known == sorted(known, reverse=True)
    ids = [item["id"] for item in listed]
    pages = [client.get("/items", params={"k": 2, "offset": offset}).json()["items"] for offset in (0, 2, 4)]
    assert [item["id"] for page in pages for item in page] == ids[:6]
    only = client.get("/items", params={"filter": ["folder:work", "name:*.png"]}).json()["items"]
    assert [item["id"] for item in only] == [item["id"] for item in listed if item["folder"] == "work"] != []
    assert len(client.get("/items", params={"kind": "clip"}).json()["items"]) == 3
    for params, code in (
        ({"filter": "folder"}, "invalid-filter"),
        ({"k": 0}, "invalid-field"),
        ({"a": 1}, "invalid-field"),
    ):
        assert client.get("/items", params=params).json()["code"] == code
