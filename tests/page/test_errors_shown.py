"""Errors say what to do, and offer the next step."""

from __future__ import annotations

import re

import numpy as np
import pytest
import soundfile
from page_steps import ALL, RECORDING, TOKEN, choose, names, type_query
from playwright.sync_api import expect


def notice(page):
    return page.locator("#notice-text")


def test_a_blocked_microphone(visit):
    page = visit(microphone=True, allowed=False)
    page.click("#microphone")
    expect(notice(page)).to_have_text(re.compile("microphone is blocked"))
    expect(page.locator("body")).not_to_have_class(RECORDING)
    page.context.grant_permissions(["microphone"])
    page.click("#microphone")
    expect(page.locator("body")).to_have_class(RECORDING)


def test_no_microphone(visit):
    page = visit(microphone=True, hears=None)
    page.click("#microphone")
    expect(notice(page)).to_have_text(re.compile("no microphone"))
    type_query(page, "a red ring")  # typing still works
    expect(page.locator("#notice")).to_be_hidden()


def test_a_page_without_microphone_access(visit):
    page = visit()
    page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.click("#microphone")
    expect(notice(page)).to_have_text(re.compile("https"))


def test_a_microphone_that_hears_nothing_is_named_and_can_be_searched_with_anyway(visit, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000 * 5), 16_000)
    page, asked = visit(microphone=True, hears=tmp_path / "silence.wav"), []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/search") else None)
    label = page.evaluate(
        "navigator.mediaDevices.getUserMedia({ audio: true }).then((stream) => stream.getAudioTracks()[0].label)"
    )
    page.click("#microphone")
    heard = re.compile(f"Nothing is heard from the microphone “{re.escape(label)}”")
    expect(page.locator("#microphone-hint")).to_have_text(heard)
    expect(page.locator("#announcement")).to_have_text(heard)
    page.click("#microphone")
    expect(notice(page)).to_have_text(re.compile(f"Nothing was heard from the microphone “{re.escape(label)}”.*closer"))
    assert asked == []
    expect(page.locator("#answer")).to_be_hidden()
    page.get_by_role("button", name="Search anyway").click()
    expect(page.locator("#notice-action")).to_be_hidden()  # the service finds it silent too
    expect(notice(page)).to_have_text(re.compile("Nothing was heard"))
    assert len(asked) == 1


def test_files_that_cannot_be_queries(visit, tmp_path):
    page = visit()
    (tmp_path / "notes.txt").write_text("words")
    page.set_input_files("#file", tmp_path / "notes.txt")
    expect(notice(page)).to_have_text(re.compile("^notes.txt"))
    (tmp_path / "false.wav").write_text("not audio")
    page.set_input_files("#file", tmp_path / "false.wav")
    expect(notice(page)).to_have_text(re.compile("^false.wav"))
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    page.set_input_files("#file", tmp_path / "silent.wav")
    expect(notice(page)).to_have_text(re.compile("^silent.wav is silent"))
    expect(page.locator("#answer")).to_be_hidden()
    assert page.locator("#notice-action").is_hidden(), "the same again would fail again"


def test_files_beyond_the_limits(visit, services, tmp_path):
    page = visit(f"{services.guarded}#token={TOKEN}")
    noise = np.random.default_rng(0).standard_normal(16_000 * 5) / 10
    soundfile.write(tmp_path / "long.wav", noise, 16_000)
    page.set_input_files("#file", tmp_path / "long.wav")
    expect(notice(page)).to_have_text(re.compile("^long.wav .* 3 s"))
    soundfile.write(tmp_path / "large.wav", np.tile(noise, 4), 16_000)
    page.set_input_files("#file", tmp_path / "large.wav")
    expect(notice(page)).to_have_text(re.compile(r"^large.wav .* 0\.38 MB"))


def test_a_stopped_service_loses_no_recording(visit, heard):
    page = visit(microphone=True)
    page.context.set_offline(True)
    page.click("#microphone")
    page.wait_for_timeout(1_000 * heard.extra["seconds"] + 600)
    page.click("#microphone")
    expect(notice(page)).to_have_text(re.compile("saysee serve INDEX"))
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(page.locator("#results .name").first).to_have_text(heard.image.rpartition("/")[2])
    expect(page.locator("#notice")).to_be_hidden()


def test_a_service_that_is_stopped_from_the_start(visit):
    page = visit()
    page.route("**/about", lambda route: route.abort())
    page.reload()
    expect(notice(page)).to_have_text(re.compile("does not answer"))
    page.unroute("**/about")
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(page.locator("#about")).to_have_text(re.compile("24 clips"))


def test_a_busy_service_is_retried(visit):
    page = visit()
    answers = iter([True, False])
    busy = {"status": 503, "headers": {"Retry-After": "2"}, "json": {"detail": "The service is busy."}}
    page.route("**/search", lambda route: route.fulfill(**busy) if next(answers) else route.continue_())
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_have_text("The service cannot answer yet. Trying again in 2 s…")
    expect(page.locator("#results .name")).to_have_count(ALL)


def test_an_index_out_of_reach_at_the_start_is_said_while_it_is_tried_again(visit):
    page = visit()
    answers = iter([True, False])
    away = {"status": 503, "headers": {"Retry-After": "2"}, "json": {"code": "index-unavailable", "detail": "away"}}
    page.route("**/about", lambda route: route.fulfill(**away) if next(answers) else route.continue_())
    page.reload()
    expect(notice(page)).to_have_text(re.compile("Trying again in 2 s"))
    expect(page.locator("#about")).to_have_text(re.compile("24 clips"))
    expect(page.locator("#notice")).to_be_hidden()


def test_retries_of_a_busy_service_end(visit):
    page = visit()
    busy = {"status": 503, "headers": {"Retry-After": "0.1"}, "json": {"code": "busy", "detail": "busy"}}
    page.route("**/search", lambda route: route.fulfill(**busy))
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    expect(notice(page)).to_have_text(re.compile("busy"))
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_a_token_is_asked_for_and_sent_with_every_request(visit, services):
    page = visit(services.guarded, known=False)
    expect(page.locator("#token-reason")).to_have_text(re.compile("when the service was started"))
    page.fill("#token-value", "a token”, as pasted\u200b")  # no header can carry it
    page.press("#token-value", "Enter")
    expect(page.locator("#token-reason")).to_have_text(re.compile("not the token"))
    page.fill("#token-value", "not-the-one-it-was")
    page.click("#token-form button")
    expect(page.locator("#token-reason")).to_have_text(re.compile("not the token"))
    page.fill("#token-value", TOKEN)
    page.press("#token-value", "Enter")
    expect(page.locator("#token")).to_be_hidden()
    type_query(page, "a red ring")
    expect(page.locator("#results img.loaded")).to_have_count(ALL)
    page.reload()  # it is kept in this tab
    expect(page.locator("#results img.loaded")).to_have_count(ALL)
    assert TOKEN not in page.url


def test_the_token_can_be_entered_later(visit, services):
    page = visit(services.guarded, known=False)
    expect(page.locator("#token")).to_be_visible()
    page.keyboard.press("Escape")
    expect(notice(page)).to_have_text(re.compile("requires its token"))
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(page.locator("#token")).to_be_visible()


def test_a_token_in_the_address_is_taken_out_of_it(visit, services):
    page = visit(f"{services.guarded}#token={TOKEN}&text=a+red+ring")
    expect(page.locator("#results img.loaded")).to_have_count(ALL)
    assert TOKEN not in page.url
    page.reload()
    expect(page.locator("#results img.loaded")).to_have_count(ALL)


def test_an_empty_index_says_how_to_add_images(visit, services):
    page = visit(services.empty, known=False)
    expect(notice(page)).to_have_text(re.compile("index is empty .*saysee index|index is empty.*saysee index"))
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_have_text("No images found")
    expect(notice(page)).to_have_text(re.compile("This index is empty"))


def test_no_hits_of_one_kind_offers_the_other(visit):
    page = visit()

    def without_hits(route):
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "hits": []})

    page.route("**/search", without_hits)
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    expect(notice(page)).to_have_text(re.compile("no images in this index"))
    page.unroute("**/search")
    page.get_by_role("button", name="Find clips").click()
    expect(page.locator(".clip").first).to_be_visible()


def test_a_deleted_image_is_reported_in_its_place(visit, corpus):
    page = visit()
    type_query(page, corpus.rows[1].text)
    found = names(page)[0]
    gone = next(corpus.image(row) for row in corpus.rows if row.image.endswith(found))
    hidden = gone.rename(gone.with_suffix(".hidden"))
    try:
        page = visit(page.url)  # another browser: this one keeps what it has seen for a while
        expect(page.locator(".failure")).to_have_text(re.compile("saysee index"))
        page.locator("#results .tile").first.click()
        expect(page.locator("#viewer-note")).to_have_text(re.compile("saysee index"))
        expect(page.locator("#results img.loaded")).to_have_count(ALL - 1)
    finally:
        hidden.rename(gone)


@pytest.mark.parametrize("broken", ["decodeAudioData", "play"])
def test_audio_that_the_browser_cannot_play_is_searched(visit, corpus, broken):
    page = visit()
    owner = "OfflineAudioContext" if broken == "decodeAudioData" else "HTMLMediaElement"
    fail = "async () => { throw new DOMException('', 'NotSupportedError') }"
    page.evaluate(f"() => {{ {owner}.prototype.{broken} = {fail} }}")
    choose(page, corpus, corpus.rows[0])
    page.locator("#results .tile").first.click()
    unplayable = "cannot play the query.*" if broken == "play" else ""
    if unplayable:
        page.click("#play")
    # What comes later does not hide that the query cannot be played.
    expect(page.locator("#viewer-note")).to_have_text(re.compile(f"{unplayable}Computed from .*similarity changes"))
    page.focus("#moment")
    page.keyboard.press("End")
    expect(page.locator("#moment")).to_have_attribute("aria-valuetext", re.compile("mostly at the"))
