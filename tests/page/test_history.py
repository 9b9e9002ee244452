"""The list of queries, the browser's history, links and filters."""

from __future__ import annotations

import re

from page_steps import ALL, choose, names, speak, type_query
from playwright.sync_api import expect


def test_queries_are_listed_and_shown_again_at_once(visit, heard):
    page = visit(microphone=True)
    speak(page, heard)
    expect(page.locator("#visit")).to_be_hidden()  # a list of one says nothing
    spoken = names(page)
    type_query(page, "a red ring")
    listed = page.locator("#queries button")
    expect(listed).to_have_count(2)
    expect(listed.first).to_have_attribute("aria-current", "true")
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/search" in request.url else None)
    listed.nth(1).click()
    expect(page.locator("#answer-title")).to_have_text(re.compile("Your recording"))
    assert names(page) == spoken
    assert asked == []
    expect(page.locator("#hear")).to_be_visible()  # the recording is still there


def test_back_and_forward_lead_through_the_queries(visit, corpus):
    page = visit()
    choose(page, corpus, corpus.rows[0])
    spoken = names(page)
    type_query(page, "a red ring")
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
    choose(page, corpus, corpus.rows[0])
    found = names(page)
    page.click("#link")
    expect(page.locator("#status")).to_have_text(re.compile("^Link copied"))
    link = page.evaluate("navigator.clipboard.readText()")
    assert "#vector=" in link
    other = visit(link)
    expect(other.locator("#results .name")).to_have_count(ALL)
    assert names(other) == found
    expect(other.locator("#hear")).to_be_hidden()  # the link has no recording


def test_a_link_to_a_typed_query_finds_the_same(visit, services):
    page = visit(f"{services.open}#text=a+red+ring&kind=clip")
    expect(page.locator("#answer-title")).to_have_text("“a red ring”")
    expect(page.locator(".clip")).to_have_count(ALL)
    expect(page.locator("#find input:checked")).to_have_value("clip")


def test_a_broken_link_is_reported(visit, services):
    page = visit(f"{services.open}#vector=nonsense!")
    expect(page.locator("#notice")).to_have_attribute("data-code", "invalid-vector")


def test_each_kind_of_results_has_its_own_history_entry(visit):
    page = visit()
    type_query(page, "a red ring")
    images = names(page)
    page.get_by_role("radio", name="Clips").check()
    expect(page.locator(".clip")).to_have_count(ALL)
    page.go_back()
    expect(page.locator(".clip")).to_have_count(0)
    assert names(page) == images
    expect(page.locator("#find input:checked")).to_have_value("image")


def ask_and_hold(page):
    """Asks a query whose answer never comes, and later ones are answered; returns the requests that are held."""
    held = []
    page.route("**/search", lambda route: held.append(route) if not held else route.continue_())
    page.fill("#text", "a slow one")
    page.press("#text", "Enter")
    expect(page.locator(".waiting").first).to_be_visible()
    return held


def test_a_new_query_cancels_the_previous_one(visit):
    page = visit()
    held = ask_and_hold(page)
    type_query(page, "a red ring")
    assert len(held) == 1
    expect(page.locator("#queries button")).to_have_text(["a red ring"])


def test_a_query_that_fails_while_another_is_searched_leads_to_the_start(visit):
    page = visit()
    ask_and_hold(page)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"})
    expect(page.locator("#notice-text")).to_have_text(re.compile("^notes.txt"))
    expect(page.locator("#answer")).to_be_hidden()
    expect(page.locator("#library")).to_be_visible()


def test_the_title_leads_to_the_start(visit):
    page = visit()
    type_query(page, "a red ring")
    page.click("#home")
    expect(page.locator("#answer")).to_be_hidden()
    page.go_back()
    expect(page.locator("#results .name")).to_have_count(ALL)


def test_a_filter_limits_the_results_and_is_part_of_the_history(visit, corpus):
    page = visit()
    type_query(page, "a red ring")
    unfiltered = names(page)
    wanted = unfiltered[3]
    page.fill("#filter", f"name:{wanted}")
    page.press("#filter", "Enter")
    expect(page.locator("#results .name")).to_have_text([wanted])
    expect(page.locator("#status")).to_have_text(re.compile(f"name:{wanted}"))
    type_query(page, "a blue square")  # the next query keeps it
    expect(page.locator("#results .name")).to_have_text([wanted])
    other = visit(page.url)
    expect(other.locator("#results .name")).to_have_text([wanted])
    expect(other.locator("#filter")).to_have_value(f"name:{wanted}")
    page.go_back()
    page.go_back()
    expect(page.locator("#filter")).to_have_value("")
    expect(page.locator("#results .name")).to_have_text(unfiltered)


def test_a_filter_that_matches_nothing_can_be_cleared(visit):
    page = visit()
    page.fill("#filter", "folder:no such folder image_id:x*")
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    expect(page.locator("#notice-text")).to_have_text(re.compile("folder:no such folder"))
    page.get_by_role("button", name="Clear filter").click()
    expect(page.locator("#results .name")).to_have_count(ALL)
    expect(page.locator("#filter")).to_have_value("")


def test_a_filter_that_cannot_be_read_is_explained(visit):
    page = visit()
    page.fill("#filter", "holiday")
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    expect(page.locator("#notice")).to_have_attribute("data-code", "invalid-filter")
    expect(page.locator("#filter")).to_have_value("holiday")
