"""A service with a recognizer: the page shows what was heard in its text field, where it can be corrected."""

from __future__ import annotations

import json
import re

import numpy as np
import soundfile
from page_steps import names
from playwright.sync_api import expect

from saysee.studies.other_queries import VOICES

SAID = json.loads((VOICES / "clips.json").read_text())[3]["file"]  # "here is a brown shape below a small …"


def test_what_was_heard_can_be_corrected_and_searched_for(visit, transcribing):
    page = visit(transcribing)
    page.set_input_files("#file", VOICES / SAID)
    expect(page.locator("#text")).to_have_value(re.compile("brown shape"))
    expect(page.locator("#answer-title")).to_have_text(re.compile("brown shape"))
    expect(page.locator("#status")).to_have_text(re.compile("Heard “.*brown shape.*best first"))
    found = names(page)
    page.fill("#text", "a large green house")
    page.press("#text", "Enter")
    expect(page.locator("#answer-title")).to_have_text("“a large green house”")
    assert names(page) != found


def test_a_recording_without_words_is_named(visit, transcribing, tmp_path):
    soundfile.write(tmp_path / "hum.wav", 0.1 * np.sin(np.arange(48_000) / 50), 16_000)
    page = visit(transcribing)
    page.set_input_files("#file", tmp_path / "hum.wav")
    expect(page.locator("#notice-text")).to_have_text(re.compile("No words were recognized in hum.wav"))
    page = visit(transcribing, microphone=True, hears=tmp_path / "hum.wav")
    page.click("#microphone")
    page.wait_for_timeout(2_000)
    page.click("#microphone")
    expect(page.locator("#notice-text")).to_have_text(
        re.compile("No words were recognized from the microphone “.+”.*closer")
    )


def test_the_way_of_speech_is_chosen_and_a_fused_score_is_no_similarity(visit, transcribing):
    page = visit(transcribing)
    expect(page.get_by_label("Search speech by")).to_have_value("transcribed")
    page.set_input_files("#file", VOICES / SAID)
    expect(page.locator("#status")).to_have_text(re.compile("By the words"))
    by_words = names(page)
    page.get_by_label("Search speech by").select_option("direct")
    expect(page.locator("#status")).to_have_text(re.compile("By the sound"))
    expect(page.locator("#status")).not_to_have_text(re.compile("Heard"))
    expect(page.locator("#text")).to_have_value("")
    assert names(page) != by_words
    page.get_by_label("Search speech by").select_option("both")
    expect(page.locator("#status")).to_have_text(re.compile("Heard “.*brown shape.*By words and sound"))
    expect(page.locator("#text")).to_have_value(re.compile("brown shape"))
    page.locator("#results button").first.click()
    page.locator("#viewer-more summary").click()
    expect(page.locator("#viewer-metadata")).to_contain_text("rank score")
    expect(page.locator("#viewer-metadata")).not_to_contain_text("cosine")


def test_no_way_is_chosen_where_there_is_one(visit):
    page = visit()
    expect(page.get_by_label("Search speech by")).to_be_hidden()
