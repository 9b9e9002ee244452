"""The HTML file of ``saysee explain`` in a browser: it lights up the word that is spoken, and jumps to words."""

from __future__ import annotations

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from saysee.encoding.attention import Regions
from saysee.encoding.recognizer import Word
from saysee.studies.explain import write_explanation

PLACES = ("upper left", "lower right")


def test_words_are_marked_while_they_are_spoken_and_are_jumped_to(launch, tmp_path):
    frames = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25] * 4, [0.25] * 4], np.float32)
    regions = Regions("interaction", 2, 2, 0.5, 2.0, frames, (0.0, 0.0, 1.0, 1.0))
    hum = 0.1 * np.sin(np.arange(32_000, dtype=np.float32) / 6)
    words = [Word("<one>", 0.0, 0.5), Word("two", 0.5, 0.9)]
    write_explanation(tmp_path / "found.html", regions, Image.new("RGB", (100, 100)), hum, words)
    errors = []
    page = launch(None).new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "found.html").as_uri())
    marked = page.locator("[aria-current=true]")
    for word, place in reversed([*zip(words, PLACES, strict=True)]):
        page.get_by_role("button", name=word.text).click()
        expect(marked).to_have_text([word.text])
        expect(page.locator("#place")).to_have_text(place)
        assert page.evaluate("document.querySelector('audio').currentTime") == word.start
    page.evaluate("document.querySelector('audio').play()")
    expect(marked).to_have_text(["two"])
    expect(marked).to_have_count(0)  # a word is marked for at most 0.5 s after its end
    page.context.close()
    assert errors == []
