"""The library on the first screen, lists that go on, captions, filters, and a viewer that shows files as they are."""

from __future__ import annotations

import re

import pytest
from page_steps import ALL, PHONE, choose, names, type_query
from playwright.sync_api import expect

LONG = "a very long name of a photo " * 8 + ".png"


def library(page):
    return page.locator("#library-list .tile")


def changed(page, path, change):
    """Changes the items in the service's answers."""

    def answer(route):
        response = route.fetch()
        found = response.json()
        for item in found.get("hits", found.get("items", [])):
            change(item)
        route.fulfill(response=response, json=found)

    page.route(path, answer)


def test_the_first_screen_shows_the_library(visit):
    page = visit()
    expect(library(page)).to_have_count(ALL)
    library(page).nth(3).click()
    expect(page.locator("#viewer-place")).to_have_text(re.compile(f"^4 of {ALL}"))
    expect(page.locator("#player")).to_be_hidden()
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(library(page)).to_have_count(ALL)
    type_query(page, "a red ring")
    expect(page.locator("#library")).to_be_hidden()
    page.click("#home")
    expect(library(page)).to_have_count(ALL)


def test_the_model_says_what_it_was_trained_on(visit):
    expect(visit().locator("#trained-on")).to_have_text(re.compile("drawn scenes .* not photographs"))


def test_lists_go_on_as_the_user_scrolls(visit):
    page = visit()
    asked = []

    def pages_of_six(route):
        asked.append(route.request.url)
        route.continue_(url=re.sub("k=[0-9]+", "k=6", route.request.url))

    page.route("**/items?*", pages_of_six)
    page.reload()
    expect(library(page)).to_have_count(12)  # what the screen shows below the examples, and some more
    page.evaluate("window.scrollTo(0, 1e6)")
    expect(library(page)).to_have_count(ALL)
    expect(page.locator(".more").last).to_be_hidden()  # the last page, which is empty, has arrived
    assert [re.search(r"offset=(\d+)", url)[1] for url in asked] == ["0", "6", "12", "18", "24"]
    texts = page.locator("#library-list .name").all_inner_texts()
    assert len(set(texts)) == ALL
    expect(page.locator(".more").last).to_be_hidden()


def test_filters_limit_the_library_and_are_composed(visit, corpus):
    page = visit()
    expect(library(page)).to_have_count(ALL)
    name = corpus.rows[0].image.rpartition("/")[2]
    page.fill("#filter", f"name:{name}")
    page.press("#filter", "Enter")
    expect(page.locator("#library-list .name")).to_have_text([name])
    page.fill("#from", "2024-06-01")
    page.fill("#folder", "images/*")
    page.press("#folder", "Enter")
    expect(page.locator("#filter")).to_have_value(f"folder:images/* name:{name} taken:2024-06-01..")
    page.get_by_role("button", name="Clear filter").click()
    expect(library(page)).to_have_count(ALL)
    expect(page.locator("#from")).to_have_value("")


def test_date_inputs_leave_filters_that_they_do_not_show(visit):
    page = visit()
    expect(library(page)).to_have_count(ALL)
    page.fill("#filter", "folder:a* folder:*b taken:2024-06-01")
    page.press("#filter", "Enter")
    page.fill("#to", "2024-07-01")
    page.press("#to", "Enter")
    expect(page.locator("#filter")).to_have_value("folder:a* folder:*b taken:2024-06-01 taken:..2024-07-01")


def test_the_start_shows_the_library_within_the_filter_that_is_shown(visit, corpus):
    page = visit()
    name = corpus.rows[0].image.rpartition("/")[2]
    page.fill("#filter", f"name:{name}")
    page.press("#filter", "Enter")
    expect(library(page)).to_have_count(1)
    type_query(page, "a red ring")
    page.go_back()
    expect(page.locator("#filter")).to_have_value("")
    expect(library(page)).to_have_count(ALL)


def test_captions_have_date_place_words_and_copies(visit):
    page = visit()

    def photographed(item):
        item["metadata"] = {"taken": "2024-06-03T23:50:00", "lat": 38.71, "lon": -9.14, "text": "a tram"}
        item["copies"] = 3

    changed(page, "**/search", photographed)
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    first = page.locator("#results .tile").first
    expect(first.locator(".name")).to_have_text("Jun 3, 2024")
    expect(first.locator(".place")).to_have_text("38.71° N, 9.14° W · 3 copies")
    expect(first.locator(".transcript")).to_have_text("a tram")
    first.click()
    expect(page.locator("#viewer-place")).to_have_text(re.compile("Jun 3, 2024 · 38.71° N, 9.14° W$"))
    expect(page.locator("#viewer-metadata")).to_contain_text("cosine")


def test_unknown_words_are_named(visit):
    page = visit()
    type_query(page, "a red coffee")
    expect(page.locator("#notice-text")).to_have_text(re.compile("“coffee”.*ignored"))
    type_query(page, "coffee")
    expect(page.locator("#notice-text")).to_have_text(re.compile("“coffee”.*random"))
    type_query(page, "a red ring")
    expect(page.locator("#notice")).to_be_hidden()


def test_a_text_that_is_cut_is_reported(visit):
    page = visit()
    page.fill("#text", "a red ring " * 40)
    page.press("#text", "Enter")
    expect(page.locator("#notice-text")).to_have_text(re.compile("too long for the model.*red ring"))


def test_a_refused_query_leaves_the_results(visit, corpus):
    page = visit()
    choose(page, corpus, corpus.rows[0])
    found, link = names(page), page.url
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"})
    expect(page.locator("#notice-text")).to_have_text(re.compile("^notes.txt is neither audio"))
    assert (names(page), page.url) == (found, link)
    expect(page.locator("#results img.loaded")).to_have_count(ALL)
    expect(page.locator("#status")).to_have_text(re.compile("best first"))


def test_a_link_says_what_was_said(visit, corpus):
    page = visit()
    choose(page, corpus, corpus.rows[0])
    title = page.inner_text("#answer-title")
    expect(visit(page.url).locator("#answer-title")).to_have_text(title)


def test_a_file_without_a_suffix_is_searched_by_its_content(visit, corpus):
    page = visit()
    row = corpus.rows[5]
    content = corpus.image(row).read_bytes()
    page.set_input_files("#file", {"name": "IMG", "mimeType": "", "buffer": content})
    expect(page.locator("#results .name").first).to_have_text(row.image.rpartition("/")[2])
    expect(page.locator("#query-image")).to_be_visible()
    page.set_input_files("#file", {"name": "REC", "mimeType": "", "buffer": corpus.clip(row).read_bytes()})
    expect(page.locator("#hear")).to_be_visible()


# ---------------------------------------------------------------------- the viewer


def opened(page):
    page.locator("#results .tile").first.click()
    expect(page.locator("#viewer")).to_be_visible()


@pytest.mark.parametrize("size", [None, PHONE])
def test_a_long_name_leaves_the_buttons_alone(visit, size):
    page = visit(**({"viewport": size} if size else {}))
    changed(page, "**/search", lambda item: item.update(name=LONG))
    page.fill("#text", "a red ring")
    page.press("#text", "Enter")
    opened(page)
    expect(page.locator("#viewer-name")).to_have_text(LONG)
    for button in ("#viewer-close", "#viewer-zoom"):
        box = page.locator(button).bounding_box()
        assert (box["width"], box["height"]) == (44, 44)
        assert box["x"] + box["width"] <= page.viewport_size["width"]
    page.click("#viewer-close")
    expect(page.locator("#viewer")).to_be_hidden()


def test_the_thumbnail_is_shown_before_the_file_arrives(visit):
    page = visit()
    type_query(page, "a red ring")
    held = []
    page.route(re.compile(r"/images/\d+(/preview)?$"), lambda route: held.append(route))
    opened(page)
    page.wait_for_function("document.getElementById('viewer-image').naturalWidth > 0")
    assert len(held) == 1
    small = page.evaluate("document.getElementById('viewer-image').src")
    held[0].continue_()
    page.wait_for_function("(before) => document.getElementById('viewer-image').src !== before", arg=small)


def test_zooming_and_moving(visit):
    page = visit()
    type_query(page, "a red ring")
    opened(page)
    scale = "new DOMMatrix(getComputedStyle(document.getElementById('layer')).transform)"
    page.keyboard.press("+")
    assert page.evaluate(f"{scale}.a") == 2
    page.keyboard.press("ArrowRight")  # moves, and does not go to the next
    expect(page.locator("#viewer-place")).to_have_text(re.compile("^1 of"))
    assert page.evaluate(f"{scale}.e") < 0
    page.keyboard.press("0")
    assert page.evaluate(f"{scale}.a") == 1
    page.locator("#layer").dblclick()
    assert page.evaluate(f"{scale}.a") == 2
    page.get_by_role("button", name="Show the whole image").click()
    page.locator("#layer").hover()
    page.mouse.wheel(0, -400)
    page.wait_for_function(f"{scale}.a > 2")
    page.click("#viewer-forward")
    assert page.evaluate(f"{scale}.a") == 1


def test_the_file_is_downloaded_under_its_name(visit, corpus):
    page = visit()
    type_query(page, "a red ring")
    name = names(page)[0]
    opened(page)
    with page.expect_download() as started:
        page.click("#download")
    assert started.value.suggested_filename == name
    row = next(row for row in corpus.rows if row.image.endswith(name))
    assert started.value.path().read_bytes() == corpus.image(row).read_bytes()
