"""Steps of a user on the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from playwright.sync_api import Page, expect

from saysee.data.manifest import Row

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
TOKEN = "a-token-of-these-tests"
PATIENCE = 60_000  # ms: CI's cores are few
DESK, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
ALL = 24  # images of the index; the list of results grows until it has them all
RECORDING = re.compile("recording")


@dataclass(frozen=True)
class Corpus:
    """Images and clips that are indexed, and a model trained on them.

    Attributes:
        folder: contains all files.
        rows: the indexed pairs.
        index: of their images and clips.
        small_index: of one image.
        model: with a fusion encoder; ``plain_model`` is the same without one.
    """

    folder: Path
    rows: list[Row]
    index: Path
    small_index: Path
    model: Path
    plain_model: Path

    def clip(self, row: Row) -> Path:
        return self.folder / "scenes" / row.clip

    def image(self, row: Row) -> Path:
        return self.folder / "scenes" / row.image

    def spoken(self, row: Row) -> Path:
        """A clip as a microphone records it: a WAV with silence before and after."""
        path = self.folder / f"{row.image_id}.wav"
        if not path.exists():
            samples, rate = soundfile.read(self.clip(row))
            silence = np.zeros(rate // 4)
            soundfile.write(path, np.concatenate([silence, samples, silence]), rate, subtype="PCM_16")
        return path


def speak(page: Page, row: Row) -> None:
    """Clicks, waits until the microphone has recorded the whole clip, and clicks again."""
    page.click("#microphone")
    expect(page.locator("body")).to_have_class(RECORDING)
    page.wait_for_timeout(1_000 * row.extra["seconds"] + 600)
    page.click("#microphone")
    expect(page.locator("#results .name").first).to_be_visible()


def choose(page: Page, corpus: Corpus, row: Row) -> None:
    """Searches with the clip as a file."""
    page.set_input_files("#file", corpus.clip(row))
    expect(page.locator("#answer-title")).to_have_text(row.clip.rpartition("/")[2])
    expect(page.locator("#results img.loaded")).to_have_count(ALL)


def type_query(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    expect(page.locator("#answer-title")).to_have_text(f"“{text}”")
    expect(page.locator("#results .name").first).to_be_visible()


def names(page: Page) -> list[str]:
    return page.locator("#results .name").all_inner_texts()


def screenshot(page: Page, name: str) -> Path:
    """Saves a screenshot in build/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    return SCREENSHOTS / f"{name}.png"
