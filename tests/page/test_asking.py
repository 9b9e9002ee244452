"""Every way to ask, from pressing to the right picture on top."""

from __future__ import annotations

import re

import pytest
from page_steps import RECORDING, names, speak, write
from playwright.sync_api import expect

HINT = "Hold while you speak, or click to start and click again to search."


def test_what_is_spoken_brings_the_right_picture_to_the_top(visit, surest):
    for row in surest[:2]:
        page = visit(hears=row)
        speak(page, row)
        assert names(page)[0] == row.image.rpartition("/")[2]
        assert len(names(page)) == 12
        scores = [float(text) for text in page.locator(".score").all_inner_texts() for text in text.split()[-1:]]
        assert scores == sorted(scores, reverse=True)
        expect(page.locator("#results img.there")).to_have_count(12)
        expect(page.locator("#answer-title")).to_have_text(re.compile(r"What you said, \d+\.\d s"))
        expect(page.locator("#status")).to_have_text(re.compile(r"12 pictures, the best first, in \d+ ms"))


def test_holding_records_and_letting_go_asks(visit, heard):
    page = visit()
    page.hover("#microphone")
    page.mouse.down()
    expect(page.locator("#microphone-hint")).to_have_text(re.compile(r"Listening, 0:0\d\. Release to search\."))
    page.wait_for_timeout(1_000 * heard.extra["seconds"] + 600)
    page.mouse.up()
    expect(page.locator("#results .name").first).to_have_text(heard.image.rpartition("/")[2])


def test_the_keyboard_does_all_of_it(visit):
    page = visit()
    page.keyboard.press("Tab")  # the name of the page
    page.keyboard.press("Tab")
    expect(page.locator("#microphone")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("body")).to_have_class(RECORDING)
    page.wait_for_timeout(1_000)
    page.keyboard.press("Enter")
    expect(page.locator("#results .name")).to_have_count(12)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "tile":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text(re.compile("^2 of 12"))
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.evaluate("document.activeElement.className") == "tile"


def test_a_screen_reader_s_click_starts_and_asks_and_hears_of_it(visit):
    page = visit()
    page.evaluate("document.getElementById('microphone').click()")
    expect(page.locator("#announcement")).to_have_text("Recording")
    expect(page.get_by_role("button", name="Stop and search")).to_be_visible()
    page.wait_for_timeout(1_000)
    page.evaluate("document.getElementById('microphone').click()")
    expect(page.locator("#announcement")).to_have_text(re.compile("^12 pictures"))


@pytest.mark.parametrize("way", ["key", "button"])
def test_discarding_sends_nothing(visit, way):
    page = visit()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/search" in request.url else None)
    page.click("#microphone")
    expect(page.locator("body")).to_have_class(RECORDING)
    page.wait_for_timeout(600)
    if way == "key":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Discard").click()
    expect(page.locator("body")).not_to_have_class(RECORDING)
    expect(page.locator("#microphone-hint")).to_have_text(HINT)
    expect(page.locator("#discard")).to_be_hidden()
    page.wait_for_timeout(500)
    assert asked == []
    assert page.locator("#answer").is_hidden()


def test_the_meter_rises_with_the_voice(visit, heard):
    page = visit()
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


def test_a_recording_at_the_limit_asks_by_itself(visit, heard, services):
    page = visit(f"{services.guarded}#token=a-token-of-these-tests")  # takes 3 seconds
    page.click("#microphone")
    expect(page.locator("#results .name").first).to_be_visible()
    expect(page.locator("#status")).to_have_text(
        re.compile("Longer than 3 s is not taken; searching with what was said")
    )


def test_what_is_written_is_asked(visit, corpus):
    page = visit()
    row = corpus.rows[4]
    write(page, row.text)
    assert row.image.rpartition("/")[2] in names(page)[:6]
    page.fill("#text", "   ")
    page.press("#text", "Enter")  # nothing is asked
    expect(page.locator("#answer-title")).to_have_text(f"“{row.text}”")


def test_a_sound_file_is_chosen(visit, corpus):
    page = visit()
    row = corpus.rows[5]
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files(corpus.sound(row))
    expect(page.locator("#results .name").first).to_have_text(row.image.rpartition("/")[2])
    expect(page.locator("#answer-title")).to_have_text(row.clip.rpartition("/")[2])


def test_a_picture_finds_clips_that_play_and_pictures_too(visit, corpus):
    page = visit()
    row = corpus.rows[6]
    page.set_input_files("#file", corpus.picture(row))
    clip = page.locator(".clip").first
    expect(clip.locator(".name")).to_have_text(row.clip.rpartition("/")[2])
    expect(clip.locator(".said")).to_have_text(row.text)
    expect(page.locator("#find input:checked")).to_have_value("clip")
    expect(page.locator("#shown")).to_be_visible()
    clip.click()
    expect(clip.locator("use")).to_have_attribute("href", "#icon-pause")
    expect(clip.locator("use")).to_have_attribute("href", "#icon-play")  # it has come to its end
    page.get_by_role("radio", name="Pictures").check()
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


def test_what_is_dropped_is_asked(visit, corpus):
    import base64

    page = visit()
    row = corpus.rows[8]
    content = base64.b64encode(corpus.sound(row).read_bytes()).decode()
    page.evaluate(DROP, ["dropped.flac", "", content])  # many systems know no type of FLAC
    expect(page.locator("#results .name").first).to_have_text(row.image.rpartition("/")[2])
    assert page.evaluate("window.wasShown")
    expect(page.locator("#dropping")).to_be_hidden()
