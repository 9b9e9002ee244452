"""What a person does on the page, and what they then see."""

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
RECORDING = re.compile("recording")


@dataclass(frozen=True)
class Corpus:
    """Pictures and clips that were indexed, and a model that knows them.

    Attributes:
        folder: holds all of it.
        rows: the indexed pairs.
        index: of their pictures and clips.
        small_index: of one picture.
        model: with a fusion encoder; ``plain_model`` is the same without.
    """

    folder: Path
    rows: list[Row]
    index: Path
    small_index: Path
    model: Path
    plain_model: Path

    def sound(self, row: Row) -> Path:
        return self.folder / "scenes" / row.clip

    def picture(self, row: Row) -> Path:
        return self.folder / "scenes" / row.image

    def spoken(self, row: Row) -> Path:
        """A clip as a microphone hears it: a WAV with a moment of quiet before and behind."""
        path = self.folder / f"{row.image_id}.wav"
        if not path.exists():
            samples, rate = soundfile.read(self.sound(row))
            quiet = np.zeros(rate // 4)
            soundfile.write(path, np.concatenate([quiet, samples, quiet]), rate, subtype="PCM_16")
        return path


def speak(page: Page, row: Row) -> None:
    """Clicks, lets the microphone hear the whole clip, and clicks again."""
    page.click("#microphone")
    expect(page.locator("body")).to_have_class(RECORDING)
    page.wait_for_timeout(1_000 * row.extra["seconds"] + 600)
    page.click("#microphone")
    expect(page.locator("#results .name").first).to_be_visible()


def give(page: Page, corpus: Corpus, row: Row) -> None:
    """Asks with the clip as a file: what is known of it is known exactly, and at once."""
    page.set_input_files("#file", corpus.sound(row))
    expect(page.locator("#results img.there")).to_have_count(12)


def write(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    expect(page.locator("#answer-title")).to_have_text(f"“{text}”")
    expect(page.locator("#results .name").first).to_be_visible()


def names(page: Page) -> list[str]:
    return page.locator("#results .name").all_inner_texts()


def kept(page: Page, name: str) -> Path:
    """A screenshot, kept for whoever wants to see it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    return SCREENSHOTS / f"{name}.png"
