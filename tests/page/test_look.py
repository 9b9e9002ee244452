"""How the page looks and reads: no serious fault by axe-core, no request to elsewhere; screenshots are kept."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_steps import DESK, PHONE, RECORDING, TOKEN, give, kept, write
from playwright.sync_api import expect


def serious_faults(page):
    found = Axe().run(page).response["violations"]
    return [
        (fault["id"], node["target"], node["failureSummary"])
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("desk", DESK), ("phone", PHONE)])
def test_each_state_is_without_serious_fault(visit, corpus, heard, services, scheme, name, size):
    look = {"viewport": size, "color_scheme": scheme, "reduced_motion": "reduce"}  # axe must not look at half a fade
    page = visit(**look)

    def judged(state):
        kept(page, f"{name}-{scheme}-{state}")
        assert serious_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"

    judged("start")
    page.click("#microphone")
    expect(page.locator("body")).to_have_class(RECORDING)
    page.wait_for_timeout(800)
    judged("recording")
    page.keyboard.press("Escape")
    write(page, "a red ring")
    give(page, corpus, heard)
    judged("results")
    page.locator(".tile").first.click()
    expect(page.locator("#viewer-note")).to_have_text(re.compile("Read from"))
    page.focus("#moment")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    judged("viewer")
    page.keyboard.press("Escape")
    page.set_input_files("#file", corpus.picture(heard))
    expect(page.locator(".clip").first).to_be_visible()
    judged("clips")
    page.set_input_files("#file", {"name": "false.wav", "mimeType": "audio/wav", "buffer": b"no sound"})
    expect(page.locator("#notice")).to_be_visible()
    judged("notice")
    page = visit(services.guarded, known=False, **look)
    expect(page.locator("#token")).to_be_visible()
    judged("token")
    page.fill("#token-value", TOKEN)


def test_the_page_asks_nobody_but_its_service(visit, corpus, heard, services):
    page = visit()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    give(page, corpus, heard)
    page.locator(".tile").first.click()
    expect(page.locator("#viewer-note")).to_have_text(re.compile("Read from"))
    assert len(asked) > 15
    assert [url for url in asked if not url.startswith((services.open, f"blob:{services.open.rstrip('/')}"))] == []


def test_a_keyboard_sees_where_it_is(visit):
    page = visit()
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        around = "document.activeElement.closest('#write') ?? document.activeElement"
        ring = page.evaluate(f"Math.max(parseFloat(getComputedStyle({around}).outlineWidth), 0)")
        assert ring >= 3, order[-1]
    assert order[:5] == ["home", "microphone", "text", "Search", "choose"]


def test_who_wants_no_motion_gets_none(visit):
    page = visit(reduced_motion="reduce")
    page.route("**/search", lambda route: None)
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    moving = "[...document.getAnimations()].length"
    expect(page.locator(".waiting").first).to_be_visible()
    assert page.evaluate(moving) == 0
    other = visit()
    other.route("**/search", lambda route: None)
    other.fill("#text", "a red ring")
    other.press("#text", "Enter")
    expect(other.locator(".waiting").first).to_be_visible()
    assert other.evaluate(moving) > 0, "this test sees no motion at all"
