"""Who may ask: with a token whoever shows it, without one this machine's user and no page of the web."""

from __future__ import annotations

import pytest

from saysee import SaySeeError
from saysee.search.service.app import PAGE
from saysee.search.service.settings import Limits, ServiceSettings, is_loopback

TOKEN = "a token of enough signs".replace(" ", "-")


def test_a_page_of_the_web_cannot_ask(ask):
    client = ask()
    for headers, why in (
        ({"Host": "evil.example"}, "on this machine only"),
        ({"Host": "evil.example:8765"}, "on this machine only"),
        ({"Host": "127.0.0.1.evil.example"}, "on this machine only"),
        ({"Host": ""}, "on this machine only"),
        ({"Origin": "https://evil.example"}, "another site"),
        ({"Origin": "http://127.0.0.1:9999"}, "another site"),
        ({"Origin": "null"}, "another site"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "another site"),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, "another site"),
    ):
        for answer in (
            client.get("/images/1", headers=headers),
            client.get("/about", headers=headers),
            client.post("/search", files={"text": (None, "a")}, headers=headers),
        ):
            assert (answer.status_code, why in answer.json()["detail"]) == (403, True), headers
    form = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.post("/search", files={"text": (None, "a")}, headers=form).status_code == 403


def test_the_services_own_page_and_scripts_can_ask(ask):
    client = ask()
    for headers in (
        {},
        {"Host": "localhost:8765"},
        {"Host": "[::1]:8765"},
        {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    ):
        assert client.get("/about", headers=headers).status_code == 200, headers
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/health", headers=link).status_code == 200


def test_with_a_token_whoever_shows_it_may_ask(ask):
    client = ask(token=TOKEN, write=True)
    for path in ("/about", "/images/1", "/images/1/thumbnail", "/clips/1", "/metrics", "/nowhere", "/page"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert "token" in answer.json()["detail"]
    assert client.post("/search", files={"text": (None, "a")}).status_code == 401
    assert client.delete("/items/1").status_code == 401
    for wrong in (
        "",
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        b"Bearer \xff\xfe",
    ):
        assert client.get("/about", headers={"Authorization": wrong}).status_code == 401, wrong
    for path in ("/health", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200, path
    right = {"Authorization": f"Bearer {TOKEN}", "Host": "pictures.example", "Origin": "https://pictures.example"}
    assert client.get("/about", headers=right).status_code == 200
    assert client.post("/search", files={"text": (None, "a")}, headers=right).status_code == 200


def test_every_answer_carries_its_headers_of_safety(ask):
    client = ask()
    for path in ("/", "/about", "/images/1", "/nowhere", "/docs", "/metrics"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert ("unsafe" in headers["content-security-policy"]) == (path == "/docs")
    assert client.get("/about", headers={"Host": "evil"}).headers["x-content-type-options"] == "nosniff"


def test_the_page_is_served_as_it_lies(ask):
    client = ask(token=TOKEN)
    page = client.get("/")
    assert (page.headers["content-type"], page.content) == (
        "text/html; charset=utf-8",
        (PAGE / "index.html").read_bytes(),
    )
    for path in PAGE.iterdir():
        answer = client.get(f"/page/{path.name}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes()), path.name


def test_which_addresses_are_this_machine():
    here = ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]")
    assert all(map(is_loopback, here))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "", "localhost.example.org")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 lets other machines in; give --token"),
        ({"host": "my-host"}, "give --token"),
        ({"token": "short"}, "--token needs 16"),
        ({"token": "ünïcödé-ünïcödé-ünïcödé"}, "of ASCII"),
        ({"port": 70_000}, "--port is 70000"),
        ({"uploads": "a"}, "allow adding with --write"),
        ({"places": 0}, "--queue 0"),
        ({"wait_ms": 5_000}, "--wait 5000"),
    ],
)
def test_what_does_not_go_together_is_refused_before_it_starts(settings, words):
    with pytest.raises(SaySeeError, match=words):
        ServiceSettings(**settings)
    with pytest.raises(SaySeeError, match="--max-seconds is -1"):
        Limits(seconds=-1)
    assert TOKEN not in repr(ServiceSettings(token=TOKEN))
