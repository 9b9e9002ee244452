"""Every way to enter a query, from pressing the button to the right image on top."""

from __future__ import annotations

import re

from page_steps import ALL, RECORDING, names, speak, type_query
from playwright.sync_api import expect

HINT = "Hold while you speak, or click to start and click again to search."


def test_a_spoken_query_finds_the_right_image_first(visit, surest, heard):
    row = next(row for row in surest if row is not heard)  # which the next test speaks
    page = visit(microphone=True, hears=row)
    speak(page, row)
    assert names(page)[0] == row.image.rpartition("/")[2]
    expect(page.locator("#results img.loaded")).to_have_count(ALL)
    expect(page.locator("#answer-title")).to_have_text(re.compile(r"Your recording, \d+\.\d s"))
    expect(page.locator("#status")).to_have_text(re.compile(r"Images, best first, in \d+ ms"))


def test_holding_records_and_releasing_searches(visit, heard):
    page = visit(microphone=True)
    page.hover("#microphone")
    page.mouse.down()
    expect(page.locator("#microphone-hint")).to_have_text(re.compile(r"Recording, 0:0\d\. Release to search\."))
    page.wait_for_timeout(1_000 * heard.extra["seconds"] + 600)
    page.mouse.up()
    expect(page.locator("#results .name").first).to_have_text(heard.image.rpartition("/")[2])


def test_the_keyboard_suffices(visit):
    page = visit(microphone=True)
    page.keyboard.press("Tab")  # the name of the page
    page.keyboard.press("Tab")
    expect(page.locator("#microphone")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("body")).to_have_class(RECORDING)
    page.wait_for_timeout(1_000)
    page.keyboard.press("Enter")
    expect(page.locator("#results .name")).to_have_count(ALL)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "tile":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text(re.compile("^2 of 24"))
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.evaluate("document.activeElement.className") == "tile"


def test_a_click_of_a_screen_reader_starts_and_searches_and_is_announced(visit):
    page = visit(microphone=True)
    page.evaluate("document.getElementById('microphone').click()")
    expect(page.locator("#announcement")).to_have_text("Recording")
    expect(page.get_by_role("button", name="Stop and search")).to_be_visible()
    page.wait_for_timeout(1_000)
    page.evaluate("document.getElementById('microphone').click()")
    expect(page.locator("#announcement")).to_have_text(re.compile("^Images, best first"))


def test_discarding_sends_nothing(visit):
    page = visit(microphone=True)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/search" in request.url else None)
    by_key, by_button = lambda: page.keyboard.press("Escape"), page.get_by_role("button", name="Discard").click
    for discard in (by_key, by_button):
        page.click("#microphone")
        expect(page.locator("body")).to_have_class(RECORDING)
        page.wait_for_timeout(600)
        discard()
        expect(page.locator("body")).not_to_have_class(RECORDING)
        expect(page.locator("#microphone-hint")).to_have_text(HINT)
        expect(page.locator("#discard")).to_be_hidden()
    page.wait_for_timeout(500)
    assert asked == []
    assert page.locator("#answer").is_hidden()


def test_the_meter_rises_with_the_voice(visit, heard):
    page = visit(microphone=True)
    level = "getComputedStyle(document.getElementById('microphone')).getPropertyValue('--level')"
    page.click("#microphone")
    expect(page.locator("body")).to_have_class(RECORDING)
    levels = []
    for _ in range(12):
        page.wait_for_timeout(120)
        levels.append(float(page.evaluate(level)))
    assert max(levels) > 0.3
    page.wait_for_timeout(1_000 * heard.extra["seconds"])  # the file has ended: quiet
    page.wait_for_timeout(600)
    assert float(page.evaluate(level)) < 0.5 * max(levels)
    page.keyboard.press("Escape")


def test_a_recording_at_the_limit_is_searched(visit, heard, services):
    page = visit(f"{services.guarded}#token=a-token-of-these-tests", microphone=True)  # allows 3 seconds
    page.click("#microphone")
    expect(page.locator("#results .name").first).to_be_visible()
    expect(page.locator("#status")).to_have_text(re.compile("limit is 3 s"))


def test_a_typed_query_is_searched(visit, corpus):
    page = visit()
    row = corpus.rows[4]
    type_query(page, row.text)
    assert row.image.rpartition("/")[2] in names(page)[:6]
    page.fill("#text", "   ")
    page.press("#text", "Enter")  # no search
    expect(page.locator("#answer-title")).to_have_text(f"“{row.text}”")


def test_an_audio_file_is_chosen(visit, corpus):
    page = visit()
    row = corpus.rows[5]
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files(corpus.clip(row))
    expect(page.locator("#results .name").first).to_have_text(row.image.rpartition("/")[2])
    expect(page.locator("#answer-title")).to_have_text(row.clip.rpartition("/")[2])


def test_an_image_finds_images_and_clips_that_play(visit, corpus):
    page = visit()
    row = corpus.rows[6]
    page.set_input_files("#file", corpus.image(row))
    expect(page.locator("#results .name").first).to_have_text(row.image.rpartition("/")[2])
    expect(page.locator("#find input:checked")).to_have_value("image")
    expect(page.locator("#query-image")).to_be_visible()
    page.get_by_role("radio", name="Clips").check()
    clip = page.locator(".clip").first
    expect(clip.locator(".name")).to_have_text(row.clip.rpartition("/")[2])
    expect(clip.locator(".transcript")).to_have_text(row.text)
    clip.click()
    expect(clip.locator("use")).to_have_attribute("href", "#icon-pause")
    expect(clip.locator("use")).to_have_attribute("href", "#icon-play")  # it has come to its end
    page.get_by_role("radio", name="Images").check()
    expect(page.locator("#results .name").first).to_have_text(row.image.rpartition("/")[2])
    expect(page.locator(".clip")).to_have_count(0)


DROP = """([name, type, content]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name, { type }));
  for (const kind of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
    if (kind === "dragover") window.wasShown = document.body.classList.contains("dropping");
  }
}"""


def test_a_dropped_file_is_searched(visit, corpus):
    import base64

    page = visit()
    row = corpus.rows[8]
    content = base64.b64encode(corpus.clip(row).read_bytes()).decode()
    page.evaluate(DROP, ["dropped.flac", "", content])  # many systems know no type of FLAC
    expect(page.locator("#results .name").first).to_have_text(row.image.rpartition("/")[2])
    assert page.evaluate("window.wasShown")
    expect(page.locator("#dropping")).to_be_hidden()
