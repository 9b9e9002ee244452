"""Re-ranking over HTTP: the order of ``Index.search(rerank=…)``, within a limit, while others are answered."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from service_tools import metric, run_apart
from starlette.datastructures import UploadFile

from saysee import Index
from saysee.encoding.encoder import Encoder
from saysee.search.index.updating import update_index
from saysee.search.service import core, schemas
from saysee.search.service.settings import Limits


@pytest.fixture
def matching(matching_folder, photos, tmp_path) -> Index:
    update_index(Encoder(matching_folder), photos, tmp_path / "matching-index")
    return Index.open(tmp_path / "matching-index")


def found(answer) -> list[tuple[int, str, float]]:
    assert answer.status_code == 200, answer.text
    return [(hit["id"], hit["measure"], round(hit["score"], 4)) for hit in answer.json()["hits"]]


def expected(hits) -> list[tuple[int, str, float]]:
    return [(hit.id, hit.measure, round(hit.score, 4)) for hit in hits]


def test_hits_are_those_of_the_index_in_its_order(ask, matching, photos):
    client, changed = ask(matching), 0
    assert client.get("/about").json()["rerank"] is True
    for field, of_index, kind, pattern in (("audio", "speech", "image", "*.wav"), ("image", "images", "clip", "*.png")):
        for path in sorted(photos.rglob(pattern))[:2]:
            content = path.read_bytes()
            for k, offset, rerank in ((20, 0, 4), (20, 0, 50), (2, 1, 6), (2, 3, 2)):
                sent = {"kind": kind, "k": str(k), "offset": str(offset), "rerank": str(rerank)}
                answer = client.post("/search", files={field: ("x", content)}, data=sent)
                options = {of_index: [content], "k": k, "offset": offset, "kind": kind}
                assert found(answer) == expected(matching.search(**options, rerank=rerank)[0])
                changed += found(answer) != expected(matching.search(**options)[0])
    assert changed > 5
    assert metric(client.get("/metrics").text, 'saysee_query_part_seconds_count{part="rerank"}') == 4 * (2 + 2)


def test_a_hit_whose_file_cannot_be_read_keeps_its_place_and_its_cosine(ask, matching, photos):
    client, audio = ask(matching), (photos / "clips/0.wav").read_bytes()
    plain = client.post("/search", files={"audio": ("x", audio)}).json()["hits"]
    Path(matching.path_of(matching.rows([plain[1]["id"]])[plain[1]["id"]])).unlink()
    Path(matching.path_of(matching.rows([plain[2]["id"]])[plain[2]["id"]])).write_bytes(b"no image")
    answer = client.post("/search", files={"audio": ("x", audio)}, data={"rerank": "6"})
    assert answer.json()["hits"][1:3] == plain[1:3]
    assert [hit["measure"] for hit in answer.json()["hits"]] == ["re-ranked", "cosine", "cosine", *["re-ranked"] * 3]
    assert found(answer) == expected(matching.search(speech=[audio], rerank=6, k=12)[0])


def test_the_service_limits_the_hits_that_are_read_again(ask, matching, photos):
    client, audio = ask(matching, limits=Limits(rerank=5)), {"audio": ("x", (photos / "clips/0.wav").read_bytes())}
    assert client.get("/about").json()["limits"]["rerank"] == 5
    fields = client.get("/openapi.json").json()["components"]["schemas"]["SearchForm"]["properties"]
    assert (fields["rerank"]["minimum"], fields["rerank"]["maximum"]) == (1, 5)
    assert client.post("/search", files=audio, data={"rerank": "5"}).status_code == 200
    for wrong in ("6", "0", "-1", "many"):
        answer = client.post("/search", files=audio, data={"rerank": wrong})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-field")
        assert answer.json()["detail"].startswith("rerank: ")


def test_other_queries_and_models_get_a_code(ask, index, matching, photos):
    audio, image = ({"x": ("x", (photos / path).read_bytes())} for path in ("clips/0.wav", "work/4.png"))
    client = ask(matching)
    vector = client.post("/search", files={"audio": audio["x"]}).json()["query"]["vector"]
    for files, data in (
        ({}, {"text": "two green stars"}),
        ({}, {"vector": vector}),
        ({"image": image["x"]}, {}),
        ({"audio": audio["x"]}, {"kind": "clip"}),
    ):
        fields = {name: (None, value) for name, value in (data | {"rerank": "5"}).items()}
        answer = client.post("/search", files=files | fields)
        assert (answer.status_code, answer.json()["code"]) == (422, "cannot-rerank")
    other = ask(index)
    assert other.get("/about").json()["rerank"] is False
    answer = other.post("/search", files={"audio": audio["x"]}, data={"rerank": "5"})
    assert (answer.status_code, answer.json()["code"]) == (422, "no-matching")
    assert "matching.weight" in answer.json()["detail"]
    assert str(index.folder) not in answer.text


def test_another_query_and_health_are_answered_between_two_parts_of_the_work(
    make_service, matching, photos, monkeypatch
):
    """The fusion encoder waits in the middle of its work until the other query is in the queue, which comes first."""
    service, began, queued = make_service(matching), threading.Event(), threading.Event()
    scored: list[int] = []
    real = core.logit

    def slow(*arguments):
        scored.append(len(answered))
        began.set()
        assert queued.wait(60)
        return real(*arguments)

    answered: list[str] = []
    monkeypatch.setattr(core, "logit", slow)
    monkeypatch.setattr(core, "_RERANKED_TOGETHER", 1)

    async def check() -> None:
        with (photos / "clips/0.wav").open("rb") as file:
            form = schemas.SearchForm(audio=UploadFile(file), rerank=6)
            long = asyncio.ensure_future(service.search(form))
            await asyncio.to_thread(began.wait, 60)
            short = asyncio.ensure_future(service.search(schemas.SearchForm(text="two green stars")))
            short.add_done_callback(lambda _: answered.append("short"))
            while service.model.pending() < 2:  # health too is answered by this loop, while the model works
                await asyncio.sleep(0.001)
            queued.set()
            assert len((await short)["hits"]) == 6
            assert {hit["measure"] for hit in (await long)["hits"]} == {"re-ranked"}

    run_apart(check())
    assert len(scored) == 6
    assert scored[0] == 0
    assert scored[-1] == 1


def test_the_work_ends_when_the_client_leaves(make_service, matching, photos, monkeypatch):
    service, began, left = make_service(matching), threading.Event(), threading.Event()
    scored: list[int] = []

    def slow(*arguments):
        scored.append(1)
        began.set()
        assert left.wait(60)
        return 0.0

    monkeypatch.setattr(core, "logit", slow)
    monkeypatch.setattr(core, "_RERANKED_TOGETHER", 1)

    async def check() -> None:
        with (photos / "clips/0.wav").open("rb") as file:
            work = asyncio.ensure_future(service.search(schemas.SearchForm(audio=UploadFile(file), rerank=6)))
            await asyncio.to_thread(began.wait, 60)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            left.set()
        assert len((await service.search(schemas.SearchForm(text="two green stars")))["hits"]) == 6

    run_apart(check())
    assert len(scored) == 1
