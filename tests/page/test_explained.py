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
    frames = np.full((16, 4), 0.25, np.float32)  # of half a second each
    frames[:2], frames[2:8] = (0.7, 0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.7)
    regions = Regions("interaction", 2, 2, 0.5, 8.0, frames, (0.0, 0.0, 1.0, 1.0))
    hum = 0.1 * np.sin(np.arange(128_000, dtype=np.float32) / 6)
    words = [Word("<one>", 0.0, 1.0), Word("two", 1.0, 4.0)]
    write_explanation(tmp_path / "found.html", regions, Image.new("RGB", (100, 100)), hum, words)
    errors = []
    page = launch().new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "found.html").as_uri())
    marked = page.locator("[aria-current=true]")
    for word, place in reversed([*zip(words, PLACES, strict=True)]):
        page.get_by_role("button", name=word.text).click()
        expect(marked).to_have_text([word.text])
        expect(page.locator("#place")).to_have_text(place)
        assert page.evaluate("document.querySelector('audio').currentTime") == word.start
    seen = page.evaluate(
        """new Promise((resolve) => {
          const audio = document.querySelector("audio"), seen = [];
          const note = () => seen.push(document.querySelector("[aria-current]")?.textContent ?? "");
          new MutationObserver(note).observe(document.body, { subtree: true, attributeFilter: ["aria-current"] });
          audio.addEventListener("ended", () => resolve(seen));
          audio.play();
        })"""
    )
    assert "two" in seen
    assert seen[-1] == "", "a word is marked for at most 0.5 s after its end"
    page.context.close()
    assert errors == []
