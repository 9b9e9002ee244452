"""The same clip, image and text have the same vector in Python, on the command line, over HTTP, in an evaluation and in
an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from media_files import clip
from saysee import Encoder, Index, Manifest, SpeechImageModel
from saysee.cli import main
from saysee.data.manifest import Row
from saysee.evaluation import protocols
from saysee.search.index.sql.sqlite import SqliteStore
from saysee.search.service.app import make_app
from saysee.search.service.core import Service
from saysee.search.service.settings import ServiceSettings

TEXT = "a red square above a blue circle"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The vectors that stores were searched with."""
    found: list[np.ndarray] = []
    nearest = SqliteStore.nearest

    def recording(self: Any, queries: np.ndarray, *arguments: Any, **options: Any) -> Any:
        found.append(queries)
        return nearest(self, queries, *arguments, **options)

    monkeypatch.setattr(SqliteStore, "nearest", recording)
    return found


def test_every_way_gives_the_same_vectors(tmp_path: Path, asked: list[np.ndarray], monkeypatch) -> None:
    torch.manual_seed(0)
    model, place = tmp_path / "model", tmp_path / "index"
    SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano").save_pretrained(model)
    spoken = clip(tmp_path / "files" / "clip.wav", 3)
    shown = tmp_path / "files" / "photo.jpg"  # so large that it is decoded at a fraction of its size
    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(shown, quality=90)
    Manifest([Row("files/clip.wav", "files/photo.jpg", "photo", "test", TEXT)], tmp_path).write(tmp_path / "m.jsonl")

    encoder = Encoder(model)
    expected = {
        "clip": encoder.encode_speech([spoken]),
        "image": encoder.encode_images([shown]),
        "text": encoder.encode_text([TEXT]),
    }
    loaded = SpeechImageModel.from_pretrained(model)
    np.testing.assert_array_equal(loaded.encode_speech([spoken]), expected["clip"])
    np.testing.assert_array_equal(loaded.encode_images([shown.read_bytes()]), expected["image"])
    np.testing.assert_array_equal(loaded.encode_text([TEXT]), expected["text"])

    assert main(["index", str(model), str(tmp_path / "files"), "--to", str(place)]) == 0
    index = Index.open(place)
    with index.store.reading() as tables:
        ids, stored = tables.vectors_of([1, 2])
        for number, vector in zip(ids.tolist(), stored, strict=True):
            np.testing.assert_array_equal(vector, expected[tables.rows([number])[number].kind][0])

    for query in ([str(spoken)], [str(shown)], ["--text", TEXT]):
        assert main(["search", str(place), *query, "--for", "images", "--json"]) == 0
    service = Service(index, ServiceSettings())
    try:
        client = TestClient(make_app(service), base_url="http://127.0.0.1:8765")
        asked_before = len(asked)
        for field, value in (("audio", spoken.read_bytes()), ("image", shown.read_bytes()), ("text", TEXT)):
            sent = (field, value) if isinstance(value, bytes) else (None, value)
            assert client.post("/search", files={field: sent}, data={"kind": "image"}).status_code == 200
    finally:
        service.close()
    for start in (0, asked_before):
        for kind, vectors in zip(expected, asked[start : start + 3], strict=True):
            np.testing.assert_array_equal(vectors, expected[kind], err_msg=f"{kind} {start}")

    ranked: list[Any] = []
    ranks = protocols.retrieval_ranks
    monkeypatch.setattr(protocols, "retrieval_ranks", lambda *vectors: ranked.append(vectors) or ranks(*vectors))
    assert main(["evaluate", str(model), str(tmp_path / "m.jsonl"), "--untrained"]) == 0
    found = {id(vectors): vectors for pair in ranked for vectors in pair[:2]}.values()
    for kind, vectors in expected.items():
        assert any(np.array_equal(vectors, other) for other in found), kind
