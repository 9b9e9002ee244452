"""A first visit: examples of queries to click, which play and light up what they speak of."""

from __future__ import annotations

import re

from playwright.sync_api import expect

PLAYING, PAUSED = "#icon-pause", "#icon-play"
DRAWN = """() => [...document.querySelectorAll("#results canvas")].some((canvas) =>
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0))"""


def slowed(page):
    """Plays all audio at a tenth of its speed, so that a busy machine sees it play."""
    page.add_init_script(
        """const play = HTMLMediaElement.prototype.play;
        HTMLMediaElement.prototype.play = function () { this.playbackRate = 0.1; return play.call(this); }"""
    )
    page.reload()


def test_a_clicked_example_plays_and_its_results_light_up(visit, corpus):
    page = visit()
    slowed(page)
    row, asked = corpus.rows[0], []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/search") else None)
    chips = page.locator("#examples-list button")
    expect(chips).to_have_count(3)
    expect(chips.first).to_have_accessible_name(f"Play and search: “{row.text}”")
    chips.first.click()
    expect(page.locator("#answer-title")).to_have_text(f"“{row.text}”")
    right = page.locator("#results li", has=page.locator(".right"))
    expect(right.locator(".name")).to_have_text(row.image.rpartition("/")[2])
    expect(page.locator("#hear use")).to_have_attribute("href", PLAYING)
    expect(page.locator("#results canvas").first).to_be_visible()
    assert page.evaluate(DRAWN)
    expect(page.locator("#answer-title .spoken")).to_have_count(1)
    page.click("#hear")
    expect(page.locator("#hear use")).to_have_attribute("href", PAUSED)
    expect(page.locator("#results canvas")).to_have_count(0)
    expect(page.locator("#answer-title .spoken")).to_have_count(0)

    chips.nth(1).click()
    expect(page.locator("#answer-title")).to_have_text(f"“{corpus.rows[1].text}”")
    expect(chips.nth(1)).to_have_attribute("aria-current", "true")
    expect(page.locator("#hear use")).to_have_attribute("href", PLAYING)
    chips.first.click()  # shown again at once, and played again
    expect(page.locator("#answer-title")).to_have_text(f"“{row.text}”")
    expect(page.locator("#hear use")).to_have_attribute("href", PLAYING)
    assert len(asked) == 2
    expect(page.locator("#visit")).to_be_hidden()
    page.go_back()
    expect(page.locator("#answer-title")).to_have_text(f"“{corpus.rows[1].text}”")


def test_an_example_image_finds_what_was_said_of_it(visit, corpus):
    page = visit()
    page.get_by_role("button", name="What was said of this image?").press("Enter")
    expect(page.locator("#query-image")).to_be_visible()
    expect(page.locator("#find input:checked")).to_have_value("clip")
    right = page.locator("#results li", has=page.locator(".right"))
    expect(right.locator(".name")).to_have_text(corpus.rows[2].clip.rpartition("/")[2])


def test_an_example_whose_file_is_gone_is_an_error_with_the_other_examples_left(visit, corpus):
    page = visit()
    page.route("**/clips/*", lambda route: route.fulfill(status=410, json={"code": "file-gone", "detail": "gone"}))
    page.locator("#examples-list button").first.click()
    expect(page.locator("#notice-text")).to_have_text(re.compile("moved, deleted or changed"))
    page.unroute("**/clips/*")
    page.locator("#examples-list button").first.click()
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#results .name").first).to_be_visible()


def test_an_index_without_examples_offers_none(visit, services):
    page = visit(services.empty)
    expect(page.locator("#examples")).to_be_hidden()
