"""Looks and accessibility: no serious violation found by axe-core, no request to other sites; saves screenshots."""

from __future__ import annotations

import re

from axe_playwright_python.sync_playwright import Axe
from page_steps import DESK, PHONE, RECORDING, TOKEN, choose, screenshot, type_query
from playwright.sync_api import expect


def serious_violations(page):
    found = Axe().run(page).response["violations"]
    return [
        (violation["id"], node["target"], node["failureSummary"])
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def test_no_state_has_a_serious_violation(visit, corpus, heard, services):
    """Of the four looks two: colors do not depend on the width, nor the layout on colors."""
    page = visit(microphone=True, reduced_motion="reduce")  # no axe run in the middle of a fade

    def check(state):
        for name, size, scheme in (("phone", PHONE, "dark"), ("desk", DESK, "light")):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme=scheme)
            screenshot(page, f"{name}-{scheme}-{state}")
            assert serious_violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls horizontally"

    check("start")
    page.click("#microphone")
    expect(page.locator("body")).to_have_class(RECORDING)
    page.wait_for_timeout(800)
    check("recording")
    page.keyboard.press("Escape")
    type_query(page, "a red ring")
    choose(page, corpus, heard)
    check("results")
    page.locator("#results .tile").first.click()
    expect(page.locator("#viewer-note")).to_have_text(re.compile("Computed from"))
    page.focus("#moment")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    check("viewer")
    page.keyboard.press("Escape")
    page.set_input_files("#file", corpus.image(heard))
    expect(page.locator("#query-image")).to_be_visible()
    page.get_by_role("radio", name="Clips").check()
    expect(page.locator(".clip").first).to_be_visible()
    check("clips")
    page.set_input_files("#file", {"name": "false.wav", "mimeType": "audio/wav", "buffer": b"not audio"})
    expect(page.locator("#notice")).to_be_visible()
    check("notice")
    page = visit(services.guarded, known=False, reduced_motion="reduce")
    expect(page.locator("#token")).to_be_visible()
    check("token")
    page.fill("#token-value", TOKEN)


def test_the_page_sends_requests_to_its_service_only(visit, corpus, heard, services):
    page = visit()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    choose(page, corpus, heard)
    page.locator("#results .tile").first.click()
    expect(page.locator("#viewer-note")).to_have_text(re.compile("Computed from"))
    assert len(asked) > 15
    assert [url for url in asked if not url.startswith((services.open, f"blob:{services.open.rstrip('/')}"))] == []


def test_the_focus_is_visible(visit):
    page = visit()
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        around = "document.activeElement.closest('.field') ?? document.activeElement"
        ring = page.evaluate(f"Math.max(parseFloat(getComputedStyle({around}).outlineWidth), 0)")
        assert ring >= 3, order[-1]
    assert order[2].startswith("Play and search")
    order[2:5] = ["example"] * 3
    assert order == [
        "home",
        "microphone",
        *["example"] * 3,
        "text",
        "Search",
        "choose",
        "folder",
        "from",
        "from",
        "from",
    ]


def test_reduced_motion_is_respected(visit):
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
    assert other.evaluate(moving) > 0, "there is no motion to be found"
