"""HEAD, the id of a request, and the access log."""

from __future__ import annotations

import json
import socket

import pytest
from service_tools import running

from saysee.cli import main
from saysee.search.service import records
from saysee.search.service.settings import ServiceSettings


def test_head_is_get_without_a_body(ask):
    client = ask()
    paths = ("/", "/about", "/health", "/docs", "/openapi.json", "/metrics", "/images/1", "/images/1/thumbnail",
             "/page/page.js", "/nowhere", "/images/99")  # fmt: skip
    for path in paths:
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
        if path != "/metrics":  # which differ from one moment to the next
            assert head.headers["content-length"] == str(len(get.content)), path
    assert client.head("/search").status_code == 405
    assert 'method="HEAD",route="/about",status="200"} 1.0' in client.get("/metrics").text


def test_head_sends_no_body_on_the_wire(index):
    with running(index.folder) as service, socket.create_connection(("127.0.0.1", service.port)) as client:
        request = "HEAD /images/1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        client.sendall(request.encode())
        received = b""
        while piece := client.recv(65_536):
            received += piece
        assert received.startswith(b"HTTP/1.1 200")
        assert received.partition(b"\r\n\r\n")[2] == b""


def test_every_answer_has_the_id_of_its_request(ask):
    client = ask()
    for path, status in (("/about", 200), ("/nowhere", 404)):
        answer = client.get(path, headers={"X-Request-ID": "trace-1"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "trace-1")
    assert answer.json()["request_id"] == "trace-1"
    first, second = (client.get("/about", headers={"Host": "evil"}) for _ in range(2))
    assert first.json()["request_id"] == first.headers["x-request-id"] != second.headers["x-request-id"]
    for bad in ("", "a b", "é".encode(), "x" * 129, '"'):
        answer = client.get("/nowhere", headers={"X-Request-ID": bad})
        assert len(answer.json()["request_id"]) == 32


def test_an_internal_error_is_logged_with_its_id(ask, monkeypatch, caplog):
    client = ask()

    def broken():
        raise ValueError("the reason")

    monkeypatch.setattr(client.service, "about", broken)
    answer = client.get("/about", headers={"X-Request-ID": "trace-2"})
    assert (answer.status_code, answer.json()["code"], answer.json()["request_id"]) == (
        500,
        "internal-error",
        "trace-2",
    )
    assert "the reason" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "trace-2" in caplog.text
    assert "the reason" in caplog.text


def test_the_access_log_has_a_line_for_each_request(ask, tmp_path):
    log = tmp_path / "access.jsonl"
    client = ask(access_log=log)
    client.get("/health", headers={"X-Request-ID": "first"})
    client.post("/search", files={"text": (None, "a secret wish")})
    client.get('/nowhere/"%0A{}')
    client.get("/about", headers={"Host": "evil"})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["method"], line["status"]) for line in lines] == [
        ("GET", 200), ("POST", 200), ("GET", 404), ("GET", 403),
    ]  # fmt: skip
    assert lines[0]["request_id"] == "first"
    assert lines[0]["bytes"] == len('{"status":"ok"}')
    assert lines[2]["path"] == '/nowhere/"\n{}'
    assert set(lines[0]) == {"time", "request_id", "client", "method", "path", "status", "bytes", "seconds"}
    assert "secret" not in log.read_text()


def test_the_access_log_is_bounded(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_LOG_BYTES", 5_000)
    log = tmp_path / "access.jsonl"
    client = ask(access_log=log)
    for _ in range(100):
        client.get("/health/" + "x" * 3_000)
    assert sorted(path.name for path in tmp_path.glob("access*")) == ["access.jsonl", "access.jsonl.1"]
    assert max(path.stat().st_size for path in tmp_path.glob("access*")) <= 5_000
    assert json.loads(log.read_text().splitlines()[-1])["status"] == 404


def test_an_access_log_that_cannot_be_written_is_an_error_at_the_start(index, tmp_path, capsys):
    assert ServiceSettings().access_log is None
    place = tmp_path / "nowhere" / "log"
    assert main(["serve", str(index.folder), "--port", "0", "--access-log", str(place)]) == 2
    assert str(place) in capsys.readouterr().err


@pytest.mark.parametrize("headers", [{"Host": "photos.example"}, {"Origin": "https://photos.example"}])
def test_behind_a_proxy_the_token_is_named(ask, headers):
    answer = ask().get("/about", headers=headers)
    assert (answer.status_code, "--token" in answer.json()["detail"]) == (403, True)
