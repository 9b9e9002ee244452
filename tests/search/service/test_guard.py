"""Who may send requests: with a token whoever sends it, without one this machine's user and no web page."""

from __future__ import annotations

import pytest

from saysee import SaySeeError
from saysee.search.service.app import PAGE
from saysee.search.service.settings import Limits, ServiceSettings, is_loopback

TOKEN = "a token of enough signs".replace(" ", "-")


def test_a_page_of_another_site_is_rejected(ask):
    client = ask()
    for headers, code in (
        ({"Host": "evil.example"}, "other-host"),
        ({"Host": "evil.example:8765"}, "other-host"),
        ({"Host": "127.0.0.1.evil.example"}, "other-host"),
        ({"Host": ""}, "other-host"),
        ({"Origin": "https://evil.example"}, "other-site"),
        ({"Origin": "http://127.0.0.1:9999"}, "other-site"),
        ({"Origin": "null"}, "other-site"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "other-site"),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, "other-site"),
    ):
        for answer in (
            client.get("/images/1", headers=headers),
            client.get("/about", headers=headers),
            client.post("/search", files={"text": (None, "a")}, headers=headers),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, code), headers
    form = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.post("/search", files={"text": (None, "a")}, headers=form).status_code == 403


def test_the_services_own_page_and_scripts_are_accepted(ask):
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


def test_a_token_is_required_and_sufficient(ask):
    client = ask(token=TOKEN, write=True)
    for path in ("/about", "/images/1", "/images/1/thumbnail", "/clips/1", "/metrics", "/nowhere", "/page"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert answer.json()["code"] == "token-required"
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


def test_every_answer_has_security_headers(ask):
    client = ask()
    for path in ("/", "/about", "/images/1", "/nowhere", "/docs", "/metrics"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert ("unsafe" in headers["content-security-policy"]) == (path == "/docs")
    assert client.get("/about", headers={"Host": "evil"}).headers["x-content-type-options"] == "nosniff"


def test_the_page_is_served_unchanged(ask):
    client = ask(token=TOKEN)
    page = client.get("/")
    assert (page.headers["content-type"], page.content) == (
        "text/html; charset=utf-8",
        (PAGE / "index.html").read_bytes(),
    )
    for path in PAGE.iterdir():
        answer = client.get(f"/page/{path.name}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes()), path.name


def test_loopback_addresses():
    here = ("127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]")
    assert all(map(is_loopback, here))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "", "localhost.example.org")))


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 .*--token"),
        ({"host": "my-host"}, "--token"),
        ({"token": "short"}, "--token .* 16"),
        ({"token": "ünïcödé-ünïcödé-ünïcödé"}, "--token .* ASCII"),
        ({"port": 70_000}, "--port is 70000"),
        ({"uploads": "a"}, "--uploads .*--write"),
        ({"places": 0}, "--queue 0"),
        ({"wait_ms": 5_000}, "--wait 5000"),
    ],
)
def test_bad_settings_are_rejected_before_the_start(settings, pattern):
    with pytest.raises(SaySeeError, match=pattern):
        ServiceSettings(**settings)
    with pytest.raises(SaySeeError, match="--max-seconds is -1"):
        Limits(seconds=-1)
    assert TOKEN not in repr(ServiceSettings(token=TOKEN))
