"""What people see of results: the sheet in a browser, and pictures in terminals that can show them."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import webbrowser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from PIL import Image

from media_files import clip, picture
from saysee import Index, SaySeeError
from saysee.cli import main
from saysee.media.audio import load_audio
from saysee.search.index.index import Hit
from saysee.search.index.updating import update_index
from saysee.search.terminal.queries import QueryResult, SearchResults, run_queries
from saysee.search.terminal.sheet import write_sheet
from saysee.search.terminal.thumbnails import protocol_of, show_hits

ODD = '<b onload="x()">&amp; \'%41\nكلب 🐈‍⬛.png'


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [values[attribute] for name, values in self.tags if name == tag and attribute in values]


def content(url: str) -> bytes:
    return base64.b64decode(url.split(",", 1)[1])


@pytest.fixture
def index(encoder, photos, tmp_path) -> Index:
    picture(photos / ODD, 9)
    update_index(encoder, photos, tmp_path / "index")
    return Index.open(tmp_path / "index", model=encoder.model)


def test_sheet_shows_and_plays_everything_and_needs_nothing_beside_it(index, photos, tmp_path):
    recording = load_audio(photos / "clips/2.wav")
    results = run_queries(index, [str(photos / "clips/0.wav")], ["two green stars"], recording, k=7)
    results.results += run_queries(index, [str(photos / "work/4.png")], kind="clip").results
    page = Page(write_sheet(results, tmp_path / "sheet.html"))
    pictures, sounds = page.all("img", "src"), page.all("audio", "src")
    # A recording, a clip and a text find seven pictures each, and the picture, itself shown, finds three clips.
    assert (len(pictures), len(sounds)) == (3 * 7 + 1, 2 + 3)
    assert all(url.startswith(("data:image/jpeg;base64,", "data:audio/mpeg;base64,")) for url in pictures + sounds)
    assert Image.open(io.BytesIO(content(pictures[0]))).size == (40, 40)
    assert len(load_audio(content(sounds[0]))) == pytest.approx(len(recording), abs=2_000)  # MP3 has whole frames
    assert "two green stars" in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"b", "script", "link", "iframe"})
    links = [Path(url2pathname(urlsplit(link).path)) for link in page.all("a", "href")]
    assert photos / ODD in links
    assert all(link.is_file() for link in links)
    assert ODD in page.all("img", "alt")
    assert ODD in page.text


def test_sheet_tells_what_it_cannot_show(tmp_path):
    hits = [
        Hit(1, "image", str(tmp_path / "gone.png"), 0.5, {}),
        Hit(2, "image", "https://example.org/a.jpg", 0.4, {}),
        Hit(3, "image", "javascript://example.org/%0aalert(1)", 0.3, {}),
    ]
    queries = [QueryResult("a", "text", hits), QueryResult("/no text \udcff.jpg", "text", [])]
    results = SearchResults(queries, ["<i>.wav: is silent"])
    page = Page(write_sheet(results, tmp_path / "sheet.html"))
    assert page.text.count("cannot be shown here") == 3
    assert page.all("a", "href") == [(tmp_path / "gone.png").as_uri(), "https://example.org/a.jpg"]
    assert "javascript://example.org" in page.text
    assert "<i>.wav: is silent" in page.text
    page = Page(write_sheet(SearchResults([QueryResult("a", "text", [])] * 203), tmp_path / "sheet.html"))
    assert "3 more queries" in page.text
    with pytest.raises(SaySeeError, match=r"cannot be written .*--sheet"):
        write_sheet(results, tmp_path / "nowhere/sheet.html")


def test_command_writes_a_sheet_and_opens_it(index, encoder, photos, tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or len(opened) == 1)
    words = ["search", str(index.folder), str(photos / "clips/0.wav")]
    assert main([*words, "--sheet", str(tmp_path / "out put.html")]) == 0
    assert f"sheet: {tmp_path / 'out put.html'}" in capsys.readouterr().out
    assert opened == []
    assert main([*words, "--open", "--json"]) == 0
    sheet = Path(json.loads(capsys.readouterr().out)["sheet"])
    assert opened == [sheet.as_uri()]
    assert len(Page(sheet).all("img", "src")) == 7
    assert main([*words, "--open"]) == 0
    assert "no browser can be opened here" in capsys.readouterr().err


# ---------------------------------------------------------------------- terminals


class Terminal(io.StringIO):
    def __init__(self, is_terminal: bool = True) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1", "TMUX": "/tmp/tmux"}, None),
        ({}, None),
    ],
)
def test_terminal_is_known_by_its_environment(environment, protocol):
    assert protocol_of(Terminal(), environment) == protocol
    assert protocol_of(Terminal(is_terminal=False), environment) is None


@pytest.mark.parametrize(
    ("protocol", "sequence"),
    [("kitty", r"\x1b_G(?:[^;]*);([^\x1b]*)\x1b\\"), ("iterm", r"\x1b\]1337;File=[^:]*:([^\a]*)\a")],
)
def test_pictures_stand_in_rows_as_wide_as_the_terminal(tmp_path, protocol, sequence):
    for number in range(5):
        picture(tmp_path / f"{number}.png", number)
    clip(tmp_path / "a.wav", 0)
    hits = [Hit(n, "image", str(tmp_path / f"{n}.png"), 0.5, {}) for n in range(5)]
    hits[1] = Hit(1, "image", str(tmp_path / "gone.png"), 0.5, {})
    terminal = Terminal()
    show_hits(hits, protocol, 70, terminal)
    rows = terminal.getvalue().split("\n")
    assert len(rows) == 3
    sizes = []
    for row in rows[:2]:
        assert re.sub(sequence, "", row) == ""  # nothing that the terminal would print
        sizes.append(Image.open(io.BytesIO(base64.b64decode("".join(re.findall(sequence, row))))).size)
    assert sizes == [(4 * 168, 168), (168, 168)]
    terminal = Terminal()
    show_hits([Hit(1, "clip", str(tmp_path / "a.wav"), 0.5, {})], protocol, 70, terminal)
    assert terminal.getvalue() == ""


def test_command_shows_pictures_in_such_a_terminal_only(index, photos, monkeypatch, capsys):
    words = ["search", str(index.folder), str(photos / "clips/0.wav")]
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.delenv("STY", raising=False)
    assert main(words) == 0
    assert "\x1b_G" not in capsys.readouterr().out
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    assert main(words) == 0
    assert "\x1b_G" in capsys.readouterr().out
    assert main([*words, "--no-thumbnails"]) == 0
    assert "\x1b_G" not in capsys.readouterr().out
