"""History, links and Back."""

from __future__ import annotations

import re

from page_steps import give, names, speak, write
from playwright.sync_api import expect


def test_what_was_asked_is_listed_and_brought_back_at_once(visit, heard):
    page = visit()
    speak(page, heard)
    expect(page.locator("#visit")).to_be_hidden()  # a list of one says nothing
    spoken = names(page)
    write(page, "a red ring")
    listed = page.locator("#queries button")
    expect(listed).to_have_count(2)
    expect(listed.first).to_have_attribute("aria-current", "true")
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/search" in request.url else None)
    listed.nth(1).click()
    expect(page.locator("#answer-title")).to_have_text(re.compile("What you said"))
    assert names(page) == spoken
    assert asked == []
    expect(page.locator("#hear")).to_be_visible()  # the recording is still there


def test_back_and_forward_lead_through_the_queries(visit, corpus):
    page = visit()
    give(page, corpus, corpus.rows[0])
    spoken = names(page)
    write(page, "a red ring")
    written = names(page)
    page.go_back()
    expect(page.locator("#answer-title")).to_have_text(re.compile("flac$"))
    assert names(page) == spoken
    page.go_back()
    expect(page.locator("#answer")).to_be_hidden()
    page.go_forward()
    page.go_forward()
    expect(page.locator("#answer-title")).to_have_text("“a red ring”")
    assert names(page) == written


def test_a_link_to_a_spoken_query_finds_the_same(visit, corpus):
    page = visit()
    give(page, corpus, corpus.rows[0])
    found = names(page)
    page.click("#link")
    expect(page.locator("#status")).to_have_text(re.compile("^The link is copied"))
    link = page.evaluate("navigator.clipboard.readText()")
    assert "#vector=" in link
    other = visit(link)
    expect(other.locator("#results .name")).to_have_count(12)
    assert names(other) == found
    expect(other.locator("#hear")).to_be_hidden()  # the link has no recording


def test_a_link_to_words_finds_the_same(visit, services):
    page = visit(f"{services.open}#text=a+red+ring&kind=clip")
    expect(page.locator("#answer-title")).to_have_text("“a red ring”")
    expect(page.locator(".clip")).to_have_count(12)
    expect(page.locator("#find input:checked")).to_have_value("clip")


def test_a_link_that_is_broken_says_so(visit, services):
    page = visit(f"{services.open}#vector=nonsense!")
    expect(page.locator("#notice-text")).to_have_text(re.compile("The vector is not base64"))


def test_the_other_kind_is_a_step_of_its_own(visit):
    page = visit()
    write(page, "a red ring")
    pictures = names(page)
    page.get_by_role("radio", name="Clips").check()
    expect(page.locator(".clip")).to_have_count(12)
    page.go_back()
    expect(page.locator(".clip")).to_have_count(0)
    assert names(page) == pictures
    expect(page.locator("#find input:checked")).to_have_value("image")


def test_a_new_query_ends_the_one_before(visit):
    page = visit()
    held = []
    page.route("**/search", lambda route: held.append(route) if not held else route.continue_())
    page.fill("#text", "a slow one")
    page.press("#text", "Enter")
    expect(page.locator(".waiting").first).to_be_visible()
    write(page, "a red ring")
    assert len(held) == 1
    expect(page.locator("#queries button")).to_have_text(["a red ring"])


def test_the_name_of_the_page_leads_to_its_beginning(visit):
    page = visit()
    write(page, "a red ring")
    page.click("#home")
    expect(page.locator("#answer")).to_be_hidden()
    page.go_back()
    expect(page.locator("#results .name")).to_have_count(12)
