"""A tiny model in its folder, and folders of real images and clips."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from media_files import clip, picture
from saysee.encoding.encoder import Encoder
from saysee.model.configuration import FusionConfig
from saysee.model.retriever import SpeechImageModel

_SCHEMAS = itertools.count(1)


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs the model saves it."""
    return tmp_path_factory.mktemp("saved") / "model"


@pytest.fixture
def model_folder(tmp_path: Path, saved_model: Path, request: pytest.FixtureRequest) -> Path:
    """A SaySee model of random weights, with a text encoder, in a folder that a test may change."""
    if not saved_model.exists():
        torch.manual_seed(4)
        encoders = (request.getfixturevalue(name) for name in ("hubert_folder", "clip_folder"))
        as_trained(SpeechImageModel.from_encoders(*encoders)).save_pretrained(saved_model)
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


@pytest.fixture
def encoder(model_folder: Path, saved_model: Path) -> Iterator[Encoder]:
    """Of the model that was loaded first, whose weights no test may change."""
    model = _loaded(saved_model)
    before = parameters_to_vector(model.parameters())
    encoder = Encoder(model)
    encoder.name = model.name_or_path = str(model_folder)
    yield encoder
    assert torch.equal(parameters_to_vector(model.parameters()), before)


@cache
def _loaded(folder: Path) -> Any:
    return Encoder(folder).model


@pytest.fixture
def matching_folder(model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a fusion encoder of random weights that re-ranks much."""
    model = SpeechImageModel.from_pretrained(model_folder)
    torch.manual_seed(6)
    model.add_fusion(FusionConfig(width=16, layers=1, heads=2, matching=True))
    model.fusion.score.weight.data *= 200
    model.save_pretrained(tmp_path / "matching", fusion=True)
    return tmp_path / "matching"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images in two sub-folders and three clips."""
    folder = tmp_path / "photos"
    for number in range(6):
        picture(folder / ("holiday" if number < 4 else "work") / f"{number}.png", number)
    for number in range(3):
        clip(folder / "clips" / f"{number}.wav", number)
    return folder


@pytest.fixture
def retrained(hubert_folder: Path, clip_folder: Path) -> Encoder:
    """The same encoders under a speech head of other weights."""
    torch.manual_seed(5)
    return Encoder(as_trained(SpeechImageModel.from_encoders(hubert_folder, clip_folder)))


def as_trained(model: SpeechImageModel) -> SpeechImageModel:
    """The model with a mix of hidden states that only training gives: one that was never trained is warned of."""
    model.speech_encoder.layer_mix.weights.data += 0.1
    return model


@pytest.fixture
def counted(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """How many files have gone through the encoder, or another one from when it is named, since it was last asked."""
    encoded: list[int] = []

    def watch(encoder):
        encode = encoder.encode_prepared

        def counting(kind, prepared):
            encoded.append(len(prepared))
            return encode(kind, prepared)

        monkeypatch.setattr(encoder, "encode_prepared", counting)

    def count(other: Encoder | None = None) -> int:
        if other is not None:
            watch(other)
        total = sum(encoded)
        encoded.clear()
        return total

    watch(encoder)
    return count


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a real PostgreSQL with pgvector, without its schema."""
    pgserver = pytest.importorskip("pgserver", reason="there is no wheel of pgserver for this platform")
    # In memory where there is room: to delete the thousands of files of a database takes a disk half a minute. Not in
    # pytest's own folder, which every run of pytest closes to other users: as root, the server is another one.
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and shutil.disk_usage(memory).free > 1e9 else None
    server = pgserver.get_server(tempfile.mkdtemp(prefix="saysee-postgres-", dir=place), cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET max_wal_size = '128MB'; SELECT pg_reload_conf();")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def database(postgres: str) -> str:
    """Address of an index that is not yet there, in a schema of its own."""
    return f"{postgres}&schema=test_{next(_SCHEMAS)}"


@pytest.fixture(params=["folder", "postgres", "lance"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An index that is not yet there, in a folder, in a database and in LanceDB."""
    if request.param == "lance":
        pytest.importorskip("lancedb", reason="the extra 'lance' is not installed")
        return f"lance://{tmp_path / 'index'}"
    if request.param == "postgres":
        return str(request.getfixturevalue("database"))
    return str(tmp_path / "index")
