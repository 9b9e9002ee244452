"""``saysee serve`` as a process, from start to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from service_tools import multipart, running, wait_until

from saysee.cli import main
from saysee_process import start_saysee

TOKEN = "0123456789abcdef0123"


def test_from_start_to_sigterm(index, photos):
    with running(index.folder, "--write") as service, service.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/").status_code == 200
        audio = (photos / "clips/0.wav").read_bytes()
        answer = client.post("/search", files={"audio": ("x", audio)}).json()
        expected = index.search(speech=[audio], k=12)[0]
        assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected]
        assert client.delete(f"/items/{answer['hits'][0]['id']}").status_code == 204
        # SIGTERM finishes what is running: here a request whose body has only half arrived.
        head, body = multipart(service.port, {"text": b"two green stars"})
        with socket.create_connection(("127.0.0.1", service.port)) as slow:
            slow.sendall(head + body[:-9])
            while "saysee_places_taken 1.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            client.close()
            with ThreadPoolExecutor(1) as threads:
                end = threads.submit(service.end, signal.SIGTERM)
                with pytest.raises(OSError):  # noqa: PT012
                    while True:  # it takes no more
                        socket.create_connection(("127.0.0.1", service.port)).close()
                        time.sleep(0.01)
                assert not end.done()
                slow.sendall(body[-9:])
                received = b""
                while piece := slow.recv(65_536):
                    received += piece
                assert end.result() == (0, "")
        assert received.startswith(b"HTTP/1.1 200")
        assert len(json.loads(received.partition(b"\r\n\r\n")[2])["hits"]) == 5


def test_a_token_of_the_environment_and_ctrl_c(index, monkeypatch):
    monkeypatch.setenv("SAYSEE_TOKEN", TOKEN)
    with running(index.folder, "--host", "0.0.0.0") as service:
        address = f"http://127.0.0.1:{service.port}"
        with service.client() as client:
            assert client.get(f"{address}/about").status_code == 401
            sent = {"Authorization": f"Bearer {TOKEN}", "Host": "images.example"}
            assert client.get(f"{address}/about", headers=sent).json()["images"] == 6
        code, errors = service.end(signal.SIGINT)
    assert (code, errors.count("\n")) == (130, 1)


def test_the_port_answers_only_when_the_model_is_there(index, tmp_path):
    """The port is bound at once, accepts nothing until the model is loaded, and is printed when it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start_saysee("serve", index.folder, "--port", port)
    try:
        answered = None
        while answered is None and process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", port)) as client:
                    multipart_head, body = multipart(port, {"text": b"a"})
                    client.sendall(multipart_head + body)
                    answered = client.recv(100)
            except ConnectionRefusedError:
                time.sleep(0.01)
        assert answered is not None, process.stderr.read()
        assert answered.startswith(b"HTTP/1.1 200")
        assert process.stdout.readline() == f"{index.folder}: served at http://127.0.0.1:{port}/\n"
    finally:
        process.kill()
        process.communicate()


def test_an_error_at_the_start_is_one_line(index, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SAYSEE_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, why in (
            ((tmp_path / "nowhere",), "nowhere"),
            ((index.folder, "--host", "0.0.0.0"), "--token"),
            ((index.folder, "--token", "short"), "16"),
            ((index.folder, "--port", port), str(port)),
            ((index.folder, "--host", "no.such.host.invalid", "--token", TOKEN), "no.such.host.invalid"),
            ((index.folder, "--uploads", tmp_path), "--write"),
            ((index.folder, "--max-k", 0), "--max-k is 0"),
            ((index.folder, "--model", tmp_path / "nowhere", "--port", 0), "nowhere"),
        ):
            code = main(["serve", *map(str, words)])
            output, errors = capsys.readouterr()
            assert (code, output, errors.count("\n")) == (2, "", 1), (words, errors)
            assert why in errors


def test_a_missing_extra_is_named(index, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for module in ("app", "connections"):
        monkeypatch.delitem(sys.modules, f"saysee.search.service.{module}")
    assert main(["serve", str(index.folder)]) == 2
    assert "pip install 'saysee[serve]'" in capsys.readouterr().err


IN_A_TERMINAL = """import os, sys
for number in (0, 1):
    os.dup2(os.open(sys.argv[1], os.O_RDWR), number)
sys.stdin, sys.stdout = open(0), open(1, "w")
from saysee.cli import main
sys.exit(main(sys.argv[2:]))"""


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of its own needs a pty")
@pytest.mark.parametrize(
    ("display", "words", "opened"),
    [(":9", (), True), (None, (), False), (":9", ("--json",), False), (":9", ("--token", TOKEN), False)],
)
def test_the_page_is_opened_for_a_person_at_a_desktop(index, tmp_path, monkeypatch, display, words, opened):
    import pty

    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}.new && mv {seen}.new {seen}\n')
    browser.chmod(0o755)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    desktop = {"DISPLAY": display} if display else {}
    terminal, inner = pty.openpty()
    words = (os.ttyname(inner), "serve", index.folder, "--port", "0", *words)
    process = start_saysee(*words, program=IN_A_TERMINAL, BROWSER=str(browser), **desktop)
    try:
        line = os.read(terminal, 4096).decode()
        if opened:
            wait_until(seen.exists)
            assert f"served at {seen.read_text().strip()}" in line
        else:
            time.sleep(0.5)  # a browser that is opened writes long before
            assert not seen.exists()
    finally:
        process.kill()
        process.communicate()
        os.close(inner)
        os.close(terminal)
