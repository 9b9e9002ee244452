"""An open result: the regions that each moment of speech attends to are highlighted, in time with the audio."""

from __future__ import annotations

import re

import httpx2
import numpy as np
import pytest
from page_steps import ALL, TOKEN, choose, names, speak, type_query
from playwright.sync_api import expect

# Opacity of the shade in the center of each patch of an image in the middle of the canvas, row by row.
SHADE = """(grid) => {
  const canvas = document.getElementById("overlay");
  const side = Math.min(canvas.width, canvas.height);
  const [left, top] = [(canvas.width - side) / 2, (canvas.height - side) / 2];
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return Array.from({ length: grid * grid }, (_, patch) => {
    const x = Math.floor(left + (side * ((patch % grid) + 0.5)) / grid);
    const y = Math.floor(top + (side * (Math.floor(patch / grid) + 0.5)) / grid);
    return pixels[4 * (y * canvas.width + x) + 3];
  });
}"""
MOVE = """(seconds) => {
  const slider = document.getElementById("moment");
  slider.value = seconds;
  slider.dispatchEvent(new Event("input"));
  return Number(slider.value);
}"""

KEEP_PLAYER = """() => {
  const play = HTMLMediaElement.prototype.play;
  HTMLMediaElement.prototype.play = function () { window.player = this; return play.call(this); };
}"""


def opened(page, place=0):
    page.locator("#results .tile").nth(place).click()
    expect(page.locator("#viewer-note")).to_have_text(re.compile("is covered|Search by speaking"), timeout=60_000)


@pytest.fixture
def searched(visit, corpus):
    """The page after a search with an audio file, which the test can send to the service too."""
    page = visit()
    choose(page, corpus, corpus.rows[0])
    return page


@pytest.fixture
def truth(services, corpus):
    """The attention over the first result as the service computes it: [F, P] and the whole answer."""
    audio = corpus.clip(corpus.rows[0]).read_bytes()
    with httpx2.Client(base_url=services.open, timeout=60) as client:
        found = client.post("/search", files={"audio": ("audio", audio)}).json()["hits"][0]
        form = {"id": str(found["id"]), "source": "interaction"}
        answer = client.post("/attention", files={"audio": ("audio", audio)}, data=form).json()
    return np.array(answer["frames"]), answer


def most_different(frames):
    """The two frames that attend to the most different regions; each is so long that it is shown alone."""
    apart = np.abs(frames[:, None] - frames[None]).sum(axis=2)
    return np.array(np.unravel_index(apart.argmax(), apart.shape)) + 0.5


def test_the_attended_regions_are_highlighted(searched, truth):
    frames, answer = truth
    page = searched
    opened(page)
    assert max(page.evaluate(SHADE, 8)) == 0, "nothing is highlighted before a moment is chosen"
    weights, shades = [], []
    for seconds in most_different(frames) * answer["frame_seconds"]:
        shown = page.evaluate(MOVE, seconds)  # the slider goes in steps
        weights.append(frames[int(shown / answer["frame_seconds"] + 1e-6)])
        shades.append(np.array(page.evaluate(SHADE, answer["rows"])))
        assert shades[-1].max() > 150
        assert np.corrcoef(shades[-1], weights[-1])[0, 1] < -0.8
        most = shades[-1][weights[-1].argmax()]
        assert most < 0.85 * shades[-1].max()
        assert most <= np.quantile(shades[-1], 0.2), "the most attended patch is among the brightest fifth"
    # The difference between the two moments is shown too.
    assert np.corrcoef(shades[0] - shades[1], weights[0] - weights[1])[0, 1] < -0.7
    page.uncheck("#highlight")
    assert max(page.evaluate(SHADE, 8)) == 0


def test_the_highlight_follows_the_audio(visit, heard):
    page = visit(microphone=True)
    speak(page, heard)
    opened(page)
    page.evaluate(KEEP_PLAYER)
    page.evaluate("document.getElementById('moment').step = 'any'")  # its value is the very moment that is drawn
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Pause the query")
    seen = []
    for _ in range(3):
        page.wait_for_timeout(500)
        seen.append(
            page.evaluate(f"[player.currentTime, Number(document.getElementById('moment').value), ({SHADE})(8)]")
        )
    page.click("#play")
    for heard_at, moment, _ in seen:
        assert moment == pytest.approx(heard_at, abs=0.25), "it does not follow the audio"
    for _, moment, shade in seen:
        page.evaluate(MOVE, moment)
        assert np.abs(np.array(page.evaluate(SHADE, 8)) - shade).mean() < 2, (
            "another moment is highlighted than is heard"
        )
    assert np.abs(np.subtract(seen[0][2], seen[-1][2])).max() > 8, "the highlight does not move"


def test_at_the_end_of_the_query_nothing_is_highlighted(searched):
    page = searched
    opened(page)
    page.evaluate(MOVE, float(page.get_attribute("#moment", "max")) - 1.2)
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Pause the query")
    expect(page.locator("#play")).to_have_text("Play the query")
    assert max(page.evaluate(SHADE, 8)) == 0


def test_a_screen_reader_gets_the_moment_and_the_region(searched):
    page = searched
    opened(page)
    page.focus("#moment")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    answer = page.get_attribute("#moment", "aria-valuetext")
    assert re.fullmatch(r"1\.0 of \d\.\d seconds, mostly at the (upper |lower )?(left|right|middle|top|bottom)", answer)


def test_the_source_is_named(searched, visit, services, corpus):
    """The fusion encoder's at once, where there is one; then the better one, which needs no fusion encoder."""
    note = searched.locator("#viewer-note")
    asked = []

    def hold(route):  # the second request, for the better one, waits until the answer to the first is seen
        asked.append(route)
        if len(asked) == 1:
            route.continue_()

    searched.route("**/attention", hold)
    searched.locator("#results .tile").nth(0).click()
    expect(note).to_have_text(re.compile("the attention of the model's fusion encoder"), timeout=60_000)
    while len(asked) < 2:
        searched.wait_for_timeout(50)
    asked[1].continue_()
    expect(note).to_have_text(re.compile("a region is covered and a moment silenced"), timeout=60_000)
    page = visit(f"{services.guarded}#token={TOKEN}")
    page.set_input_files("#file", shortest(corpus))
    opened(page)
    expect(page.locator("#viewer-note")).to_have_text(re.compile("a region is covered and a moment silenced"))


def shortest(corpus):
    return corpus.clip(min(corpus.rows, key=lambda row: row.extra.get("seconds", 99)))


def test_the_part_that_the_model_sees_is_marked(visit, corpus):
    page = visit()
    choose(page, corpus, corpus.rows[-1])
    opened(page, names(page).index("wide.tiff"))  # shown by its thumbnail: browsers cannot show TIFF
    expect(page.locator("#viewer-note")).to_have_text(re.compile("within the dashed line"))
    assert page.evaluate("document.getElementById('viewer-image').naturalWidth") > 0


def test_results_can_be_stepped_through_and_back_closes_the_viewer(searched):
    page = searched
    opened(page)
    expect(page.locator("#viewer-back")).to_be_disabled()
    page.click("#viewer-forward")
    expect(page.locator("#viewer-place")).to_have_text(re.compile("^2 of 24"))
    expect(page.locator("#viewer-name")).to_have_text(names(page)[1])
    expect(page.locator("#viewer-metadata")).to_contain_text("image_id")
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#results .name")).to_have_count(ALL)
    opened(page)
    page.click("#viewer-close")
    expect(page.locator("#viewer")).to_be_hidden()
    for _ in range(200):  # the browser goes back later than it is told
        if not page.evaluate("history.state?.viewer"):
            break
        page.wait_for_timeout(50)
    page.go_back()  # to before the query: the viewer left no entry
    expect(page.locator("#answer")).to_be_hidden()


def test_files_that_were_shown_do_not_stay_in_memory(visit, corpus):
    page = visit()
    choose(page, corpus, corpus.rows[0])
    expect(page.locator("#results img.loaded")).to_have_count(ALL)
    page.evaluate(
        """() => {
          window.addresses = new Set();
          const { createObjectURL, revokeObjectURL } = URL;
          URL.createObjectURL = (blob) => {
            const address = createObjectURL.call(URL, blob);
            window.addresses.add(address);
            return address;
          };
          URL.revokeObjectURL = (address) => {
            window.addresses.delete(address);
            revokeObjectURL.call(URL, address);
          };
        }"""
    )
    with page.expect_response(re.compile(r"/images/[0-9]+$")):
        opened(page)
    page.wait_for_function("window.addresses.size === 0 && document.getElementById('viewer-image').naturalWidth > 0")


def test_similar_images_are_found(searched):
    page = searched
    opened(page, 2)
    name = names(page)[2]
    page.click("#similar")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("#answer-title")).to_have_text(f"Similar to {name}")
    expect(page.locator("#results .name").first).to_have_text(name)
    page.go_back()
    expect(page.locator("#answer-title")).not_to_have_text(f"Similar to {name}")


def test_a_query_without_audio_has_no_player(visit):
    page = visit()
    type_query(page, "a red ring")
    opened(page)
    expect(page.locator("#player")).to_be_hidden()
    expect(page.locator("#highlight-choice")).to_be_hidden()


def test_a_model_without_speech_encoder_is_asked_for_no_attention(visit, corpus):
    page = visit()

    def without_attention(route):
        route.fulfill(json=route.fetch().json() | {"attention": None})

    page.route("**/about", without_attention)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "attention" in request.url else None)
    page.reload()
    choose(page, corpus, corpus.rows[0])
    page.locator("#results .tile").first.click()
    expect(page.locator("#play")).to_be_visible()
    expect(page.locator("#time")).to_have_text(re.compile(r"0\.0 / [1-9]\.\d s"))
    expect(page.locator("#highlight-choice")).to_be_hidden()
    expect(page.locator("#viewer-note")).to_have_text("")
    assert not [url for url in asked if not url.endswith(".js")]
